"""Connections of the server: clients that never finish a request, bytes that are not HTTP, and its shutdown."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from flows.serving import protocol, security, telemetry
from flows.serving.security import HEADERS, LOOPBACK, Guard, Rules

if TYPE_CHECKING:
    from collections.abc import Iterator

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(autouse=True)
def short_deadline(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)


class App:
    """Answers every request but those of /wait, which wait until they are cancelled."""

    def __init__(self) -> None:
        self.waiting = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/wait":
            self.waiting += 1
            await asyncio.sleep(3600)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def running(app: App) -> Iterator[tuple[uvicorn.Server, int]]:
    """A server in a thread of this process, and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    rules = Rules(LOOPBACK, (), "", 1 << 20, 60.0)
    config = uvicorn.Config(
        Guard(app, rules), http=protocol.HttpProtocol, ws="none", lifespan="off", log_level="critical",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def port(app) -> Iterator[int]:
    with running(app) as (_, port):
        yield port


def connect(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(sent)
    return connection


def receive(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next response."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        lines = iter(lambda: file.readline().strip(), b"")
        headers = {name.lower(): value for name, _, value in (line.decode().partition(": ") for line in lines)}
        return status, headers, file.read(int(headers["content-length"]))


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET, GET + b"\r\n" + GET], ids=["none", "part", "head", "second"])
def test_a_connection_without_a_complete_request_head_is_closed(port, sent):
    with connect(port, sent) as connection:
        if sent.endswith(b"\r\n" + GET):
            assert receive(connection)[0] == 200
        assert connection.recv(1) == b"", "the server has closed it"


@pytest.mark.parametrize("sent", [b"", GET + b"Content-Length: 1000000\r\n\r\n"], ids=["head", "body"])
def test_a_client_that_sends_byte_after_byte_is_not_kept_either(port, sent, monkeypatch):
    monkeypatch.setattr(security, "DRAIN_SECONDS", 0.1)
    with connect(port, sent) as connection:
        deadline = time.monotonic() + 60
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                connection.sendall(b"a")
                time.sleep(0.02)


def test_a_request_in_progress_has_no_deadline(app, port):
    with connect(port, GET.replace(b"/", b"/wait", 1) + b"\r\n") as connection:
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert app.waiting == 1


def test_beyond_the_limit_the_connection_that_has_waited_longest_is_closed(port, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 60.0)
    monkeypatch.setattr(protocol, "MAX_IDLE", 3)
    connections = []
    for _ in range(5):
        connections.append(connect(port))
        with connect(port, GET + b"Connection: close\r\n\r\n") as other:
            assert receive(other)[0] == 200
    assert [connection.recv(1) for connection in connections[:2]] == [b"", b""]
    connections[-1].sendall(GET + b"\r\n")
    assert receive(connections[-1])[0] == 200
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", GET + b"Content-Length: x\r\n\r\n", GET + b"A" * 200_000])
def test_bytes_that_are_not_http_get_json_and_are_counted(port, sent):
    def counted() -> float:
        labels = {"route": "other", "status": "400"}
        (metric,) = telemetry.REQUESTS.collect()
        return sum(sample.value for sample in metric.samples if sample.labels == labels)

    before = counted()
    with connect(port, sent) as connection:
        status, headers, body = receive(connection)
        assert status == 400 and json.loads(body)["error"] == "bad_request"
        assert headers["content-type"] == "application/json" and headers["connection"] == "close"
        assert counted() == before + 1
        assert {name.lower(): value for name, value in HEADERS.items()}.items() <= headers.items()


def test_too_many_requests_get_json(app, port, monkeypatch):
    monkeypatch.setattr(security, "MAX_REQUESTS", 2)
    waiting = [connect(port, GET.replace(b"/", b"/wait", 1) + b"\r\n") for _ in range(2)]
    while app.waiting < 2:
        time.sleep(0.01)
    with connect(port, GET + b"\r\n") as connection:
        status, headers, body = receive(connection)
        assert (status, headers["retry-after"], json.loads(body)["error"]) == (503, "1", "busy")
    for connection in waiting:
        connection.close()


def test_requests_that_outlast_the_shutdown_get_json(app):
    with running(app) as (server, port), connect(port, GET.replace(b"/", b"/wait", 1) + b"\r\n") as connection:
        while not app.waiting:
            time.sleep(0.01)
        server.should_exit = True
        status, headers, body = receive(connection)
        assert (status, json.loads(body)["error"]) == (503, "stopping") and "content-security-policy" in headers
