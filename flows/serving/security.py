"""ASGI middleware for access control, request limits and security headers.

Other sites' pages must not reach a server on loopback, neither by cross-origin requests (checked by `Origin`) nor by
DNS rebinding (checked by `Host`). Body bytes are counted as they arrive, since Content-Length cannot be trusted.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.serving.errors import ApiError, stopping_error
from flows.serving.logs import REQUEST_ID
from flows.serving.telemetry import CLIENT_CLOSED, OTHER_ROUTE, record_request

LOOPBACK = ("localhost", "127.0.0.1", "::1")

PAGE_PATHS = (
    "/", "/page.css", "/page.js", "/charts.js", "/dom.js", "/result.js", "/sortable.js", "/docs", "/docs.css",
    "/docs.js",
)  # fmt: skip

OPEN_PATHS = (*PAGE_PATHS, "/health", "/openapi.json")
"""Paths that need no token: the pages themselves ask for it, and none of them reveals anything about the model."""

PATHS = (*OPEN_PATHS, "/predict", "/model", "/metrics")
"""All paths of the server. Metrics count any other path as one route."""

REQUEST_ID_HEADER = "X-Request-ID"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a proxy may set as a request's id."""

MAX_REQUESTS = 500
"""Maximum number of requests in progress, uploads or not."""

DRAIN_SECONDS = 5.0
"""Maximum time to read the rest of a rejected upload. Browsers that are cut off while sending show no response."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """Access rules and request limits.

    Attributes:
        hosts: Accepted host names; empty to accept any, which is safe only with a token.
        names: The host names among them that belong to this server alone on any port, such as a proxy's.
        token: Token that requests must carry; empty for none.
        size: Maximum size of a request in bytes.
        seconds: Maximum time from a request's headers to its last byte.
    """

    hosts: Collection[str]
    names: Collection[str]
    token: str
    size: int
    seconds: float


class Guard:
    """ASGI middleware that enforces the rules and adds security headers.

    Requests that are cancelled, as uvicorn does with those that outlast its shutdown, get an error response.
    """

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or respond with an `ApiError`."""
        if scope["type"] != "http":  # lifespan events; web sockets are disabled
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, self._rules, expects_continue="expect" in headers)
        state = scope.setdefault("state", {})  # the application's error handlers set its key `error`
        request_id, began, status = _request_id(headers), time.perf_counter(), None
        REQUEST_ID.set(request_id)  # for the log; every request has its own task, and so its own context

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                response_headers = MutableHeaders(scope=message)
                secure(response_headers)
                response_headers[REQUEST_ID_HEADER] = request_id
                gone = body.disconnected
                await body.drain()
                status = CLIENT_CLOSED if gone else message["status"]
            await send(message)

        app = self._app
        try:
            self._check(scope["path"], headers)
        except ApiError as error:
            app, state["error"] = error_response(error), error.error
        self._requests += 1
        try:
            await app(scope, body.receive, guarded_send)
        except asyncio.CancelledError:
            if status is not None:
                raise
            body.abandon()
            refusal = stopping_error()
            state["error"] = refusal.error
            await error_response(refusal)(scope, receive, guarded_send)
        finally:
            self._requests -= 1
            route = scope["path"] if scope["path"] in PATHS else OTHER_ROUTE
            error_code = None if status == CLIENT_CLOSED else state.get("error")
            record_request(scope["method"], route, status or 500, error_code, time.perf_counter() - began)

    def _check(self, path: str, headers: Headers) -> None:
        rules = self._rules
        if self._requests >= MAX_REQUESTS:
            raise ApiError("busy", f"{MAX_REQUESTS} requests are in progress; try again in 1 s", {"Retry-After": "1"})
        host = headers.get("host", "")
        if rules.hosts and hostname(host) not in rules.hosts:
            raise ApiError(
                "foreign_host",
                f"this server is not known as {host[:100]!r}; use one of {', '.join(rules.hosts)}, or start it with "
                "--allow-host",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own_origin(origin, host):
            raise ApiError(
                "foreign_origin",
                f"a page of {origin[:100]!r} may not use this server; use its own page, or start it with --allow-host",
            )
        if rules.token and path not in OPEN_PATHS and not _has_token(headers.get("authorization", ""), rules.token):
            raise ApiError(
                "no_token", "send the server's token: `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > rules.size:
            raise _too_large(rules.size)

    def _is_own_origin(self, origin: str, host: str) -> bool:
        """Return whether a page's origin is this server, either as addressed or by one of its own names."""
        netloc = origin.rpartition("//")[2]
        return netloc.lower() == host.lower() or hostname(netloc) in self._rules.names


class _Body:
    """A request body with enforced limits on size and time.

    Attributes:
        disconnected: Whether the client was seen to have closed the connection.
    """

    def __init__(self, receive: Receive, rules: Rules, expects_continue: bool) -> None:
        self._receive, self._rules = receive, rules
        self._deadline = asyncio.get_running_loop().time() + rules.seconds
        self._size = 0
        self._complete = False
        self.disconnected = False
        # With `Expect: 100-continue`, the client sends nothing until the server starts to read
        self._awaits_continue = expects_continue

    async def receive(self) -> Message:
        """Return the next ASGI message: a part of the body, or after its end the disconnect.

        Raises:
            ApiError: The body is too large, or takes too long.
        """
        if self._complete:
            return await self._pass_on()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._next()
        except TimeoutError as error:
            limit = f"{self._rules.seconds:g} s"
            raise ApiError("upload_timeout", f"the upload took longer than {limit}; send less") from error
        self._size += len(message.get("body", b""))
        if self._size > self._rules.size:
            raise _too_large(self._rules.size)
        return message

    async def _next(self) -> Message:
        self._awaits_continue = False
        message = await self._pass_on()
        self._complete = not message.get("more_body", False)
        return message

    async def _pass_on(self) -> Message:
        message = await self._receive()
        self.disconnected = self.disconnected or message["type"] == "http.disconnect"
        return message

    def abandon(self) -> None:
        """Leave the rest unread."""
        self._complete = True

    async def drain(self) -> None:
        """Read and discard the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._complete and not self._awaits_continue:
                    await self._next()


def _too_large(size: int) -> ApiError:
    return ApiError("too_large", f"the upload is larger than {size / 2**20:.0f} MiB; send less, or cut the clip")


def secure(headers: MutableHeaders) -> None:
    """Add the security headers to a response."""
    headers.update(HEADERS)


def error_response(error: ApiError) -> JSONResponse:
    """Return an error as a response."""
    return JSONResponse(error.to_dict(), error.status_code, headers=dict(error.headers or {}))


def hostname(netloc: str) -> str:
    """Return the lower-case host name of `name:port`, or an empty string if it is invalid."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _request_id(headers: Headers) -> str:
    """Return the id that a proxy gave the request, or a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _has_token(authorization: str, token: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    return secrets.compare_digest(given.strip().encode(), token.encode()) and scheme.lower() == "bearer"
