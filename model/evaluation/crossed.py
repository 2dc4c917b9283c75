"""Crossed bootstrap over seeds and speakers, and Holm's correction for several comparisons.

A figure varies with the seeds that were trained and with the speakers (or clips) that were measured, and is to hold for
others of both (Owen, "The Pigeonhole Bootstrap", Annals of Applied Statistics 1, 2007). The two are resampled
in turn. With few seeds or speakers the plain bootstrap is too narrow: variances are divided by n - 1 in place of n, and
deviations get the tails of Student's t with n - 1 degrees of freedom. What a seed's network does on single speakers
varies with either, and is counted once (Cameron, Gelbach and Miller, "Robust Inference With Multiway Clustering",
Journal of Business and Economic Statistics 29, 2011).

Shapes: S seeds, R resamples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def crossed_draws(value_S: np.ndarray, resampled_SR: np.ndarray, speakers: int, seed: int = 0) -> np.ndarray | None:
    """Return R draws of the mean over the seeds, for other seeds and other speakers.

    Args:
        value_S: the metric, or the difference between two variants, of each seed.
        resampled_SR: the same on each resample of the speakers; NaN where undefined.
        speakers: number of speakers that are resampled, or of clips.
        seed: of the resampling.

    Returns:
        [R], NaN where undefined; None with fewer than two seeds or speakers, or an undefined value: nothing is known of
        their variation.
    """
    seeds, resamples = resampled_SR.shape
    if seeds < 2 or speakers < 2 or not np.isfinite(value_S).all():
        return None
    rng = np.random.default_rng((seed, seeds, speakers))
    mean = value_S.mean()

    # Deviations of the mean over other speakers, and over other seeds
    by_speaker_R = (resampled_SR.mean(axis=0) - mean) * np.sqrt(speakers / (speakers - 1))
    count_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    by_seed_R = (count_RS @ value_S / seeds - mean) * np.sqrt(seeds / (seeds - 1))

    # Their variances, and that of the interaction, which is part of both
    interaction_SR = resampled_SR - resampled_SR.mean(axis=0) - value_S[:, None] + mean
    speaker_variance, seed_variance = float(np.nanvar(by_speaker_R)), float(value_S.var(ddof=1)) / seeds
    interaction = np.nanvar(interaction_SR, axis=1).mean() / (seeds - 1) * speakers / (speakers - 1)
    both = speaker_variance + seed_variance
    total = max(both - interaction, speaker_variance, seed_variance)

    # Tails of Student's t
    by_speaker_R = by_speaker_R * _tails(rng, speakers - 1, resamples)
    by_seed_R = by_seed_R * _tails(rng, seeds - 1, resamples)
    draws_R: np.ndarray = mean + (by_speaker_R + by_seed_R) * np.sqrt(total / both if both else 1.0)
    return draws_R


def speaker_draws(value: float, resampled_R: np.ndarray, speakers: int, seed: int = 0) -> np.ndarray | None:
    """Return R draws of a figure of one training for other speakers, as `crossed_draws` corrects for few of them.

    Args:
        value: the metric, or the difference between two models.
        resampled_R: the same on each resample of the speakers; NaN where undefined.
        speakers: number of speakers that are resampled, or of clips.
        seed: of the resampling.

    Returns:
        [R], NaN where undefined; None with fewer than two speakers, or an undefined value.
    """
    if speakers < 2 or not np.isfinite(value):
        return None
    deviation_R = (resampled_R - value) * np.sqrt(speakers / (speakers - 1))
    rng = np.random.default_rng((seed, 1, speakers))
    draws_R: np.ndarray = value + deviation_R * _tails(rng, speakers - 1, len(resampled_R))
    return draws_R


def _tails(rng: np.random.Generator, degrees: int, count: int) -> np.ndarray:
    """Draw factors that turn normal deviations into Student's t."""
    return np.sqrt(degrees / rng.chisquare(degrees, count))


def p_value(draws_R: np.ndarray) -> float:
    """Return the two-sided p of no difference: twice the share of the draws on the rarer side of 0, with + 1."""
    draws_R = draws_R[np.isfinite(draws_R)]
    rarer = min(int((draws_R <= 0).sum()), int((draws_R >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(draws_R) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of a family of comparisons.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979: the
    probability of any false verdict in the family is at most the level.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def holm_intervals(
    draws: Sequence[np.ndarray], p_values: Sequence[float], level: float = 0.95
) -> list[tuple[float, float] | None]:
    """Return intervals of a family's differences that exclude 0 exactly where Holm's procedure finds a difference.

    Holm's procedure tests the k-th smallest of m p values, k from 0, at (1 - level) / (m - k), up to the first that is
    not significant. Each interval has the level of its test, and those from there on the level of the test that ended
    the procedure. Their ends are order statistics of the draws, as `p_value` counts them.

    Args:
        draws: Draws of each difference, NaN where undefined.
        p_values: `p_value` of each.
        level: Probability that no interval of the family misses a difference of 0.

    Returns:
        An interval each; None where there are too few draws for its level.
    """
    intervals: list[tuple[float, float] | None] = [None] * len(draws)
    alpha, ended = 0.0, False
    for rank, i in enumerate(sorted(range(len(draws)), key=p_values.__getitem__)):
        if not ended:
            alpha = (1 - level) / (len(draws) - rank)
            ended = p_values[i] > alpha
        sorted_R = np.sort(draws[i][np.isfinite(draws[i])])
        outside = int(alpha * (len(sorted_R) + 1) / 2)  # draws on either side, the interval's end among them
        if outside:
            intervals[i] = float(sorted_R[outside - 1]), float(sorted_R[-outside])
    return intervals
