"""Split-conformal prediction intervals per modality subset, their coverage, and the reliability of predictions.

Vovk et al., "Algorithmic Learning in a Random World", 2005; Lei et al., "Distribution-Free Predictive Inference for
Regression", JASA 113(523), 2018, section 2.2: the k-th smallest absolute error of n clips that the network was not
trained on, k = ceil((n + 1) level), covers the error of a further exchangeable clip with at least that probability.
Errors depend on the modalities that a clip has, so every subset of modalities has its own intervals.

Shapes: N clips, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.config import MODALITIES, subsets
from model.evaluation.bootstrap import percentile_interval, resampled_mean
from model.evaluation.inference import predict

if TYPE_CHECKING:
    from model.data.clips import ClipTable
    from model.network.base import Network

LEVELS = (0.5, 0.8, 0.9, 0.95)

Calibration = Mapping[str, Mapping[str, float | None]]
"""`subset_name` of the modalities -> "n", the number of calibration clips, and each level -> the interval's half-width
in label units, None if n is too small for the level."""

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
        interval: 95 % bootstrap interval of the share.
    """

    level: float
    clips: int
    share: float | None
    interval: tuple[float, float] | None


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


def subset_name(modalities: Sequence[str]) -> str:
    """Join the modalities in the order of `MODALITIES`, such as `text+audio`."""
    return "+".join(m for m in MODALITIES if m in modalities)


def calibrate(network: Network, clips: ClipTable, modalities: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Calibrate the intervals of every subset of `modalities`.

    Args:
        network: shown each subset in turn.
        clips: labelled clips that it was not trained on; a subset uses those that have all of its modalities.
        modalities: those that it was trained with.
    """
    has = {m: clips.lengths((m,))[:, 0] > 0 for m in MODALITIES}
    calibration: dict[str, dict[str, float | None]] = {}
    for shown in subsets(modalities):
        rows = np.flatnonzero(np.logical_and.reduce([has[m] for m in shown]))
        complete = clips.select(rows)
        error_N = np.abs(predict(network, complete, shown) - complete.labels)
        widths = {f"{level:g}": half_width(error_N, level) for level in LEVELS}
        calibration[subset_name(shown)] = {"n": len(rows), **widths}
    return calibration


def half_width(error_N: np.ndarray, level: float) -> float | None:
    """Return the conformal quantile of N absolute errors; None if N is less than level / (1 - level)."""
    rank = math.ceil((len(error_N) + 1) * level - 1e-9)
    return float(np.sort(error_N)[rank - 1]) if rank <= len(error_N) else None


def coverage(
    calibrations: Sequence[Calibration], subset_N: Sequence[str], prediction_SN: np.ndarray, label_N: np.ndarray
) -> list[Coverage]:
    """Measure the fraction of clips whose label lies within the interval around the prediction, for each of `LEVELS`.

    Args:
        calibrations: one per seed.
        subset_N: `subset_name` of the modalities that the network was shown of each clip.
        prediction_SN: predictions of each seed's network.
        label_N: without NaN.
    """
    results = []
    for level in LEVELS:
        width_SN = np.array([[_width(seed, subset, level) for subset in subset_N] for seed in calibrations])
        width_SN = width_SN.reshape(prediction_SN.shape)
        known_N = np.isfinite(width_SN).all(axis=0)
        inside_N = (np.abs(prediction_SN - label_N) <= width_SN).mean(axis=0)[known_N]
        share = float(inside_N.mean()) if len(inside_N) else None
        results.append(Coverage(level, len(inside_N), share, percentile_interval(resampled_mean(inside_N))))
    return results


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
