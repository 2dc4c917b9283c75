"""The align stage: manifest, transcripts and features of three modalities into the dataset that the model reads.

`unaligned` keeps each modality's own rate; `aligned` pools audio and vision onto the times of the text's
tokens. Values stay raw: the training split's statistics go beside them, into dataset.json. One pass, a few
row groups of each modality in memory at a time. Shapes: T steps, D features, K tokens, W words.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from corpora.files import atomic_path
from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, read_manifest
from corpora.problems import Problem
from extractors.base import FeatureSequence
from extractors.store import (
    METADATA_KEY,
    FeatureMeta,
    FeatureReader,
    ShardWriter,
    atomic_folder,
    list_type,
    sequence_type,
)
from extractors.transcripts import PROPORTIONAL, Transcript, read_recogniser, read_transcripts, with_transcripts
from extractors.word_files import read_word_table
from extractors.words import match_words, timing_error, token_times, word_times

SCHEMA_VERSION = 2
MODES = ("unaligned", "aligned")
NORMALISED = ("audio", "vision")
"""Modalities with statistics; text values are an encoder's hidden states, used as they are."""

STEPS = "steps"
"""What timed the words of a clip whose text features came with times but without words."""

SEVERAL_LANGUAGES = "mul"
"""ISO 639-2 for a corpus in more than one language."""


@dataclass(frozen=True, slots=True)
class AlignConfig:
    """How the modalities are put together.

    Attributes:
        mode: unaligned (each modality at its own rate) or aligned (pooled onto the text's tokens).
        mask_invalid: modalities whose invalid steps the model does not see.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    mode: str = "unaligned"
    mask_invalid: tuple[str, ...] = ("vision",)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"align.mode is {self.mode!r}: choose one of {', '.join(MODES)}")
        object.__setattr__(self, "mask_invalid", tuple(self.mask_invalid))
        unknown = [name for name in self.mask_invalid if name not in MODALITIES]
        if unknown:
            raise ValueError(f"align.mask_invalid names {unknown[0]!r}: choose among {', '.join(MODALITIES)}")


@dataclass(frozen=True, slots=True)
class AlignSummary:
    """What came out.

    Attributes:
        clips: clips in each split.
        missing: by modality, clips of the dataset without it.
        hidden: by modality, the fraction of steps that the mask hides.
        word_times: by method, the clips and words that it timed and, where true times are known, its error: as in
            dataset.json.
        problems: one row for each clip that was dropped.
    """

    clips: Mapping[str, int]
    missing: Mapping[str, int]
    hidden: Mapping[str, float]
    word_times: Mapping[str, Any]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """One modality of one clip as the model gets it.

    Attributes:
        values: [T, D] float32.
        start, end: [T] float32, seconds.
        mask: [T] bool, True where the model may look.
    """

    values: np.ndarray
    start: np.ndarray
    end: np.ndarray
    mask: np.ndarray


class RunningStatistics:
    """Mean and standard deviation [D] of rows that come in chunks, in float64.

    Each chunk's mean and squared deviations are merged with those before (Chan, Golub and LeVeque, "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979): no large sums of squares cancel.
    """

    def __init__(self, dim: int) -> None:
        self.steps = 0
        self._mean = np.zeros(dim)
        self._deviation = np.zeros(dim)

    def update(self, values: np.ndarray) -> None:
        """Add rows [T, D]; T may be 0."""
        count = len(values)
        if not count:
            return
        chunk = values.astype(np.float64)
        mean = chunk.mean(axis=0)
        total, delta = self.steps + count, mean - self._mean
        self._deviation += ((chunk - mean) ** 2).sum(axis=0) + delta**2 * (self.steps * count / total)
        self._mean += delta * (count / total)
        self.steps = total

    def to_json(self) -> dict[str, Any]:
        """Mean, std and steps. The std of a feature that does not vary beyond float32's resolution is 1."""
        std = np.sqrt(self._deviation / max(self.steps, 1))
        constant = std <= np.finfo(np.float32).eps * np.abs(self._mean)
        return {
            "mean": self._mean.tolist(),
            "std": np.where(constant, 1.0, std).tolist(),
            "steps": self.steps,
        }


