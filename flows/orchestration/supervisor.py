"""Supervisor processes: run a command that never outlives the process that started it, however that process ends.

A stage is several processes: DVC, a shell, the stage itself and its workers. A signal to one of them leaves the others
running, and a process that is killed cannot signal its children. A supervisor therefore runs the command, in one of
two forms:

- `supervise_service` runs a Prefect server or worker until its owner's process is gone.
- `supervise_command` runs a stage until its own standard input ends: a pipe whose other end only the parent holds.
  The pipe ends when the parent closes it or dies.

This file also runs as a script, with the standard library alone (`-I -S`), so that a supervisor starts within some
hundredths of a second; psutil is imported where it is used.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

SERVICE_GRACE = 15.0
"""Seconds between asking a service to stop and killing it; a Prefect worker first stops the stages that it runs."""

ORPHAN_GRACE = 7.0
"""Seconds between asking what a killed service left behind to stop and killing it."""

MARK = "DASHFUSION_SERVICE"
"""Environment variable, unique to each service, by which its processes are found even if their parents have ended."""

GRACE = 10.0
"""Seconds between asking a command to stop (SIGINT, as Ctrl-C does) and killing its remaining processes."""

_ending = threading.Lock()


def start_service(
    command: Sequence[str],
    owner: psutil.Process,
    log: Path,
    environment: Mapping[str, str],
    grace: float = 0.0,
    mark: str = "",
) -> subprocess.Popen[bytes]:
    """Start `python COMMAND` as a supervised service and return its supervisor.

    The supervisor stops the service and all of its descendants when it is terminated itself, or `grace` seconds after
    `owner` is gone; if the service is killed, the supervisor stops what it has left behind. `environment` is added to
    this process's, and `mark` is the value of `MARK` (by default a new one).
    """
    log.parent.mkdir(exist_ok=True)
    supervisor = [sys.executable, "-I", __file__, "service", str(grace), str(owner.pid), *command]
    with log.open("ab") as file:
        return subprocess.Popen(
            supervisor, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            env=os.environ | environment | {MARK: mark or os.urandom(16).hex()},
        )  # fmt: skip


def command_line(command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` under `supervise_command`."""
    return [sys.executable, "-I", "-S", __file__, "command", *command]


def supervise_service(grace: float, owner_pid: int, command: Sequence[str]) -> int:
    """Run `python COMMAND` until it ends or its owner is gone, then stop it with all of its descendants.

    Args:
        grace: seconds that the process may go on after its owner is gone.
        owner_pid: id of the owner's process.
        command: arguments of the Python interpreter.

    Returns:
        Shell exit code of the process; 0 if the owner was gone at the start.
    """
    import psutil

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the default action would skip the `finally`
    # A process that a script starts in the background ignores SIGINT, and Prefect's worker stops on no other signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        owner = psutil.Process(owner_pid)
    except psutil.NoSuchProcess:
        return 0
    process = subprocess.Popen([sys.executable, *command], stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None and is_running(owner):
            time.sleep(0.3)
        if process.poll() is None:
            time.sleep(grace)
    finally:
        stop(process)
        stop_members(os.environ[MARK])
    return _shell_code(process.returncode)


def stop(process: subprocess.Popen[bytes], grace: float = SERVICE_GRACE) -> None:
    """Terminate a process, and after `grace` seconds kill it and its remaining descendants.

    Descendants are looked up repeatedly: a child whose parent has ended can no longer be found.
    """
    family = _descendants(process)
    process.terminate()
    deadline = time.monotonic() + grace
    while (process.poll() is None or any(is_running(child) for child in family)) and time.monotonic() < deadline:
        family |= _descendants(process)
        time.sleep(0.1)
    for child in filter(is_running, family):
        child.kill()
    process.kill()
    process.wait()


def stop_members(mark: str, grace: float = ORPHAN_GRACE) -> None:
    """Terminate the processes of a service that has ended without stopping them, and kill them after `grace` seconds.

    Only those without a parent among them are asked: each stops the processes that it has started.
    """
    import psutil

    family = _members(mark)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            if all(process.ppid() != other.pid for other in family):
                process.terminate()
    deadline = time.monotonic() + grace
    while family and time.monotonic() < deadline:
        time.sleep(0.1)
        family = _members(mark)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _members(mark: str) -> set[psutil.Process]:
    """Return the running processes, other than this one, whose environment has this value of `MARK`."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # ended, or another user's
            if process.pid != os.getpid() and process.environ().get(MARK) == mark and is_running(process):
                found.add(process)
    return found


def end_process(process: psutil.Process, grace: float = GRACE) -> None:
    """Interrupt a process, as Ctrl-C does, and kill what is left of it and its descendants after `grace` seconds.

    It may be the calling process: a thread's call then returns only if that process has not ended by then.
    """
    import psutil

    with suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        process.send_signal(signal.SIGINT)
        for survivor in psutil.wait_procs(family, timeout=grace)[1]:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()


def _descendants(process: subprocess.Popen[bytes]) -> set[psutil.Process]:
    import psutil

    try:
        return set(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def is_running(process: psutil.Process) -> bool:
    """Return whether a process has not ended; one that has, and waits for its parent to ask, counts as ended."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def supervise_command(command: Sequence[str]) -> int:
    """Run the command in a process group of its own until it or standard input ends; return its shell exit code."""
    # Handlers, not SIG_IGN, which the command would inherit. Only the end of the pipe stops the command
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_stdin, args=(process.pid,), daemon=True).start()
    code = process.wait()
    end_group(process.pid)  # a killed command may leave children behind
    return _shell_code(code)


def _shell_code(code: int) -> int:
    """Return the exit code that a shell reports: 128 plus the signal's number for a process that a signal ended."""
    return code if code >= 0 else 128 - code


def _end_with_stdin(group: int) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    end_group(group)


def end_group(group: int, grace: float = GRACE) -> None:
    """Interrupt all processes of a group, and kill those that are left after `grace` seconds."""
    with _ending:  # both threads may call this, and a second SIGINT would cut the clean-up after the first one short
        for first_signal in (signal.SIGINT, signal.SIGKILL):
            deadline = time.monotonic() + grace
            number = int(first_signal)
            while time.monotonic() < deadline:
                try:
                    os.killpg(group, number)
                except ProcessLookupError:  # no process is left
                    return
                number = 0  # only checks whether the group exists
                time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] == "service":
        sys.exit(supervise_service(float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
    sys.exit(supervise_command(sys.argv[2:]))
