"""DVC as its users know it: what is out of date, queued experiments, comparisons, the model's registry entry."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

RATES = (0.001, 0.002)
PATIENCE = 300  # seconds, for what takes some tens


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("prepare.corpus", "mine", ["prepare"]),
        ("prepare.demo.seed", 8, ["prepare"]),
        ("transcribe.word_times", "data/generated/words.csv", ["transcribe"]),
        ("extract.text.options.max_tokens", 64, ["extract@text"]),
        ("extract.audio.options.hop_seconds", 0.1, ["extract@audio"]),
        ("extract.audio.extractor", "audio.opensmile", ["extract@audio"]),
        ("extract.vision.options.fps", 4, ["extract@vision"]),
        (
            "extract.max_failed_fraction",
            0.5,
            ["extract@audio", "extract@text", "extract@vision", "prepare", "transcribe"],
        ),
        ("extract.workers", 2, []),
        ("extract.runner", "dask", []),
        ("extract.clip_timeout", 60, []),
        ("align.mode", "aligned", ["align"]),
        ("align.mask_invalid", [], ["align", "evaluate"]),
        ("model.bottleneck_tokens", 4, ["train"]),
        ("model.text.mode", "finetune", ["train"]),
        ("train.epochs", 3, ["train"]),
        ("train.contrastive.scope", "in_batch", ["train"]),
        ("evaluate.split", "valid", ["evaluate"]),
    ],
)
def test_a_changed_parameter_makes_its_own_stages_stale(project, first_run, key, value, stages):
    """What hangs on them follows if what they make comes out otherwise."""
    from dvc.repo import Repo

    before = (project.folder / "params.yaml").read_text(encoding="utf-8")
    project.set(key, value)
    try:
        with Repo(str(project.folder)) as repo:
            assert sorted(stage.split(":")[-1] for stage in repo.status()) == stages  # path:name
    finally:
        (project.folder / "params.yaml").write_text(before, encoding="utf-8")


def test_going_back_to_earlier_settings_runs_nothing(reproduced):
    """DVC's run cache holds all eight stages, for every setting that was run before."""
    earlier = {
        name: (reproduced.folder / name).read_bytes() for name in ("params.yaml", "metrics/test.json", "dvc.lock")
    }
    reproduced.set("prepare.demo.seed", 8)
    assert len(reproduced.repro()) == 8
    assert (reproduced.folder / "metrics/test.json").read_bytes() != earlier["metrics/test.json"]
    (reproduced.folder / "params.yaml").write_bytes(earlier["params.yaml"])
    assert reproduced.repro() == []
    assert {name: (reproduced.folder / name).read_bytes() for name in earlier} == earlier


@pytest.fixture(scope="module")
def experiments(project, first_run) -> dict[str, dict[str, Any]]:
    """Two learning rates, queued and run: an experiment's name -> what `dvc exp show` says of it."""
    scratch = project.folder / ".dashfusion/scratch"
    before = set(scratch.rglob("*.npz"))
    project.dvc("exp", "run", "--queue", "-S", f"train.learning_rate={RATES[0]},{RATES[1]}")
    try:
        project.dvc("queue", "start")
        deadline = time.monotonic() + PATIENCE
        while any(state in project.dvc("queue", "status") for state in ("Queued", "Running")):
            assert time.monotonic() < deadline, project.dvc("queue", "status")
            time.sleep(1)
    finally:
        project.dvc("queue", "stop", "--kill")  # nothing, where the queue's worker has ended
    assert set(scratch.rglob("*.npz")) == before, "what was extracted was extracted again"
    (baseline,) = (row for row in json.loads(project.dvc("exp", "show", "--json")) if row["rev"] != "workspace")
    return {row["revs"][0]["name"]: row["revs"][0] for row in baseline["experiments"] or []}


def test_queued_experiments_are_shown_with_their_parameters_and_metrics(experiments):
    assert len(experiments) == len(RATES)
    assert all("metrics/validation.json" in row["data"]["metrics"] for row in experiments.values())
    rates = [row["data"]["params"]["params.yaml"]["data"]["train"]["learning_rate"] for row in experiments.values()]
    assert sorted(rates) == [*RATES]
    errors = [row["data"]["metrics"]["metrics/test.json"]["data"]["mae"] for row in experiments.values()]
    assert all(error > 0 for error in errors) and errors[0] != errors[1]


def test_an_applied_experiment_is_compared_with_the_commit(experiments, reproduced):
    name = next(iter(experiments))
    reproduced.dvc("exp", "apply", name)
    assert reproduced.repro() == []
    changed = json.loads(reproduced.dvc("params", "diff", "--json"))
    assert list(changed["params.yaml"]) == ["train.learning_rate"]
    assert "mae" in json.loads(reproduced.dvc("metrics", "diff", "--json"))["metrics/test.json"]
    compared = json.loads(reproduced.dvc("plots", "diff", "--json"))
    assert compared, "no plots"
    reproduced.dvc("plots", "diff", "-o", "compared")
    page = (reproduced.folder / "compared/index.html").read_text(encoding="utf-8")
    for title in ("Loss in training", "Mean absolute error in validation", "true and their predicted class", "scatter"):
        assert title in page
    assert '"rev": "workspace"' in page and '"rev": "HEAD"' in page


def test_an_unknown_parameter_stops_an_experiment_with_the_nearest_name(reproduced):
    said = reproduced.run(sys.executable, "-m", "dvc", "exp", "run", "-S", "train.epoch=3")
    assert said.returncode != 0 and "Could not override 'train.epoch'" in said.stderr
    command = [sys.executable, "-m", "dvc", "exp", "run", "-S", "+train.epoch=3"]
    said = reproduced.run(*command, DASHFUSION_SERVER="off")
    assert said.returncode != 0 and "train.epoch: no such key; did you mean 'epochs'?" in said.stdout


def test_figures_of_another_split_are_a_metrics_file_of_their_own(reproduced):
    assert reproduced.experiment("evaluate.split=valid") == ["evaluate"]
    metrics = json.loads(reproduced.dvc("metrics", "show", "--json"))[""]["data"]
    assert set(metrics) == {"metrics/valid.json", "metrics/validation.json", "metrics/on.json"}


def test_a_tagged_model_is_got_by_its_name(reproduced, tmp_path):
    reproduced.git("tag", "-a", "dashfusion@v1.0.0", "-m", "the first")
    reproduced.dvc("artifacts", "get", ".", "dashfusion", "-o", str(tmp_path / "model"))
    assert (tmp_path / "model/model.safetensors").stat().st_size > 1000
    assert (tmp_path / "model/checkpoint.json").is_file()
