"""A corrupted copy of one split of the dataset: what trained networks are shown to see how much they can bear.

It comes about in the ordinary way: media are corrupted as files, transcripts as text, the modality in question is
extracted again by the very extractor that made its features, and `align` joins it with the others' features. Nothing
but the input has changed, so that `model.evaluate.evaluate` takes it for the dataset's own.

A copy lies in the scratch folder of extraction, `<scratch>/corrupted-<key>/`, keyed by everything that it depends on.
What a killed run had extracted waits in `corrupted-<key>.part/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from corpora.files import sha256_of
from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, read_manifest, write_manifest
from corpora.problems import Problem, read_problems, write_problems
from extractors.corruption.conditions import CORRUPTIONS, Condition
from extractors.corruption.text import Lexicon
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig, known_duration
from extractors.execution.cache import TRACEBACKS, tag_scratch
from extractors.execution.units import CORRUPTED, assemble, check_failures, describe, work_units
from extractors.registry import available
from extractors.store import FeatureMeta, FeatureReader
from extractors.transcripts.table import PROPORTIONAL, Transcript, read_transcripts, with_transcripts, write_transcripts
from extractors.transcripts.words import word_times

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from extractors.execution.workers import WorkerPool

VERSION = 1
"""Raised by hand when a change here, and not to a corruption or an extractor, changes the datasets."""

FOLDER = "corrupted-"
"""How the datasets' folders in scratch begin."""

LOCK = "corrupting.lock"
"""In scratch, held by whoever makes a dataset; it is never removed, as another may be about to take it."""

PROBLEMS = "problems.parquet"
"""In a dataset's folder: clips that failed, by the extraction or for want of any modality."""

UNIT_CLIPS = 16


@dataclass(frozen=True, slots=True)
class Original:
    """One split as it is.

    Attributes:
        manifest: of those clips of the split that the dataset has, in its order.
        transcripts: of the same clips.
        texts: all transcripts of the corpus, with their languages: where misheard words come from.
        features: modality -> its feature store.
        align: how the dataset was put together.
        fingerprint: changes whenever the clips, their transcripts or their features do.
    """

    manifest: Manifest
    transcripts: Mapping[str, Transcript]
    texts: Sequence[tuple[str, str]]
    features: Mapping[str, Path]
    align: AlignConfig
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CorruptedSplit:
    """A dataset of one corrupted split.

    Attributes:
        dataset: its folder, for `model.evaluate.evaluate`.
        problems: clips whose modality failed and is missing, and clips that have nothing left; both stay in the split.
        reused: whether it lay there already.
    """

    dataset: Path
    problems: Sequence[Problem]
    reused: bool


