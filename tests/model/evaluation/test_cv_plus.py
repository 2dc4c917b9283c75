"""CV+ against its definition written plainly, and how often it covers."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation import cv_plus
from model.evaluation.cv_plus import cv_plus_bounds
from model.evaluation.intervals import Errors


def plain_bounds(prediction_K, errors, level):
    """Barber et al., 2021, section 3.1: of one clip, with a speaker for each clip of cross-validation."""
    n = len(errors.error_n)
    lower = sorted(prediction_K[fold] - error for fold, error in zip(errors.fold_n, errors.error_n, strict=True))
    upper = sorted(prediction_K[fold] + error for fold, error in zip(errors.fold_n, errors.error_n, strict=True))
    rank = int(np.ceil((n + 1) * level - 1e-9))
    return lower[n - rank], upper[rank - 1]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_bounds_equal_the_definition(level, monkeypatch):
    rng = np.random.default_rng(0)
    prediction_KN = rng.normal(size=(4, 30))
    errors = Errors(np.abs(rng.normal(size=43)), np.arange(43), rng.integers(0, 4, 43))
    expected = np.array([plain_bounds(prediction_K, errors, level) for prediction_K in prediction_KN.T]).T
    np.testing.assert_allclose(cv_plus_bounds(prediction_KN, errors, level), expected)
    monkeypatch.setattr(cv_plus, "MAX_VALUES", 100)
    np.testing.assert_allclose(cv_plus_bounds(prediction_KN, errors, level), expected)


def test_networks_that_agree_have_one_half_width_for_all_clips():
    rng = np.random.default_rng(1)
    centre = rng.normal(size=8)
    errors = Errors(np.abs(rng.normal(size=60)), np.arange(60) % 17, np.arange(60) % 17 % 3)
    low, high = cv_plus_bounds(np.tile(centre, (3, 1)), errors, 0.8)
    reached = [sum((errors.error_n[errors.speaker_n == s] <= e).mean() for s in range(17)) / 18 for e in errors.error_n]
    half = min(e for e, share in zip(errors.error_n, reached, strict=True) if share >= 0.8 - 1e-9)
    np.testing.assert_allclose((low, high), (centre - half, centre + half))


def test_too_few_clips_have_no_interval():
    errors = Errors(np.arange(4.0), np.arange(4), np.arange(4))
    low, high = cv_plus_bounds(np.zeros((4, 3)), errors, 0.9)
    assert np.isnan(low).all() and np.isnan(high).all()
    assert np.isfinite(cv_plus_bounds(np.zeros((4, 3)), errors, 0.5)).all()


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_unstable_predictors_are_covered_at_least_as_often_as_is_said(level):
    """Least squares with nearly as many coefficients as clips; plus and minus the errors alone may cover less."""
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(300):
        x, slope = rng.normal(size=(61, 12)), rng.normal(size=12)
        y = x @ slope + rng.normal(size=61)
        fold_n = np.arange(60) % 4
        fits = [np.linalg.lstsq(x[:60][fold_n != k], y[:60][fold_n != k], rcond=None)[0] for k in range(4)]
        error_n = np.abs(y[:60] - np.array([x[i] @ fits[fold_n[i]] for i in range(60)]))
        low, high = cv_plus_bounds(
            np.array([[x[60] @ fit] for fit in fits]), Errors(error_n, np.arange(60), fold_n), level
        )
        covered.append(low[0] <= y[60] <= high[0])
    assert np.mean(covered) > level - 0.02
