"""Prediction intervals per modality subset, from errors on clips that a network was not trained on.

An interval is the prediction plus and minus an order statistic of the absolute errors. Errors depend on the modalities
that a clip has, so every subset of modalities has its own.

- `grouped_cv`: the k-th smallest of the errors of n clips, each of a network that was trained without the clip's
  speaker; k = ceil((n + 1) level). Barber et al., "Predictive Inference with the Jackknife+", Annals of Statistics 49,
  2021, section 1.2, where the CV of this kind is the one with half-widths.
- `split`: errors of one network on n clips of its validation split. The k-th smallest of them covers a further
  exchangeable clip with a probability that itself is Beta(k, n + 1 - k) distributed; k is the smallest for which it
  is at least the level in 90 % of all draws of the n clips. Vovk, "Conditional Validity of Inductive Conformal
  Predictors", Machine Learning 92, 2013, proposition 2a.

Shapes: N clips, n clips that have all modalities of a subset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from model.config import MODALITIES, subsets
from model.evaluation.inference import predict

if TYPE_CHECKING:
    from model.data.clips import ClipTable
    from model.network.base import Network

LEVELS = (0.5, 0.8, 0.9, 0.95)

CONFIDENCE = 0.9
"""Share of the draws of a validation split for which `split` intervals are to cover the level or more."""

Calibration = Mapping[str, Mapping[str, float | None]]
"""`subset_name` of the modalities -> "n", the number of calibration clips, and each level -> the interval's half-width
in label units, None if n is too small for the level."""


def subset_name(modalities: Sequence[str]) -> str:
    """Join the modalities in the order of `MODALITIES`, such as `text+audio`."""
    return "+".join(m for m in MODALITIES if m in modalities)


def subset_errors(network: Network, clips: ClipTable, modalities: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the absolute errors [n] of the network for every subset of `modalities`, by `subset_name`.

    Args:
        network: shown each subset in turn.
        clips: labelled clips that it was not trained on; a subset uses those that have all of its modalities.
        modalities: those that it was trained with.
    """
    has = {m: clips.lengths((m,))[:, 0] > 0 for m in MODALITIES}
    errors = {}
    for shown in subsets(modalities):
        complete = clips.select(np.flatnonzero(np.logical_and.reduce([has[m] for m in shown])))
        errors[subset_name(shown)] = np.abs(predict(network, complete, shown) - complete.labels)
    return errors


def calibrate_split(errors: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """Return the `split` intervals of `subset_errors` on a validation split."""
    return _calibrate(errors, conditional_rank)


def calibrate_grouped_cv(errors: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """Return the `grouped_cv` intervals of errors on clips that the networks were trained without."""
    return _calibrate(errors, marginal_rank)


def _calibrate(
    errors: Mapping[str, np.ndarray], rank: Callable[[int, float], int | None]
) -> dict[str, dict[str, float | None]]:
    return {
        subset: {"n": len(error_n)}
        | {f"{level:g}": order_statistic(error_n, rank(len(error_n), level)) for level in LEVELS}
        for subset, error_n in errors.items()
    }


def order_statistic(error_n: np.ndarray, rank: int | None) -> float | None:
    """Return the error of this rank, from 1; None for None."""
    return None if rank is None else float(np.sort(error_n)[rank - 1])


def marginal_rank(n: int, level: float) -> int | None:
    """Return ceil((n + 1) level); None if n is less than level / (1 - level)."""
    rank = math.ceil((n + 1) * level - 1e-9)
    return rank if rank <= n else None


def conditional_rank(n: int, level: float) -> int | None:
    """Return the smallest k with P(Beta(k, n + 1 - k) >= level) >= `CONFIDENCE`; None if n is too small.

    That probability is the one of fewer than k successes in n trials with the probability `level`.
    """
    log_choose = math.lgamma(n + 1)
    fewer = 0.0
    for k in range(1, n + 1):
        log_p = log_choose - math.lgamma(k) - math.lgamma(n - k + 2)
        fewer += math.exp(log_p + (k - 1) * math.log(level) + (n - k + 1) * math.log1p(-level))
        if fewer >= CONFIDENCE:
            return k
    return None
