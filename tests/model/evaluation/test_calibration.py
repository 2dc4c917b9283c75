"""Coverage of intervals and reliability of predictions."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.calibration import Coverage, coverage, mean_widths, reliability, share_interval, symmetric_bounds
from model.evaluation.intervals import LEVELS, marginal_rank, order_statistic


def test_coverage_is_the_share_of_clips_inside_their_own_subsets_interval():
    widths = {
        "text": {"n": 9, "0.5": 1.0, "0.8": 2.0, "0.9": None},
        "audio": {"n": 9, "0.5": 0.1, "0.8": 0.1, "0.9": 1},
    }
    label = np.zeros(4)
    prediction_SN = np.array([[0.5, 1.5, 0.05, 0.5]])
    found = {
        entry.level: entry
        for entry in coverage(
            symmetric_bounds([widths], ["text", "text", "audio", "audio"], prediction_SN), label, np.arange(4)
        )
    }
    assert (found[0.5].clips, found[0.5].share) == (4, 0.5)
    assert found[0.8].share == 0.75
    assert (found[0.9].clips, found[0.9].share) == (2, 1.0), "text has no interval of that level"
    assert (found[0.95].clips, found[0.95].share, found[0.95].interval) == (0, None, None)
    low, high = found[0.5].interval
    assert low < 0.5 < high


def test_coverage_of_several_seeds_is_their_mean():
    seeds = [{"text": {"n": 9, "0.5": 1.0}}, {"text": {"n": 9, "0.5": 3.0}}]
    bounds = symmetric_bounds(seeds, ["text"] * 3, np.array([[2.0, 2.0, 0.5], [2.0, 2.0, 4.0]]))
    found = coverage(bounds, np.zeros(3), np.arange(3))[0]
    assert found.share == pytest.approx(3 / 6)
    assert mean_widths(seeds) == {"text": {"n": 9, "0.5": 2.0, "0.8": None, "0.9": None, "0.95": None}}
    assert mean_widths([]) == {}


def test_conformal_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    errors = rng.normal(size=5000)
    widths = {
        "text": {
            "n": 2000,
            **{f"{level:g}": order_statistic(np.abs(errors[:2000]), marginal_rank(2000, level)) for level in LEVELS},
        }
    }
    label = rng.uniform(-3, 3, 3000)
    bounds = symmetric_bounds([widths], ["text"] * 3000, (label + errors[2000:])[None])
    for entry in coverage(bounds, label, np.arange(3000)):
        assert entry.share == pytest.approx(entry.level, abs=0.03)
        assert entry.interval[0] < entry.share < entry.interval[1]


def test_bins_hold_equal_numbers_of_neighbouring_predictions():
    rng = np.random.default_rng(0)
    prediction = rng.permutation(np.linspace(-2, 2, 100))
    bins = reliability(prediction, 0.5 * prediction + 1)
    assert [entry.clips for entry in bins] == [10] * 10
    means = [entry.prediction for entry in bins]
    assert means == sorted(means)
    for entry in bins:
        assert entry.label == pytest.approx(0.5 * entry.prediction + 1)
        assert entry.interval[0] < entry.label < entry.interval[1]
    assert len(reliability(prediction[:20], prediction[:20])) == 2
    assert reliability(prediction[:7], prediction[:7]) == []


def test_the_interval_of_a_share_is_wilsons_with_clips_of_a_speaker_counted_as_fewer():
    inside = np.repeat([1.0, 0.0], [72, 8])
    low, high = share_interval(inside, np.arange(80))
    assert (low, high) == pytest.approx((0.8149, 0.9486), abs=1e-3), "Wilson's for 72 of 80"
    mixed = share_interval(inside, np.arange(80) % 10)
    assert mixed == pytest.approx((low, high)), "every speaker is like the others"
    apart = share_interval(inside, np.arange(80) // 8)
    assert apart[0] < low and high < apart[1], "one speaker has all the misses"
    assert share_interval(np.zeros(0), np.zeros(0)) is None
    assert share_interval(np.ones(10), np.zeros(10)) == pytest.approx((0.722, 1.0), abs=1e-3)
    assert share_interval(np.ones(1), np.zeros(1))[1] == 1.0


@pytest.mark.parametrize(("inside", "judgement"), [(62, "too narrow"), (72, ""), (80, "too wide")])
def test_coverage_is_judged_by_its_interval(inside, judgement):
    share = share_interval(np.repeat([1.0, 0.0], [inside, 80 - inside]), np.arange(80))
    assert Coverage(0.9, 80, inside / 80, share).judgement == judgement


def test_the_interval_of_a_share_covers_as_often_as_it_says_for_few_speakers():
    rng = np.random.default_rng(0)
    speaker, covered = np.arange(80) // 8, 0
    for _ in range(1000):
        rate = np.clip(0.9 + 0.05 * rng.normal(size=10), 0, 1)
        low, high = share_interval((rng.random(80) < rate[speaker]).astype(float), speaker)
        covered += low <= 0.9 <= high
    assert covered > 900
