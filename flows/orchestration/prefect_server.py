"""Find the Prefect server that a run reports to, or start one for the length of the run.

Prefect's own ways to start one are unsuitable: the temporary server of a single flow is stopped before it has stored
its task runs, and `prefect server start --background` dies at its first log line, written to a closed pipe.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

import psutil

from flows.orchestration.settings import QUIET, STATE, project_folder
from flows.orchestration.supervisor import start_service

HOST = "127.0.0.1"
UI_PORT = 4200
"""Default port of `dashfusion ui` and of Prefect's own commands."""

RECORD = STATE / "server.json"
"""Address and owner of the server that a run has started."""

START_TIMEOUT = 60.0
"""Seconds that a server may take to start: about 8 with a new database, 3 with an existing one."""

GRACE = 5.0
"""Seconds between the end of a run and that of its server, which stores the last task runs with a delay."""


def healthy(api_url: str, timeout: float = 2.0) -> bool:
    """Return whether a Prefect server answers at `api_url` (`http://host:port/api`)."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def loopback(port: int) -> str:
    """Return the API address of a server on this port of this machine."""
    return f"http://{HOST}:{port}/api"


def pages(api_url: str) -> str:
    """Return the address of a server's pages."""
    return api_url.rstrip("/").removesuffix("/api")


def find_or_start() -> tuple[str | None, str]:
    """Return the address of a server to report to, and a line for the user that names it; empty if that is known.

    In this order: the server that `PREFECT_API_URL` names; the one that an earlier stage of this run started; a new
    one, stopped when the run ends. The address is None if none is available, or `DASHFUSION_SERVER` is `off`; the
    stage then runs without a server. The stages of one `dvc repro` do not repeat what the first one or the user said.
    """
    one_of_several = "DVC_STAGE" in os.environ
    if os.environ.get("DASHFUSION_SERVER", "").lower() in ("off", "0", "no"):
        return None, "" if one_of_several else "not reporting to Prefect (DASHFUSION_SERVER=off)"
    named = os.environ.get("PREFECT_API_URL")
    if named:
        if healthy(named):
            return named, "" if one_of_several else f"reporting to the Prefect server at {named}"
        return None, f"no Prefect server answers at PREFECT_API_URL={named}: running without one"
    recorded = _recorded()
    if recorded and healthy(recorded):
        return recorded, ""
    owner, port = _owner(), free_port()
    api_url = loopback(port)
    supervisor = start(owner, port)
    if not wait_until_healthy(api_url, supervisor):
        supervisor.terminate()
        return None, f"no Prefect server could be started (see {STATE / 'server.log'}): running without one"
    RECORD.write_text(json.dumps({"api_url": api_url, "owner": owner.pid}), encoding="utf-8")
    return api_url, f"reporting to Prefect at {api_url}, started for this run"


def start(owner: psutil.Process, port: int) -> subprocess.Popen[bytes]:
    """Start a guarded Prefect server on loopback and return its supervisor, which stops it once `owner` is gone.

    Its database is in the project, in a folder per version of Prefect: a newer version migrates a database so that an
    older one cannot use it. A `PREFECT_HOME` or database that the environment names is used instead.
    """
    command = ["-m", "flows.orchestration.guarded_server", str(port)]
    environment = QUIET | {
        "PREFECT_SERVER_UI_API_URL": loopback(port),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}" for host in sorted(own_hosts(port))),
    }
    if "PREFECT_HOME" not in os.environ:
        home = project_folder() / STATE / "prefect" / version("prefect")
        home.mkdir(parents=True, exist_ok=True)
        environment["PREFECT_HOME"] = str(home)
    return start_service(command, owner, STATE / "server.log", environment, grace=GRACE)


def own_hosts(port: int) -> frozenset[str]:
    """Return the values of a request's `Host` header for a server on this port of loopback."""
    return frozenset(f"{name}:{port}" for name in (HOST, "localhost", "[::1]"))


def wait_until_healthy(api_url: str, supervisor: subprocess.Popen[bytes], timeout: float = START_TIMEOUT) -> bool:
    """Wait for the server to answer; return False if its supervisor has ended or `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and supervisor.poll() is None:
        if healthy(api_url):
            return True
        time.sleep(0.1)
    return False


def free_port() -> int:
    """Return a port of loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _recorded() -> str | None:
    """Return the address of the server of this run; a server of another run may stop before this run ends."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        return str(record["api_url"]) if record["owner"] == _owner().pid else None
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def _owner() -> psutil.Process:
    """Return the process with whose end the run ends: the outermost dvc or dashfusion above this one, or this one."""
    owner = psutil.Process()
    for parent in owner.parents():
        try:
            words = [Path(word).name for word in parent.cmdline()[:4]]
        except psutil.Error:
            break
        if "dvc" in words or "dashfusion" in words:
            owner = parent
    return owner
