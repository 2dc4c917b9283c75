"""`dashfusion serve`: a page and an HTTP endpoint that score clips, on loopback unless told otherwise."""

from __future__ import annotations

import ipaddress
import logging
import os
import platform
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows.display.console import console  # before torch is loaded anywhere: it sets switches in the environment
from flows.serving.security import LOOPBACK, Rules, hostname
from flows.serving.worker import Model
from flows.serving.worker_pool import Limits, Scorers, default_workers

logger = logging.getLogger(__name__)

TOKEN = "DASHFUSION_TOKEN"
LEAST_TOKEN = 16
"""Characters. Shorter ones can be guessed."""

GRACE = 15
"""Seconds that clips which are being scored have when the server is stopped."""

CONNECTIONS = 500
"""At once; uvicorn answers more with 503."""

PREFIX = "dashfusion-serve"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server listens, whom it serves, and with what.

    Attributes:
        model: what it scores with.
        host, port: that it listens at.
        token: that requests have to carry; empty: none, which only loopback may do without.
        names: by which a proxy knows it.
        workers: processes that score; 0: as many as the machine has use for.
        limits: of an upload.

    Raises:
        ValueError: other machines would be let in without a token, or the token is easily guessed.
    """

    model: Model
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    names: tuple[str, ...] = ()
    workers: int = 0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        make = "python -c 'import secrets; print(secrets.token_urlsafe())'"
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} lets other machines in, so a token is needed: set {TOKEN} (one is made by "
                f"`{make}`), or leave --host out to serve this machine alone"
            )
        if self.token and not (len(self.token) >= LEAST_TOKEN and self.token.isascii() and self.token.isprintable()):
            raise ValueError(
                f"the token must have {LEAST_TOKEN} printable ASCII characters or more; one is made by `{make}`"
            )
        if unknown := [name for name in self.names if not name or hostname(name) != name.lower()]:
            raise ValueError(f"--allow-host {unknown[0]!r} is no host's name; give it without scheme and port")

    def rules(self) -> Rules:
        """For the guard. Bound elsewhere a machine has more names than it knows, and the token is what counts."""
        names = tuple(name.lower() for name in self.names)
        known = (*LOOPBACK, *names, self.host.strip("[]")) if names or is_loopback(self.host) else ()
        return Rules(tuple(dict.fromkeys(known)), names, self.token, self.limits.size, self.limits.upload_seconds)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM; nothing is left then, neither files nor processes.

    Raises:
        FileNotFoundError, ValueError: the model cannot be used here.
        OSError: the port is taken, or the host is not this machine's.
    """
    with _bound(settings) as listener, upload_folder() as folder:
        for sign in (signal.SIGINT, signal.SIGTERM):  # uvicorn passes them on to these when it has ended
            signal.signal(sign, signal.default_int_handler)
        workers = settings.workers or default_workers()
        scorers = Scorers(settings.model, settings.limits, workers, folder)
        try:
            with console.status(f"loading {settings.model.folder}"):
                scorers.start()
            _run(settings, scorers, folder, listener)
        finally:
            scorers.close()


def _run(settings: Settings, scorers: Scorers, folder: Path, listener: socket.socket) -> None:
    import uvicorn

    from flows.serving.app import make_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _say(settings, scorers, listener.getsockname()[1])

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            scorers.stop()  # who waits in line is told at once
            await super().shutdown(sockets)

    config = uvicorn.Config(
        make_app(scorers, settings.rules(), folder),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    Server(config).run(sockets=[listener])


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """A socket at the address, before the model is loaded, so that a port that is taken is told of at once."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(
            f"cannot listen at {settings.host}, port {settings.port}: {error.strerror or error}; choose another --port"
        ) from error
    with listener:
        yield listener


def _say(settings: Settings, scorers: Scorers, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host.strip("[]") else settings.host
    dataset = scorers.description["dataset"]
    console.print(f"DashFusion is at http://{host}:{port} (Ctrl-C stops it)", markup=False)
    console.print(
        f"  it scores with {settings.model.folder}, trained on {dataset['corpus']}, in {scorers.workers} "
        f"{'process' if scorers.workers == 1 else 'processes'}; "
        f"{'a token is asked for' if settings.token else 'no token is asked for'}",
        markup=False,
    )


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder for uploads that this user alone can read; removed at the end, as are those that killed servers left."""
    parent = Path(tempfile.gettempdir())
    for left in _left_behind(parent):
        logger.warning("removing %s, which a server that was killed has left", left)
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    """The name carries machine and process id, so that what a killed server left is known for it."""
    return f"{PREFIX}.{platform.node()[:32]}."


def _left_behind(parent: Path) -> Iterator[Path]:
    """Folders of this user's servers that no longer run."""
    for folder in parent.glob(f"{_prefix()}*.*"):
        pid, ours = folder.name.removeprefix(_prefix()).partition(".")[0], folder.lstat()
        if folder.is_symlink() or not folder.is_dir() or not pid.isdecimal() or ours.st_uid != os.getuid():
            continue
        try:
            runs = psutil.Process(int(pid)).create_time() <= ours.st_mtime + 1  # else the id is another's by now
        except psutil.NoSuchProcess:
            runs = False
        if not runs:
            yield folder