def pool(steps: Steps, times: np.ndarray) -> Steps:
    """Pool a modality onto intervals: the mean over the visible steps that overlap each.

    Where none overlaps, the nearest visible step; where none is visible at all, zeros with the mask False.

    Args:
        steps: in time order; T >= 1.
        times: [K, 2] seconds.

    Raises:
        ValueError: the steps are not in time order.
    """
    start, end = steps.start[steps.mask].astype(np.float64), steps.end[steps.mask].astype(np.float64)
    values = steps.values[steps.mask].astype(np.float64)
    mask = np.full(len(times), bool(len(start)))
    edges = times[:, 0].astype(np.float32), times[:, 1].astype(np.float32)
    if not len(start):
        return Steps(np.zeros((len(times), steps.values.shape[1]), np.float32), *edges, mask)
    if (np.diff(start) < 0).any() or (np.diff(end) < 0).any():
        raise ValueError("steps are not in time order, so they cannot be pooled")
    # In time order, the steps that overlap [a, b) are those from the first that ends after a to the last that
    # starts before b; sums over such runs are differences of one cumulative sum.
    first = np.searchsorted(end, times[:, 0], side="right")
    stop = np.searchsorted(start, times[:, 1], side="left")
    before, after = np.maximum(stop - 1, 0), np.minimum(first, len(start) - 1)
    nearest = np.where(times[:, 0] - end[before] <= start[after] - times[:, 1], before, after)
    nearest = np.where(stop == 0, after, np.where(first == len(start), before, nearest))
    none = stop <= first
    first, stop = np.where(none, nearest, first), np.where(none, nearest + 1, stop)
    sums = np.vstack([np.zeros(values.shape[1]), np.cumsum(values, axis=0)])
    means = (sums[stop] - sums[first]) / (stop - first)[:, None]
    return Steps(means.astype(np.float32), *edges, mask)


def dataset_schema(dims: Mapping[str, int]) -> pa.Schema:
    """Columns of a split's Parquet parts; `dims` is D by modality."""
    fields = [pa.field(name, pa.string(), nullable=False) for name in ("clip_id", "video_id", "text")]
    fields += [pa.field(name, pa.float32()) for name in ("label", *(f"label_{m}" for m in MODALITIES))]
    for m in MODALITIES:
        kinds = {
            "values": sequence_type(dims[m]),
            "start": list_type(pa.float32()),
            "end": list_type(pa.float32()),
            "mask": list_type(pa.bool_()),
        }
        fields += [pa.field(f"{m}_{name}", kind, nullable=False) for name, kind in kinds.items()]
    for name in ("text_token_ids", "text_word_index"):
        fields.append(pa.field(name, list_type(pa.int32()), nullable=False))
    fields.append(pa.field("word_times_method", pa.string(), nullable=False))
    return pa.schema(fields, {METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION}).encode()})


@dataclass(slots=True)
class _Method:
    """What one method timed: clips, words, and both times of the words whose true ones are known."""

    clips: int = 0
    words: int = 0
    differing: int = 0
    true: list[np.ndarray] = field(default_factory=list)
    estimated: list[np.ndarray] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        summary: dict[str, Any] = {"clips": self.clips, "words": self.words}
        if self.true:
            error = timing_error(np.concatenate(self.true), np.concatenate(self.estimated))
            summary["error"] = {"clips": len(self.true), "clips_with_other_words": self.differing, **error}
        return summary


class WordTimes:
    """Times of words by the method that timed each clip, and how far off they are where the true ones are known."""

    def __init__(self, path: Path | None = None) -> None:
        self._known = read_word_table(path) if path is not None and Path(path).exists() else {}
        self._methods: dict[str, _Method] = {}

    def of(self, transcript: Transcript, audio: FeatureSequence, duration: float) -> tuple[np.ndarray, str]:
        """[W, 2] times of the transcript's words, and the method: the transcript's own, or in proportion."""
        if transcript.times_method:
            times, name = np.column_stack([transcript.start, transcript.end]).astype(float), transcript.times_method
        else:
            times, name = word_times(transcript.words, audio, duration), PROPORTIONAL
        method = self._methods.setdefault(name, _Method())
        method.clips += 1
        method.words += len(times)
        if transcript.clip_id in self._known:
            true = match_words(transcript.words, self._known[transcript.clip_id])
            if true is None:
                method.differing += 1
            else:
                method.true.append(true)
                method.estimated.append(times)
        return times, name

    def to_json(self) -> dict[str, Any]:
        return {"methods": {name: method.to_json() for name, method in sorted(self._methods.items())}}


