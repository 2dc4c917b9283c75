"""What `evaluate` shows: the change since the last run, and pictures for Prefect's pages."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from flows import evaluate
from flows.params import Params, load_params
from flows.report import pictures

OLD = {"acc2_np": 0.90, "mae": 0.60, "corr": 0.5, "acc7": None, "n": 80}
NEW = {"acc2_np": 0.95, "mae": 0.65, "corr": 0.5001, "acc7": 0.4, "n": 80}


@pytest.fixture
def params(tmp_path, monkeypatch) -> Params:
    """The project's, in a folder without a history."""
    found = load_params(Path(__file__).parents[2] / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return found


def test_a_change_says_whether_it_is_for_the_better():
    changes = {name: (before, change) for name, _, before, change in evaluate.compared_rows(NEW, OLD)}
    assert changes["Acc-2 (negative / positive)"] == ("90.0%", "+5.0 points, better")
    assert changes["Mean absolute error"] == ("0.600", "+0.050, worse")
    assert changes["Pearson correlation"] == ("0.500", "same")
    assert changes["Acc-7"] == ("–", "") and changes["Clips"] == ("80", "")  # noqa: RUF001
    backwards = {name: change for name, _, _, change in evaluate.compared_rows(OLD, NEW)}
    assert backwards["Mean absolute error"] == "-0.050, better"
    assert backwards["Acc-2 (negative / positive)"] == "-5.0 points, worse"


def test_the_first_evaluation_has_nothing_to_compare_with(params):
    assert evaluate.metrics_before(params, OLD) is None
    evaluate.remember(params, OLD)
    assert evaluate.metrics_before(params, OLD) is None


def test_an_evaluation_is_compared_with_the_last_one_of_its_corpus_and_split(params):
    evaluate.remember(params, OLD)
    evaluate.remember(replace(params, prepare=replace(params.prepare, corpus="other")), {"mae": 9.0})
    evaluate.remember(params, NEW)
    assert evaluate.metrics_before(params, NEW) == OLD
    assert evaluate.metrics_before(params, {"mae": 7.0}) == NEW, "metrics that DVC brought back from its cache"
    evaluate.remember(params, NEW)
    assert evaluate.metrics_before(params, NEW) == NEW, "the same again"


def test_a_line_that_was_cut_short_does_not_hide_the_others(params):
    evaluate.remember(params, OLD)
    with open(evaluate.HISTORY, "a", encoding="utf-8") as file:
        file.write('{"time": "2026-01-0\n')
    assert evaluate.metrics_before(params, NEW) == OLD


def test_the_table_has_columns_for_the_change_only_where_there_is_one(params):
    def shown(*given) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(evaluate.metrics_table(params, *given))
        return console.file.getvalue()

    assert "+5.0 points, better" in shown(NEW, OLD) and "last run" not in shown(NEW)


def test_pictures_are_drawn_in_colours_that_can_be_seen():
    import matplotlib.image

    label = np.linspace(-3, 3, 30)
    predictions = pa.table({"clip_id": [str(i) for i in range(30)], "label": label, "prediction": label / 2})
    curves = [{"seed": 0, "epoch": i, "train_loss": 1 / i, "valid_mae": 1 / i} for i in (1, 2, 3)]
    made = dict(pictures(predictions, (-3.0, 3.0), curves))
    assert list(made)[:3] == ["Confusion matrix", "Predicted against true", "Training loss"]
    for title, png in made.items():
        assert len(png) < 60_000, f"{title}: too large for an artifact"
        image = matplotlib.image.imread(io.BytesIO(png))[:, :, :3]
        blue = (image[:, :, 2] > image[:, :, 0] + 0.2).mean()
        assert blue > 0.002, f"{title}: the data are not in the accent's colour"
        assert (image.max(axis=2) < 0.05).mean() < 0.001, f"{title}: marker colours are left"
