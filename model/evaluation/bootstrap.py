"""How far a metric could be off for the choice of clips: the bootstrap over clips, and its percentile intervals.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. The clips are drawn anew, with replacement,
R times, and the metric is computed of each draw. A draw is how often it holds each clip, so that every sum over its
clips is a product of matrices. The draws depend on the number of clips, of draws, and the seed alone: two models that
are measured on the same clips are measured on the same draws, and their differences can be taken draw by draw.

Shapes: R draws, N clips, S seeds of a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model.evaluation.metrics import ROUNDING, WIDE, check_comparable, correlation, to_classes, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESAMPLES = 2000
LEVEL = 0.95

MOST_UNDEFINED = 0.1
"""Part of the draws that may leave a metric undefined; of more, there is no interval."""

_AT_ONCE = 2**18
"""Draws times clips that are computed together: what a processor's cache holds."""


def resampled_metrics(
    prediction_SN: np.ndarray,
    label_N: np.ndarray,
    label_range: tuple[float, float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each metric of `evaluate_metrics` but n, [R]: its mean over the seeds on each draw of the clips.

    Args:
        prediction_SN: of each seed's network; [N] is one seed's.
        label_N: none of them NaN.

    Returns:
        NaN where the metric is undefined for any of the seeds.

    Raises:
        ValueError: as `evaluate_metrics` does.
    """
    prediction_SN, label_N = np.atleast_2d(prediction_SN), np.asarray(label_N)
    for prediction_N in prediction_SN:
        check_comparable(prediction_N, label_N, label_range)
    chunks = [
        [_metrics(count_RN, prediction_N, label_N, label_range) for prediction_N in prediction_SN]
        for count_RN in bootstrap_counts(len(label_N), resamples, seed)
    ]
    return {
        key: np.concatenate([np.mean([by_seed[key] for by_seed in chunk], axis=0) for chunk in chunks])
        for key in chunks[0][0]
    }


def resampled_mean(value_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The mean [R] of a clip's value, such as whether it lies within an interval, on each draw; NaN without clips."""
    ones_N = np.ones(len(value_N))
    return np.concatenate([_share(count @ value_N, count @ ones_N) for count in bootstrap_counts(len(value_N), resamples, seed)])


def bootstrap_counts(clips: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """[r, N] float64 how often each of N draws holds each clip, r of R draws at a time; each row sums to N."""
    rng = np.random.default_rng((seed, clips))
    rows = max(1, _AT_ONCE // max(clips, 1))
    for first in range(0, resamples, rows):
        r = min(rows, resamples - first)
        drawn_rN = rng.integers(clips, size=(r, clips)) if clips else np.zeros((r, 0), np.int64)
        of_draw_rN = drawn_rN + clips * np.arange(r)[:, None]
        yield np.bincount(of_draw_rN.ravel(), minlength=r * clips).reshape(r, clips).astype(np.float64)


def percentile_interval(values_R: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentile interval of a metric; None where too many draws leave it undefined."""
    defined = values_R[np.isfinite(values_R)]
    if not len(defined) or len(defined) < (1 - MOST_UNDEFINED) * len(values_R):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference_interval(values_R: np.ndarray, other_R: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of `values - other`, both of the same draws: paired, so that what makes clips hard for both models
    falls out.

    Raises:
        ValueError: of different numbers of draws.
    """
    if values_R.shape != other_R.shape:
        raise ValueError(
            f"{len(values_R)} draws against {len(other_R)}: differences are taken draw by draw; resample both alike"
        )
    return percentile_interval(values_R - other_R, level)


def _metrics(
    count_RN: np.ndarray, prediction_N: np.ndarray, label_N: np.ndarray, label_range: tuple[float, float]
) -> dict[str, np.ndarray]:
    """`evaluate_metrics` [R] of draws that hold each clip so many times."""
    prediction_N, label_N = within(prediction_N, label_range), within(label_N, label_range)
    error_N = np.abs(prediction_N.astype(np.float64) - label_N.astype(np.float64))
    everything_N = np.ones(len(label_N), bool)
    metrics = {
        "mae": _share(count_RN @ error_N, count_RN @ everything_N),
        "corr": _correlation(count_RN, prediction_N, label_N),
    }

    def binary(suffix: str, found_N: np.ndarray, true_N: np.ndarray, of_N: np.ndarray = everything_N) -> None:
        metrics[f"acc2{suffix}"] = _share(count_RN @ (of_N & (found_N == true_N)), count_RN @ of_N)
        metrics[f"f1{suffix}"] = _weighted_f1(lambda chosen_N: count_RN @ (of_N & chosen_N), found_N, true_N)

    wide = tuple(label_range) == WIDE
    if wide:
        binary("_nn", prediction_N >= 0, label_N >= 0)
        binary("_np", prediction_N > 0, label_N > 0, label_N != 0)
    else:
        binary("", prediction_N > 0, label_N > 0)
    for classes in (3, 5, 7) if wide else (3, 5):
        found_N, true_N = (to_classes(values, label_range, classes) for values in (prediction_N, label_N))
        metrics[f"acc{classes}"] = _share(count_RN @ (found_N == true_N), count_RN @ everything_N)
    return metrics


def _share(part_R: np.ndarray, whole_R: np.ndarray) -> np.ndarray:
    """NaN where the whole is nothing."""
    return np.divide(part_R, whole_R, out=np.full(len(whole_R), np.nan), where=whole_R > 0)


def _weighted_f1(count: Callable[[np.ndarray], np.ndarray], found_N: np.ndarray, true_N: np.ndarray) -> np.ndarray:
    """`weighted_f1` of two classes; `count` gives how many [R] of some chosen clips there are."""
    total_R, of_R = 0.0, 0.0
    for found_C, true_C in ((found_N, true_N), (~found_N, ~true_N)):
        support_R, right_R = count(true_C), count(true_C & found_C)
        f1_R = _share(2 * right_R, count(found_C) + support_R)
        total_R = total_R + np.where(support_R > 0, support_R * f1_R, 0.0)
        of_R = of_R + support_R
    return _share(total_R, of_R)


def _correlation(count_RN: np.ndarray, prediction_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Pearson's correlation from sums of centred values, so that nothing is lost to rounding."""
    x_N, y_N = (values.astype(np.float64) - (values.mean() if len(values) else 0) for values in (prediction_N, label_N))
    n_R = count_RN.sum(axis=1)
    mean_x_R, mean_y_R = _share(count_RN @ x_N, n_R), _share(count_RN @ y_N, n_R)
    std_x_R = np.sqrt(np.maximum(_share(count_RN @ x_N**2, n_R) - mean_x_R**2, 0))
    std_y_R = np.sqrt(np.maximum(_share(count_RN @ y_N**2, n_R) - mean_y_R**2, 0))
    covariance_R = _share(count_RN @ (x_N * y_N), n_R) - mean_x_R * mean_y_R
    found_R = _share(covariance_R, std_x_R * std_y_R)
    for row in np.flatnonzero(~(np.minimum(std_x_R, std_y_R) > ROUNDING)):  # all that can be constant, and few others
        drawn = np.repeat(np.arange(len(x_N)), count_RN[row].astype(np.int64))
        exact = correlation(prediction_N[drawn], label_N[drawn])
        found_R[row] = np.nan if exact is None else exact
    return np.clip(found_R, -1, 1)
