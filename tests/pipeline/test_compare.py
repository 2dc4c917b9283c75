"""`dashfusion compare` as a researcher runs it: killed, taken up, in the report."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.display.baselines import BASELINES
from flows.studies.results import COSTS, read_study
from tests.support.project import change_yaml

pytestmark = pytest.mark.e2e

PATIENCE = 300.0
COMMAND = (sys.executable, "-m", "flows.cli", "compare", "text", "late_fusion", "--workers", "2", "--trials", "2")


@pytest.fixture
def compared(reproduced):
    change_yaml(reproduced.folder / "params.yaml", {"compare.seeds": [0, 1, 2], "compare.epochs": 2})
    yield reproduced
    for result in (reproduced.folder / "studies/results").glob("*.parquet"):
        result.unlink()


def kept(project) -> dict[Path, int]:
    """Finished trainings, with the time of each."""
    trials = project.folder / ".dashfusion/scratch/trials"
    return {path: path.stat().st_mtime_ns for path in trials.rglob("costs.json")}


def start_and_kill(project, trainings: int) -> None:
    """Run the comparison until it has finished so many trainings more, and kill it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        COMMAND, cwd=project.folder, env=os.environ | {"DASHFUSION_SERVER": "off", "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    before, deadline = len(kept(project)), time.monotonic() + PATIENCE
    while len(kept(project)) < before + trainings:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=PATIENCE)
    while [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(project.folder)]:
        assert time.monotonic() < deadline, "its processes outlive it"
        time.sleep(0.1)


def without_times(path: Path):
    """A result without what no two runs have in common: measured times, and the record of the run."""
    result = read_study(path)
    timed = {key for key in COSTS if key.endswith("seconds")}
    return replace(result, rows=[row for row in result.rows if row.metric not in timed], provenance={})


def test_a_comparison_that_is_killed_twice_ends_with_the_result_of_one_that_is_not(compared):
    parquet = compared.folder / "studies/results/compare.parquet"
    start_and_kill(compared, 1)  # in the search
    start_and_kill(compared, 4)  # between the seeds
    before = kept(compared)
    assert not parquet.exists()
    done = compared.run(*COMMAND, "-o", "board.csv", "-o", "board.png", DASHFUSION_SERVER="off")
    assert done.returncode == 0, done.stdout + done.stderr
    after = kept(compared)
    assert len(after) == 10 and before.items() <= after.items(), "what had ended was trained again"
    assert "Networks compared (demo_en, test split" in done.stdout and "Settings chosen" in done.stdout
    killed = without_times(parquet)
    with (compared.folder / "board.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["network"]: row["rank"] for row in csv.DictReader(file)}
    assert {name for name, rank in rows.items() if rank} == {"text", "late_fusion"}
    assert {name for name, rank in rows.items() if not rank} == {name for name, _ in BASELINES.values()}
    assert (compared.folder / "board.png").stat().st_size > 1000
    assert 'id="networks"' in (compared.folder / "report/index.html").read_text(encoding="utf-8"), done.stdout
    assert "up to date" in compared.dvc("status"), "the report was made through DVC"

    for path in after:
        shutil.rmtree(path.parent)  # trained again, from the start
    done = compared.run(*COMMAND, DASHFUSION_SERVER="off")
    assert done.returncode == 0, done.stdout + done.stderr
    assert without_times(parquet) == killed


def test_wrong_networks_and_files_are_refused_before_anything_runs(compared):
    for arguments, expected in {
        ("tex", "late_fusion"): "did you mean 'text'?",
        ("text",): "text alone cannot be compared",
        ("-o", "board.html"): "name a .csv file, for the table, or a .png file",
        ("--seeds", "0,1"): "name at least 3",
        ("--seeds", "a"): "give whole numbers",
    }.items():
        done = compared.run(*COMMAND[:4], *arguments, DASHFUSION_SERVER="off")
        assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
        assert expected in " ".join(done.stdout.split()), done.stdout