class TrainingClips:
    """What a video is compared with that is predicted later: the training clips' lengths, and what they lack."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._missing = dict.fromkeys(MODALITIES, 0)

    def add(self, clip: Clip, found: Mapping[str, FeatureSequence]) -> None:
        """Count one clip with its features."""
        self._seconds.append(clip.duration or max(float(s.end.max(initial=0.0)) for s in found.values()))
        for m, sequence in found.items():
            self._missing[m] += not len(sequence)

    def to_json(self) -> dict[str, Any]:
        """`seconds`: median and longest; `missing`: by modality, clips without it. Empty where there are no clips."""
        if not self._seconds:
            return {}
        seconds = {"median": float(np.median(self._seconds)), "longest": max(self._seconds)}
        return {"seconds": {name: round(value, 3) for name, value in seconds.items()}, "missing": self._missing}


def missing_sequence(dim: int) -> FeatureSequence:
    """T = 0: the features of a modality that a clip has not."""
    none, integers = np.empty(0, np.float32), np.empty(0, np.int32)
    return FeatureSequence(np.empty((0, dim), np.float32), none, none, none.astype(bool), integers, integers)


def align_clip(
    transcript: Transcript,
    found: Mapping[str, FeatureSequence],
    duration: float | None,
    config: AlignConfig,
    words: WordTimes,
) -> tuple[dict[str, Steps], str]:
    """One clip as the model gets it, in the dataset or when it is predicted.

    Args:
        found: all three modalities; `missing_sequence` where the clip has none.
        duration: seconds; None: the end of the last step.
        words: times the clip's words.

    Returns:
        Each modality's steps, and what timed the words.

    Raises:
        ValueError: tokens of words that the transcript has not, or steps out of time order; the message names the clip.
    """
    duration = known_duration(duration, found)
    times, method = _token_times(transcript, found, words, duration)
    return _steps(transcript.clip_id, found, times, duration, config), method


def _steps(
    clip_id: str, found: Mapping[str, FeatureSequence], times: np.ndarray, duration: float, config: AlignConfig
) -> dict[str, Steps]:
    """Each modality of the clip, masked; tokens at `times` [K, 2]; the others pooled in aligned mode."""
    text = found["text"]
    placed = replace(text, start=times[:, 0].astype(np.float32), end=times[:, 1].astype(np.float32))
    steps = {}
    for m, sequence in (found | {"text": placed}).items():
        mask = sequence.valid if m in config.mask_invalid else np.ones(len(sequence), bool)
        steps[m] = Steps(sequence.values, sequence.start, sequence.end, mask)
    if config.mode == "aligned":
        grid = times if len(times) else np.array([[0.0, duration]])  # no text: one step over the whole clip
        for m in NORMALISED:
            if len(steps[m].values):
                try:
                    steps[m] = pool(steps[m], grid)
                except ValueError as error:
                    raise ValueError(f"clip {clip_id}, {m}: {error}") from error
    return steps


def _row(clip: Clip, steps: Mapping[str, Steps], text: FeatureSequence, method: str) -> dict[str, Any]:
    labels = ("label", *(f"label_{m}" for m in MODALITIES))
    row = {name: getattr(clip, name) for name in ("clip_id", "video_id", "text", *labels)}
    for m, one in steps.items():
        row |= {f"{m}_{name}": getattr(one, name) for name in Steps.__dataclass_fields__}
    tokens = {"text_token_ids": text.token_ids, "text_word_index": text.word_index}
    return row | tokens | {"word_times_method": method}


def align(
    manifest_path: Path,
    transcripts_path: Path,
    feature_folders: Mapping[str, Path],
    out: Path,
    config: AlignConfig,
    word_times_path: Path | None = None,
    keep_empty: bool = False,
) -> AlignSummary:
    """Write the dataset: `out`/dataset.json and `out`/<split>/part-*.parquet, clips in the manifest's order.

    A modality of which a clip has no row is missing in that clip; a clip without any is dropped, with a
    problem, unless `keep_empty`. The same inputs give the same bytes.

    Args:
        transcripts_path: the clips' texts, and times of their words; words without times are placed in proportion.
        feature_folders: modality -> its feature store, all three.
        out: appears, or is replaced, whole.
        word_times_path: true word times (`read_word_table`) to measure the others by, if it exists.
        keep_empty: keep clips without any modality, with their problem.

    Raises:
        FileNotFoundError: no manifest, no transcripts, or no features of a modality.
        ValueError: a damaged or foreign store (StoreError), a value that is not finite, tokens of words that
            the transcript has not, steps out of time order. The message names file or clip.
    """
    absent = [m for m in MODALITIES if m not in feature_folders]
    if absent:
        raise ValueError(f"no feature folder is given for {', '.join(absent)}; align needs all three modalities")
    transcripts = read_transcripts(transcripts_path)
    manifest = with_transcripts(read_manifest(manifest_path), transcripts)
    readers = {m: FeatureReader(feature_folders[m], m) for m in MODALITIES}
    metas = {m: readers[m].meta for m in MODALITIES}
    statistics = {m: RunningStatistics(len(metas[m].feature_names)) for m in NORMALISED}
    words, training = WordTimes(word_times_path), TrainingClips()
    clips, missing, seen, visible = dict.fromkeys(SPLITS, 0), Counter(), Counter(), Counter()
    problems: list[Problem] = []
    with atomic_folder(out) as folder, ExitStack() as stack:
        schema = dataset_schema({m: len(metas[m].feature_names) for m in MODALITIES})
        writers = {split: stack.enter_context(ShardWriter(folder / split, schema)) for split in SPLITS}
        for clip in manifest.clips:
            found = {
                m: reader[clip.clip_id] if clip.clip_id in reader else missing_sequence(len(metas[m].feature_names))
                for m, reader in readers.items()
            }
            if not any(map(len, found.values())):
                problems.append(_nothing_left(clip, readers, keep_empty))
                if not keep_empty:
                    continue
            steps, method = align_clip(transcripts[clip.clip_id], found, clip.duration, config, words)
            if clip.split == "train":
                training.add(clip, found)
            writers[clip.split].write(_row(clip, steps, found["text"], method))
            clips[clip.split] += 1
            for m, one in steps.items():
                missing[m] += not len(one.mask)
                seen[m] += len(one.mask)
                visible[m] += int(one.mask.sum())
                if m in statistics and clip.split == "train":
                    statistics[m].update(one.values[one.mask])
        stack.close()
        facts = {"clips": clips, "word_times": words.to_json(), "training": training.to_json()}
        facts["recogniser"] = read_recogniser(transcripts_path)
        _write_json(folder / "dataset.json", manifest, config, metas, statistics, facts)
    hidden = {m: 1 - visible[m] / seen[m] if seen[m] else 0.0 for m in MODALITIES}
    counts = {m: missing[m] for m in MODALITIES}
    return AlignSummary(clips, counts, hidden, words.to_json(), tuple(problems))


def _token_times(
    transcript: Transcript, found: Mapping[str, FeatureSequence], words: WordTimes, duration: float
) -> tuple[np.ndarray, str]:
    """[K, 2] times of the clip's tokens, and the method that timed its words; K = 0 where it has no text.

    Tokens of which none belongs to a known word, as imported ones, keep the times that they came with.
    """
    text = found["text"]
    if not len(text):
        return np.empty((0, 2)), ""
    if (text.word_index < 0).all() and text.end.any():
        return np.column_stack([text.start, text.end]).astype(float), STEPS
    times, method = words.of(transcript, found["audio"], duration)
    try:
        return token_times(text.word_index, times, duration), method
    except ValueError as error:
        raise ValueError(
            f"clip {transcript.clip_id}, text: {error}; features and transcripts disagree, run the extract stage for "
            "text again"
        ) from error


def known_duration(duration: float | None, found: Mapping[str, FeatureSequence]) -> float:
    """A clip's duration in seconds; where it is not known, the end of what was extracted."""
    return duration or max(float(sequence.end.max(initial=0.0)) for sequence in found.values())


