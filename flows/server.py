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
from pathlib import Path

import psutil

STATE = Path(".dashfusion")
RECORD = STATE / "server.json"
START_LIMIT = 60.0  # seconds; a new database takes about 8, a known one 3
GRACE = 5.0  # seconds that the server has after its run to store the last task runs, which it does not write at once


def healthy(api_url: str, timeout: float = 2.0) -> bool:
    """Whether a Prefect server answers at `api_url` (`http://host:port/api`)."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


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


def start(owner: psutil.Process | None, port: int) -> subprocess.Popen[bytes]:
    """Start `prefect server start` on loopback under a keeper that stops it once `owner` is gone."""
    STATE.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "flows.server", str(port), str(owner.pid if owner else 0)]
    with open(STATE / "server.log", "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


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
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _recorded() -> str | None:
    """Address of the server of the run that we are part of; one whose run is over is about to stop."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        return record["api_url"] if psutil.pid_exists(record["owner"]) else None
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
    api_url = f"http://127.0.0.1:{port}/api"
    keeper = start(owner, port)
    if not wait_until_healthy(api_url, keeper):
        keeper.terminate()
        return None, f"no Prefect server could be started (see {STATE / 'server.log'}): running without one"
    RECORD.write_text(json.dumps({"api_url": api_url, "owner": owner.pid}), encoding="utf-8")
    return api_url, f"reporting to Prefect at {api_url}, started for this run"


def keep(port: int, owner_pid: int) -> int:
    """Run the server until it ends or the owner is gone (owner 0: for ever); stop it with its children."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by default it would end us before the `finally`
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        stdin=subprocess.DEVNULL,
        env=os.environ | QUIET | {"PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api"},  # what its pages ask
    )
    try:
        while server.poll() is None and (owner_pid == 0 or psutil.pid_exists(owner_pid)):
            time.sleep(0.3)
        if server.poll() is None:
            time.sleep(GRACE)
    finally:
        children = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
        for child in children:
            if child.is_running():
                child.kill()
    return server.returncode or 0


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
    sys.exit(keep(int(sys.argv[1]), int(sys.argv[2])))
