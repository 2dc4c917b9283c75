"""What would stop a stage, or is likely meant otherwise, found in parameters before any stage runs.

`dashfusion use` and `dashfusion doctor` share these checks. They are quick: tables and headers of models are read,
installed weights are hashed, and nothing is decoded or downloaded.
"""

from __future__ import annotations

import inspect
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from corpora.languages import other_language
from corpora.manifest import MODALITIES, SPLITS, Clip, by_split, validate
from corpora.problems import Problem
from corpora.readers.raw import MediaFiles, locate_media, read_rows
from corpora.splits import draw_splits
from extractors import registry
from extractors.huggingface import ModelNotFoundError, downloads
from extractors.transcripts.forced_alignment import CtcAligner
from extractors.transcripts.tiny_whisper import TINY, create_recogniser
from flows.config.encoder import encoder_error, why_missing
from flows.config.outputs import output_errors
from flows.config.params import IMPORTED_LAYOUTS, ExtractorParams, Params

MAX_IDS = 3
"""Clip ids that a message names; the others are counted."""

MAX_MEDIA = 500
"""Clips whose media files are looked for, evenly spaced, since a network disk answers slowly."""

LANGUAGE_OF_MODEL = {"minilm": "en", "bert-base-uncased": "en", "bert-base-cased": "en", "bert-base-chinese": "zh"}
"""Text models by name that know one language only."""

PACKAGES = {
    "demo": ("espeakng_loader", "demo"),
    "zh": ("rjieba", "zh"),
    "csd": ("h5py", "words"),
    "dask": ("prefect_dask", "dask"),
    "ray": ("prefect_ray", "ray"),
}
"""Layout, language or runner -> package that it imports, and the extra of this project that installs it."""


NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""Kinds of the parameters that are an extractor's options."""


@dataclass(frozen=True)
class Finding:
    """Something that a check found.

    Attributes:
        message: Key, what was found, what to do.
        error: Whether it would stop a stage; otherwise it may be meant.
    """

    message: str
    error: bool = True


def check_project(params: Params) -> list[Finding]:
    """Return everything that the checks find, errors first."""
    checks: tuple[Callable[[Params], Iterator[Finding]], ...] = (
        _check_outputs,
        _check_packages,
        _check_extractors,
        _check_transcription,
        _check_corpus,
        _check_other_dataset,
    )
    findings = [finding for check in checks for finding in check(params)]
    return sorted(findings, key=lambda finding: not finding.error)


def require_usable(params: Params, before: Params | None = None) -> list[str]:
    """Check parameters that are about to replace others, and return the warnings.

    Args:
        params: The new parameters.
        before: Those that they replace, if these are valid. Errors that these have as well are returned as warnings:
            a change need not repair everything at once.

    Raises:
        ValueError: An error that the change brings about; the message lists all of them.
    """
    findings = check_project(params)
    if before is not None and any(finding.error for finding in findings):
        known = {finding.message for finding in check_project(before)}
        findings = [Finding(item.message, item.error and item.message not in known) for item in findings]
    errors = [finding.message for finding in findings if finding.error]
    if errors:
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise ValueError(f"not changed, because of {count}:\n  " + "\n  ".join(errors))
    return [finding.message for finding in findings]


def _check_outputs(params: Params) -> Iterator[Finding]:
    yield from map(Finding, output_errors(params))
    for key, path in vars(params.paths).items():
        existing = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        if existing != path and not existing.is_dir():
            yield Finding(f"paths.{key}: {path} cannot be created, because {existing} is a file; choose another path")
        elif not os.access(existing, os.W_OK):
            yield Finding(f"paths.{key}: {path} cannot be written, because {existing} is read-only for this user; "
                          "choose another path, or change its permissions")  # fmt: skip


def _check_other_dataset(params: Params) -> Iterator[Finding]:
    other = params.other_dataset
    if other is not None and not (other / "dataset.json").is_file():
        yield Finding(
            f"evaluate.also_on: {other} holds no dataset.json; name the folder that another project's align stage "
            f"wrote, such as ../mosi/data/dataset, or {params.paths.dataset} for no other corpus"
        )


def _check_packages(params: Params) -> Iterator[Finding]:
    chosen = {
        "prepare.layout": params.prepare.layout,
        "prepare.language": params.prepare.language,
        "extract.runner": params.extract.runner,
    }
    for key, value in chosen.items():
        package, extra = PACKAGES.get(value, ("", ""))
        if package and find_spec(package) is None:
            yield Finding(f"{key}: {value} needs the package {package}; pip install -e '.[{extra}]'")


