"""`dvc repro` and `dashfusion pipeline` in one folder: at once, interrupted, and with a Prefect server beside them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

PATIENCE = 600.0  # seconds, for what takes one minute
REPRO = (sys.executable, "-m", "dvc", "repro")
PIPELINE = (sys.executable, "-m", "flows.cli", "pipeline")


@pytest.fixture(scope="module")
def stale(project) -> Iterator[None]:
    """No stage of the project is up to date, since its corpus is another one: long enough to be interrupted."""
    before = (project.folder / "params.yaml").read_bytes()
    project.set("prepare.demo.seed", 77)
    project.set("prepare.demo.clips", 24)
    yield
    (project.folder / "params.yaml").write_bytes(before)


def start(project, *command: str, **environment: str) -> subprocess.Popen[str]:
    """A command in the project, in a process group of its own, as a terminal gives it; without a server."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else a process that a script put aside ignores it
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.Popen(
        command, cwd=project.folder, env=os.environ | {"PATH": path, "DASHFUSION_SERVER": "off"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def working_in(folder: Path) -> list[psutil.Process]:
    """Processes whose working directory is the project's."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def unchanged(project) -> bool:
    """Whether DVC finds all stages and their outputs as dvc.lock has them."""
    said = project.run(sys.executable, "-m", "dvc", "status")
    return said.returncode == 0 and "up to date" in said.stdout


def test_ctrl_c_leaves_nothing_half_written_and_no_process_and_repro_goes_on(project, stale):
    scratch = project.folder / ".dashfusion/scratch"
    before = set(scratch.rglob("*.npz"))
    process = start(project, *REPRO)
    deadline = time.monotonic() + PATIENCE
    while not set(scratch.rglob("*.npz")) - before:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal sends on Ctrl-C
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "extract interrupted: finished work is kept" in said and "Traceback" not in said
    _, alive = psutil.wait_procs(working_in(project.folder), timeout=20)
    assert not alive, [process.cmdline() for process in alive]
    stopped = re.findall(r"^Running stage 'extract@(.+)'", said, re.MULTILINE)[-1]
    assert not (project.folder / "data/features" / stopped).exists(), "what DVC removed came back in part"
    leftovers = [path for path in (project.folder / "data").rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert leftovers == []
    finished = set(scratch.rglob("*.npz")) - before
    went_on = project.run(*REPRO, DASHFUSION_SERVER="off")
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    reused = re.search(rf"^{stopped}: .* \((\d+) from an earlier run\)", went_on.stdout, re.MULTILINE)
    assert reused and int(reused[1]) >= len(finished) > 0
    assert "Running stage 'prepare'" not in went_on.stdout and unchanged(project)


def test_of_two_pipelines_at_once_the_second_waits_and_finds_all_done(project, stale):
    project.set("align.mode", "aligned")
    runs = [start(project, *PIPELINE) for _ in range(2)]
    texts = [run.communicate(timeout=PATIENCE)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], texts
    (second,) = (text for text in texts if "works in this folder: waiting until it has ended" in text)
    (first,) = (text for text in texts if text != second)
    states = {
        text: dict(re.findall(r"^(\S+) +(run|cached) +[\d.]+ s$", text, re.MULTILINE)) for text in (first, second)
    }
    assert states[first]["align"] == states[first]["evaluate"] == "run"
    assert len(states[second]) == 9 and set(states[second].values()) == {"cached"}
    assert second.count("PID") == 1 and str(runs[texts.index(first)].pid) in second
    assert unchanged(project)


def test_a_run_that_must_not_wait_is_refused_by_the_name_of_the_other(project, stale):
    holder = start(project, sys.executable, "-c", "from flows import pipeline; import time\n"
                   "with pipeline.workspace(): print('in', flush=True); time.sleep(600)")  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "in\n"
        refused = project.run(*PIPELINE, "--no-wait", DASHFUSION_SERVER="off")
    finally:
        holder.kill()
        holder.communicate()
    assert refused.returncode == 1
    assert f"another pipeline run (PID {holder.pid}, since " in refused.stdout and "Traceback" not in refused.stdout


def test_a_repro_with_a_server_says_what_the_stages_do_and_nothing_else(project, stale, tmp_path):
    project.set("train.weight_decay", 2e-3)
    done = project.run(*REPRO, PREFECT_HOME=str(tmp_path), DASHFUSION_SERVER="own")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "reporting to Prefect at http://127.0.0.1:" in said and "started for this run" in said
    assert re.findall(r"^Running stage '(.+)'", said, re.MULTILINE) == ["train", "evaluate"]
    noise = r"Traceback|telemetry|analytics|sqlalchemy|uvicorn|httpx|asyncio|\| (INFO|ERROR)|WARN|^INFO"
    assert not re.search(noise, said, re.MULTILINE | re.IGNORECASE), said
    assert len(said.splitlines()) < 60, said
    assert unchanged(project)
