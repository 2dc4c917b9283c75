"""Coverage of prediction intervals, and the reliability of predictions.

Shapes: N clips, S seeds, G speakers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from model.evaluation.bootstrap import percentile_interval, resampled_mean
from model.evaluation.intervals import LEVELS, Calibration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Judgement = Literal["too narrow", "too wide", ""]

Bounds = tuple[np.ndarray, np.ndarray]
"""Lower and upper ends [S, N] of intervals, NaN where there is none."""

Z = 1.96
"""97.5 % quantile of the normal distribution."""

MAX_BINS = 10
"""Maximum number of bins of `reliability`."""

MIN_BIN_CLIPS = 8
"""Minimum clips of such a bin."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Empirical coverage of the intervals of one level.

    Attributes:
        level: nominal coverage, such as 0.9.
        clips: number of clips that the checkpoints have an interval for.
        share: fraction of them whose label lies inside, averaged over the seeds; None without clips.
        interval: 95 % interval of the share, see `share_interval`.
    """

    level: float
    clips: int
    share: float | None
    interval: tuple[float, float] | None

    @property
    def judgement(self) -> Judgement:
        """Whether the intervals are too narrow or too wide; empty if the share is consistent with the level."""
        if self.interval is None or self.interval[0] <= self.level <= self.interval[1]:
            return ""
        return "too narrow" if self.interval[1] < self.level else "too wide"


@dataclass(frozen=True, slots=True)
class Bin:
    """Clips with neighbouring predictions.

    Attributes:
        clips: number of clips.
        prediction: their mean prediction.
        label: their mean label.
        interval: 95 % bootstrap interval of the mean label.
    """

    clips: int
    prediction: float
    label: float
    interval: tuple[float, float] | None


def symmetric_bounds(
    calibrations: Sequence[Calibration], subset_N: Sequence[str], prediction_SN: np.ndarray
) -> dict[float, Bounds]:
    """Return the intervals of prediction plus and minus half-width, by level.

    Args:
        calibrations: one per seed.
        subset_N: `subset_name` of the modalities that the network was shown of each clip.
        prediction_SN: predictions of each seed's network.
    """
    bounds = {}
    for level in LEVELS:
        width_SN = np.array([[_width(seed, subset, level) for subset in subset_N] for seed in calibrations])
        width_SN = width_SN.reshape(prediction_SN.shape)
        bounds[level] = (prediction_SN - width_SN, prediction_SN + width_SN)
    return bounds


def coverage(bounds: Mapping[float, Bounds], label_N: np.ndarray, speaker_N: np.ndarray) -> list[Coverage]:
    """Measure the fraction of clips whose label lies within the interval, for each level.

    Args:
        bounds: level -> intervals of each seed's network.
        label_N: without NaN.
        speaker_N: speakers of the clips.
    """
    results = []
    for level, (low_SN, high_SN) in bounds.items():
        known_N = np.isfinite(low_SN).all(axis=0)
        inside_N = ((low_SN <= label_N) & (label_N <= high_SN)).mean(axis=0)[known_N]
        share = float(inside_N.mean()) if len(inside_N) else None
        results.append(Coverage(level, len(inside_N), share, share_interval(inside_N, speaker_N[known_N])))
    return results


def share_interval(inside_N: np.ndarray, speaker_N: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % binomial interval of a share of clips; None without clips.

    Clips of a speaker are alike, and count as fewer: as N divided by the design effect, the ratio of the share's
    variance over speakers to that of independent clips, at least 1 (Kish, "Survey Sampling", 1965). The interval is
    Wilson's ("Probable Inference", JASA 22, 1927), which holds for few clips and shares near 1.
    """
    if not len(inside_N):
        return None
    n, share = float(len(inside_N)), float(inside_N.mean())
    _, group_N = np.unique(speaker_N, return_inverse=True)
    deviation_G = np.bincount(group_N, weights=inside_N - share)
    groups = len(deviation_G)
    if groups > 1 and 0 < share < 1:
        variance = groups / (groups - 1) * float((deviation_G**2).sum()) / n**2
        n /= max(1.0, variance / (share * (1 - share) / (n - 1)))
    centre, spread = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _width(calibration: Calibration, subset: str, level: float) -> float:
    width = calibration.get(subset, {}).get(f"{level:g}")
    return math.nan if width is None else width


def mean_widths(calibrations: Sequence[Calibration]) -> dict[str, dict[str, float | None]]:
    """Average the half-widths over the seeds, None if any seed has none; n is that of the first seed."""
    first = calibrations[0] if calibrations else {}
    return {
        subset: {"n": widths["n"]}
        | {
            f"{level:g}": None if math.isnan(mean) else mean
            for level in LEVELS
            for mean in [float(np.mean([_width(seed, subset, level) for seed in calibrations]))]
        }
        for subset, widths in first.items()
    }


def reliability(prediction_N: np.ndarray, label_N: np.ndarray) -> list[Bin]:
    """Bin the clips by prediction, with equal numbers of clips in each bin.

    The mean label of each bin equals its mean prediction for a calibrated network (Murphy and Winkler, "Reliability of
    Subjective Probability Forecasts", 1977, with a mean in place of a frequency).
    """
    count = min(MAX_BINS, len(label_N) // MIN_BIN_CLIPS)
    order = np.argsort(prediction_N, kind="stable")
    return [
        Bin(
            clips=len(rows),
            prediction=float(prediction_N[rows].mean()),
            label=float(label_N[rows].mean()),
            interval=percentile_interval(resampled_mean(label_N[rows])),
        )
        for rows in (np.array_split(order, count) if count else ())
    ]
