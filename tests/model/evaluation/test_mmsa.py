"""All metrics against those of MMSA 2.2.1, by its own module, taken from the wheel on the package index."""

from __future__ import annotations

import types
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model.evaluation.metrics import evaluate_metrics
from tests.support.mmsa import MMSA, download_wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.e2e

NAMES = {
    "MOSI": {
        "Has0_acc_2": "acc2_nn", "Has0_F1_score": "f1_nn", "Non0_acc_2": "acc2_np", "Non0_F1_score": "f1_np",
        "Mult_acc_5": "acc5", "Mult_acc_7": "acc7", "MAE": "mae", "Corr": "corr",
    },
    "SIMS": {
        "Mult_acc_2": "acc2", "F1_score": "f1", "Mult_acc_3": "acc3", "Mult_acc_5": "acc5", "MAE": "mae",
        "Corr": "corr",
    },
}  # fmt: skip
"""MMSA's name of each metric -> ours. Acc-3 of [-3, 3] is none of its outputs."""

LIMIT = {"MOSI": 3.0, "SIMS": 1.0}
ARRAYS = 1000
"""Of each corpus, of which a quarter is of edges."""


@pytest.fixture(scope="module")
def mmsa(tmp_path_factory) -> Any:
    """MMSA's metrics, which need NumPy and scikit-learn only; without the rounding of its results."""
    pytest.importorskip("sklearn")
    folder = download_wheel(MMSA, tmp_path_factory.mktemp("mmsa"))
    source = (folder / "MMSA/utils/metricsTop.py").read_bytes()
    module = types.ModuleType("metricsTop")
    module.round = lambda value, digits: value  # type: ignore[attr-defined]  # in place of the built-in
    exec(compile(source, "metricsTop.py", "exec"), module.__dict__)
    return module.MetricsTop("regression")


def edges(limit: float) -> np.ndarray:
    """Values at which a class or a sign changes, and their neighbours in float32."""
    values = np.float32([0, *np.arange(0.5, 4, 0.5)] if limit == 3 else [0, 0.1, 0.7, 1, 1.01])
    values = np.concatenate([values, -values])
    below, above = (np.nextafter(values, np.float32(side)) for side in (-9, 9))
    return np.concatenate([values, below, above, [np.float32(-0.0)]])


def arrays(limit: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predictions and labels [N]: random ones, labels on the corpus's grid, and edges, also of few clips."""
    rng = np.random.default_rng(0)
    for number in range(ARRAYS):
        count = int(rng.integers(2, 200))
        labels = rng.uniform(-limit, limit, count)
        if number % 4 == 1:
            labels = np.round(labels * 5) / 5
        predictions = labels + rng.normal(0, rng.uniform(0.01, limit), count)
        if number % 4 == 2:
            labels, predictions = np.round(labels), np.round(predictions * 2) / 2
        if number % 4 == 3:
            labels, predictions = (rng.choice(edges(limit), min(count, 12)) for _ in range(2))
            labels = labels.clip(-limit, limit)
        yield predictions.astype(np.float32), labels.astype(np.float32)
    ones = np.ones(4, np.float32)
    yield 0 * ones, np.float32([-1, -1, 1, 1])  # constant
    yield np.float32([-1, 1, -1, 1]), ones


def theirs(measure: Callable[..., dict[str, float]], prediction: np.ndarray, label: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn and NumPy about constants
        return measure(torch.from_numpy(prediction), torch.from_numpy(label))


@pytest.mark.parametrize("corpus", NAMES)
def test_every_metric_is_that_of_mmsa(mmsa, corpus):
    limit, compared = LIMIT[corpus], 0
    for prediction, label in arrays(limit):
        if corpus == "MOSI" and not label.any():
            continue  # MMSA fails without a label other than 0
        expected = theirs(mmsa.getMetics(corpus), prediction, label)
        found = evaluate_metrics(prediction, label, (-limit, limit))
        for name, ours in NAMES[corpus].items():
            value = found[ours]
            if value is None:
                spread = min(np.ptp(np.clip(x, -limit, limit) if limit == 1 else x) for x in (prediction, label))
                assert ours == "corr" and (np.isnan(expected[name]) or spread < 1e-5)
            else:
                assert abs(value - expected[name]) < 1e-6, (name, prediction, label)
                compared += 1
    assert compared > ARRAYS * (len(NAMES[corpus]) - 1)
