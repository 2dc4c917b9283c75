"""Dask and Ray clusters that run a stage's tasks, through Prefect's task runners.

Without an address a cluster of local processes is started and stopped with the block; with one, a running cluster is
used, and left as it was.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
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

RAY_CLIENT_PORT = 10001

CONNECT_SECONDS = 5.0
"""Seconds that a running cluster has to answer. Dask's own limit is 30 s per attempt, Ray's is up to two minutes."""


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
        if error.name not in ("dask", "distributed", "grpc", "prefect_dask", "prefect_ray", "ray"):
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
    if address:
        _check_dask(address)  # before what takes seconds to import
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
            count = len(client.nthreads())
            engine.log(f"runner: dask, {count} workers of {f'the cluster at {address}' if address else 'this machine'}")
            try:
                yield runner
            finally:
                if address:  # a local cluster's processes end with it, and some may have ended already
                    client.run(after, on_error="ignore")


def _check_dask(address: str) -> None:
    """Exchange Dask's handshake with the scheduler.

    Raises:
        OSError: It does not answer in time, or something else does.
    """
    from distributed.comm.core import connect
    from distributed.security import Security

    async def handshake() -> None:
        security = Security().get_connection_args("client")
        comm = await asyncio.wait_for(connect(address, timeout=CONNECT_SECONDS, **security), CONNECT_SECONDS)
        await comm.close()

    try:
        asyncio.run(handshake())
    except Exception as error:  # Dask takes the answer of a web server for lengths: among others, MemoryError
        raise _unreachable("Dask scheduler", address) from error


def _unreachable(what: str, address: str) -> OSError:
    return OSError(
        f"no {what} answers at {address} (extract.address) within {CONNECT_SECONDS:g} s: check that it runs, and its "
        "host and port, or leave the address empty for a local cluster"
    )


def _ignore_interrupts() -> None:
    """Ignore a terminal's Ctrl-C in a worker: the stage receives it too, and stops the workers without tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _ray(address: str, workers: int, after: Callable[[], None]) -> Iterator[Any]:
    for name, value in RAY_QUIET.items():  # read when Ray is imported
        os.environ.setdefault(name, value)
    if address:
        _check_ray(address)  # before what takes seconds to import
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
            import ray

            count = int(ray.cluster_resources().get("CPU", 0))
            engine.log(f"runner: ray, {count} CPUs of {f'the cluster at {address}' if address else 'this machine'}")
            yield runner


def _check_ray(address: str) -> None:
    """Open a gRPC connection to Ray, as its client and its processes do. With TLS, to the port only.

    Raises:
        OSError: Nothing answers in time, or something else does.
        ValueError: The address has another form: Ray would end this process after two minutes.
    """
    import grpc

    if address == "auto":  # Ray looks for a cluster of this machine
        return
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        port = place.port or (RAY_CLIENT_PORT if place.scheme == "ray" else None)
    except ValueError:  # the port is no number
        port = None
    if port is None or not place.hostname:
        raise ValueError(f"extract.address {address!r}: Ray takes ray://HOST:10001, HOST:6379 or auto")
    try:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
            socket.create_connection((place.hostname, port), timeout=CONNECT_SECONDS).close()
            return
        host = f"[{place.hostname}]" if ":" in place.hostname else place.hostname
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=CONNECT_SECONDS)
    except grpc.RpcError as error:
        silent = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        if silent or "http2 header" in error.details():  # a web server's answer; gRPC servers refuse in other words
            raise _unreachable("Ray cluster", address) from error
    except (OSError, grpc.FutureTimeoutError) as error:
        raise _unreachable("Ray cluster", address) from error


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder for a cluster's files, with a short path: Ray's sockets are in it."""
    return tempfile.TemporaryDirectory(prefix="dashfusion-", ignore_cleanup_errors=True)
