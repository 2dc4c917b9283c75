"""The deployment `compare` on a real server with a worker."""

from __future__ import annotations

import json

import pytest

from flows.studies.results import read_study
from tests.support.project import change_yaml

pytestmark = pytest.mark.server


def test_a_comparison_shows_its_trainings_and_leaves_leaderboard_and_report(house, first_run):
    folder = house.project.folder
    before = (folder / "params.yaml").read_text(encoding="utf-8")
    change_yaml(folder / "params.yaml", {"compare.epochs": 1, "compare.seeds": [0, 1, 2]})
    result = folder / "studies/results/compare.parquet"
    try:
        run = house.finished("compare", models=["text", "late_fusion"])
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        assert run["name"].startswith("compare ") and {"dashfusion", "compare"} <= set(run["tags"])

        def trained():
            names = {one["name"] for one in house.task_runs(run["id"]) if one["state_type"] == "COMPLETED"}
            return names if {"text, seed 0", "late_fusion, seed 2: predict"} <= names else None

        assert house.wait(trained, "the trainings' tasks")
        artifacts = house.artifacts(run["id"])
        ranked = [row for row in json.loads(artifacts["leaderboard"]["data"]) if row.get("rank")]
        rows = {row["network"]: row for row in ranked}
        stored = read_study(result)
        assert set(rows) == set(stored.variants) == {"text", "late_fusion"}
        for name, row in rows.items():
            assert row["mae"] == stored.get(name, "mae").value
        assert "data:image/png;base64," in artifacts["quality-and-cost"]["data"]
        assert 'id="networks"' in (folder / "report/index.html").read_text(encoding="utf-8")
    finally:
        (folder / "params.yaml").write_text(before, encoding="utf-8")
        result.unlink(missing_ok=True)
