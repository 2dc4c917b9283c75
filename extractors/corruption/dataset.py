"""Corrupted copies of one split of the dataset, to measure the robustness of trained networks.

The media files or the transcripts are corrupted, that modality is extracted again by the extractor that made the
dataset's features, and `align` joins it with the features of the other modalities. `model.evaluate.evaluate` reads the
result like the dataset itself.

Copies are kept in extraction's scratch folder as `<scratch>/corrupted-<key>/`; the key covers everything that they
depend on. An interrupted run resumes from `corrupted-<key>.part/`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from corpora.files import sha256_of, tag_scratch
from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, read_manifest, write_manifest
from corpora.problems import Problem, check_failures, read_problems, write_problems
from extractors.base import made_by
from extractors.corruption.conditions import CORRUPTIONS, Condition
from extractors.corruption.text import Lexicon
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig, known_duration
from extractors.execution.cache import TRACEBACKS
from extractors.execution.units import CORRUPTED, assemble, describe, shared_extractor, work_units
from extractors.registry import available
from extractors.store import FeatureMeta, FeatureReader
from extractors.transcripts.table import PROPORTIONAL, Transcript, read_transcripts, with_transcripts, write_transcripts
from extractors.transcripts.words import word_times

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from extractors.execution.workers import WorkerPool

VERSION = 1
"""To be raised when a change to this module changes the datasets; corruptions and extractors have their own."""

FOLDER = "corrupted-"
"""Prefix of the datasets' folders in scratch."""

LOCK = "corrupting.lock"
"""Lock file in scratch, held while a dataset is built; never removed, as another process may be waiting for it."""

PROBLEMS = "problems.parquet"
"""File in a dataset's folder that lists the clips that failed or have no modality left."""

CHECKSUMS = "checksums.json"
"""File in a dataset's folder with the SHA-256 of the others: a damaged dataset is built again."""

UNIT_CLIPS = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Original:
    """One uncorrupted split.

    Attributes:
        manifest: the split's clips that are in the dataset, in its order.
        transcripts: transcripts of the same clips.
        texts: (language, text) of every clip of the corpus, the vocabulary of simulated recognition errors.
        features: modality -> its feature store.
        align: settings by which the dataset was aligned.
        fingerprint: identifier that changes whenever the clips, their transcripts or their features do.
    """

    manifest: Manifest
    transcripts: Mapping[str, Transcript]
    texts: Sequence[tuple[str, str]]
    features: Mapping[str, Path]
    align: AlignConfig
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CorruptedSplit:
    """A dataset with one corrupted split.

    Attributes:
        dataset: its folder, for `model.evaluate.evaluate`.
        problems: clips whose modality failed and is missing, and clips without any modality; both stay in the split.
        reused: whether the dataset existed already.
    """

    dataset: Path
    problems: Sequence[Problem]
    reused: bool


