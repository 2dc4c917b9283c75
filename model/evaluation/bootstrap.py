"""Bootstrap over clips or speakers, and percentile intervals of metrics.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13: N clips are drawn with replacement R times,
and each metric is computed of every resample. The clips of a speaker are alike, so where speakers are known, whole
speakers are drawn (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8). A resample is
stored as the count of each clip, so that sums over its clips are matrix products. Resamples depend only on the groups,
R and the seed: models measured on the same clips share them, and their metrics can be compared resample by resample.

Shapes: R resamples, r resamples of a chunk, N clips, S seeds of a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model.evaluation.metrics import ROUNDING, WIDE, check_comparable, correlation, to_classes, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESAMPLES = 2000
LEVEL = 0.95

MAX_UNDEFINED = 0.1
"""Fraction of the resamples that may leave a metric undefined; above it there is no interval."""

MIN_GROUPS = 2
"""Speakers from which on speakers are drawn; with fewer, clips are."""

_CHUNK_SIZE = 2**18
"""Resamples times clips of a chunk, which fits a CPU's cache."""


def resampled_metrics(
    prediction_SN: np.ndarray,
    label_N: np.ndarray,
    label_range: tuple[float, float],
    resamples: int = RESAMPLES,
    seed: int = 0,
    speaker_N: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute every metric of `evaluate_metrics` except n on each resample, averaged over the seeds.

    Args:
        prediction_SN: predictions of each seed's network, or [N] of one.
        label_N: without NaN.
        label_range: (-3, 3) or (-1, 1).
        resamples: R.
        seed: of the resampling.
        speaker_N: speakers to draw, see `bootstrap_counts`; None: clips are drawn.

    Returns:
        Metric -> [R], NaN where it is undefined for any of the networks.

    Raises:
        ValueError: as `evaluate_metrics`.
    """
    by_seed = resampled_by_seed(prediction_SN, label_N, label_range, resamples, seed, speaker_N)
    return {key: values_SR.mean(axis=0) for key, values_SR in by_seed.items()}


def resampled_by_seed(
    prediction_SN: np.ndarray,
    label_N: np.ndarray,
    label_range: tuple[float, float],
    resamples: int = RESAMPLES,
    seed: int = 0,
    speaker_N: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute `resampled_metrics` of each seed's network: metric -> [S, R]."""
    prediction_SN, label_N = np.atleast_2d(prediction_SN), np.asarray(label_N)
    for prediction_N in prediction_SN:
        check_comparable(prediction_N, label_N, label_range)
    chunks = [
        [_metrics(count_RN, prediction_N, label_N, label_range) for prediction_N in prediction_SN]
        for count_RN in bootstrap_counts(len(label_N), resamples, seed, speaker_N)
    ]
    return {
        key: np.concatenate([np.stack([by_seed[key] for by_seed in chunk]) for chunk in chunks], axis=1)
        for key in chunks[0][0]
    }


def resampled_mean(
    value_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, speaker_N: np.ndarray | None = None
) -> np.ndarray:
    """Compute the mean [R] of the clips' values on each resample; NaN without clips."""
    counts = bootstrap_counts(len(value_N), resamples, seed, speaker_N)
    return np.concatenate([_ratio(count_rN @ value_N, count_rN.sum(axis=1)) for count_rN in counts])


def bootstrap_counts(
    clips: int, resamples: int, seed: int, speaker_N: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield the count of each clip in each resample, [r, N] float64, a chunk at a time.

    Args:
        clips: N.
        resamples: R.
        seed: of the resampling.
        speaker_N: the speaker, or another group, of each clip: as many speakers as there are are drawn, each with all
            of its clips. None, or a single speaker, whose variation nothing is known of: N clips are drawn.
    """
    group_N = np.arange(clips) if speaker_N is None else np.unique(speaker_N, return_inverse=True)[1]
    groups = int(group_N.max(initial=-1)) + 1
    if groups < MIN_GROUPS:
        group_N, groups = np.arange(clips), clips
    rng = np.random.default_rng((seed, groups))
    rows = max(1, _CHUNK_SIZE // max(clips, 1))
    for first in range(0, resamples, rows):
        r = min(rows, resamples - first)
        drawn_rG = rng.integers(groups, size=(r, groups)) if groups else np.zeros((r, 0), np.int64)
        cell_rG = drawn_rG + groups * np.arange(r)[:, None]
        count_rG = np.bincount(cell_rG.ravel(), minlength=r * groups).reshape(r, groups)
        yield count_rG[:, group_N].astype(np.float64)


def resampled_groups(speaker_N: np.ndarray) -> int:
    """Return how many groups `bootstrap_counts` draws: the speakers or, if there is a single one, its clips."""
    speakers = len(set(speaker_N.tolist()))
    return speakers if speakers >= MIN_GROUPS else len(speaker_N)


def percentile_interval(values_R: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the percentile interval of a metric; None if too many resamples leave it undefined."""
    defined = values_R[np.isfinite(values_R)]
    if not len(defined) or len(defined) < (1 - MAX_UNDEFINED) * len(values_R):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference_interval(values_R: np.ndarray, other_R: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the percentile interval of the paired difference `values - other`.

    Both are of the same resamples, so that the difficulty of clips which is common to both models cancels.

    Raises:
        ValueError: different numbers of resamples.
    """
    if values_R.shape != other_R.shape:
        raise ValueError(
            f"{len(values_R)} resamples against {len(other_R)}: paired differences need the same resamples of both"
        )
    return percentile_interval(values_R - other_R, level)


def _metrics(
    count_RN: np.ndarray, prediction_N: np.ndarray, label_N: np.ndarray, label_range: tuple[float, float]
) -> dict[str, np.ndarray]:
    """Compute `evaluate_metrics` [R] of the resamples that contain each clip `count_RN` times."""
    prediction_N, label_N = within(prediction_N, label_range), within(label_N, label_range)
    error_N = np.abs(prediction_N.astype(np.float64) - label_N.astype(np.float64))
    all_N = np.ones(len(label_N), bool)
    metrics = {
        "mae": _ratio(count_RN @ error_N, count_RN @ all_N),
        "corr": _correlation(count_RN, prediction_N, label_N),
    }

    def add_binary(suffix: str, predicted_N: np.ndarray, true_N: np.ndarray, used_N: np.ndarray = all_N) -> None:
        metrics[f"acc2{suffix}"] = _ratio(count_RN @ (used_N & (predicted_N == true_N)), count_RN @ used_N)
        metrics[f"f1{suffix}"] = _weighted_f1(lambda clips_N: count_RN @ (used_N & clips_N), predicted_N, true_N)

    wide = tuple(label_range) == WIDE
    if wide:
        add_binary("_nn", prediction_N >= 0, label_N >= 0)
        add_binary("_np", prediction_N > 0, label_N > 0, label_N != 0)
    else:
        add_binary("", prediction_N > 0, label_N > 0)
    for classes in (3, 5, 7) if wide else (3, 5):
        predicted_N, true_N = (to_classes(values, label_range, classes) for values in (prediction_N, label_N))
        metrics[f"acc{classes}"] = _ratio(count_RN @ (predicted_N == true_N), count_RN @ all_N)
    return metrics


def _ratio(part_R: np.ndarray, whole_R: np.ndarray) -> np.ndarray:
    """Divide; NaN where the whole is 0."""
    ratio: np.ndarray = np.divide(part_R, whole_R, out=np.full(len(whole_R), np.nan), where=whole_R > 0)
    return ratio


def _weighted_f1(count: Callable[[np.ndarray], np.ndarray], predicted_N: np.ndarray, true_N: np.ndarray) -> np.ndarray:
    """Compute `weighted_f1` of two classes; `count` returns how often [R] each resample contains the given clips."""
    weighted, supports = [], []
    for predicted_class_N, true_class_N in ((predicted_N, true_N), (~predicted_N, ~true_N)):
        support_R, correct_R = count(true_class_N), count(true_class_N & predicted_class_N)
        f1_R = _ratio(2 * correct_R, count(predicted_class_N) + support_R)
        weighted.append(np.where(support_R > 0, support_R * f1_R, 0.0))
        supports.append(support_R)
    return _ratio(weighted[0] + weighted[1], supports[0] + supports[1])


def _correlation(count_RN: np.ndarray, prediction_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation from sums of centred values, which keeps rounding errors small."""
    x_N, y_N = (values.astype(np.float64) - (values.mean() if len(values) else 0) for values in (prediction_N, label_N))
    n_R = count_RN.sum(axis=1)
    mean_x_R, mean_y_R = _ratio(count_RN @ x_N, n_R), _ratio(count_RN @ y_N, n_R)
    std_x_R = np.sqrt(np.maximum(_ratio(count_RN @ x_N**2, n_R) - mean_x_R**2, 0))
    std_y_R = np.sqrt(np.maximum(_ratio(count_RN @ y_N**2, n_R) - mean_y_R**2, 0))
    covariance_R = _ratio(count_RN @ (x_N * y_N), n_R) - mean_x_R * mean_y_R
    correlation_R = _ratio(covariance_R, std_x_R * std_y_R)
    # Recompute the few resamples in which a side may be constant
    for row in np.flatnonzero(~(np.minimum(std_x_R, std_y_R) > ROUNDING)):
        drawn = np.repeat(np.arange(len(x_N)), count_RN[row].astype(np.int64))
        exact = correlation(prediction_N[drawn], label_N[drawn])
        correlation_R[row] = np.nan if exact is None else exact
    clipped: np.ndarray = np.clip(correlation_R, -1, 1)
    return clipped
