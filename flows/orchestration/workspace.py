"""The workspace lock: one pipeline run at a time in a project folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import psutil

from corpora.files import atomic_path
from flows.orchestration import engine, settings

SAYS_WITHIN = 5.0  # seconds in which the run that has the folder will have said so

LOCK = settings.STATE / "pipeline.lock"
HOLDER = settings.STATE / "pipeline.json"


class WorkspaceBusy(RuntimeError):
    """Another run works in this folder, and this one was told not to wait."""


@contextmanager
def workspace(wait: bool = True) -> Iterator[None]:
    """Have this folder to oneself among pipeline runs, of terminals and of Prefect's workers alike.

    The lock is the kernel's, on a file of `.dashfusion/`: it ends with the process that holds it.

    Raises:
        WorkspaceBusy: another run has it, and `wait` is false.
    """
    from filelock import FileLock, Timeout

    LOCK.parent.mkdir(exist_ok=True)
    lock = FileLock(LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise WorkspaceBusy(
                f"{_holder()} works in this folder: try again when it has ended, or let this one wait for it "
                "(without --no-wait; in Prefect the parameter wait)"
            ) from None
        engine.say(f"{_holder()} works in this folder: waiting until it has ended")
        lock.acquire(poll_interval=0.5)
    try:
        with atomic_path(HOLDER) as temporary:
            temporary.write_text(json.dumps({"pid": os.getpid(), "since": time.time()}), encoding="utf-8")
        yield
    finally:
        HOLDER.unlink(missing_ok=True)
        lock.release()


def _holder() -> str:
    """Who has the lock. It writes that down a moment after it got it; what a killed run wrote does not count."""
    deadline = time.monotonic() + SAYS_WITHIN
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            holder = json.loads(HOLDER.read_text(encoding="utf-8"))
            if psutil.pid_exists(holder["pid"]):
                since = datetime.fromtimestamp(holder["since"]).strftime("%H:%M:%S on %d %B")
                return f"another pipeline run (PID {holder['pid']}, since {since})"
        time.sleep(0.05)
    return "another pipeline run"
