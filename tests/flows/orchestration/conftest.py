"""A small project behind `dashfusion ui`: a real Prefect server with deployments and a worker, on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flows.orchestration import prefect_server, settings
from tests.support.project import new_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 480  # seconds, for what takes some tens on an idle machine


def wait(ready: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What `ready` gives, once that is something."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.3)
    raise AssertionError(f"waited {patience} s in vain for {what}")


BUSY = object()


def _answer(request: urllib.request.Request) -> Any:
    """What the server says, or `BUSY`: SQLite takes one writer at a time, and Prefect's own clients ask again too."""
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            said = answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 503:
            return BUSY
        raise
    return json.loads(said) if said else None


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What a process says up to the line with these words."""
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it ended without {words!r}:\n{said}")


@dataclass(frozen=True)
class House:
    """A project, and the Prefect server that `dashfusion ui` serves for it."""

    project: Any
    port: int
    home: Path  # Prefect's
    said: str = field(default="", compare=False)  # by `dashfusion ui`

    wait = staticmethod(wait)
    read_until = staticmethod(read_until)

    @property
    def api_url(self) -> str:
        return prefect_server.loopback(self.port)

    @property
    def state(self) -> Path:
        """Where logs are."""
        return self.project.folder / settings.STATE

    def api(self, path: str, method: str | None = None, **body: Any) -> Any:
        """The answer to a POST where there is a body or a filter is asked for, else to a GET."""
        data = json.dumps(body).encode() if body or path.endswith("filter") else None
        request = urllib.request.Request(
            f"{self.api_url}/{path}", data=data, method=method, headers={"Content-Type": "application/json"}
        )
        return wait(lambda: (answer := _answer(request)) is not BUSY and (answer,), f"{path} to be answered")[0]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python COMMAND` in the project, with our server as the one that is meant."""
        here = {"PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.api_url}
        return self.project.run(sys.executable, *command, **(here | environment))

    def deployments(self) -> dict[str, Any]:
        """By name."""
        return {one["name"]: one for one in self.api("deployments/filter")}

    def start(self, deployment: str, **parameters: Any) -> str:
        """Ask for a run; its id."""
        chosen = self.deployments()[deployment]
        return self.api(
            f"deployments/{chosen['id']}/create_flow_run",
            parameters=chosen["parameters"] | parameters,
            state={"type": "SCHEDULED"},
        )["id"]

    def flow_run(self, run: str) -> Any:
        return self.api(f"flow_runs/{run}")

    def wait_for(self, run: str, *types: str) -> Any:
        """The run, once its state is of one of these types."""
        return wait(lambda: (seen := self.flow_run(run))["state_type"] in types and seen, f"{run} to be {types}")

    def finished(self, deployment: str, **parameters: Any) -> Any:
        """A run from its start to its end."""
        ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return self.wait_for(self.start(deployment, **parameters), *ended)

    def task_runs(self, run: str) -> list[Any]:
        """Its task runs in their order; the server stores the last ones some seconds after the run's end."""
        runs = self.api("task_runs/filter", flow_runs={"id": {"any_": [run]}}, limit=200)
        return sorted(runs, key=lambda one: one["start_time"] or "")

    def stages(self, run: str, count: int) -> dict[str, str]:
        """Stage by stage the name of its task's state."""

        def stored() -> dict[str, str]:
            tasks = [one for one in self.task_runs(run) if one["task_key"].startswith("run_stage_through_dvc")]
            ended = {one["name"]: one["state_name"] for one in tasks if one["state_type"] in ("COMPLETED", "FAILED")}
            return ended if len(ended) == count else {}

        return wait(stored, f"{count} ended tasks of {run}")

    def children(self, run: str) -> list[Any]:
        """The flow runs that show themselves as its children."""
        return self.api("flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run]}})

    def artifacts(self, *runs: str) -> dict[str, Any]:
        """By key."""
        found = self.api("artifacts/filter", artifacts={"flow_run_id": {"any_": list(runs)}}, limit=200)
        return {one["key"]: one for one in found}

    def processes(self) -> list[psutil.Process]:
        """All that run in the project's folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()) == self.project.folder and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    @contextmanager
    def ui(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """`dashfusion ui`, once it has said that it is ready; stopped as Ctrl-C does."""
        environment = os.environ | {"PREFECT_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        for name in ("PREFECT_API_URL", "DASHFUSION_SERVER", "DASHFUSION_PROJECT"):
            environment.pop(name, None)
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "ui", "--port", str(self.port), *options],
            cwd=self.project.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(timeout=90)


@pytest.fixture(scope="session")
def small_project(tmp_path_factory) -> Any:
    """A demo corpus of 12 clips, a small model, one epoch."""
    settings = {"prepare.demo.clips": 12, "prepare.demo.speakers": 6, "extract.workers": 1}
    settings |= {
        "extract.vision.options.fps": 5,
        "model.dim": 16,
        "model.heads": 2,
        "model.encoder_layers": 1,
        "model.fusion_layers": 1,
    }
    settings |= {"train.epochs": 1, "train.warmup_epochs": 0, "train.intervals.folds": 2}
    return new_project(tmp_path_factory.mktemp("house"), settings)


@pytest.fixture(scope="session")
def new_house(small_project) -> Callable[[Path], House]:
    """The project with a new Prefect database in a folder, not yet served."""
    return lambda home: House(small_project, prefect_server.free_port(), home)


@pytest.fixture(scope="session")
def house(new_house, tmp_path_factory) -> Iterator[House]:
    """The project with `dashfusion ui` running."""
    made = new_house(tmp_path_factory.mktemp("prefect"))
    with made.ui() as process:
        said = read_until(process, "deployment run")
        yield replace(made, said=said)


@pytest.fixture(scope="session")
def first_run(house) -> Any:
    """The pipeline's first run: everything is to be made."""
    run = house.finished("pipeline")
    assert run["state_type"] == "COMPLETED", (run["state"]["message"], (house.state / "worker.log").read_text())
    return run
