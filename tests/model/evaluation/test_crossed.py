"""The crossed bootstrap: how often it finds a difference where there is none, and Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.bootstrap import bootstrap_counts, percentile_interval, resampled_by_seed
from model.evaluation.crossed import crossed_draws, holm, holm_intervals, p_value
from model.evaluation.metrics import evaluate_metrics

DRAWS = 500


def resampled_means(value_SG: np.ndarray) -> np.ndarray:
    """Means over speakers of equally many clips, on each resample."""
    count_RG = np.concatenate(list(bootstrap_counts(value_SG.shape[1], DRAWS, 0)))
    return value_SG @ count_RG.T / value_SG.shape[1]


def is_decided(value_SG: np.ndarray, seed: int) -> tuple[bool, bool]:
    """Whether the interval, and whether p, tell the mean from 0."""
    draws = crossed_draws(value_SG.mean(axis=1), resampled_means(value_SG), value_SG.shape[1], seed)
    low, high = percentile_interval(draws)
    return not low <= 0 <= high, p_value(draws) <= 0.05


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("speakers", [6, 40])
@pytest.mark.parametrize(
    ("by_seed", "by_speaker", "by_both"),
    [(0, 0, 1), (0.2, 0, 1), (0.4, 0.1, 1), (1, 1, 1), (1, 0, 0.1), (0.1, 1, 0.1)],
)
def test_no_difference_is_found_where_there_is_none(seeds, speakers, by_seed, by_speaker, by_both):
    """The same variant against itself, with disjoint seeds: at most 6 % at 95 %, and what chance adds in 400 trials."""
    rng = np.random.default_rng(0)
    found = [
        is_decided(
            by_seed * rng.normal(size=(seeds, 1))
            + by_speaker * rng.normal(size=(1, speakers))
            + by_both * rng.normal(size=(seeds, speakers)),
            trial,
        )
        for trial in range(400)
    ]
    chance = 1.65 * np.sqrt(0.06 * 0.94 / 400)
    assert np.mean(found, axis=0) == pytest.approx([0.0, 0.0], abs=0.06 + chance)


def test_metrics_of_the_same_variant_differ_in_no_more_than_6_percent():
    """Predictions with an error of the seed, of the speaker and of the clip, measured as a study does."""
    rng = np.random.default_rng(1)
    seeds, speakers, clips = 5, 10, 80
    speaker_N = np.arange(clips) % speakers
    decided = {"acc2_np": 0, "mae": 0, "corr": 0}
    for trial in range(60):
        label_N = rng.uniform(-3, 3, clips).round(1)
        both = label_N + 0.8 * rng.normal(size=clips)  # errors that all trainings make
        sides = [
            both
            + 0.15 * rng.normal(size=(seeds, 1))
            + 0.3 * rng.normal(size=(seeds, speakers))[:, speaker_N]
            + 0.4 * rng.normal(size=(seeds, clips))
            for _ in range(2)
        ]
        values = [[evaluate_metrics(p, label_N, (-3, 3)) for p in side] for side in sides]
        resampled = [resampled_by_seed(side, label_N, (-3, 3), 300, speaker_N=speaker_N) for side in sides]
        for metric in decided:
            value_S = np.array([a[metric] - b[metric] for a, b in zip(*values, strict=True)])
            draws = crossed_draws(value_S, resampled[0][metric] - resampled[1][metric], speakers, trial)
            low, high = percentile_interval(draws)
            decided[metric] += not low <= 0 <= high
    assert max(decided.values()) <= (0.06 + 1.65 * np.sqrt(0.06 * 0.94 / 60)) * 60


def test_a_difference_of_every_seed_and_speaker_is_found():
    rng = np.random.default_rng(0)
    found = [
        is_decided(0.7 + 0.2 * rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=(5, 10)), trial) for trial in range(100)
    ]
    assert np.mean(found, axis=0).min() > 0.9


def test_the_interval_is_students_where_only_the_seeds_differ():
    value_S = np.array([0.1, -0.2, 0.4, 0.3, 0.0])
    draws = crossed_draws(value_S, np.repeat(value_S[:, None], 40_000, axis=1), 10)
    low, high = percentile_interval(draws)
    half = 2.776 * value_S.std(ddof=1) / np.sqrt(5)  # the 97.5 % quantile of t with 4 degrees of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=0.1) and (low + high) / 2 == pytest.approx(0.12, abs=0.02)


@pytest.mark.parametrize(("seeds", "speakers"), [(1, 10), (5, 1)])
def test_nothing_is_known_of_the_variation_of_one(seeds, speakers):
    assert crossed_draws(np.zeros(seeds), np.zeros((seeds, 20)), speakers) is None


def test_undefined_values_give_no_draws_and_equal_ones_no_width():
    assert crossed_draws(np.array([0.1, np.nan, 0.2]), np.zeros((3, 20)), 10) is None
    draws = crossed_draws(np.full(3, 0.5), np.full((3, 20), 0.5), 10)
    assert (draws == 0.5).all()
    assert p_value(np.zeros(99)) == 1.0


def test_holm_multiplies_the_smallest_by_the_number_of_comparisons_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_intervals_of_a_family_exclude_0_exactly_where_holm_finds_a_difference():
    rng = np.random.default_rng(0)
    decided = set()
    for _ in range(200):
        draws = [rng.normal(loc, size=1999) for loc in rng.uniform(-4, 4, size=rng.integers(1, 12))]
        p_values = [p_value(draws_R) for draws_R in draws]
        for adjusted, interval in zip(holm(p_values), holm_intervals(draws, p_values), strict=True):
            assert (not interval[0] <= 0 <= interval[1]) == (adjusted <= 0.05)
            decided.add(adjusted <= 0.05)
    assert decided == {True, False}


def test_one_difference_has_the_interval_of_its_own_level():
    draws = np.arange(-499.0, 1500.0)  # 1999
    assert holm_intervals([draws], [p_value(draws)]) == [(-450.0, 1450.0)]
    wide = holm_intervals([draws] * 4, [p_value(draws)] * 4)
    assert wide == [(-488.0, 1488.0)] * 4, "each at a quarter of the level, since none is significant"


def test_too_few_draws_for_the_level_give_no_interval():
    draws = np.append(np.arange(1.0, 31.0), np.nan)
    assert holm_intervals([draws], [p_value(draws)]) == [None]
    assert holm_intervals([], []) == []
