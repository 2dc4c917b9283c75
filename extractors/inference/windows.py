"""Windows that slide over a long video: its features and its words, cut by their times.

T steps, W words; times are seconds, half-open.
"""

from __future__ import annotations

import math

import numpy as np

from extractors.base import FeatureSequence
from extractors.transcripts.table import PROPORTIONAL, Transcript
from extractors.transcripts.words import CHINESE, Word, match_words, split_words


def window_times(duration: float, window: float | None, hop: float | None) -> list[tuple[float, float]]:
    """Start and end of windows over [0, duration), evenly spread, at most `hop` apart.

    None where there is no `window`, or one would hold it all.
    """
    if not window or not hop or duration <= window:
        return []
    count = 1 + math.ceil((duration - window) / hop)
    return [(start, start + window) for start in np.linspace(0.0, duration - window, count).tolist()]


def cut_sequence(sequence: FeatureSequence, start: float, end: float) -> FeatureSequence:
    """The steps whose middle lies in [start, end), in time from `start`; steps are in order of time."""
    middle = (sequence.start + sequence.end) / 2
    first, stop = np.searchsorted(middle, [start, end])
    return FeatureSequence(
        values=sequence.values[first:stop],
        start=np.clip(sequence.start[first:stop] - np.float32(start), 0, None),
        end=np.clip(sequence.end[first:stop] - np.float32(start), 0, np.float32(end - start)),
        valid=sequence.valid[first:stop],
    )


def cut_transcript(transcript: Transcript, times: np.ndarray, start: float, end: float, language: str) -> Transcript:
    """The words at `times` [W, 2] whose middle lies in [start, end), with times from `start`."""
    middle = times.mean(axis=1)
    rows = np.flatnonzero((middle >= start) & (middle < end))
    inside = np.clip(times[rows] - start, 0, end - start)
    chosen = [transcript.words[row] for row in rows]
    text = ("" if language == CHINESE else " ").join(chosen)
    words = split_words(text, language)  # put together they may be cut elsewhere
    placed = match_words(words, [Word(word, *span) for word, span in zip(chosen, inside.tolist(), strict=True)])
    if placed is None:
        return Transcript(transcript.clip_id, text, transcript.text_source, words)
    method = transcript.times_method or PROPORTIONAL
    return Transcript(
        transcript.clip_id, text, transcript.text_source, words, placed[:, 0].tolist(), placed[:, 1].tolist(), method
    )
