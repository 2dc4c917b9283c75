"""From English to Chinese by parameters alone, as `dvc exp run` composes them."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from tests.support.project import CLIPS, SMALL

pytestmark = pytest.mark.e2e


def test_the_chinese_demo_goes_all_the_way_and_ends_with_ch_sims_metrics(make_project, tmp_path):
    small = SMALL | {"prepare.demo.clips": CLIPS, "prepare.demo.speakers": 6}
    small |= {"train.epochs": 2, "train.warmup_epochs": 1, "extract.vision.options.fps": 5}
    project = make_project(tmp_path, small)
    assert "extract@text" in project.experiment("corpus=demo_zh")
    metrics = json.loads((project.folder / "metrics/test.json").read_text())
    assert {key for key in metrics if key not in ("seeds", "baselines")} == {
        "n",
        "mae",
        "corr",
        "acc2",
        "f1",
        "acc3",
        "acc5",
    }
    assert 0 < metrics["mae"] < 1
    dataset = json.loads((project.folder / "data/dataset/dataset.json").read_text())
    assert (dataset["language"], dataset["label_range"]) == ("zh", [-1, 1])
    assert dataset["modalities"]["text"]["extractor"] == "text.words"
    row = pq.read_table(project.folder / "data/dataset/train").to_pylist()[0]
    assert all(-1 <= row[name] <= 1 for name in ("label", "label_text", "label_audio", "label_vision"))
    assert len(row["text_values"]) < len(row["text"])  # a step a word, not a character
    assert "\uff0c" in "".join(pq.read_table(project.folder / "data/transcripts.parquet")["text"].to_pylist())
    assert "Acc-2 (non-positive / positive)" in (project.folder / "report/index.html").read_text(encoding="utf-8")
