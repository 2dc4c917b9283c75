"""The parts of `dashfusion ui` that need no Prefect server."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Self
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
from prefect.client.schemas.objects import FlowRun, State

from flows.orchestration import prefect_server, supervisor, ui, worker
from flows.orchestration.deployments import Schedule

STUBBORN = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 2:
    child = subprocess.Popen([sys.executable, __file__, sys.argv[1], "child"], start_new_session=True)
else:
    pathlib.Path(sys.argv[1]).touch()
time.sleep(120)
"""


def test_what_does_not_end_when_asked_is_killed_with_all_that_it_started(tmp_path):
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    process = subprocess.Popen([sys.executable, tmp_path / "stubborn.py", tmp_path / "ready"])
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    [child] = psutil.Process(process.pid).children()
    supervisor.stop(process, grace=0.3)
    assert process.poll() is not None
    assert not child.is_running() or child.wait(10) is None


SERVICE = """
import subprocess, sys, time
child = [sys.executable, "-c", "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(120)"]
subprocess.Popen(child, start_new_session=True)
time.sleep(120)
"""


def test_what_a_killed_service_leaves_behind_is_ended_and_its_exit_code_tells_the_signal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    service = supervisor.start_service(["-c", SERVICE], psutil.Process(), tmp_path / "log", {})
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    [main] = psutil.Process(service.pid).children()
    [child] = main.children()
    main.kill()
    assert service.wait(30) == 128 + signal.SIGKILL
    assert not supervisor.is_running(child)


def test_a_worker_that_ends_again_and_again_is_reported_each_time_and_at_last_is_an_error(monkeypatch, capsys):
    def ended() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(3)"])
        process.wait()
        return process

    monkeypatch.setattr(worker.Worker, "_start", lambda self: ended())
    one = worker.Worker("dashfusion", "http://127.0.0.1:1/api", "")
    for _ in range(worker.MAX_RESTARTS):
        one.check()
    assert capsys.readouterr().out.count("another worker was started") == worker.MAX_RESTARTS
    with pytest.raises(
        ValueError, match=r"ended by itself \(exit code 3\), 4 times in \d+ s: see .dashfusion/worker.log"
    ):
        one.check()


@pytest.mark.parametrize(("code", "happened"), [("", "ended by itself"), ("import time; time.sleep(120)", "did not")])
def test_a_server_that_does_not_come_up_is_reported_with_its_log(monkeypatch, code, happened):
    started: list[subprocess.Popen[bytes]] = []

    def start(owner: psutil.Process, port: int) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-S", "-c", code]))
        return started[0]

    monkeypatch.setattr(prefect_server, "start", start)
    monkeypatch.setattr(ui.signal, "signal", lambda number, handler: None)  # those of the tests' process stay
    monkeypatch.setattr(ui, "START_TIMEOUT", 0.5 if "sleep" in code else 60)
    with pytest.raises(ValueError, match=rf"no server on port \d+: it {happened} .*; see \.dashfusion/server\.log"):
        ui.serve(prefect_server.free_port(), Schedule(), with_worker=False)
    assert started[0].poll() is not None


class Client:
    """A Prefect client of a server that is busy at first."""

    def __init__(self, *runs: FlowRun) -> None:
        self.runs = {run.id: run for run in runs}
        self.states: dict[str, str] = {}
        self.busy = 2

    def __enter__(self) -> Self:
        if self.busy:
            self.busy -= 1
            raise httpx.ReadTimeout("busy")
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        return self.runs[run_id]

    def read_flow_runs(self, flow_run_filter: object) -> list[FlowRun]:
        return []

    def set_flow_run_state(self, run_id: UUID, state: State) -> None:
        self.states[self.runs[run_id].name] = state.type.value


def test_the_runs_of_a_worker_that_has_ended_get_a_final_state_also_while_they_are_cancelled(monkeypatch):
    """A worker that ends by an error ends its runs' processes first, and is seen without them."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(120)"])
    monkeypatch.setattr(worker.Worker, "_start", lambda self: process)
    monkeypatch.setattr(worker.prefect_server, "healthy", lambda api_url, timeout: True)
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: None)
    kinds = {"RUNNING": "CRASHED", "CANCELLING": "CANCELLED", "COMPLETED": None}
    runs = {kind: FlowRun(flow_id=uuid4(), name=kind, state=State(type=kind)) for kind in kinds}
    client = Client(*runs.values())
    monkeypatch.setattr("prefect.client.orchestration.get_client", lambda sync_client: client)
    one = worker.Worker("dashfusion", "http://127.0.0.1:1/api", "")
    family = [Relative(str(run.id)) for run in runs.values()]
    monkeypatch.setattr(worker.psutil.Process, "children", lambda self, recursive: family)
    monkeypatch.setattr(worker.supervisor, "is_running", lambda process: True)
    one.check()
    family[:] = [Relative(None)]
    one.check()
    process.kill()
    process.wait()
    one.check()
    assert client.states == {"RUNNING": "CRASHED", "CANCELLING": "CANCELLED"} and client.busy == 0


@dataclass
class Relative:
    """A process of a worker."""

    run: str | None

    def environ(self) -> dict[str, str]:
        return {"PREFECT__FLOW_RUN_ID": self.run} if self.run else {}


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def test_the_reports_files_are_served_and_nothing_else(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    with ui._report(tmp_path / "report", prefect_server.free_port()) as address:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            read(address)
        (tmp_path / "report/plots").mkdir(parents=True)
        (tmp_path / "report/index.html").write_text("the report")
        assert read(address) == read(f"{address}/index.html") == "the report"
        for path in ("/plots/", "/../secret.txt", "/%2e%2e/secret.txt", "/plots/../../secret.txt"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                read(address + path)


def test_the_report_is_not_served_under_another_name(tmp_path):
    (tmp_path / "index.html").write_text("the report")
    with ui._report(tmp_path, prefect_server.free_port()) as address:
        request = urllib.request.Request(address, headers={"Host": "rebound.test"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=10)
        assert read(address.replace("127.0.0.1", "localhost")) == "the report"


def test_a_port_that_is_taken_is_no_obstacle_to_the_report(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    port = prefect_server.free_port()
    with ui._report(tmp_path, port) as first, ui._report(tmp_path, port) as second:
        assert first != second and read(second) == "mine"


@pytest.mark.parametrize("wrong", [{"cron": "often"}, {"cron": "61 * * * *"}, {"timezone": "Berlin"}])
def test_a_schedule_that_is_none_is_refused_with_an_example(wrong):
    with pytest.raises(ValueError, match=r"is not a schedule.*0 3 \* \* \*.*Europe/Berlin"):
        Schedule(**wrong)