def _nothing_left(clip: Clip, readers: Mapping[str, FeatureReader], kept: bool) -> Problem:
    states = ", ".join(f"{m} {'empty' if clip.clip_id in r else 'not extracted'}" for m, r in readers.items())
    stays = "stays in the dataset, empty" if kept else "is not in the dataset"
    message = f"no modality is left ({states}): the clip {stays}; see its rows of the extract stage"
    return Problem(clip.clip_id, "align", "", "NoModality", message)


def _write_json(
    path: Path,
    manifest: Manifest,
    config: AlignConfig,
    metas: Mapping[str, FeatureMeta],
    statistics: Mapping[str, RunningStatistics],
    facts: Mapping[str, Any],
) -> None:
    languages = {clip.language for clip in manifest.clips}
    content = {
        "schema_version": SCHEMA_VERSION,
        "corpus": manifest.corpus,
        "language": languages.pop() if len(languages) == 1 else SEVERAL_LANGUAGES,
        "label_range": list(manifest.label_range),
        "mode": config.mode,
        "mask_invalid": list(config.mask_invalid),
        "modalities": {m: _describe(meta) for m, meta in metas.items()},
        "statistics": {m: running.to_json() for m, running in statistics.items()},
        **facts,
    }
    with atomic_path(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _describe(meta: FeatureMeta) -> dict[str, Any]:
    entry = asdict(meta)
    entry.pop("modality")
    return {"dim": len(meta.feature_names), **entry}
