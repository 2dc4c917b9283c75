"""A chat endpoint of the tests' own."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "sk-secret-0123456789"


def completion(content: Any, **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **choice.pop("message", {})}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    return {"model": "tiny-2026", "choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": usage}


class Endpoint(ThreadingHTTPServer):
    """A chat endpoint on loopback. `reply(transcript)` returns the JSON, or (status, headers, body) as it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply: Callable[[str], Any] = lambda transcript: completion('{"score": 1.5}')
        self.requests: list[dict[str, Any]] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        transcript = json.loads(body["messages"][-1]["content"])["transcript"]
        self.server.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
        self.server.asked.append(transcript)
        reply = self.server.reply(transcript)
        status, headers, content = reply if isinstance(reply, tuple) else (200, {}, json.dumps(reply).encode())
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(content), 65_536):
            self.wfile.write(content[start : start + 65_536])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A running endpoint, which scores every transcript 1.5."""
    server = Endpoint()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
