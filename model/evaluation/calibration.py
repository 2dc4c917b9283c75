"""How far predictions are off: intervals from the errors on clips that the network was not trained on.

Split conformal prediction (Vovk et al., "Algorithmic Learning in a Random World", 2005; Lei et al., "Distribution-Free
Predictive Inference for Regression", JASA 113(523), 2018, section 2.2): of n such clips, the k-th smallest absolute
error, k = ceil((n + 1) level), covers the error of a further clip of the same kind with at least that probability.

A network knows less of a clip that lacks a modality, so each subset of modalities has intervals of its own.

Whether they hold on a further split is measured there: `coverage`. Whether a prediction can be taken at its word is
another question: `reliability`. Shapes: N clips, S seeds.
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
    from model.network.dashfusion import DashFusion

LEVELS = (0.5, 0.8, 0.9, 0.95)

Calibration = Mapping[str, Mapping[str, float | None]]
"""Subset of modalities, as `subset_name` has it -> "n", the clips measured, and each level -> the interval's half-width
in label units, None where n is too small for that level."""


BINS, FEWEST_IN_BIN = 10, 8
"""Of `reliability`: as many bins as hold so many clips each, but no more."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many clips lie within the intervals of one level.

    Attributes:
        level: nominal, such as 0.9.
        clips: that the checkpoints have an interval for.
        share: of them that lie inside, mean over the seeds; None without clips.
        interval: 95 % interval of the share.
    """

    level: float
    clips: int
    share: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Bin:
    """Clips with neighbouring predictions: how many, their mean prediction, their mean label and its 95 % interval."""

    clips: int
    prediction: float
    label: float
    interval: tuple[float, float] | None


def subset_name(modalities: Sequence[str]) -> str:
    """`text+audio`: the modalities in their usual order."""
    return "+".join(m for m in MODALITIES if m in modalities)


def calibrate(network: DashFusion, clips: ClipTable, modalities: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Intervals for every subset of `modalities`, those that the network was trained with.

    Args:
        clips: labelled, and none of them trained on. For a subset, those count that have all of its modalities.
    """
    has = {m: clips.lengths((m,))[:, 0] > 0 for m in MODALITIES}
    found = {}
    for shown in subsets(modalities):
        rows = np.flatnonzero(np.logical_and.reduce([has[m] for m in shown]))
        some = clips.select(rows)
        error = np.abs(predict(network, some, shown) - some.labels)
        found[subset_name(shown)] = {"n": len(rows), **{f"{level:g}": half_width(error, level) for level in LEVELS}}
    return found


def half_width(error_N: np.ndarray, level: float) -> float | None:
    """The conformal quantile of N absolute errors; None where N is less than level / (1 - level)."""
    rank = math.ceil((len(error_N) + 1) * level - 1e-9)
    return float(np.sort(error_N)[rank - 1]) if rank <= len(error_N) else None


def coverage(
    calibrations: Sequence[Calibration], subset_N: Sequence[str], prediction_SN: np.ndarray, label_N: np.ndarray
) -> list[Coverage]:
    """Each of `LEVELS` against the share of clips whose label lies within the interval around their prediction.

    Args:
        calibrations: one a seed.
        subset_N: `subset_name` of what the network was shown of each clip.
        label_N: none of them NaN.
    """
    found = []
    for level in LEVELS:
        width_SN = np.array([[_width(seed, subset, level) for subset in subset_N] for seed in calibrations])
        width_SN = width_SN.reshape(prediction_SN.shape)
        known_N = np.isfinite(width_SN).all(axis=0)
        inside_N = (np.abs(prediction_SN - label_N) <= width_SN).mean(axis=0)[known_N]
        share = float(inside_N.mean()) if len(inside_N) else None
        found.append(Coverage(level, len(inside_N), share, percentile_interval(resampled_mean(inside_N))))
    return found


def _width(calibration: Calibration, subset: str, level: float) -> float:
    width = calibration.get(subset, {}).get(f"{level:g}")
    return math.nan if width is None else width


def mean_widths(calibrations: Sequence[Calibration]) -> dict[str, dict[str, float | None]]:
    """One calibration of several seeds: the mean of each half-width, None where any has none; n as the first has it."""
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
    """Clips in the order of their predictions, in bins of equal numbers: on a calibrated network each bin's mean label
    is its mean prediction (Murphy and Winkler, "Reliability of Subjective Probability Forecasts", 1977, for a mean in
    place of a frequency). No bins of fewer than `FEWEST_IN_BIN` clips.
    """
    count = min(BINS, len(label_N) // FEWEST_IN_BIN)
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
