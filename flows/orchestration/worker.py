"""The Prefect worker of `dashfusion ui`: started, replaced when it has ended by itself, and stopped with its runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from flows.display.console import console
from flows.orchestration import prefect_server, settings, supervisor
from flows.orchestration.deployments import PROJECT

LOG = settings.STATE / "worker.log"

MAX_RESTARTS = 3
"""Restarts within `RESTART_WINDOW`; a worker that ends more often cannot work, and its log says why."""

RESTART_WINDOW = 120.0
"""Seconds."""

NOTED_SECONDS = 60.0
"""Seconds for which a run is kept in mind whose process is gone: a worker that ends by an error ends its runs first."""

ANSWER_SECONDS = 10.0
"""Seconds that a busy server may take for an answer."""


class Worker:
    """A worker that runs a pool's flow runs in the current folder, with this Python.

    Args:
        pool: Name of the work pool.
        api_url: Address of the server.
        report_url: Address of the report.
    """

    def __init__(self, pool: str, api_url: str, report_url: str) -> None:
        self.pool, self.api_url, self.report_url = pool, api_url, report_url
        self._mark = os.urandom(16).hex()
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._runs: dict[UUID, float] = {}  # -> when a process of it was last seen
        self._supervisor = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = settings.QUIET | {
            "PREFECT_API_URL": self.api_url,
            "PREFECT_LOGGING_LEVEL": "INFO",  # a run's page shows its log
            "PATH": settings.python_path(),
            PROJECT: str(Path.cwd()),
            settings.REPORT_URL: self.report_url,
        }
        command = ["-m", "prefect", "worker", "start", "--pool", self.pool, "--type", "process"]
        return supervisor.start_service(command, psutil.Process(), LOG, environment, mark=self._mark)

    def check(self) -> None:
        """Note the worker's flow runs; if it has ended, end and report these, and start another worker.

        Raises:
            ValueError: The worker has ended too often.
        """
        code = self._supervisor.poll()
        if code is None:
            self._note_runs()
            return
        supervisor.stop_members(self._mark)  # of a supervisor that was killed, too
        reason = f"the worker of the pool {self.pool} has ended by itself ({_describe(code)})"
        crashed = self._set_state("CRASHED", reason)
        console.print(f"{reason}: see {LOG}", style="yellow", markup=False, highlight=False)
        for name in crashed:
            console.print(f"  {name} is marked as crashed: finished work is kept", markup=False, highlight=False)
        now = time.monotonic()
        if len(self._restarts) == MAX_RESTARTS and (seconds := now - self._restarts[0]) < RESTART_WINDOW:
            raise ValueError(f"{reason}, {MAX_RESTARTS + 1} times in {seconds:.0f} s: see {LOG}")
        self._restarts.append(now)
        self._supervisor = self._start()
        console.print("  another worker was started")

    def stop(self) -> None:
        """Stop the worker and its flow runs, and set these to cancelled."""
        self._note_runs()
        self._supervisor.terminate()
        self._supervisor.wait()
        self._set_state("CANCELLED", "`dashfusion ui`, whose worker ran it, was stopped")

    def _note_runs(self) -> None:
        """Note the flow runs of the worker's processes: Prefect passes each its id.

        While the supervisor of a worker that was killed stops these processes, the runs noted before are kept.
        """
        with suppress(psutil.Error):
            ids = set()
            family = psutil.Process(self._supervisor.pid).children(recursive=True)
            for process in family:
                with suppress(psutil.Error):
                    ids.add(process.environ().get("PREFECT__FLOW_RUN_ID"))
            if any(supervisor.is_running(process) for process in family):
                now = time.monotonic()
                seen = self._runs | {UUID(run): now for run in ids if run}
                self._runs = {run: last for run, last in seen.items() if now - last <= NOTED_SECONDS}

    def _set_state(self, kind: str, message: str) -> list[str]:
        """Set the noted runs and their child runs, whose processes have ended, to a final state; return their names.

        A run that has reported its end itself keeps its state; the names contain those that have crashed, too. One that
        was about to be cancelled is cancelled: left so, it would take the place of its deployment's next run for ever.
        """
        import httpx

        deadline = time.monotonic() + 3 * ANSWER_SECONDS
        while self._runs and prefect_server.healthy(self.api_url, ANSWER_SECONDS):
            try:
                names = self._settle(kind, message)
            except httpx.HTTPError:  # of a busy server
                if time.monotonic() > deadline:
                    break
                time.sleep(1)
                continue
            self._runs = {}
            return names
        return []

    def _settle(self, kind: str, message: str) -> list[str]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
        from prefect.client.schemas.objects import State, StateType
        from prefect.settings import PREFECT_API_URL, temporary_settings

        names: list[str] = []
        state: State[Any] = State(type=StateType(kind), message=message)
        cancelled: State[Any] = State(type=StateType.CANCELLED, message=message)
        with temporary_settings({PREFECT_API_URL: self.api_url}), get_client(sync_client=True) as client:
            children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=list(self._runs)))
            parents = [client.read_flow_run(run) for run in self._runs]
            for run in [*parents, *client.read_flow_runs(flow_run_filter=children)]:
                if run.state is None or not run.state.is_final():
                    cancelling = run.state is not None and run.state.is_cancelling()
                    client.set_flow_run_state(run.id, cancelled if cancelling else state)
                elif run.state.type != state.type:
                    continue
                names.append(run.name)
        return names


def _describe(code: int) -> str:
    """Describe a shell exit code, or that of a supervisor that was killed."""
    number = -code if code < 0 else code - 128
    return f"killed by signal {number}" if number > 0 else f"exit code {code}"