def read_original(
    manifest_path: Path, transcripts_path: Path, features: Mapping[str, Path], split: str, config: AlignConfig
) -> Original:
    """Read the split that `corrupt_split` starts from. It hashes all features, so call it once for all conditions.

    Args:
        manifest_path: the corpus's manifest.
        transcripts_path: output of the transcribe stage.
        features: modality -> its feature store, for all three.
        split: train, valid or test.
        config: settings by which the dataset was aligned.

    Raises:
        FileNotFoundError: no manifest, transcripts or features.
        ValueError: unknown split, no clips in it, or files that do not belong together.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    transcripts = read_transcripts(transcripts_path)
    corpus = with_transcripts(read_manifest(manifest_path), transcripts)
    readers = {m: FeatureReader(Path(features[m]), m) for m in MODALITIES}
    steps = [reader.steps() for reader in readers.values()]
    clips = [c for c in corpus.clips if c.split == split and any(counts.get(c.clip_id) for counts in steps)]
    if not clips:
        raise ValueError(f"{manifest_path}: the {split} split has no clips with features; choose another split")
    stores = {m: [sha256_of(path) for path in sorted(Path(features[m]).glob("part-*.parquet"))] for m in MODALITIES}
    chosen = {clip.clip_id: transcripts[clip.clip_id] for clip in clips}
    rows = [asdict(clip) for clip in clips], [asdict(row) for row in chosen.values()]
    return Original(
        manifest=replace(corpus, clips=tuple(clips)),
        transcripts=chosen,
        texts=[(clip.language, clip.text) for clip in corpus.clips],
        features={m: Path(features[m]) for m in MODALITIES},
        align=config,
        fingerprint=_hash([corpus.corpus, *rows, stores, corpus.label_range, config.to_json()]),
    )


def corrupt_split(
    original: Original, condition: Condition, scratch: Path, pool: WorkerPool, max_failed_fraction: float = 1.0
) -> CorruptedSplit:
    """Return the dataset of the split under a condition; build it unless it is in scratch already.

    It has exactly the clips of the original split: a clip that fails stays without the modality, or empty. Networks
    normalise by the statistics in their checkpoint, not by those in its dataset.json. Words keep their times, and those
    that `align` places in proportion are placed by the original sound, so that only the corrupted modality changes. (In
    mode `aligned`, audio and vision are pooled onto the words, so their steps change with the words.)

    Args:
        original: from `read_original`.
        condition: the corruption, its level and seed.
        scratch: extraction's scratch folder; an interrupted run resumes from it.
        pool: worker processes; sharing one pool among conditions loads each model once.
        max_failed_fraction: fraction of the split's clips that may fail.

    Raises:
        ValueError: the corpus has no media, or no transcripts, to corrupt; its features were imported, or made by
            another version of the extractor; the corruption does not support the language.
        TooManyFailuresError: more clips failed than `max_failed_fraction` allows.
        OSError: scratch cannot be written.
    """
    meta = FeatureReader(original.features[condition.modality], condition.modality).meta
    texts = original.texts if condition.kind.needs_lexicon else ()
    key = _hash([VERSION, original.fingerprint, condition.signature, texts])
    dataset = Path(scratch) / f"{FOLDER}{key[:32]}"
    reused = _is_whole(dataset)
    if not reused:
        _check(original, condition, meta)
        meta = describe(meta.extractor, meta.options)  # its signature, if the store has an earlier form of it
        tag_scratch(Path(scratch))
        part = dataset.with_name(f"{dataset.name}.part")
        with FileLock(Path(scratch) / LOCK):  # two studies may build the same dataset
            reused = _is_whole(dataset)
            if not reused:
                part.mkdir(exist_ok=True)
                job = _Job(original, condition, meta, part, Path(scratch), pool, max_failed_fraction)
                built = job.build()
                shutil.rmtree(dataset, ignore_errors=True)  # a damaged one
                built.replace(dataset)
            shutil.rmtree(part, ignore_errors=True)
    return CorruptedSplit(dataset, read_problems([dataset / PROBLEMS]), reused)


def _is_whole(dataset: Path) -> bool:
    """Return whether the dataset exists and its files have the checksums that were recorded, if any were."""
    if not dataset.is_dir():
        return False
    if not (dataset / CHECKSUMS).is_file():  # of an earlier version
        return True
    try:
        whole = json.loads((dataset / CHECKSUMS).read_text(encoding="utf-8")) == _checksums(dataset)
    except (OSError, ValueError):
        whole = False
    if not whole:
        logger.warning("%s is damaged and will be built again", dataset)
    return whole


def _checksums(dataset: Path) -> dict[str, str]:
    """Return the SHA-256 of the dataset's description and tables, by their paths in it."""
    paths = [dataset / "dataset.json", *dataset.rglob("*.parquet")]
    return {path.relative_to(dataset).as_posix(): sha256_of(path) for path in sorted(paths)}


def unsupported_reason(original: Original, condition: Condition) -> str | None:
    """Return why this corpus cannot be corrupted like this, for users; None where it can."""
    try:
        _check(original, condition, FeatureReader(original.features[condition.modality], condition.modality).meta)
    except ValueError as error:
        return str(error)
    return None


