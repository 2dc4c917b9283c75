"""Alignment of one clip: its modalities on one timeline, or pooled onto the text's tokens.

T steps, D features, K tokens, W words; times are seconds from the clip's start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from corpora.manifest import MODALITIES
from extractors.base import FeatureSequence
from extractors.dataset.columns import ColumnsConfig
from extractors.transcripts.table import PROPORTIONAL, Transcript
from extractors.transcripts.word_timings import read_word_table
from extractors.transcripts.words import match_words, timing_error, token_times, word_times

MODES = ("unaligned", "aligned")
NORMALISATIONS = ("none", "speaker")
NORMALISED = ("audio", "vision")
"""Modalities that the model normalises; text values are an encoder's hidden states, used unchanged."""

STEPS = "steps"
"""Timing method of a clip whose text features have times but no word indices."""


@dataclass(frozen=True, slots=True)
class AlignConfig:
    """Settings of the align stage.

    Attributes:
        mode: unaligned (each modality at its own rate) or aligned (pooled onto the text's tokens).
        mask_invalid: modalities whose invalid steps are masked.
        normalise_audio: none, or speaker: audio is standardised by the statistics of its speaker's clips, see
            `extractors.dataset.statistics.SpeakerStatistics`.
        columns: columns of audio and vision that the dataset keeps.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    mode: str = "unaligned"
    mask_invalid: tuple[str, ...] = ("vision",)
    normalise_audio: str = "none"
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def __post_init__(self) -> None:
        for key, choices in {"mode": MODES, "normalise_audio": NORMALISATIONS}.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"align.{key} is {getattr(self, key)!r}: choose one of {', '.join(choices)}")
        object.__setattr__(self, "mask_invalid", tuple(self.mask_invalid))
        unknown = [name for name in self.mask_invalid if name not in MODALITIES]
        if unknown:
            raise ValueError(f"align.mask_invalid names {unknown[0]!r}: choose among {', '.join(MODALITIES)}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings that decide the values of a dataset, for dataset.json.

        `normalise_audio` and `columns` are left out at their defaults, as datasets of earlier versions have neither.
        """
        settings: dict[str, Any] = {"mode": self.mode, "mask_invalid": list(self.mask_invalid)}
        settings |= {"normalise_audio": self.normalise_audio} if self.normalise_audio != "none" else {}
        return settings | ({"columns": asdict(self.columns)} if self.columns != ColumnsConfig() else {})


@dataclass(frozen=True, slots=True)
class Steps:
    """One modality of one clip, as the model reads it.

    Attributes:
        values: [T, D] float32.
        start, end: [T] float32, seconds.
        mask: [T] bool, False where the model ignores the step.
    """

    values: np.ndarray
    start: np.ndarray
    end: np.ndarray
    mask: np.ndarray


def pool(steps: Steps, times: np.ndarray) -> Steps:
    """Pool a modality onto intervals: average the unmasked steps that overlap each.

    An interval without any takes the nearest unmasked step; if all steps are masked, the result is zeros, masked.

    Args:
        steps: T >= 1 steps in time order.
        times: [K, 2] start and end of the intervals.

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
    # The steps that overlap [a, b) are those from the first that ends after a to the last that starts before b
    first = np.searchsorted(end, times[:, 0], side="right")
    stop = np.searchsorted(start, times[:, 1], side="left")
    before, after = np.maximum(stop - 1, 0), np.minimum(first, len(start) - 1)
    nearest = np.where(times[:, 0] - end[before] <= start[after] - times[:, 1], before, after)
    nearest = np.where(stop == 0, after, np.where(first == len(start), before, nearest))
    empty = stop <= first
    first, stop = np.where(empty, nearest, first), np.where(empty, nearest + 1, stop)
    # Sums over such runs are differences of one cumulative sum
    sums = np.vstack([np.zeros(values.shape[1]), np.cumsum(values, axis=0)])
    means = (sums[stop] - sums[first]) / (stop - first)[:, None]
    return Steps(means.astype(np.float32), *edges, mask)


@dataclass(slots=True)
class _MethodStatistics:
    """Counts of what one method timed, and both times of the words whose true ones are known.

    Attributes:
        mismatched_clips: clips whose true times are of other words than the transcript's.
        true, estimated: [W, 2] for each clip with true times.
    """

    clips: int = 0
    words: int = 0
    mismatched_clips: int = 0
    true: list[np.ndarray] = field(default_factory=list)
    estimated: list[np.ndarray] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        summary: dict[str, Any] = {"clips": self.clips, "words": self.words}
        if self.true:
            error = timing_error(np.concatenate(self.true), np.concatenate(self.estimated))
            summary["error"] = {"clips": len(self.true), "clips_with_other_words": self.mismatched_clips, **error}
        return summary


class WordTimer:
    """Times the words of transcripts, and measures the error of each method where true times are known.

    Args:
        path: true word times, see `read_word_table`; None or a missing file measures nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._true_words = read_word_table(path) if path is not None and Path(path).exists() else {}
        self._methods: dict[str, _MethodStatistics] = {}

    def time(self, transcript: Transcript, audio: FeatureSequence, duration: float) -> tuple[np.ndarray, str]:
        """Return [W, 2] times of the transcript's words and their method: the transcript's own, or proportional."""
        if transcript.times_method:
            times, name = np.column_stack([transcript.start, transcript.end]).astype(float), transcript.times_method
        else:
            times, name = word_times(transcript.words, audio, duration), PROPORTIONAL
        method = self._methods.setdefault(name, _MethodStatistics())
        method.clips += 1
        method.words += len(times)
        if transcript.clip_id in self._true_words:
            true = match_words(transcript.words, self._true_words[transcript.clip_id])
            if true is None:
                method.mismatched_clips += 1
            else:
                method.true.append(true)
                method.estimated.append(times)
        return times, name

    def to_json(self) -> dict[str, Any]:
        """Return the counts and errors by method, for dataset.json."""
        return {"methods": {name: method.to_json() for name, method in sorted(self._methods.items())}}


