"""The flows of the deployments `predict` and `watch`, without Prefect's engine: what they publish and fail with."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from flows import score
from flows.orchestration import engine
from flows.score import to_markdown
from model.checkpoint.description import GENERATED_NOTICE

TEXT = "It was *fine* | really."


@pytest.fixture
def published(monkeypatch) -> dict[str, Any]:
    """Artifacts by their key."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(engine, "publish_table", lambda key, rows, description: found.update({key: list(rows)}))
    monkeypatch.setattr(engine, "publish_markdown", lambda key, markdown, description: found.update({key: markdown}))
    return found


@pytest.fixture
def model(corpus) -> Path:
    return corpus / "models-unaligned/best"


def test_one_file_is_told_of_in_full_with_its_time_line_as_a_picture(published, model, long_clip, tmp_path):
    out = tmp_path / "out.parquet"
    [result] = score.predict.fn(str(long_clip), text=TEXT, model=model, out=out)
    told = published["prediction"]
    assert list(published) == ["prediction"] and pq.read_table(out)["score"][0].as_py() == pytest.approx(
        result["score"]
    )
    assert told.startswith(f"**{GENERATED_NOTICE}**")
    assert result["sentiment"] in told and "It was \\*fine\\* \\| really\\." in told and "change by vision" in told
    assert all(warning["message"].split()[0] in told for warning in result["warnings"])
    picture = base64.b64decode(re.search(r"!\[.*?\]\(data:image/png;base64,([^)]+)\)", told)[1])
    assert picture.startswith(b"\x89PNG\r\n") and len(picture) > 3000


def test_several_files_are_a_table_with_each_ones_reason(published, model, clip, tmp_path):
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no clip")
    results = score.predict.fn(str(tmp_path), model=model)
    assert [row["error"] is None for row in results] == [True, False]
    table = published["predictions"]
    assert [Path(row["file"]).name for row in table] == ["a.mp4", "b.mp4"]
    assert table[0]["from"] == "audio, vision" and "not a media file" in table[1]["to know"]


def test_where_nothing_can_be_scored_the_run_fails_with_the_files_own_message(published, model, tmp_path):
    (tmp_path / "torn.mp4").write_bytes(b"no clip")
    with pytest.raises(ValueError, match=r"torn\.mp4: 7 bytes, but not a media file"):
        score.predict.fn(str(tmp_path / "torn.mp4"), model=model)
    with pytest.raises(ValueError, match="no such file"):
        score.predict.fn(str(tmp_path / "nowhere.mp4"), model=model)
    (tmp_path / "more.mp4").write_bytes(b"no clip either")
    with pytest.raises(ValueError, match=r"and 1 more, each with its reason"):
        score.predict.fn(str(tmp_path), model=model)
    assert len(published["predictions"]) == 2


def test_a_window_without_a_score_is_a_gap_and_an_unknown_interval_none():
    unknown = {"score": None, "interval": None, "start": 2.0, "end": 4.0}
    windows = [{"score": 1.0, "interval": {"low": 0.5, "high": 1.5}, "start": 0.0, "end": 2.0}, unknown]
    result = {
        "file": "x/<b>.mp4", "score": -0.25, "sentiment": "negative", "class": "0", "interval": None, "used": ["audio"],
        "contributions": {}, "duration": None, "text": "", "warnings": [], "windows": windows,
    }  # fmt: skip
    told = to_markdown(result, (-3, 3))
    assert told.startswith("## −0.25, negative") and "\\<b\\>\\.mp4" in told and "image/png" in told  # noqa: RUF001
    assert "image/png" not in to_markdown(result | {"windows": [unknown]}, (-3, 3))


def test_watch_publishes_what_was_new_and_leaves_a_busy_folder(published, model, clip, tmp_path, capsys, monkeypatch):
    logged = []
    monkeypatch.setattr(engine, "log", lambda line: logged.append(line) or print(line))
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clip, folder / "a.mp4")
    assert score.watch.fn(folder, model=model, settle=0.1) == 1
    assert [Path(row["file"]).name for row in published.pop("watched")] == ["a.mp4"]
    assert logged[0] == GENERATED_NOTICE
    assert score.watch.fn(folder, model=model, settle=0.1) == 0 and published == {}
    with FileLock(folder / "predictions.lock"):
        assert score.watch.fn(folder, model=model, settle=0.1) == 0
    assert "another run scores" in capsys.readouterr().out
