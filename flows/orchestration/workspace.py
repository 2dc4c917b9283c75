"""The workspace lock: one pipeline run at a time in a project folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import psutil

from corpora.files import atomic_file
from flows.orchestration import engine, settings

HOLDER_TIMEOUT = 5.0
"""Seconds within which a run that holds the lock will have written `HOLDER`."""

LOCK = settings.STATE / "pipeline.lock"
HOLDER = settings.STATE / "pipeline.json"


class WorkspaceBusyError(RuntimeError):
    """Another run works in this folder, and this one must not wait."""


@contextmanager
def workspace(wait: bool = True) -> Iterator[None]:
    """Hold the lock that keeps other pipeline runs out of this folder, of terminals and Prefect workers alike.

    The kernel holds the lock, on a file in `.dashfusion/`, and releases it when the process ends.

    Args:
        wait: Wait for the lock if another run holds it.

    Raises:
        WorkspaceBusyError: Another run holds the lock, and `wait` is false.
    """
    from filelock import FileLock, Timeout

    LOCK.parent.mkdir(exist_ok=True)
    lock = FileLock(LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise WorkspaceBusyError(
                f"{_holder()} works in this folder: try again when it has ended, or let this one wait for it "
                "(without --no-wait; in Prefect the parameter wait)"
            ) from None
        engine.log(f"{_holder()} works in this folder: waiting until it has ended")
        lock.acquire(poll_interval=0.5)
    try:
        with atomic_file(HOLDER) as temporary:
            temporary.write_text(json.dumps({"pid": os.getpid(), "since": time.time()}), encoding="utf-8")
        yield
    finally:
        HOLDER.unlink(missing_ok=True)
        lock.release()


def _holder() -> str:
    """Describe the run that holds the lock.

    A run writes `HOLDER` a moment after it acquires the lock, and a killed run leaves its own behind.
    """
    deadline = time.monotonic() + HOLDER_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            holder = json.loads(HOLDER.read_text(encoding="utf-8"))
            if psutil.pid_exists(holder["pid"]):
                since = datetime.fromtimestamp(holder["since"]).strftime("%H:%M:%S on %d %B")
                return f"another pipeline run (PID {holder['pid']}, since {since})"
        time.sleep(0.05)
    return "another pipeline run"
