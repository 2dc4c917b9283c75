"""The whole way, as `dvc repro` and as `dashfusion pipeline`, on a small demo corpus."""

from __future__ import annotations

import json
import re
import sys

import pyarrow.parquet as pq
import pytest

from tests.support.project import CLIPS

pytestmark = pytest.mark.e2e

ALL = [
    "check",
    "prepare",
    "transcribe",
    *(f"extract@{m}" for m in ("text", "audio", "vision")),
    "align",
    "train",
    "evaluate",
]


def test_raw_videos_become_metrics_predictions_and_a_report(project, first_run):
    assert sorted(first_run) == sorted(ALL)
    metrics = json.loads((project.folder / "metrics/test.json").read_text())
    assert {"n", "mae", "corr", "acc2_nn", "f1_nn", "acc2_np", "f1_np", "acc3", "acc5", "acc7"} <= set(metrics)
    predictions = pq.read_table(project.folder / "predictions.parquet")
    assert predictions.num_rows == metrics["n"]
    page = (project.folder / "report/index.html").read_text(encoding="utf-8")
    assert predictions["clip_id"][0].as_py() in page and "<h2>The corpus</h2>" in page
    record = json.loads((project.folder / "metrics/run.json").read_text(encoding="utf-8"))
    assert record["train"][0]["data"]["dataset"] == record["data"]["dataset"] and not record["code"]["dirty"]
    assert pq.read_table(project.folder / "data/problems.parquet").num_rows == 0


def test_the_demos_true_word_times_measure_the_aligner(project, first_run):
    dataset = json.loads((project.folder / "data/dataset/dataset.json").read_text())
    proportional = dataset["word_times"]["methods"]["proportional"]
    assert proportional["clips"] == CLIPS and proportional["error"]["words"] > CLIPS
    assert 0 < proportional["error"]["start"]["median"] < 1


def test_a_second_repro_runs_nothing(project, first_run):
    assert project.repro() == []


def test_dvc_knows_the_metrics_and_plots(project, first_run):
    assert "acc2_np" in project.dvc("metrics", "show", "--json")
    plots = project.dvc("plots", "show", "--json")
    for name in ("confusion", "scatter", "train_loss", "valid_mae", "valid_corr"):
        assert name in plots


def test_a_changed_vision_setting_leaves_text_and_audio_alone(project, first_run):
    project.set("extract.vision.options.fps", 8)
    assert sorted(project.repro()) == ["align", "evaluate", "extract@vision", "train"]


def test_word_times_that_come_with_the_corpus_leave_audio_and_vision_alone(project, first_run):
    project.set("transcribe.word_times", "data/generated/words.csv")
    try:
        assert sorted(project.repro()) == ["align", "evaluate", "extract@text", "train", "transcribe"]
        methods = json.loads((project.folder / "data/dataset/dataset.json").read_text())["word_times"]["methods"]
        assert list(methods) == ["file"] and methods["file"]["error"]["start"]["mean"] < 1e-6
    finally:
        project.set("transcribe.word_times", None)


def test_the_pipeline_command_agrees_with_dvc_on_what_is_up_to_date(project, first_run):
    project.repro()
    done = project.run(sys.executable, "-m", "flows.cli", "pipeline", DASHFUSION_SERVER="off")
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ALL:
        assert any(line.split()[:2] == [stage, "cached"] for line in done.stdout.splitlines()), done.stdout


def test_a_stage_that_fails_says_why_in_the_pipelines_own_error(project, first_run):
    before = (project.folder / "params.yaml").read_text()
    project.set("extract.audio.extractor", "audio.librosaa")
    try:
        done = project.run(sys.executable, "-m", "flows.cli", "extract", "audio", DASHFUSION_SERVER="off")
    finally:
        (project.folder / "params.yaml").write_text(before)
    assert done.returncode == 1
    assert "stage extract@audio failed" in done.stdout and "did you mean 'audio.librosa'?" in done.stdout


def test_a_video_gets_the_score_that_evaluate_gave_it(project, first_run):
    project.repro()  # the test before has left a failed stage behind
    expected = pq.read_table(project.folder / "predictions.parquet").to_pylist()[0]
    texts = pq.read_table(project.folder / "data/dataset/test", columns=["clip_id", "text"]).to_pylist()
    text = next(row["text"] for row in texts if row["clip_id"] == expected["clip_id"])
    media = f"data/generated/Raw/{expected['clip_id']}.mp4"
    done = project.run(sys.executable, "-m", "flows.cli", "predict", media, "--text", text, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["raw_score"] == pytest.approx(expected["prediction"], abs=1e-4)
    assert done.stderr == ""


def test_the_checkpoint_carries_a_reference_clip_whose_features_are_the_same_here(project, first_run):
    project.repro()
    best = project.folder / "models/seed-0/best"
    assert sorted(path.stem for path in (best / "reference").iterdir()) == ["audio", "text", "vision"]
    cache = project.folder / ".dashfusion/cache"
    done = project.run(sys.executable, "-m", "flows.cli", "doctor", str(best), XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0 and "can be used here" in done.stdout, done.stdout + done.stderr
    (found,) = (cache / "dashfusion/reference").iterdir()
    assert max(json.loads(found.read_text()).values()) < 0.001


def test_the_page_about_one_clip_runs_as_written(project, first_run):
    project.repro()  # the test before has left a failed stage behind
    page = (project.folder / "docs/one_clip.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = project.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "H (2," in done.stdout and "same to 1e-5: True" in done.stdout
