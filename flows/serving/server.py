"""`dashfusion serve`: run the application with uvicorn, by default on loopback only."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import platform
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows.display.console import console  # sets environment variables that must precede the import of torch
from flows.serving.logs import Event, LogFormat, configure_logs
from flows.serving.security import LOOPBACK, Rules, hostname
from flows.serving.worker import Model
from flows.serving.worker_pool import Limits, ScoringPool, default_worker_count

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "DASHFUSION_TOKEN"
MIN_TOKEN_LENGTH = 16

SHUTDOWN_SECONDS = 15.0
"""Seconds that clips being scored have to finish when the server is stopped. New requests get an error response."""

SEND_SECONDS = 2
"""Seconds after that for responses to be sent."""

PREFIX = "dashfusion-serve"


@dataclass(frozen=True, slots=True)
class Settings:
    """Address, access control and resources of the server.

    Attributes:
        model: Model that scores.
        host, port: Address to listen at.
        token: Token that requests must carry; empty for none, which is allowed on loopback only.
        names: Host names by which a proxy addresses the server; needs a token or `open_access`, except for loopback.
        open_access: Whether whoever reaches the server by these names may use it without a token.
        log_format: Format of the log; with JSON, nothing else is written to standard output.
        workers: Number of scoring processes; 0 for `default_worker_count()`.
        limits: Limits on uploads.

    Raises:
        ValueError: Other machines would have access without a token, or the token is too weak.
    """

    model: Model
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    names: tuple[str, ...] = ()
    workers: int = 0
    limits: Limits = field(default_factory=Limits)
    open_access: bool = False
    log_format: LogFormat = LogFormat.TEXT

    def __post_init__(self) -> None:
        command = "python -c 'import secrets; print(secrets.token_urlsafe())'"
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} gives other machines access, so a token is needed: set {TOKEN_VARIABLE} "
                f"(`{command}` generates one), or leave --host out to serve this machine alone"
            )
        if self.token and self.open_access:
            raise ValueError(f"--no-token, but a token is given (--token or {TOKEN_VARIABLE}); leave out one of them")
        if self.token and not (
            len(self.token) >= MIN_TOKEN_LENGTH and self.token.isascii() and self.token.isprintable()
        ):
            raise ValueError(
                f"the token must have {MIN_TOKEN_LENGTH} printable ASCII characters or more; `{command}` generates one"
            )
        if invalid := [name for name in self.names if not name or hostname(name) != name.lower()]:
            raise ValueError(f"--allow-host {invalid[0]!r} is not a host name; give it without scheme and port")
        if (public := [name for name in self.names if not is_loopback(name)]) and not (self.token or self.open_access):
            raise ValueError(
                f"--allow-host {public[0]} lets a proxy give other machines access, so a token is needed: set "
                f"{TOKEN_VARIABLE} (`{command}` generates one), or add --no-token if the proxy itself checks who may "
                "use the server"
            )

    def rules(self) -> Rules:
        """Return the rules for `Guard`. Beyond loopback, a machine cannot know all its names, so any is accepted."""
        names = tuple(name.lower() for name in self.names)
        hosts = (*LOOPBACK, *names, self.host.strip("[]")) if names or is_loopback(self.host) else ()
        return Rules(tuple(dict.fromkeys(hosts)), names, self.token, self.limits.size, self.limits.upload_seconds)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens at `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM, and leave neither files nor processes behind.

    Raises:
        FileNotFoundError, ValueError: The model cannot be used here.
        OSError: The port is in use, or the host is not an address of this machine.
    """
    configure_logs(settings.log_format)
    try:
        _serve(settings)
    except KeyboardInterrupt:
        _announce(settings, "stopped", "stopped")
    except (ValueError, OSError) as error:
        if settings.log_format is LogFormat.JSON:  # as text, the command prints it
            logger.error("%s", error, extra=Event("failed").as_extra())
        raise


def _serve(settings: Settings) -> None:
    with _listen(settings) as listener, upload_folder() as folder:
        for signal_number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again after its shutdown
            signal.signal(signal_number, signal.default_int_handler)
        workers = settings.workers or default_worker_count()
        pool = ScoringPool(settings.model, settings.limits, workers, folder)
        loading = f"loading {settings.model.folder}"
        try:
            with console.status(loading) if settings.log_format is LogFormat.TEXT else nullcontext():
                pool.start()
            _run(settings, pool, folder, listener)
        finally:
            pool.close()


def _run(settings: Settings, pool: ScoringPool, folder: Path, listener: socket.socket) -> None:
    import uvicorn

    from flows.serving.app import create_app
    from flows.serving.protocol import HttpProtocol

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _announce_start(settings, pool, listener.getsockname()[1])

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            pool.stop()  # queued uploads are rejected at once
            deadline = time.monotonic() + SHUTDOWN_SECONDS
            while pool.waiting and not self.force_exit and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        create_app(pool, settings.rules(), folder),
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,  # uvicorn's records go where all others go
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SEND_SECONDS,
    )
    Server(config).run(sockets=[listener])


@contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    """Bind a socket. This precedes loading the model, so that a port in use is reported at once."""
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


def _announce_start(settings: Settings, pool: ScoringPool, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host.strip("[]") else settings.host
    address, corpus = f"http://{host}:{port}", pool.description["dataset"]["corpus"]
    model, workers, token = str(settings.model.folder), pool.workers, bool(settings.token)
    text = (
        f"DashFusion is at {address} (Ctrl-C stops it)\n"
        f"  model {model}, trained on {corpus}; {workers} {'process' if workers == 1 else 'processes'}; "
        f"{'a token is required' if token else 'no token is required'}"
    )
    facts = {"address": address, "model": model, "corpus": corpus, "workers": workers, "token_required": token}
    _announce(settings, "started", text, facts)


def _announce(settings: Settings, event: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
    """Print a text for people, or log it as an event."""
    if settings.log_format is LogFormat.JSON:
        logger.info("%s", text.partition("\n")[0], extra=Event(event, fields or {}).as_extra())
    else:
        console.print(text, markup=False)


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Create a private folder for uploads, and remove it at the end. Removes those of killed servers first."""
    parent = Path(tempfile.gettempdir())
    for stale in _stale_folders(parent):
        logger.warning("removing %s, left behind by a server that was killed", stale)
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    """Return the prefix of this machine's upload folders; a process id follows, which identifies stale folders."""
    return f"{PREFIX}.{platform.node()[:32]}."


def _stale_folders(parent: Path) -> Iterator[Path]:
    """Yield the folders of this user's servers that no longer run."""
    for folder in parent.glob(f"{_prefix()}*.*"):
        pid, status = folder.name.removeprefix(_prefix()).partition(".")[0], folder.lstat()
        if folder.is_symlink() or not folder.is_dir() or not pid.isdecimal() or status.st_uid != os.getuid():
            continue
        try:  # a process that is younger than the folder only reuses the id
            running = psutil.Process(int(pid)).create_time() <= status.st_mtime + 1
        except psutil.NoSuchProcess:
            running = False
        if not running:
            yield folder
