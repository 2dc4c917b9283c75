"""The Prefect server that a run reports to: one that is there already, or one of our own for the run's length.

Prefect's own choices do not serve here: the temporary server of a lone flow is stopped before it has stored its
task runs, and `prefect server start --background` dies at its first log line, written into a closed pipe.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from flows.orchestration.settings import QUIET, STATE
from flows.orchestration.supervisor import start_service

HOST = "127.0.0.1"
UI_PORT = 4200  # where `dashfusion ui` serves, and Prefect's own commands look
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
    """Start `prefect server start` on loopback under a supervisor that stops it once `owner` is gone."""
    command = ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    its_pages_ask = {"PREFECT_SERVER_UI_API_URL": loopback(port)}
    return start_service(command, owner, STATE / "server.log", QUIET | its_pages_ask, grace=GRACE)


def wait_until_healthy(api_url: str, supervisor: subprocess.Popen[bytes], limit: float = START_LIMIT) -> bool:
    """True once the server answers; False when the supervisor has ended or `limit` seconds have passed."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and supervisor.poll() is None:
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
    supervisor = start(owner, port)
    if not wait_until_healthy(api_url, supervisor):
        supervisor.terminate()
        return None, f"no Prefect server could be started (see {STATE / 'server.log'}): running without one"
    RECORD.write_text(json.dumps({"api_url": api_url, "owner": owner.pid}), encoding="utf-8")
    return api_url, f"reporting to Prefect at {api_url}, started for this run"