def corrupted_folders(scratch: Path, signatures: Collection[str]) -> set[str]:
    """Return the names of the folders in scratch whose datasets have features of these signatures only."""
    names = set()
    for path in Path(scratch).glob(f"{FOLDER}*/dataset.json"):
        modalities = json.loads(path.read_text(encoding="utf-8"))["modalities"]
        if {entry["signature"] for entry in modalities.values()} <= set(signatures):
            names.add(path.parent.name)
    return names


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(original: Original, condition: Condition, meta: FeatureMeta) -> None:
    """Raise ValueError where the condition cannot be applied to the corpus."""
    clips, modality = original.manifest.clips, condition.modality
    if modality != "text" and not any(clip.media for clip in clips):
        without = ", ".join(name for name, kind in CORRUPTIONS.items() if kind.modality == "text")
        raise ValueError(
            f"{condition.corruption} corrupts media files, and {original.manifest.corpus} has none, only features; "
            f"without media, choose {without}, which need transcripts and text features made by extract.text"
        )
    if modality == "text" and not any(clip.text.strip() for clip in clips):
        raise ValueError(
            f"{condition.corruption} corrupts transcripts, and no clip of the split has one; set a speech recogniser "
            "(transcribe.model), or choose a corruption of audio or vision"
        )
    if meta.extractor not in available():
        raise ValueError(
            f"{condition.corruption} needs {modality} to be extracted again, but its features came with the corpus or "
            f"were made by an extractor that is not installed ({meta.extractor}); extract {modality} from "
            f"{'transcripts' if modality == 'text' else 'media'}, train on that, or choose another modality"
        )
    extractor, now = shared_extractor(meta.extractor, meta.options)
    if not made_by(extractor, meta.signature):
        raise ValueError(
            f"{original.features[modality]}: made by {meta.signature}, but this version of {meta.extractor} is "
            f"{now.signature}; "
            f"run the extract stage for {modality} again, then align and train"
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """The construction of one dataset in the temporary folder `part`."""

    original: Original
    condition: Condition
    meta: FeatureMeta
    part: Path
    scratch: Path
    pool: WorkerPool
    max_failed_fraction: float

    def build(self) -> Path:
        """Build the dataset and return its folder, inside `part`."""
        for leftover in self.part.glob(f"{CORRUPTED}*"):  # of a killed run
            shutil.rmtree(leftover)
        modality, part = self.condition.modality, self.part
        transcripts = self._transcripts()
        manifest = with_transcripts(self.original.manifest, transcripts)
        write_manifest(manifest, part / "manifest.parquet")
        write_transcripts(list(transcripts.values()), part / "transcripts.parquet")
        failures = self._extract(manifest.clips)
        features = {**self.original.features, modality: part / "features"}
        dataset = part / "dataset"
        paths = part / "manifest.parquet", part / "transcripts.parquet"
        summary = align(*paths, features, dataset, self.original.align, keep_empty=True)
        write_problems([*failures, *summary.problems], dataset / PROBLEMS)
        if (part / TRACEBACKS).is_dir():
            (part / TRACEBACKS).replace(dataset / TRACEBACKS)
        (dataset / CHECKSUMS).write_text(json.dumps(_checksums(dataset)), encoding="utf-8")
        return dataset

    def _transcripts(self) -> dict[str, Transcript]:
        """Return the transcripts to align: corrupted if text is, or with times by the clean audio if audio is."""
        if self.condition.modality == "audio":
            return _with_times(self.original)
        if self.condition.modality != "text":
            return dict(self.original.transcripts)
        languages = {clip.clip_id: clip.language for clip in self.original.manifest.clips}
        lexicons = {
            language: Lexicon([text for other, text in self.original.texts if other == language], language)
            for language in set(languages.values())
            if self.condition.kind.needs_lexicon
        }
        return {
            clip_id: self.condition.change_text(row, languages[clip_id], lexicons.get(languages[clip_id]))
            for clip_id, row in self.original.transcripts.items()
        }

    def _extract(self, clips: Sequence[Clip]) -> list[Problem]:
        """Extract the corrupted modality into `part`/features; return one problem for each clip that failed."""
        media = self.condition if self.condition.modality != "text" and not self.condition.is_clean else None
        scratch = self.scratch if self.condition.is_clean else self.part  # clean: the extract stage's results
        root = Path(self.original.manifest.root)
        job = (root, self.meta.extractor, self.meta.options, scratch, media)
        with ThreadPoolExecutor(self.pool.size) as threads:
            reports = list(threads.map(lambda unit: self.pool.run(unit, *job), work_units(clips, UNIT_CLIPS)))
        problems = [problem for report in reports for problem in report.problems]
        write_problems(problems, self.part / PROBLEMS)
        check_failures(problems, len(clips), self.max_failed_fraction, self.part / PROBLEMS, scratch / TRACEBACKS)
        assemble(clips, root, self.meta, scratch, self.part / "features", problems, media)
        return problems


def _with_times(original: Original) -> dict[str, Transcript]:
    """Return the transcripts, untimed ones with the word times that `align` estimates from the clean audio."""
    readers = {m: FeatureReader(path, m) for m, path in original.features.items()}
    rows = {}
    for clip in original.manifest.clips:
        row = original.transcripts[clip.clip_id]
        if row.words and not row.times_method:
            sequences = {m: reader[clip.clip_id] for m, reader in readers.items() if clip.clip_id in reader}
            duration = known_duration(clip.duration, sequences)
            start, end = word_times(row.words, sequences.get("audio"), duration).T.tolist()
            row = replace(row, start=start, end=end, times_method=PROPORTIONAL)
        rows[clip.clip_id] = row
    return rows
