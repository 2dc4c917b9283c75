"""HTTP/1.1 connections with a deadline for the request head, and JSON for requests that cannot be parsed.

Uvicorn's own protocol keeps a connection that never completes its request head, or goes on sending a body after the
response, for as long as the client likes.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from flows.serving.errors import ApiError
from flows.serving.security import error_response, secure
from flows.serving.telemetry import OTHER_ROUTE, record_request

HEAD_SECONDS = 10.0
"""Maximum time from a connection's start, or from the last response, to the end of the next request's head."""

MAX_IDLE = 500
"""Maximum number of connections without a request in progress; beyond it the one that has waited longest is closed."""


class HttpProtocol(H11Protocol):
    """Uvicorn's protocol over h11 with a deadline for the request head."""

    _idle: ClassVar[dict[HttpProtocol, asyncio.TimerHandle]] = {}
    """Deadlines of the connections without a request in progress, oldest first."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start the deadline of the first request head."""
        super().connection_made(transport)
        self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        super().connection_lost(exc)
        self._stop_deadline()

    def data_received(self, data: bytes) -> None:
        """Process received bytes; the deadline stops with the end of a request's head, and only then."""
        super().data_received(data)
        self._update_deadline()

    def on_response_complete(self) -> None:
        """Start the deadline of the next request head."""
        super().on_response_complete()
        self._update_deadline()

    def send_400_response(self, msg: str) -> None:
        """Respond to bytes that are not HTTP with JSON, as to every other error, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = ApiError("bad_request", msg, {"Connection": "close"})
            response = error_response(error)
            secure(response.headers)
            record_request("-", OTHER_ROUTE, response.status_code, error.error, 0.0)
            for event in (
                h11.Response(status_code=400, headers=response.raw_headers, reason=STATUS_PHRASES[400]),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _update_deadline(self) -> None:
        """Start the deadline if no request is in progress and it is not running yet, or stop it."""
        if (self.cycle is not None and not self.cycle.response_complete) or self.transport.is_closing():
            self._stop_deadline()
        elif self not in self._idle:
            self._idle[self] = self.loop.call_later(HEAD_SECONDS, self._close)
            if len(self._idle) > MAX_IDLE:
                next(iter(self._idle))._close()

    def _stop_deadline(self) -> None:
        if timer := self._idle.pop(self, None):
            timer.cancel()

    def _close(self) -> None:
        self._stop_deadline()
        self.transport.close()
