"""The lock of a stage: it never runs twice at a time in a project folder.

A `dvc repro` that is killed leaves the command of its stage running, and DVC then starts the stage a second time beside
it. Both would write the same outputs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from corpora.files import atomic_file
from flows.display.console import console
from flows.orchestration.settings import STATE
from flows.orchestration.supervisor import end_process, is_running

POLL = 0.2
"""Seconds between two attempts to acquire the lock."""


@contextmanager
def stage_lock(stage: str) -> Iterator[None]:
    """Hold the lock of a stage; wait for another holder, or end it if the DVC command that started it is gone.

    The kernel holds the lock, on a file in `.dashfusion/stages/`, and releases it when the process ends.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(STATE / "stages" / f"{stage}.lock")
    record = STATE / "stages" / f"{stage}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    announced: set[psutil.Process] = set()
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder, orphaned = _read_holder(record)
            if holder and orphaned:
                console.print(f"{stage}: PID {holder.pid}, left behind by a `dvc` that was killed, is ended first")
                end_process(holder)
            elif holder and holder not in announced:
                console.print(f"{stage}: PID {holder.pid} runs this stage already; waiting until it has ended")
                announced.add(holder)
            time.sleep(POLL)
    try:
        with atomic_file(record) as temporary:
            temporary.write_text(json.dumps({"holder": _identity(psutil.Process()), "dvc": _identity(_dvc())}))
        yield
    finally:
        record.unlink(missing_ok=True)
        lock.release()


def _identity(process: psutil.Process | None) -> list[Any] | None:
    """Return what tells a process from a later one with the same id."""
    return [process.pid, process.create_time()] if process else None


def _process(identity: list[Any] | None) -> psutil.Process | None:
    """Return the process with this identity; None if it has ended."""
    with suppress(psutil.NoSuchProcess):
        if identity and (process := psutil.Process(identity[0])).create_time() == identity[1] and is_running(process):
            return process
    return None


def _read_holder(record: Path) -> tuple[psutil.Process | None, bool]:
    """Return the lock's holder, and whether the DVC command that started it is gone.

    The holder is None for a moment after it has acquired the lock: a killed one leaves its own record behind.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, False
    return _process(content["holder"]), content["dvc"] is not None and _process(content["dvc"]) is None


def _dvc() -> psutil.Process | None:
    """Return the DVC command that runs this stage; None if it was started otherwise."""
    for parent in psutil.Process().parents() if "DVC_STAGE" in os.environ else ():
        with suppress(psutil.Error):
            if "dvc" in [Path(word).name for word in parent.cmdline()[:4]]:
                return parent
    return None
