"""`dashfusion ui`: Prefect's pages on loopback, with deployments, a worker that runs them, and the report."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import UUID

import psutil

from flows.config.params import load_params
from flows.display.console import console
from flows.orchestration import prefect_server, settings, supervisor
from flows.orchestration.deployments import PROJECT, Deployed, Schedule, deploy, work_pools
from flows.orchestration.settings import REPORT_URL


class _ReportHandler(http.server.SimpleHTTPRequestHandler):
    """Files of the report's folder: no listing of it, and no line in the terminal for every request."""

    def list_directory(self, path: str | os.PathLike[str]) -> None:
        self.send_error(404, "no report here (yet)")

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(port: int, change: Schedule, with_worker: bool) -> None:
    """Serve until Ctrl-C (or SIGTERM), which stops everything that was started here.

    Raises:
        ValueError: the server cannot be started, the deployments not be made, or a process has ended by itself.
    """
    for sign in (signal.SIGINT, signal.SIGTERM):  # also where a script that started us lets us ignore the first
        signal.signal(sign, signal.default_int_handler)
    api_url = prefect_server.loopback(port)
    with ExitStack() as stack:
        kept = []
        if not prefect_server.healthy(api_url):
            kept.append(stack.enter_context(_stopped_at_the_end(prefect_server.start(psutil.Process(), port))))
            if not prefect_server.wait_until_healthy(api_url, kept[0]):
                raise ValueError(f"no server could be started on port {port}: see {settings.STATE / 'server.log'}")
        report_url = stack.enter_context(_report(load_params().paths.report, port + 1))
        deployed = deploy(api_url, change)
        for pool in work_pools() if with_worker else ():
            kept.append(stack.enter_context(_worker(pool, api_url, report_url)))
        _say(api_url, report_url, deployed, with_worker)
        while all(service.poll() is None for service in kept):
            time.sleep(0.5)
        raise ValueError(f"the server or the worker has ended by itself: see {settings.STATE}/server.log, worker.log")


@contextmanager
def _worker(pool: str, api_url: str, report_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose runs happen in this folder, report to this server and use this Python."""
    environment = {
        "PREFECT_API_URL": api_url,
        "PREFECT_LOGGING_LEVEL": "INFO",  # a run's page shows its log
        "PATH": prefect_server.path_of_this_python(),
        PROJECT: str(Path.cwd()),
        REPORT_URL: report_url,
    }
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    service = supervisor.start_service(
        command, psutil.Process(), settings.STATE / "worker.log", settings.QUIET | environment
    )
    try:
        yield service
    finally:
        runs = _runs_of(service)
        service.terminate()
        service.wait()
        if runs and prefect_server.healthy(api_url):
            _say_cancelled(api_url, runs)


def _runs_of(service: subprocess.Popen[bytes]) -> set[UUID]:
    """The flow runs that a worker's processes are busy with: Prefect gives each its id."""
    found = set()
    for process in psutil.Process(service.pid).children(recursive=True) if service.poll() is None else ():
        with suppress(psutil.Error):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID"))
    return {UUID(run) for run in found if run}


def _say_cancelled(api_url: str, runs: set[UUID]) -> None:
    """Tell the server that these runs, and the stages' runs below them, have ended: their processes no longer can."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelled

    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=list(runs)))
        for run in [*(client.read_flow_run(run) for run in runs), *client.read_flow_runs(flow_run_filter=below)]:
            if run.state is None or not run.state.is_final():
                client.set_flow_run_state(
                    run.id, Cancelled(message="`dashfusion ui`, whose worker ran it, was stopped")
                )


@contextmanager
def _stopped_at_the_end(service: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield service
    finally:
        service.terminate()
        service.wait()


@contextmanager
def _report(folder: Path, port: int) -> Iterator[str]:
    """Serve the report's folder on this port of loopback, or on any if it is taken; its address."""
    handler = partial(_ReportHandler, directory=str(folder))
    try:
        pages = http.server.ThreadingHTTPServer((prefect_server.HOST, port), handler)
    except OSError:
        pages = http.server.ThreadingHTTPServer((prefect_server.HOST, 0), handler)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    try:
        yield f"http://{prefect_server.HOST}:{pages.server_port}"
    finally:
        pages.shutdown()
        pages.server_close()


def _say(api_url: str, report_url: str, deployed: Sequence[Deployed], with_worker: bool) -> None:
    console.print(f"Prefect is at {prefect_server.pages(api_url)} (Ctrl-C stops it), the last report at {report_url}")
    for one in deployed:
        console.print(f"  {one}")
    runs = "Run them there" if with_worker else "No worker was started here: their runs wait for one. Run them there"
    console.print(f"{runs}, or in another terminal:")
    console.print(f"  export PREFECT_API_URL={api_url}")
    console.print("  prefect deployment run pipeline/pipeline --watch")
