"""Sliding windows over a long video: cut its features and its words by time.

Shapes: T steps, W words. Times are seconds, half-open.
"""

from __future__ import annotations

import math

import numpy as np

from extractors.base import FeatureSequence
from extractors.transcripts.table import PROPORTIONAL, Transcript
from extractors.transcripts.words import CHINESE, Word, match_words, split_words


def window_times(duration: float, window: float | None, hop: float | None) -> list[tuple[float, float]]:
    """Return start and end of windows evenly spread over [0, duration), at most `hop` apart.

    The list is empty without a `window`, or if one window covers the whole duration.
    """
    if not window or not hop or duration <= window:
        return []
    count = 1 + math.ceil((duration - window) / hop)
    return [(start, start + window) for start in np.linspace(0.0, duration - window, count).tolist()]


def cut_sequence(sequence: FeatureSequence, start: float, end: float) -> FeatureSequence:
    """Return the steps whose midpoint is in [start, end), with times from `start`; steps are in time order."""
    midpoint = (sequence.start + sequence.end) / 2
    first, stop = np.searchsorted(midpoint, [start, end])
    return FeatureSequence(
        values=sequence.values[first:stop],
        start=np.clip(sequence.start[first:stop] - np.float32(start), 0, None),
        end=np.clip(sequence.end[first:stop] - np.float32(start), 0, np.float32(end - start)),
        valid=sequence.valid[first:stop],
    )


def cut_transcript(transcript: Transcript, times: np.ndarray, start: float, end: float, language: str) -> Transcript:
    """Return the words at `times` [W, 2] whose midpoint is in [start, end), with times from `start`."""
    midpoint = times.mean(axis=1)
    rows = np.flatnonzero((midpoint >= start) & (midpoint < end))
    inside = np.clip(times[rows] - start, 0, end - start)
    chosen = [transcript.words[int(row)] for row in rows]
    text = ("" if language == CHINESE else " ").join(chosen)
    words = split_words(text, language)  # the joined text may split differently
    matched = match_words(words, [Word(word, *span) for word, span in zip(chosen, inside.tolist(), strict=True)])
    if matched is None:
        return Transcript(transcript.clip_id, text, transcript.text_source, words)
    method = transcript.times_method or PROPORTIONAL
    return Transcript(
        transcript.clip_id, text, transcript.text_source, words, matched[:, 0].tolist(), matched[:, 1].tolist(), method
    )
