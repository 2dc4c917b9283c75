"""A stage never runs twice at a time, not even if the DVC command that started it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
PATIENCE = 120.0

STAGE = """
import os, subprocess, sys, time
from pathlib import Path
from flows.orchestration.stage_lock import stage_lock

with stage_lock("train"):
    name = os.environ["NAME"]
    Path("curve.txt").write_text("")
    if name == "endless":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path("pids.tmp").write_text(f"{os.getpid()} {child.pid}")
        Path("pids.tmp").rename("pids")
    if name == "first":
        Path("begun").touch()
    while name == "endless" or (name == "first" and not Path("go").exists()):
        with open("curve.txt", "a") as curve:
            curve.write(name + "\\n")
        time.sleep(0.01)
    with open("curve.txt", "a") as curve:
        curve.write(name + "\\n")
"""


def wait(ready: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(name: str, *command: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *command], env=os.environ | {"NAME": name, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "stage.py").write_text(STAGE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def test_a_second_run_waits_for_the_first_and_says_so_once(folder):
    first = start("first", "stage.py")
    wait((folder / "begun").exists)
    second = start("second", "stage.py")
    assert second.stdout.readline() == f"train: PID {first.pid} runs this stage already; waiting until it has ended\n"
    assert second.poll() is None
    (folder / "go").touch()
    assert second.communicate(timeout=PATIENCE) == ("", None) and second.returncode == first.wait() == 0
    assert (folder / "curve.txt").read_text() == "second\n"


def test_a_run_that_was_killed_is_no_obstacle(folder):
    killed = start("first", "stage.py")
    wait((folder / "begun").exists)
    killed.kill()
    killed.wait()
    second = start("second", "stage.py")
    assert second.communicate(timeout=PATIENCE) == ("", None)
    assert (folder / "curve.txt").read_text() == "second\n"


@pytest.mark.e2e
@pytest.mark.parametrize("ignoring_interrupts", [False, True])
def test_what_a_killed_dvc_leaves_behind_is_ended_before_the_stage_runs_again(folder, ignoring_interrupts):
    stage = {"cmd": f"{sys.executable} stage.py", "deps": ["stage.py"], "outs": ["curve.txt"]}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {"train": stage}}), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN if ignoring_interrupts else signal.default_int_handler)
    try:  # as a script's background process, or a terminal's
        dvc = start("endless", "-m", "dvc", "repro")
    finally:
        signal.signal(signal.SIGINT, handler)
    wait((folder / "pids").exists)
    left = [psutil.Process(int(pid)) for pid in (folder / "pids").read_text().split()]
    dvc.kill()
    dvc.wait()
    assert all(process.is_running() for process in left)
    second = start("second", "-m", "dvc", "repro")
    said, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, said
    assert f"train: PID {left[0].pid}, left behind by a `dvc` that was killed, is ended first" in said
    assert (folder / "curve.txt").read_text() == "second\n"
    wait(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in left))
