"""`dashfusion ui`: a Prefect server on loopback, with deployments, a worker that runs them, and the report."""

from __future__ import annotations

import http.server
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import psutil

from flows.config.params import load_params
from flows.display.console import console
from flows.orchestration import prefect_server, settings
from flows.orchestration.deployments import PROJECT, Deployed, Schedule, deploy, work_pools
from flows.orchestration.settings import REPORT_URL
from flows.orchestration.supervisor import start_service


class _ReportHandler(http.server.SimpleHTTPRequestHandler):
    """Handler for the files of the report's folder, without directory listings or log lines."""

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Refuse other host names: by DNS rebinding, pages of other sites could read the report."""
        port = int(self.connection.getsockname()[1])
        if not prefect_server.own_hosts(port).issuperset(self.headers.get_all("Host", [""])):
            self.send_error(403, "this server is not known under that name")
            return None
        return super().send_head()

    def list_directory(self, path: str | os.PathLike[str]) -> None:
        self.send_error(404, "no report here (yet)")

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(port: int, change: Schedule, with_worker: bool) -> None:
    """Serve until Ctrl-C or SIGTERM, which stops every process that this function has started.

    Args:
        port: Port of the Prefect server; the report is served on the next one.
        change: Changes to the nightly run's schedule.
        with_worker: Start a worker for every work pool.

    Raises:
        ValueError: The server cannot be started, a deployment cannot be created, or a process has ended by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a process that a script starts in the background ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    api_url = prefect_server.loopback(port)
    with ExitStack() as stack:
        supervisors = []
        if not prefect_server.healthy(api_url):
            server = prefect_server.start(psutil.Process(), port)
            stack.callback(_stop, server)
            supervisors.append(server)
            if not prefect_server.wait_until_healthy(api_url, server):
                raise ValueError(f"no server could be started on port {port}: see {settings.STATE / 'server.log'}")
        report_url = stack.enter_context(_report(load_params().paths.report, port + 1))
        deployed = deploy(api_url, change)
        for pool in work_pools() if with_worker else ():
            worker = _start_worker(pool, api_url, report_url)
            stack.callback(_stop_worker, worker, api_url)
            supervisors.append(worker)
        _print_addresses(api_url, report_url, deployed, with_worker)
        while all(supervisor.poll() is None for supervisor in supervisors):
            time.sleep(0.5)
        raise ValueError(f"the server or the worker has ended by itself: see {settings.STATE}/server.log, worker.log")


def _start_worker(pool: str, api_url: str, report_url: str) -> subprocess.Popen[bytes]:
    """Start a worker whose flow runs use this folder, this server and this Python, and return its supervisor."""
    environment = settings.QUIET | {
        "PREFECT_API_URL": api_url,
        "PREFECT_LOGGING_LEVEL": "INFO",  # a run's page shows its log
        "PATH": settings.python_path(),
        PROJECT: str(Path.cwd()),
        REPORT_URL: report_url,
    }
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    return start_service(command, psutil.Process(), settings.STATE / "worker.log", environment)


def _stop(supervisor: subprocess.Popen[bytes]) -> None:
    """Stop a supervised service."""
    supervisor.terminate()
    supervisor.wait()


def _stop_worker(supervisor: subprocess.Popen[bytes], api_url: str) -> None:
    """Stop a worker and its flow runs, and set these to cancelled."""
    runs = _active_runs(supervisor)
    _stop(supervisor)
    if runs and prefect_server.healthy(api_url):
        _cancel(api_url, runs)


def _active_runs(supervisor: subprocess.Popen[bytes]) -> set[UUID]:
    """Return the flow runs of a worker's processes: Prefect passes each its id."""
    ids = set()
    for process in psutil.Process(supervisor.pid).children(recursive=True) if supervisor.poll() is None else ():
        with suppress(psutil.Error):
            ids.add(process.environ().get("PREFECT__FLOW_RUN_ID"))
    return {UUID(run) for run in ids if run}


def _cancel(api_url: str, runs: set[UUID]) -> None:
    """Set these runs, and their child runs, to cancelled on the server: their processes have been stopped."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelled

    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=list(runs)))
        for run in [*(client.read_flow_run(run) for run in runs), *client.read_flow_runs(flow_run_filter=children)]:
            if run.state is None or not run.state.is_final():
                client.set_flow_run_state(
                    run.id, Cancelled(message="`dashfusion ui`, whose worker ran it, was stopped")
                )


@contextmanager
def _report(folder: Path, port: int) -> Iterator[str]:
    """Serve the report's folder on this port of loopback, or on a free one if it is taken; provide the address."""
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


def _print_addresses(api_url: str, report_url: str, deployed: Sequence[Deployed], with_worker: bool) -> None:
    console.print(f"Prefect is at {prefect_server.pages(api_url)} (Ctrl-C stops it), the last report at {report_url}")
    for one in deployed:
        console.print(f"  {one}")
    runs = "Run them there" if with_worker else "No worker was started here: their runs wait for one. Run them there"
    console.print(f"{runs}, or in another terminal:")
    console.print(f"  export PREFECT_API_URL={api_url}")
    console.print("  prefect deployment run pipeline/pipeline --watch")
