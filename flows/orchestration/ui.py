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
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import psutil

from flows.config.params import load_params
from flows.display.console import console
from flows.orchestration import prefect_server, settings
from flows.orchestration.deployments import Deployed, Schedule, deploy, work_pools
from flows.orchestration.worker import Worker

START_TIMEOUT = 300.0
"""Seconds that the server may take to start, which is more on a busy machine than a run waits for one."""


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

    A worker that ends by itself is replaced; its runs are set to crashed (`Worker.check`).

    Args:
        port: Port of the Prefect server; the report is served on the next one.
        change: Changes to the nightly run's schedule.
        with_worker: Start a worker for every work pool.

    Raises:
        ValueError: The server cannot be started or has ended by itself, a deployment cannot be created, or a worker
            ends again and again.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a process that a script starts in the background ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    api_url = prefect_server.loopback(port)
    with ExitStack() as stack:
        server = None
        if not prefect_server.healthy(api_url):
            server = prefect_server.start(psutil.Process(), port)
            stack.callback(_stop, server)
            with console.status("starting the Prefect server"):
                started = prefect_server.wait_until_healthy(api_url, server, START_TIMEOUT)
            if not started:
                happened = "did not answer" if server.poll() is None else "ended by itself"
                raise ValueError(
                    f"no server on port {port}: it {happened} within {START_TIMEOUT:g} s; see "
                    f"{settings.STATE / 'server.log'}"
                )
        report_url = stack.enter_context(_report(load_params().paths.report, port + 1))
        deployed = deploy(api_url, change)
        workers = []
        for pool in work_pools() if with_worker else ():
            workers.append(Worker(pool, api_url, report_url))
            stack.callback(workers[-1].stop)
        _print_addresses(api_url, report_url, deployed, with_worker)
        while server is None or server.poll() is None:
            for worker in workers:
                worker.check()
            time.sleep(0.5)
        raise ValueError(f"the server has ended by itself: see {settings.STATE / 'server.log'}")


def _stop(supervisor: subprocess.Popen[bytes]) -> None:
    """Stop a supervised service."""
    supervisor.terminate()
    supervisor.wait()


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
