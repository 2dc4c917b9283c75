"""How far predictions are off: intervals from the errors on clips that the network was not trained on.

Split conformal prediction (Vovk et al., "Algorithmic Learning in a Random World", 2005; Lei et al., "Distribution-Free
Predictive Inference for Regression", JASA 113(523), 2018, section 2.2): of n such clips, the k-th smallest absolute
error, k = ceil((n + 1) level), covers the error of a further clip of the same kind with at least that probability.

A network knows less of a clip that lacks a modality, so each subset of modalities has intervals of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from model.config import MODALITIES, subsets
from model.data import ClipTable
from model.evaluate import predict
from model.network import DashFusion

LEVELS = (0.5, 0.8, 0.9, 0.95)

Calibration = Mapping[str, Mapping[str, float | None]]
"""Subset of modalities, as `subset_name` has it -> "n", the clips measured, and each level -> the interval's half-width
in label units, None where n is too small for that level."""


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
