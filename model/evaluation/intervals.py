"""Prediction intervals per modality subset, from errors on clips that a network was not trained on.

An interval is the prediction plus and minus an order statistic of the absolute errors. Errors depend on the modalities
that a clip has, so every subset of modalities has its own.

- `grouped_cv`: errors of networks on clips whose speakers they were trained without (the CV of Barber et al.,
  "Predictive Inference with the Jackknife+", Annals of Statistics 49, 2021, section 1.2). Clips of a speaker are alike,
  so it is the G speakers that are exchangeable with a further one. With the weight 1 / (G + 1) for every speaker,
  divided among the clips, the least error up to which the weights add up to the level covers a further speaker's clips
  with a probability between the level and the level + 1 / (G + 1) (Lee, Barber and Willett, "Distribution-Free
  Inference with Hierarchical Data", 2023, section 3). The weight here is 1 / (G + 1/2), so that the level lies in the
  middle of that range and not at its lower end.
- `cv_plus`: the same errors with the weight 1 / (G + 1), around the predictions of those networks; see
  `model.evaluation.cv_plus`.
- `split`: errors of one network on n clips of its validation split. The k-th smallest of them covers a further
  exchangeable clip with a probability that itself is Beta(k, n + 1 - k) distributed; k is the smallest for which it
  is at least the level in 90 % of all draws of the n clips. Vovk, "Conditional Validity of Inductive Conformal
  Predictors", Machine Learning 92, 2013, proposition 2a.

Shapes: N clips, n clips that have all modalities of a subset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.config import MODALITIES, subsets
from model.evaluation.inference import predict

if TYPE_CHECKING:
    from model.data.clips import ClipTable
    from model.network.base import Network

LEVELS = (0.5, 0.8, 0.9, 0.95)

HALF_A_SPEAKER = 0.5
"""Weight of the further speaker in `grouped_cv`, relative to the others."""

CONFIDENCE = 0.9
"""Share of the draws of a validation split for which `split` intervals are to cover the level or more."""

Calibration = Mapping[str, Mapping[str, float | None]]
"""`subset_name` of the modalities -> "n", the number of calibration clips, and each level -> the interval's half-width
in label units, None if n is too small for the level."""


def subset_name(modalities: Sequence[str]) -> str:
    """Join the modalities in the order of `MODALITIES`, such as `text+audio`."""
    return "+".join(m for m in MODALITIES if m in modalities)


@dataclass(frozen=True, slots=True)
class Errors:
    """Absolute errors of networks on n clips.

    Attributes:
        error_n: absolute errors.
        speaker_n: speakers of the clips.
        fold_n: folds of the clips, if there is a network for each; else None.
    """

    error_n: np.ndarray
    speaker_n: np.ndarray
    fold_n: np.ndarray | None = None

    @classmethod
    def join(cls, folds: Sequence[Errors]) -> Errors:
        """Return the errors of all folds."""
        return cls(
            np.concatenate([fold.error_n for fold in folds]),
            np.concatenate([fold.speaker_n for fold in folds]),
            np.repeat(np.arange(len(folds)), [len(fold.error_n) for fold in folds]),
        )


def subset_errors(network: Network, clips: ClipTable, modalities: Sequence[str]) -> dict[str, Errors]:
    """Return the errors of the network for every subset of `modalities`, by `subset_name`.

    Args:
        network: shown each subset in turn.
        clips: labelled clips of a dataset that it was not trained on; a subset uses those that have all of its
            modalities.
        modalities: those that it was trained with.
    """
    has = {m: clips.lengths((m,))[:, 0] > 0 for m in MODALITIES}
    errors = {}
    for shown in subsets(modalities):
        complete = clips.select(np.flatnonzero(np.logical_and.reduce([has[m] for m in shown])))
        assert complete.speakers is not None, "read from a dataset"
        error_n = np.abs(predict(network, complete, shown) - complete.labels)
        errors[subset_name(shown)] = Errors(error_n, complete.speakers)
    return errors


def calibrate(
    errors: Mapping[str, Errors], half_width: Callable[[Errors, float], float | None]
) -> dict[str, dict[str, float | None]]:
    """Return the half-widths of all subsets and levels: those of `split_half_width` or `grouped_half_width`."""
    return {
        subset: {"n": len(found.error_n)} | {f"{level:g}": half_width(found, level) for level in LEVELS}
        for subset, found in errors.items()
    }


def split_half_width(errors: Errors, level: float) -> float | None:
    """Return the half-width of the method `split`; None if there are too few clips."""
    return order_statistic(errors.error_n, conditional_rank(len(errors.error_n), level))


def grouped_half_width(errors: Errors, level: float) -> float | None:
    """Return the half-width of the method `grouped_cv`; None if there are too few clips."""
    weight_n = fold_weights(errors.speaker_n, level, HALF_A_SPEAKER)
    return None if weight_n is None else float(first_to_reach(errors.error_n[None], weight_n, level)[0])


def fold_weights(speaker_n: np.ndarray, level: float, further: float = 1.0) -> np.ndarray | None:
    """Return the weights [n] of the errors of cross-validation; None if there are too few clips.

    With fewer than level / (1 - level) speakers nothing can be said of further ones: then every clip has the same
    weight, for further clips of these speakers.

    Args:
        speaker_n: speakers of the clips.
        level: of the interval.
        further: weight of the further speaker, or clip, relative to the others.
    """
    _, group_n, size_G = np.unique(speaker_n, return_inverse=True, return_counts=True)
    groups, n = len(size_G), len(speaker_n)
    if groups >= max(2.0, level * (groups + 1) - 1e-9):
        weight_n: np.ndarray = 1 / ((groups + further) * size_G[group_n])
        return weight_n
    return None if marginal_rank(n, level) is None else np.full(n, 1 / (n + further))


def first_to_reach(value_Nn: np.ndarray, weight_n: np.ndarray, level: float) -> np.ndarray:
    """Return for each row the least value up to which the weights add up to the level, [N]."""
    order_Nn = np.argsort(value_Nn, axis=1, kind="stable")
    reached_Nn = np.cumsum(weight_n[order_Nn], axis=1) >= level - 1e-9
    chosen_N1 = np.take_along_axis(order_Nn, reached_Nn.argmax(axis=1)[:, None], axis=1)
    value_N: np.ndarray = np.take_along_axis(value_Nn, chosen_N1, axis=1)[:, 0]
    return value_N


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