def _check_extractors(params: Params) -> Iterator[Finding]:
    error = encoder_error(params)
    if error:
        yield Finding(error)
    if params.prepare.layout in IMPORTED_LAYOUTS:
        return  # the features come with the corpus
    for modality in MODALITIES:
        if error and modality == "text" and not params.model.text.encoder:
            continue  # the encoder is that of the features
        chosen: ExtractorParams = getattr(params.extract, modality)
        if reason := _extractor_error(modality, chosen):
            yield Finding(f"extract.{modality}: {reason}")
    model = params.extract.text.options.get("model", "minilm")
    known = LANGUAGE_OF_MODEL.get(str(model).rpartition("/")[2])
    if params.extract.text.extractor == "text.transformer" and known not in (None, params.prepare.language):
        yield Finding(
            f"extract.text.options.model: {model} knows the language {known} only, and prepare.language is "
            f"{params.prepare.language}; choose text=characters, or a model of that language or of several",
            error=False,
        )


def _extractor_error(modality: str, chosen: ExtractorParams) -> str:
    """Return why an extractor cannot be built; empty if it can."""
    try:
        factory = registry.find(chosen.extractor)
        extracted = getattr(factory, "modality", modality)
        if extracted != modality:
            return f"{chosen.extractor} extracts {extracted}; choose an extractor of {modality}"
        options = inspect.signature(factory).parameters
        unknown = [name for name in chosen.options if name not in options]
        if unknown and not any(option.kind is option.VAR_KEYWORD for option in options.values()):
            known = f"it has {', '.join(options)}" if options else "it has none"
            return (
                f"{chosen.extractor} has no option {', '.join(unknown)}; {known}. Remove it with "
                f"'~extract.{modality}.options.{unknown[0]}', or all of them with '~extract.{modality}.options'"
            )
        required = [name for name, option in options.items() if option.default is option.empty and option.kind in NAMED]
        if missing := [name for name in required if name not in chosen.options]:
            return f"{chosen.extractor} needs the option {missing[0]}: '+extract.{modality}.options.{missing[0]}=...'"
        with downloads(False):
            factory(**chosen.options)
    except ModelNotFoundError:
        model = str(chosen.options.get("model"))
        reason = why_missing(model)  # it is downloaded when a stage needs it
        return f"model {model!r} {reason}; give the path of a folder, as `save_pretrained` writes it" if reason else ""
    except Exception as error:  # the extractor may be another package's
        return str(error) if isinstance(error, ValueError) else f"{chosen.extractor}: {error!r}"
    return ""


def _check_transcription(params: Params) -> Iterator[Finding]:
    config = params.transcribe
    if config.model == TINY and params.prepare.language != "en":
        yield Finding(f"transcribe.model: {TINY} knows English only, and prepare.language is "
                      f"{params.prepare.language}; name another Whisper, by its folder or id")  # fmt: skip
    for key, model, build in (("model", config.model, create_recogniser), ("aligner", config.aligner, CtcAligner)):
        if model is None:
            continue
        try:
            with downloads(False):
                build(model)
        except ModelNotFoundError:
            if reason := why_missing(model):
                yield Finding(f"transcribe.{key}: {model!r} {reason}; give the path of a folder")
        except (ValueError, OSError, ImportError) as error:
            yield Finding(f"transcribe.{key}: {error}")
    for key in ("word_times", "segments"):
        path = getattr(config, key)
        if path is not None and not Path(path).expanduser().exists():
            yield Finding(
                f"transcribe.{key}: {path} is not there; give the path of an existing file or folder, or null"
            )


def _check_corpus(params: Params) -> Iterator[Finding]:
    language = params.prepare.language
    if not (len(language) == 2 and language.isascii() and language.islower()):
        yield Finding(f"prepare.language: {language!r} is not an ISO 639-1 code such as en or zh", error=False)
    if params.prepare.layout == "demo":
        return  # the corpus is generated
    root = Path(params.prepare.root)
    if params.prepare.layout in IMPORTED_LAYOUTS:
        if not root.expanduser().exists():
            yield Finding(f"prepare.root: {root} is not there; give the path of the corpus's file or folder")
        return
    if not root.is_dir():
        found = "is a file, not a folder" if root.exists() else "is not there"
        hint = f" (~ is not expanded here: {root.expanduser()})" if str(root).startswith("~") else ""
        yield Finding(f"prepare.root: {root} {found}{hint}; give the folder of the corpus")
        return
    config = params.prepare
    try:
        located, problems = read_rows(
            root, language, config.raw_layout, config.raw_columns, config.encoding, config.split is None, config.table
        )
        clips, invalid = validate(located, config.label_range)
        clips = clips if config.split is None else draw_splits(clips, config.split)
    except (ValueError, OSError) as error:
        yield Finding(f"prepare.root: {error}")
        return
    yield from _check_rows(params, clips, [*problems, *invalid])
    if clips:
        yield from _check_media(params, root, clips)
        yield from _check_labels(params, clips)
        yield from _check_language(language, clips)
        if not any(clip.text for clip in clips) and params.transcribe.model is None:
            yield Finding("prepare: no row has a text; choose a recogniser as transcribe.model, such as tiny "
                          "(English), or train without text", error=False)  # fmt: skip


