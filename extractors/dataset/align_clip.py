"""Alignment of one clip: put its modalities on one timeline, or pool them onto the text's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from corpora.manifest import MODALITIES
from extractors.base import FeatureSequence
from extractors.transcripts.table import PROPORTIONAL, Transcript
from extractors.transcripts.word_timings import read_word_table
from extractors.transcripts.words import match_words, timing_error, token_times, word_times

MODES = ("unaligned", "aligned")
NORMALISED = ("audio", "vision")
"""Modalities with statistics; text values are an encoder's hidden states, used as they are."""

STEPS = "steps"
"""What timed the words of a clip whose text features came with times but without words."""


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
