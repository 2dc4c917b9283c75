"""The deployment `study` on a real server with a worker."""

from __future__ import annotations

import json

import pytest

from flows.studies.results import read_study

pytestmark = pytest.mark.server

STUDY = """
title: A small study
question: Does it run?
seeds: [0, 1, 2]
metrics: [acc2, mae]
reference: full
variants:
  full: {}
  no alignment: {model.alignment: false}
"""


@pytest.fixture
def study(house, first_run):
    folder = house.project.folder / "studies"
    (folder / "mine.yaml").write_text(STUDY, encoding="utf-8")
    yield "studies/mine.yaml"
    for path in (folder / "mine.yaml", *(folder / "results").glob("*.parquet")):
        path.unlink()


def test_a_study_shows_its_trainings_and_leaves_table_and_report(house, study):
    run = house.finished("study", name=study)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["name"].startswith("study ") and {"dashfusion", "study"} <= set(run["tags"])

    def trained():
        names = {one["name"] for one in house.task_runs(run["id"]) if one["state_type"] == "COMPLETED"}
        return names if {"full, seed 0", "no alignment, seed 0: predict"} <= names else None

    assert "align" in house.wait(trained, "the trainings' tasks")
    artifacts = house.artifacts(run["id"])
    rows = json.loads(artifacts["study-mine"]["data"])
    assert {(row["variant"], row["metric"]) for row in rows} >= {("full", "mae"), ("no alignment", "mae")}
    verdicts = {(row["variant"], row["metric"]): row["verdict"] for row in rows}
    stored = read_study(house.project.folder / "studies/results/mine.parquet")
    shown = ("no alignment", "mae", "difference", "", "all")
    (difference,) = (
        row for row in stored.rows if (row.variant, row.metric, row.statistic, row.condition, row.clips) == shown
    )
    assert verdicts["no alignment", "mae"] == stored.verdict(difference) and verdicts["full", "mae"] == ""
    assert stored.clips > 0
    assert "A small study" in (house.project.folder / "report/index.html").read_text(encoding="utf-8")


def test_a_wrong_study_fails_with_the_way_out(house, study):
    run = house.finished("study", name="ablaton")
    assert run["state_type"] == "FAILED" and "did you mean 'ablation'?" in run["state"]["message"]
