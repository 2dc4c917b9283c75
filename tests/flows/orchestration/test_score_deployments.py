"""The deployments `predict` and `watch` on a real server with a worker, by the model that the first run has trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.server


@pytest.fixture
def clips(house, first_run) -> list[Path]:
    """Of the project's corpus."""
    return sorted((house.project.folder / "data/generated/Raw").glob("*/*.mp4"))


def test_a_predicted_file_leaves_its_score_on_the_runs_page(house, clips):
    run = house.finished("predict", path=str(clips[0]), text="It was fine.", window=1.0)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["name"].startswith("predict ") and {"dashfusion", "predict"} <= set(run["tags"])
    artifact = house.artifacts(run["id"])["prediction"]
    assert artifact["type"] == "markdown" and "data:image/png;base64," in artifact["data"]
    assert "It was fine" in artifact["data"] and "text, audio, vision" in artifact["data"]


def test_a_predicted_folder_leaves_a_table_and_nothing_scored_is_a_failure(house, clips, tmp_path):
    for number, path in enumerate(clips[:2]):
        shutil.copy(path, tmp_path / f"{number}.mp4")
    (tmp_path / "torn.mp4").write_bytes(b"no clip")
    run = house.finished("predict", path=str(tmp_path))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    table = json.loads(house.artifacts(run["id"])["predictions"]["data"])
    assert [Path(row["file"]).name for row in table] == ["0.mp4", "1.mp4", "torn.mp4"]
    assert "not a media file" in table[2]["to know"]
    run = house.finished("predict", path=str(tmp_path / "torn.mp4"))
    assert run["state_type"] == "FAILED" and "torn.mp4: 7 bytes, but not a media file" in run["state"]["message"]


def test_watch_scores_a_new_file_once_across_two_runs(house, clips, tmp_path):
    shutil.copy(clips[0], tmp_path / "first.mp4")
    out = tmp_path / "predictions.parquet"
    tables = []
    for _ in range(2):
        run = house.finished("watch", folder=str(tmp_path), settle=0.5)
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        tables.append(house.artifacts(run["id"]).get("watched"))
    assert [Path(row["file"]).name for row in json.loads(tables[0]["data"])] == ["first.mp4"] and tables[1] is None
    [row] = pq.read_table(out).to_pylist()
    shutil.copy(clips[1], tmp_path / "second.mp4")
    house.finished("watch", folder=str(tmp_path), settle=0.5)
    rows = {Path(row["file"]).name: row for row in pq.read_table(out).to_pylist()}
    assert set(rows) == {"first.mp4", "second.mp4"} and rows["first.mp4"] == row
    run = house.finished("watch", folder=str(tmp_path / "nowhere"))
    assert run["state_type"] == "FAILED" and "no such folder; create it" in run["state"]["message"]
