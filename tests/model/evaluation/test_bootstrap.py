"""The bootstrap against a plain loop over the metrics, and its intervals against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation import bootstrap
from model.evaluation.bootstrap import (
    bootstrap_counts,
    difference_interval,
    percentile_interval,
    resampled_mean,
    resampled_metrics,
)
from model.evaluation.metrics import evaluate_metrics

WIDE, UNIT = (-3.0, 3.0), (-1.0, 1.0)


def make_clips(clips: int, seeds: int, label_range: tuple[float, float], seed: int = 0):
    """Labels in steps, 0 among them, and predictions that are off by noise."""
    rng = np.random.default_rng(seed)
    high = label_range[1]
    label_N = np.round(rng.uniform(-high, high, clips) * 5 / high) * np.float32(high / 5)
    noise_SN = rng.normal(scale=0.6 * high, size=(seeds, clips))
    return (label_N + noise_SN).astype(np.float32), label_N.astype(np.float32)


def by_loop(prediction_SN, label_N, label_range, resamples, seed) -> dict[str, list[float]]:
    """The plain twin: each draw's clips gathered and measured."""
    found: dict[str, list[float]] = {}
    for count_N in np.concatenate(list(bootstrap_counts(len(label_N), resamples, seed))):
        drawn = np.repeat(np.arange(len(label_N)), count_N.astype(int))
        runs = [evaluate_metrics(prediction_N[drawn], label_N[drawn], label_range) for prediction_N in prediction_SN]
        for key in runs[0]:
            values = [run[key] for run in runs]
            found.setdefault(key, []).append(np.nan if None in values else np.mean(values))
    return found


@pytest.mark.parametrize("label_range", [WIDE, UNIT])
@pytest.mark.parametrize("clips", [1, 2, 5, 60])
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_metric_is_that_of_a_plain_loop(clips, seeds, label_range):
    prediction_SN, label_N = make_clips(clips, seeds, label_range)
    expected = by_loop(prediction_SN, label_N, label_range, 50, 4)
    found = resampled_metrics(prediction_SN, label_N, label_range, 50, 4)
    assert list(found) == [key for key in evaluate_metrics(prediction_SN[0], label_N, label_range) if key != "n"]
    for key, values_R in found.items():
        np.testing.assert_allclose(values_R, expected[key], atol=1e-9, err_msg=key)


def test_values_far_from_zero_and_near_each_other_keep_their_correlation():
    rng = np.random.default_rng(0)
    label_N = np.float64(2.5) + 1e-4 * rng.normal(size=30)
    prediction_N = label_N + 1e-4 * rng.normal(size=30)
    expected = by_loop(prediction_N[None], label_N, WIDE, 40, 0)["corr"]
    np.testing.assert_allclose(resampled_metrics(prediction_N, label_N, WIDE, 40, 0)["corr"], expected, atol=1e-6)


def test_a_constant_prediction_has_no_correlation_in_any_draw():
    values = resampled_metrics(np.full(20, 0.3), np.linspace(-3, 3, 20), WIDE, 30)
    assert np.isnan(values["corr"]).all() and np.isfinite(values["mae"]).all()


def test_no_clips_have_no_metrics_and_no_intervals():
    values = resampled_metrics(np.zeros((2, 0)), np.zeros(0), WIDE, 10)
    assert all(np.isnan(values_R).all() and values_R.shape == (10,) for values_R in values.values())
    assert percentile_interval(values["mae"]) is None


def test_a_draw_holds_as_many_clips_as_there_are_each_clip_any_number_of_times():
    count_RN = np.concatenate(list(bootstrap_counts(40, 3000, 0)))
    assert count_RN.shape == (3000, 40) and (count_RN.sum(axis=1) == 40).all()
    assert count_RN.mean() == 1 and count_RN.var() == pytest.approx(1 - 1 / 40, abs=0.02)


def test_draws_are_the_same_however_many_are_computed_at_once(monkeypatch):
    whole = np.concatenate(list(bootstrap_counts(7, 100, 3)))
    monkeypatch.setattr(bootstrap, "_CHUNK_SIZE", 50)
    parts = list(bootstrap_counts(7, 100, 3))
    assert len(parts) == 15
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_draws_hang_on_the_clips_number_and_the_seed_and_not_on_the_predictions():
    prediction_SN, label_N = make_clips(50, 2, WIDE)
    first = resampled_metrics(prediction_SN[:1], label_N, WIDE, 200, 1)
    again = resampled_metrics(prediction_SN[:1], label_N, WIDE, 200, 1)
    other = resampled_metrics(prediction_SN[:1], label_N, WIDE, 200, 2)
    np.testing.assert_array_equal(first["mae"], again["mae"])
    assert (first["mae"] != other["mae"]).any()
    shifted = resampled_metrics(prediction_SN[:1] * 0 + label_N + 0.5, label_N, WIDE, 200, 1)
    np.testing.assert_allclose(shifted["mae"], 0.5, atol=1e-6)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    rng = np.random.default_rng(1)
    error_N = rng.normal(size=400)
    label_N = rng.uniform(-1, 1, 400)
    values = resampled_metrics(label_N + error_N, label_N, WIDE, 4000)["mae"]
    low, high = percentile_interval(values)
    expected = 2 * 1.96 * np.abs(error_N).std() / np.sqrt(400)
    assert high - low == pytest.approx(expected, rel=0.1)
    assert low < np.abs(error_N).mean() < high
    narrow = percentile_interval(values, 0.5)
    assert low < narrow[0] < narrow[1] < high


def test_a_mean_is_resampled_like_the_metrics():
    prediction_SN, label_N = make_clips(50, 1, WIDE)
    error_N = np.abs(prediction_SN[0].astype(np.float64) - label_N)
    expected = resampled_metrics(prediction_SN, label_N, WIDE, 100, 5)["mae"]
    np.testing.assert_allclose(resampled_mean(error_N, 100, 5), expected, atol=1e-12)
    assert np.isnan(resampled_mean(np.zeros(0), 10)).all()


def test_a_paired_difference_is_known_far_better_than_either_value():
    prediction_SN, label_N = make_clips(100, 1, WIDE)
    better = label_N + 0.9 * (prediction_SN - label_N)
    mae, other = (resampled_metrics(p, label_N, WIDE)["mae"] for p in (better, prediction_SN))
    low, high = difference_interval(mae, other)
    assert high < 0, "10 % less error is plain, draw by draw"
    assert percentile_interval(mae)[1] > percentile_interval(other)[0], "and could not be told from the two intervals"
    assert high - low < 0.3 * (percentile_interval(mae)[1] - percentile_interval(mae)[0])
    with pytest.raises(ValueError, match="10 resamples against 2000"):
        difference_interval(mae[:10], other)


def test_an_interval_needs_most_draws_to_be_defined():
    values_R = np.arange(100.0)
    values_R[:10] = np.nan
    assert percentile_interval(values_R, 1.0) == (10.0, 99.0)
    values_R[10] = np.nan
    assert percentile_interval(values_R) is None


def test_what_cannot_be_measured_is_refused_as_the_metrics_refuse_it():
    with pytest.raises(ValueError, match="NaN or infinite"):
        resampled_metrics(np.zeros((2, 3)), np.array([0, np.nan, 1]), WIDE)
    with pytest.raises(ValueError, match="must be"):
        resampled_metrics(np.zeros((2, 3)), np.zeros(4), WIDE)
    with pytest.raises(ValueError, match="label range"):
        resampled_metrics(np.zeros(3), np.zeros(3), (0.0, 1.0))
