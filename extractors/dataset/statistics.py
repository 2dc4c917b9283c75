"""Statistics of the training split, accumulated while the dataset is written."""

from __future__ import annotations

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

    def to_json(self) -> dict[str, Any]:
        """Return mean, std and steps. The std of a feature that is constant within float32's resolution is 1."""
        std = np.sqrt(self._deviation / max(self.steps, 1))
        constant = std <= np.finfo(np.float32).eps * np.abs(self._mean)
        return {"mean": self._mean.tolist(), "std": np.where(constant, 1.0, std).tolist(), "steps": self.steps}


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