def missing_sequence(dim: int) -> FeatureSequence:
    """Return the features of a missing modality: T = 0."""
    empty, integers = np.empty(0, np.float32), np.empty(0, np.int32)
    return FeatureSequence(np.empty((0, dim), np.float32), empty, empty, empty.astype(bool), integers, integers)


def align_clip(
    transcript: Transcript,
    sequences: Mapping[str, FeatureSequence],
    duration: float | None,
    config: AlignConfig,
    timer: WordTimer,
    imported: Collection[str] = (),
) -> tuple[dict[str, Steps], str]:
    """Align one clip, for the dataset or for a prediction.

    Args:
        transcript: the clip's words, and their times where known.
        sequences: features of all three modalities; `missing_sequence` for one that the clip lacks.
        duration: seconds; None for the end of the last step.
        config: settings of the align stage.
        timer: times the clip's words.
        imported: modalities whose features came with the corpus. Their all-zero steps are masked, whatever
            `config.mask_invalid` says: they are padding, or nothing was measured.

    Returns:
        Each modality's steps, and the method that timed the words.

    Raises:
        ValueError: token of a word that is not in the transcript, or steps out of time order; names the clip.
    """
    duration = known_duration(duration, sequences)
    times, method = _token_times(transcript, sequences, timer, duration)
    return _mask_and_pool(transcript.clip_id, sequences, times, duration, config, imported), method


def _mask_and_pool(
    clip_id: str,
    sequences: Mapping[str, FeatureSequence],
    times: np.ndarray,
    duration: float,
    config: AlignConfig,
    imported: Collection[str],
) -> dict[str, Steps]:
    """Return each modality's masked steps: tokens at `times` [K, 2], the others pooled onto them in aligned mode."""
    text = sequences["text"]
    text = replace(text, start=times[:, 0].astype(np.float32), end=times[:, 1].astype(np.float32))
    steps = {}
    for m, sequence in {**sequences, "text": text}.items():
        mask = visible_steps(m, sequence, config, imported)
        steps[m] = Steps(sequence.values, sequence.start, sequence.end, mask)
    if config.mode == "aligned":
        grid = times if len(times) else np.array([[0.0, duration]])  # without text, one step over the whole clip
        for m in NORMALISED:
            if len(steps[m].values):
                try:
                    steps[m] = pool(steps[m], grid)
                except ValueError as error:
                    raise ValueError(f"clip {clip_id}, {m}: {error}") from error
    return steps


def visible_steps(
    modality: str, sequence: FeatureSequence, config: AlignConfig, imported: Collection[str] = ()
) -> np.ndarray:
    """Return which steps [T] the model may see, see `align_clip`."""
    mask = sequence.valid if modality in config.mask_invalid else np.ones(len(sequence), bool)
    return mask & sequence.values.any(axis=1) if modality in imported else mask


def _token_times(
    transcript: Transcript, sequences: Mapping[str, FeatureSequence], timer: WordTimer, duration: float
) -> tuple[np.ndarray, str]:
    """Return [K, 2] times of the clip's tokens, and the method that timed its words; K = 0 without text.

    Tokens without word indices, such as imported ones, keep their own times.
    """
    text = sequences["text"]
    if not len(text):
        return np.empty((0, 2)), ""
    assert text.word_index is not None
    if (text.word_index < 0).all() and text.end.any():
        return np.column_stack([text.start, text.end]).astype(float), STEPS
    times, method = timer.time(transcript, sequences["audio"], duration)
    try:
        return token_times(text.word_index, times, duration), method
    except ValueError as error:
        raise ValueError(
            f"clip {transcript.clip_id}, text: {error}; features and transcripts disagree; run the extract stage for "
            "text again"
        ) from error


def known_duration(duration: float | None, sequences: Mapping[str, FeatureSequence]) -> float:
    """Return a clip's duration in seconds; where it is unknown, the end of the last step."""
    return duration or max(float(sequence.end.max(initial=0.0)) for sequence in sequences.values())
