"""The Prefect server that a run reports to: one that is there already, or one of our own for the run's length.

Prefect's own choices do not serve here: the temporary server of a lone flow is stopped before it has stored its
task runs, and `prefect server start --background` dies at its first log line, written into a closed pipe.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

HOST = "127.0.0.1"
UI_PORT = 4200  # where `dashfusion ui` serves, and Prefect's own commands look
STATE = Path(".dashfusion")
RECORD = STATE / "server.json"
START_LIMIT = 60.0  # seconds; a new database takes about 8, a known one 3
PATIENCE = 15.0  # seconds that a process has to end when it is asked to; a worker stops the stages that it runs first
GRACE = 5.0  # seconds that the server has after its run to store the last task runs, which it does not write at once


def healthy(api_url: str, timeout: float = 2.0) -> bool:
    """Whether a Prefect server answers at `api_url` (`http://host:port/api`)."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def loopback(port: int) -> str:
    """Address of the API of a server on this port of this machine."""
    return f"http://{HOST}:{port}/api"


def pages(api_url: str) -> str:
    """Address of a server's pages."""
    return api_url.rstrip("/").removesuffix("/api")


def path_of_this_python() -> str:
    """PATH for a process whose `python` is to be that of the environment that we run in, activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def find_or_start() -> tuple[str | None, str]:
    """Address of a server to report to and one line saying which it is.

    In this order: the one that `PREFECT_API_URL` names; the one that an earlier stage of this run started; a new
    one, stopped when the run ends. The address is None when none can be had; the stage then runs without.
    `DASHFUSION_SERVER=off` asks for none.
    """
    if os.environ.get("DASHFUSION_SERVER", "").lower() in ("off", "0", "no"):
        return None, "not reporting to Prefect (DASHFUSION_SERVER=off)"
    named = os.environ.get("PREFECT_API_URL")
    if named:
        if healthy(named):
            return named, f"reporting to the Prefect server at {named}"
        return None, f"no Prefect server answers at PREFECT_API_URL={named}: running without one"
    recorded = _recorded()
    if recorded and healthy(recorded):
        return recorded, f"reporting to Prefect at {recorded}, started for this run"
    return _start(_owner())


def start(owner: psutil.Process, port: int) -> subprocess.Popen[bytes]:
    """Start `prefect server start` on loopback under a keeper that stops it once `owner` is gone."""
    command = ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    its_pages_ask = {"PREFECT_SERVER_UI_API_URL": loopback(port)}
    return start_kept(command, owner, STATE / "server.log", its_pages_ask, linger=GRACE)


def start_kept(
    command: Sequence[str], owner: psutil.Process, log: Path, environment: Mapping[str, str], linger: float = 0.0
) -> subprocess.Popen[bytes]:
    """Start `python COMMAND` under a keeper, which is returned.

    The keeper ends it, with all that it started, when it is terminated itself, or `linger` seconds after `owner` is
    gone, in whatever way that ended. `environment` comes on top of ours.
    """
    log.parent.mkdir(exist_ok=True)
    keeper = [sys.executable, "-m", "flows.server", str(linger), *command, str(owner.pid)]
    with open(log, "ab") as file:
        return subprocess.Popen(
            keeper, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            env=os.environ | QUIET | environment,
        )  # fmt: skip


def wait_until_healthy(api_url: str, keeper: subprocess.Popen[bytes], limit: float = START_LIMIT) -> bool:
    """True once the server answers; False when the keeper has ended or `limit` seconds have passed."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and keeper.poll() is None:
        if healthy(api_url):
            return True
        time.sleep(0.1)
    return False


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _recorded() -> str | None:
    """Address of the server of the run that we are part of; another run's stops with it, perhaps before us."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        return record["api_url"] if record["owner"] == _owner().pid else None
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def _owner() -> psutil.Process:
    """The process whose end is the run's end: the outermost dvc or dashfusion above us, else this process."""
    owner = psutil.Process()
    for parent in owner.parents():
        try:
            words = [Path(word).name for word in parent.cmdline()[:4]]
        except psutil.Error:
            break
        if "dvc" in words or "dashfusion" in words:
            owner = parent
    return owner


def _start(owner: psutil.Process) -> tuple[str | None, str]:
    port = free_port()
    api_url = loopback(port)
    keeper = start(owner, port)
    if not wait_until_healthy(api_url, keeper):
        keeper.terminate()
        return None, f"no Prefect server could be started (see {STATE / 'server.log'}): running without one"
    RECORD.write_text(json.dumps({"api_url": api_url, "owner": owner.pid}), encoding="utf-8")
    return api_url, f"reporting to Prefect at {api_url}, started for this run"


def keep(linger: float, command: Sequence[str], owner_pid: int) -> int:
    """Run `python COMMAND` until it ends or its owner is gone; stop it with everything that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by default it would end us before the `finally`
    # What a script starts in the background ignores SIGINT, and so would Prefect's worker, which stops on no other sign
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        owner = psutil.Process(owner_pid)
    except psutil.NoSuchProcess:
        return 0
    process = subprocess.Popen([sys.executable, *command], stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None and _runs(owner):
            time.sleep(0.3)
        if process.poll() is None:
            time.sleep(linger)
    finally:
        stop(process)
    return process.returncode or 0


def stop(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> None:
    """Ask a process to end, and after `patience` seconds kill what is left of it and of everything that it started.

    What it started is looked up again and again: a child whose parent has ended can no longer be found.
    """
    family = _descendants(process)
    process.terminate()
    deadline = time.monotonic() + patience
    while (process.poll() is None or any(_runs(child) for child in family)) and time.monotonic() < deadline:
        family |= _descendants(process)
        time.sleep(0.1)
    for child in filter(_runs, family):
        child.kill()
    process.kill()
    process.wait()


def _descendants(process: subprocess.Popen[bytes]) -> set[psutil.Process]:
    try:
        return set(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# Neither telemetry nor a look for newer versions: nothing here may wait for a network.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",  # a server that loses task runs; an error is better
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # a stage prints its own errors; the pages keep the traces
}

if __name__ == "__main__":
    _, _linger, *_command, _owner_pid = sys.argv
    sys.exit(keep(float(_linger), _command, int(_owner_pid)))
