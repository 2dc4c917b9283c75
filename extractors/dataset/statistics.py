"""Statistics of clips: of the training split, accumulated while the dataset is written, and of each speaker's audio.

Shapes: T steps, D features.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.manifest import MODALITIES, Clip
from extractors.dataset.align_clip import known_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extractors.base import FeatureSequence


class RunningStatistics:
    """Mean and standard deviation [D] of rows added in chunks, in float64.

    Merges each chunk's mean and squared deviations (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", 1979), which avoids the cancellation of large sums of squares.
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

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Return both [D]. The std of a feature that is constant within float32's resolution is 1."""
        std = np.sqrt(self._deviation / max(self.steps, 1))
        constant = std <= np.finfo(np.float32).eps * np.abs(self._mean)
        return self._mean, np.where(constant, 1.0, std)

    def to_json(self) -> dict[str, Any]:
        """Return mean, std and steps, see `mean_and_std`."""
        mean, std = self.mean_and_std()
        return {"mean": mean.tolist(), "std": std.tolist(), "steps": self.steps}

    def standardise(self, sequence: FeatureSequence, visible: np.ndarray) -> FeatureSequence:
        """Return the sequence with its visible steps standardised; the others, which the model never sees, stay."""
        mean, std = self.mean_and_std()
        values = sequence.values.copy()
        values[visible] = (values[visible] - mean) / std
        return replace(sequence, values=values)


class SpeakerStatistics:
    """Mean and standard deviation of the audio of each speaker's clips within one split.

    Standardising by them removes what is constant of a voice and its microphone, such as its pitch and level, and keeps
    how it varies: the z-score per speaker that is common in speech emotion recognition (for instance Busso, Metallinou
    and Narayanan, "Iterative Feature Normalization for Emotional Speech Detection", ICASSP 2011). No label is used.

    A clip whose speaker is unknown counts with its video. Each split has statistics of its own, even of a speaker who
    is in several: no clip of another split changes a clip's values.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        self._groups: dict[tuple[str, bool, str], RunningStatistics] = defaultdict(lambda: RunningStatistics(dim))

    def add(self, clip: Clip, sequence: FeatureSequence, visible: np.ndarray) -> None:
        """Add the visible steps [T] of a clip."""
        self._groups[_group(clip)].update(sequence.values[visible])

    def standardise(self, clip: Clip, sequence: FeatureSequence, visible: np.ndarray) -> FeatureSequence:
        """Return the clip's features standardised by its group, see `RunningStatistics.standardise`."""
        return self._groups[_group(clip)].standardise(sequence, visible)


def _group(clip: Clip) -> tuple[str, bool, str]:
    """Return the key of the clips whose statistics a clip shares; a speaker may have the name of another's video."""
    return clip.split, bool(clip.speaker), clip.speaker_or_video


def standardise_alone(sequence: FeatureSequence, visible: np.ndarray) -> FeatureSequence:
    """Return a sequence standardised by its own visible steps: a video whose speaker's other clips are unknown."""
    statistics = RunningStatistics(sequence.values.shape[1])
    statistics.update(sequence.values[visible])
    return statistics.standardise(sequence, visible)


class TrainingClips:
    """Durations, missing modalities and videos of the training clips, against which new videos are checked."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._missing = dict.fromkeys(MODALITIES, 0)
        self._videos: set[str] = set()

    def add(self, clip: Clip, sequences: Mapping[str, FeatureSequence]) -> None:
        """Add one clip with its features."""
        self._seconds.append(known_duration(clip.duration, sequences))
        self._videos.add(clip.video_id)
        for m, sequence in sequences.items():
            self._missing[m] += not len(sequence)

    def to_json(self) -> dict[str, Any]:
        """Return `seconds` (median, longest), `missing` (clips by missing modality), `videos`; empty without clips."""
        if not self._seconds:
            return {}
        seconds = {"median": float(np.median(self._seconds)), "longest": max(self._seconds)}
        return {
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "missing": self._missing,
            "videos": len(self._videos),
        }
