"""Dask and Ray clusters that run a stage's tasks, through Prefect's task runners.

Without an address a cluster of local processes is started and stopped with the block; with one, a running cluster is
used, and left as it was.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

from flows.orchestration import engine

RAY_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise Ray hides GPUs from tasks that reserve none
}

RAY_STORE = 100 * 2**20
"""Bytes of shared memory for results, which are small; by default Ray takes a third of the memory."""


@contextmanager
def task_runner(kind: Literal["dask", "ray"], address: str, workers: int, after: Callable[[], None]) -> Iterator[Any]:
    """Provide a started Prefect task runner.

    Args:
        kind: Type of the cluster.
        address: Address of a running cluster, as its own client takes it; empty: a local one.
        workers: Processes of a local cluster.
        after: Called at the end in every worker of a running Dask cluster. Ray ends a job's processes by itself.

    Raises:
        ValueError: The extra is not installed, or there is no Prefect server that the workers can reach.
        OSError: No cluster answers at the address.
    """
    _check_server(kind, address)
    try:
        with (_dask if kind == "dask" else _ray)(address, workers, after) as runner:
            yield runner
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "prefect_dask", "prefect_ray", "ray"):
            raise
        raise ValueError(
            f"extract.runner: {kind} needs packages that are not installed: pip install -e '.[{kind}]', "
            "or set extract.runner to processes"
        ) from error


def _check_server(kind: str, address: str) -> None:
    if not engine.engine_active():
        raise ValueError(
            f"extract.runner: {kind} needs a Prefect server, through which the workers report; none is used here "
            "(DASHFUSION_SERVER=off, or PREFECT_API_URL names one that does not answer). Start one with "
            "`dashfusion ui`, or set extract.runner to processes"
        )
    from prefect.settings import PREFECT_API_URL

    server = PREFECT_API_URL.value()
    if address and not _loopback(address) and _loopback(server):
        raise ValueError(
            f"workers of the cluster at {address} cannot reach the Prefect server at {server}, which listens on "
            "loopback: run `prefect server start --host 0.0.0.0` and set PREFECT_API_URL to this machine's name"
        )


def _loopback(address: str) -> bool:
    """Return whether an address, with or without a scheme, can be reached from its own machine only."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "auto", "")


@contextmanager
def _dask(address: str, workers: int, after: Callable[[], None]) -> Iterator[Any]:
    import dask
    from prefect_dask import DaskTaskRunner  # type: ignore[attr-defined]  # its package re-exports implicitly

    with _temporary_folder() as folder, dask.config.set({"distributed.worker.daemon": False}):  # may start processes
        local = {
            "n_workers": workers,
            "threads_per_worker": 1,
            "dashboard_address": None,
            "local_directory": folder,
            "silence_logs": logging.CRITICAL,
        }
        with DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=local) as runner:
            client = runner.client  # connects, or raises
            if not address:
                client.run(_ignore_interrupts)
            try:
                yield runner
            finally:
                if address:  # a local cluster's processes end with it, and some may have ended already
                    client.run(after, on_error="ignore")


def _ignore_interrupts() -> None:
    """Ignore a terminal's Ctrl-C in a worker: the stage receives it too, and stops the workers without tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _ray(address: str, workers: int, after: Callable[[], None]) -> Iterator[Any]:
    for name, value in RAY_QUIET.items():  # read when Ray is imported
        os.environ.setdefault(name, value)
    from prefect_ray import RayTaskRunner

    with _temporary_folder() as folder:
        options = {"log_to_driver": False, "logging_level": logging.ERROR}
        local = {
            "address": "local",
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": RAY_STORE,
            "_temp_dir": folder,
        }
        with RayTaskRunner(address or None, init_kwargs=options if address else options | local) as runner:
            yield runner


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder for a cluster's files, with a short path: Ray's sockets are in it."""
    return tempfile.TemporaryDirectory(prefix="dashfusion-", ignore_cleanup_errors=True)
