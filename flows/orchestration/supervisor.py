"""Run commands that never outlive the process that asked for them, however that process ends.

A stage is DVC, a shell, the stage itself and its workers. A signal to one of them leaves the others behind, and a
process that is killed can send none. So a supervisor stands beside them, in one of two forms:

- `supervise_service` runs a Prefect server or worker until its owner's process is gone.
- `supervise_command` runs a stage until its own standard input ends: a pipe whose other end only the asking process
  holds. The pipe ends when that process closes it, and when it dies.

This file is also run as a script with nothing but the standard library (`-I -S`), so that a supervisor costs a stage
some hundredths of a second; psutil is imported where it is used.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

SERVICE_PATIENCE = 15.0
"""Seconds that a service has to end when it is asked to; a worker first stops the stages that it runs."""

GRACE = 10.0
"""Seconds between asking a command to stop (SIGINT, as Ctrl-C does) and killing what is left of it."""

_ending = threading.Lock()


def start_service(
    command: Sequence[str], owner: psutil.Process, log: Path, environment: Mapping[str, str], grace: float = 0.0
) -> subprocess.Popen[bytes]:
    """Start `python COMMAND` as a supervised service and return its supervisor.

    The supervisor ends the service, with all that it started, when it is terminated itself, or `grace` seconds after
    `owner` is gone. `environment` is added to ours.
    """
    log.parent.mkdir(exist_ok=True)
    supervisor = [sys.executable, "-I", __file__, "service", str(grace), str(owner.pid), *command]
    with open(log, "ab") as file:
        return subprocess.Popen(
            supervisor, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            env=os.environ | environment,
        )  # fmt: skip


def command_line(command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` under `supervise_command`."""
    return [sys.executable, "-I", "-S", __file__, "command", *command]


def supervise_service(grace: float, owner_pid: int, command: Sequence[str]) -> int:
    """Run `python COMMAND` until it ends or its owner is gone, then stop it with everything that it started."""
    import psutil

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by default it would end us before the `finally`
    # What a script starts in the background ignores SIGINT, and so would Prefect's worker, which stops on no other sign
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        owner = psutil.Process(owner_pid)
    except psutil.NoSuchProcess:
        return 0
    process = subprocess.Popen([sys.executable, *command], stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None and _is_running(owner):
            time.sleep(0.3)
        if process.poll() is None:
            time.sleep(grace)
    finally:
        stop(process)
    return process.returncode or 0


def stop(process: subprocess.Popen[bytes], patience: float = SERVICE_PATIENCE) -> None:
    """Ask a process to end, and after `patience` seconds kill what is left of it and of everything that it started.

    Descendants are looked up repeatedly: a child whose parent has ended can no longer be found.
    """
    family = _descendants(process)
    process.terminate()
    deadline = time.monotonic() + patience
    while (process.poll() is None or any(_is_running(child) for child in family)) and time.monotonic() < deadline:
        family |= _descendants(process)
        time.sleep(0.1)
    for child in filter(_is_running, family):
        child.kill()
    process.kill()
    process.wait()


def _descendants(process: subprocess.Popen[bytes]) -> set[psutil.Process]:
    import psutil

    try:
        return set(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _is_running(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def supervise_command(command: Sequence[str]) -> int:
    """Run the command in a process group of its own until it or standard input ends; return its shell exit code."""
    # Handlers, not SIG_IGN, which the command would inherit. What ends the command is the pipe alone.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_the_pipe, args=(process.pid,), daemon=True).start()
    code = process.wait()
    end_group(process.pid)  # of a command that was killed the children may be left
    return code if code >= 0 else 128 - code


def _end_with_the_pipe(group: int) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    end_group(group)


def end_group(group: int, grace: float = GRACE) -> None:
    """Ask all processes of a group to stop, and kill those that have not after `grace` seconds."""
    with _ending:  # two threads may come here: one Ctrl-C is a request, a second one would cut the first's work short
        for ask in (signal.SIGINT, signal.SIGKILL):
            deadline = time.monotonic() + grace
            sign = int(ask)
            while time.monotonic() < deadline:
                try:
                    os.killpg(group, sign)
                except ProcessLookupError:  # nobody is left
                    return
                sign = 0  # from now on only look
                time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] == "service":
        sys.exit(supervise_service(float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
    sys.exit(supervise_command(sys.argv[2:]))
