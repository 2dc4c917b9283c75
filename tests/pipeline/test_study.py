"""`dashfusion study` as a researcher runs it: stopped and taken up, run again, in the report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.studies.results import read_study

pytestmark = pytest.mark.e2e

PATIENCE = 300.0
STUDY = """
title: A small study
question: Does it run?
base: {train.epochs: 1, train.warmup_epochs: 0, model.encoder_layers: 1}
seeds: [0, 1, 2]
metrics: [acc2, mae, corr]
reference: full
variants:
  full: {}
  no alignment: {model.alignment: false}
conditions:
  no text: {show: [audio, vision]}
  audio missing: {drop: audio, levels: [0.5, 1], unit: share}
slices: [text misleads]
"""
COMMAND = (sys.executable, "-m", "flows.cli", "study", "studies/mine.yaml", "--workers", "1")


@pytest.fixture
def with_study(reproduced):
    path = reproduced.folder / "studies/mine.yaml"
    path.write_text(STUDY, encoding="utf-8")
    yield reproduced
    path.unlink()
    for result in (reproduced.folder / "studies/results").glob("*.parquet"):
        result.unlink()


def ended(project):
    trials = project.folder / ".dashfusion/scratch/trials"
    return {path: path.stat().st_mtime_ns for path in trials.rglob("costs.json")}


def test_a_study_goes_on_where_it_was_stopped_and_its_table_is_in_the_report(with_study):
    project = with_study
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        COMMAND, cwd=project.folder, env=os.environ | {"DASHFUSION_SERVER": "off", "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while not ended(project):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "interrupted: finished work is kept" in said and "Traceback" not in said
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(project.folder)]
    before = ended(project)
    assert 1 <= len(before) < 6
    assert not (project.folder / "studies/results/mine.parquet").exists()

    done = project.run(*COMMAND, DASHFUSION_SERVER="off")
    assert done.returncode == 0, done.stdout + done.stderr
    after = ended(project)
    assert len(after) == 6 and before.items() <= after.items(), "what had ended was trained again"
    assert "A small study (demo_en, valid split, 3 seeds)" in done.stdout
    assert any(verdict in done.stdout for verdict in ("better", "worse", "undecided"))
    result = read_study(project.folder / "studies/results/mine.parquet")
    assert [row.value for row in result.find(variant="no alignment", metric="mae", clips="all", statistic="value")]
    assert result.provenance["code"]["revision"] and result.provenance["data"]["dataset"]
    assert "A small study" in (project.folder / "report/index.html").read_text(encoding="utf-8"), done.stdout
    assert "up to date" in project.dvc("status"), "the report was made through DVC"
    assert project.repro() == []

    again = project.run(*COMMAND, DASHFUSION_SERVER="off")
    assert again.returncode == 0 and ended(project) == after


def test_a_wrong_variant_is_refused_before_anything_is_trained(with_study):
    path = with_study.folder / "studies/mine.yaml"
    path.write_text(STUDY.replace("model.alignment", "model.alignement"), encoding="utf-8")
    done = with_study.run(*COMMAND, DASHFUSION_SERVER="off")
    assert done.returncode == 1 and "did you mean 'alignment'?" in done.stdout and "Traceback" not in done.stdout


def test_a_training_that_fails_is_named(with_study):
    path = with_study.folder / "studies/mine.yaml"
    path.write_text(STUDY.replace("model.alignment: false", "train.device: cuda:7"), encoding="utf-8")
    done = with_study.run(*COMMAND, DASHFUSION_SERVER="off")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "variant 'no alignment', seed 0: train.device is 'cuda:7'" in done.stdout