def _check_rows(params: Params, clips: Sequence[Clip], problems: Sequence[Problem]) -> Iterator[Finding]:
    """Yield one finding for each kind of problem in the table; an error if it takes too many rows."""
    rows, limit = len(clips) + len(problems), params.extract.max_failed_fraction
    kinds: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[problem.error].append(problem)
    for kind, found in kinds.items():
        share = len(found) / rows
        way = "correct them" if share <= limit else "correct them, or raise extract.max_failed_fraction"
        if kind == "LabelOutOfRange":
            way = f"set prepare.label_range if the scale is another one, {way}"
        yield Finding(
            f"prepare.root: {len(found)} of {rows} rows cannot be used ({kind}: {_some([p.clip_id for p in found])}), "
            f"the first because of {found[0].message}. To do: {way}",
            error=share > limit,
        )


def _check_media(params: Params, root: Path, clips: Sequence[Clip]) -> Iterator[Finding]:
    sample = clips[:: -(-len(clips) // MAX_MEDIA)]
    missing = [clip.clip_id for clip in sample if not locate_media(clip, root, None)]
    if missing and params.prepare.raw_layout == "folder":
        files = MediaFiles(root)  # the table may leave out folders
        missing = [clip.clip_id for clip in sample if not locate_media(clip, root, files)]
    if missing:
        looked = "clips" if len(sample) == len(clips) else f"clips that were looked for, of {len(clips)},"
        yield Finding(
            f"prepare.root: {len(missing)} of {len(sample)} {looked} have no media file ({_some(missing)}); give the "
            "folder that the paths start from, or copy the files there",
            error=len(missing) > params.extract.max_failed_fraction * len(sample),
        )


def _check_labels(params: Params, clips: Sequence[Clip]) -> Iterator[Finding]:
    labels = [abs(clip.label) for clip in clips if clip.label is not None]
    if not labels:
        yield Finding("prepare: no row has a label, so that features can be extracted, but nothing can be trained or "
                      "evaluated; name the column of labels as prepare.columns.label", error=False)  # fmt: skip
        return
    counts = {name: sum(clip.label is not None for clip in split) for name, split in by_split(clips).items()}
    for split in sorted({"train", "valid", params.evaluate.split}, key=SPLITS.index):
        if not counts[split]:
            found = "no clip with a label" if any(clip.split == split for clip in clips) else "no clip"
            yield Finding(
                f"prepare: the split {split} has {found} (clips with a label: "
                f"{', '.join(f'{name} {count}' for name, count in counts.items())}); the stages train and evaluate "
                "need some in each: correct the table's column mode, or draw splits of a folder with prepare.split"
            )
    limit = params.prepare.label_range[1]
    if limit == 3 and max(labels) <= 1 and len(labels) > 10:
        yield Finding(
            f"prepare.label_range: [-3, 3], but all {len(labels)} labels are in [-1, 1]; set "
            "'prepare.label_range=[-1,1]' if that is their scale",
            error=False,
        )
    if params.model.unimodal_heads and not any(
        label is not None for clip in clips for label in (clip.label_text, clip.label_audio, clip.label_vision)
    ):
        yield Finding("model.unimodal_heads: true, but no row has a label of text, audio or vision alone; set it to "
                      "false, or give the table the columns label_T, label_A and label_V")  # fmt: skip


def _check_language(language: str, clips: Sequence[Clip]) -> Iterator[Finding]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for clip in clips:
        if clip.text and (other := other_language(clip.text, clip.language)):
            found[other].append(clip.clip_id)
    if not found:
        return
    count = sum(map(len, found.values()))
    kinds = sorted(found.items(), key=lambda item: -len(item[1]))
    yield Finding(
        f"prepare.language: {language}, but {count} of {sum(bool(clip.text) for clip in clips)} transcripts look like "
        f"another language: {'; '.join(f'{len(ids)} like {name} ({_some(ids)})' for name, ids in kinds)}. Set "
        "prepare.language if most are in another one; otherwise check these clips",
        error=False,
    )


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MAX_IDS} more" if len(ids) > MAX_IDS else ""
    return ", ".join(ids[:MAX_IDS]) + more
