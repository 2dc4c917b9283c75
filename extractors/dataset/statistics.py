"""Normalisation statistics of the training split, accumulated in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.manifest import MODALITIES, Clip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extractors.base import FeatureSequence


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