def read_original(
    manifest_path: Path, transcripts_path: Path, features: Mapping[str, Path], split: str, config: AlignConfig
) -> Original:
    """What `corrupt_split` starts from; once for all conditions, since it reads all features to know them again.

    Args:
        features: modality -> its feature store, all three, of which `config` made the dataset.

    Raises:
        FileNotFoundError: no manifest, transcripts or features there.
        ValueError: no such split, no clips in it, or tables that do not belong together.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    whole, transcripts = read_manifest(manifest_path), read_transcripts(transcripts_path)
    whole = with_transcripts(whole, transcripts)
    readers = {m: FeatureReader(Path(features[m]), m) for m in MODALITIES}
    steps = [reader.steps() for reader in readers.values()]
    clips = [c for c in whole.clips if c.split == split and any(known.get(c.clip_id) for known in steps)]
    if not clips:
        raise ValueError(f"{manifest_path}: the {split} split has no clips with features; choose another split")
    stores = {m: [sha256_of(path) for path in sorted(Path(features[m]).glob("part-*.parquet"))] for m in MODALITIES}
    chosen = {clip.clip_id: transcripts[clip.clip_id] for clip in clips}
    known = [[asdict(clip) for clip in clips], [asdict(row) for row in chosen.values()], stores, whole.label_range]
    return Original(
        manifest=replace(whole, clips=tuple(clips)),
        transcripts=chosen,
        texts=[(clip.language, clip.text) for clip in whole.clips],
        features={m: Path(features[m]) for m in MODALITIES},
        align=config,
        fingerprint=_hash([whole.corpus, *known, asdict(config)]),
    )


def corrupt_split(
    original: Original, condition: Condition, scratch: Path, pool: WorkerPool, max_failed_fraction: float = 1.0
) -> CorruptedSplit:
    """The dataset of the split under a condition, from scratch where it was made before.

    It has the very clips of the original split. One that fails stays, without the modality; so does one that has
    nothing left. Networks normalise by the statistics that they were trained with; those in dataset.json are of no
    clip. Words keep their times; those that `align` places in proportion are placed by the sound as it was, so that
    only the corrupted modality changes. (Mode `aligned` pools audio and vision onto the words: where words go, their
    steps go.)

    Args:
        scratch: of extraction; what was finished when a run was killed is not done again.
        pool: the worker processes; with one pool for many conditions they load their models once.
        max_failed_fraction: of the split's clips; where more fail there is no dataset.

    Raises:
        ValueError: the corpus has no media, or no transcripts, to corrupt; its features came with it, or were made by
            another version of the extractor; the corruption does not know the language.
        TooManyFailuresError: see `max_failed_fraction`.
        OSError: scratch cannot be written.
    """
    meta = FeatureReader(original.features[condition.modality], condition.modality).meta
    texts = original.texts if condition.kind.needs_lexicon else ()
    key = _hash([VERSION, original.fingerprint, condition.signature, texts])
    dataset = Path(scratch) / f"{FOLDER}{key[:32]}"
    reused = dataset.is_dir()
    if not reused:
        _check(original, condition, meta)
        tag_scratch(Path(scratch))
        part = dataset.with_name(f"{dataset.name}.part")
        with FileLock(Path(scratch) / LOCK):  # two studies may want the same
            reused = dataset.is_dir()
            if not reused:
                part.mkdir(exist_ok=True)
                job = _Job(original, condition, meta, part, Path(scratch), pool, max_failed_fraction)
                os.replace(job.make(), dataset)
            shutil.rmtree(part, ignore_errors=True)
    return CorruptedSplit(dataset, read_problems([dataset / PROBLEMS]), reused)


def why_not(original: Original, condition: Condition) -> str | None:
    """Why this corpus cannot be corrupted so, for people; None where it can."""
    try:
        _check(original, condition, FeatureReader(original.features[condition.modality], condition.modality).meta)
    except ValueError as error:
        return str(error)
    return None


def folders_of(scratch: Path, signatures: Collection[str]) -> set[str]:
    """Names of the folders in scratch whose datasets hold features of these signatures alone."""
    found = set()
    for path in Path(scratch).glob(f"{FOLDER}*/dataset.json"):
        modalities = json.loads(path.read_text(encoding="utf-8"))["modalities"]
        if {entry["signature"] for entry in modalities.values()} <= set(signatures):
            found.add(path.parent.name)
    return found


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(original: Original, condition: Condition, meta: FeatureMeta) -> None:
    """Refuse what cannot be corrupted, before anything is done."""
    clips, modality = original.manifest.clips, condition.modality
    if modality != "text" and not any(clip.media for clip in clips):
        without = ", ".join(name for name, kind in CORRUPTIONS.items() if kind.modality == "text")
        raise ValueError(
            f"{condition.corruption} corrupts media files, and {original.manifest.corpus} has none, only features; "
            f"without media there are {without}, if there are transcripts and extract.text made the text features"
        )
    if modality == "text" and not any(clip.text.strip() for clip in clips):
        raise ValueError(
            f"{condition.corruption} corrupts transcripts, and no clip of the split has one; let them be recognised "
            "(transcribe.model), or choose a corruption of audio or vision"
        )
    if meta.extractor not in available():
        raise ValueError(
            f"{condition.corruption} needs {modality} to be extracted again, but its features came with the corpus or "
            f"are of an extractor that is not installed here ({meta.extractor}); extract {modality} from "
            f"{'transcripts' if modality == 'text' else 'media'}, train on that, or choose another modality"
        )
    now = describe(meta.extractor, meta.options).signature
    if now != meta.signature:
        raise ValueError(
            f"{original.features[modality]}: made by {meta.signature}, but this version of {meta.extractor} is {now}; "
            f"run the extract stage for {modality} again, then align and train"
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """A dataset in the making; `part` is its folder until it is whole."""

    original: Original
    condition: Condition
    meta: FeatureMeta
    part: Path
    scratch: Path
    pool: WorkerPool
    max_failed_fraction: float

    def make(self) -> Path:
        """The finished dataset's folder."""
        for left_behind in self.part.glob(f"{CORRUPTED}*"):
            shutil.rmtree(left_behind)
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
            os.replace(part / TRACEBACKS, dataset / TRACEBACKS)
        return dataset

    def _transcripts(self) -> dict[str, Transcript]:
        """Corrupted ones; or where the sound is corrupted, with the word times that the sound as it was gives."""
        if self.condition.modality == "audio":
            return _timed(self.original)
        if self.condition.modality != "text":
            return dict(self.original.transcripts)
        languages = {clip.clip_id: clip.language for clip in self.original.manifest.clips}
        lexicons = {
            language: Lexicon([text for of, text in self.original.texts if of == language], language)
            for language in set(languages.values())
            if self.condition.kind.needs_lexicon
        }
        return {
            clip_id: self.condition.change_text(row, languages[clip_id], lexicons.get(languages[clip_id]))
            for clip_id, row in self.original.transcripts.items()
        }

    def _extract(self, clips: Sequence[Clip]) -> list[Problem]:
        """Extract the corrupted modality of the clips into `part`/features; one problem for each that failed."""
        media = self.condition if self.condition.modality != "text" and not self.condition.is_as_it_is else None
        scratch = self.scratch if self.condition.is_as_it_is else self.part  # as it is, it may be there from the stage
        root = Path(self.original.manifest.root)
        job = (root, self.meta.extractor, self.meta.options, scratch, media)
        with ThreadPoolExecutor(self.pool.size) as threads:
            reports = list(threads.map(lambda unit: self.pool.run(unit, *job), work_units(clips, UNIT_CLIPS)))
        problems = [problem for report in reports for problem in report.problems]
        write_problems(problems, self.part / PROBLEMS)
        check_failures(problems, len(clips), self.max_failed_fraction, self.part / PROBLEMS, scratch)
        assemble(clips, root, self.meta, scratch, self.part / "features", problems, media)
        return problems


def _timed(original: Original) -> dict[str, Transcript]:
    """The transcripts; words without times have those that `align` would give them."""
    readers = {m: FeatureReader(path, m) for m, path in original.features.items()}
    rows = {}
    for clip in original.manifest.clips:
        row = original.transcripts[clip.clip_id]
        if row.words and not row.times_method:
            found = {m: reader[clip.clip_id] for m, reader in readers.items() if clip.clip_id in reader}
            start, end = word_times(row.words, found.get("audio"), known_duration(clip.duration, found)).T.tolist()
            row = replace(row, start=start, end=end, times_method=PROPORTIONAL)
        rows[clip.clip_id] = row
    return rows
