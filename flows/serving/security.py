"""What every request to the server has to pass before the application sees it, and what every answer carries.

A page of another site must not reach a server on loopback: not by a request of its own (`Origin`), nor under a name
that it has let point here (`Host`). Bytes are counted as they come, since what a header says of them proves nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.serving.errors import Refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")

OPEN = ("/", "/page.css", "/page.js", "/health", "/openapi.json")
"""What needs no token: a page that asks for it, and what holds nothing of the model's."""

DRAIN_SECONDS = 5.0
"""A refused upload's rest is read so long. A browser that is cut off while it sends shows no answer at all."""

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
    """Who may ask for what.

    Attributes:
        hosts: names under which the server may be asked; empty: any, which only a token makes safe.
        names: those of them that are this server's alone, whatever the port: a proxy's.
        token: that requests have to carry; empty: none.
        size: bytes that a request may have.
        seconds: from its headers to its last byte.
    """

    hosts: Collection[str]
    names: Collection[str]
    token: str
    size: int
    seconds: float


class Guard:
    """ASGI middleware that holds requests to the rules."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan; the server takes no web sockets
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._rules, "expect" in Headers(scope=scope))

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
                await body.drain()
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except Refused as refused:
            await answer(refused)(scope, receive, guarded_send)
            return
        await self._app(scope, body.receive, guarded_send)

    def _check(self, path: str, headers: Headers) -> None:
        rules = self._rules
        host = headers.get("host", "")
        if rules.hosts and hostname(host) not in rules.hosts:
            raise Refused(
                "foreign_host",
                f"this server is not known as {host[:100]!r}; use one of {', '.join(rules.hosts)}, or start it with "
                "--allow-host",
            )
        origin = headers.get("origin")
        if origin is not None and not self._own(origin, host):
            raise Refused(
                "foreign_origin",
                f"a page of {origin[:100]!r} may not use this server; use its own page, or start it with --allow-host",
            )
        if rules.token and path not in OPEN and not _carries(headers.get("authorization", ""), rules.token):
            raise Refused(
                "no_token", "send the server's token: `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > rules.size:
            raise too_large(rules.size)

    def _own(self, origin: str, host: str) -> bool:
        """Whether a page's origin is this server: by the address that it was asked at, or by a name of its own."""
        netloc = origin.rpartition("//")[2]
        return netloc.lower() == host.lower() or hostname(netloc) in self._rules.names


class _Body:
    """A request's body: counted, timed, and read to its end, within limits, before an answer is given."""

    def __init__(self, receive: Receive, rules: Rules, expects: bool) -> None:
        self._receive, self._rules = receive, rules
        self._deadline = asyncio.get_running_loop().time() + rules.seconds
        self._size = 0
        self._complete = False
        self._held_back = expects  # the client sends nothing before it is told to go on, which reading does

    async def receive(self) -> Message:
        """The next message of the body, or after it the client's leave.

        Raises:
            Refused: it has too many bytes, or takes too long.
        """
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._next()
        except TimeoutError as error:
            limit = f"{self._rules.seconds:g} s"
            raise Refused("upload_timeout", f"the upload took longer than {limit}; send less") from error
        self._size += len(message.get("body", b""))
        if self._size > self._rules.size:
            raise too_large(self._rules.size)
        return message

    async def _next(self) -> Message:
        self._held_back = False
        message = await self._receive()
        self._complete = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read what is left, and forget it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._complete and not self._held_back:
                    await self._next()


def too_large(size: int) -> Refused:
    """The refusal of a request with more than `size` bytes."""
    return Refused("too_large", f"the upload is larger than {size / 2**20:.0f} MiB; send less, or cut the clip")


def answer(refused: Refused) -> JSONResponse:
    """A refusal as it is sent."""
    headers: Mapping[str, str] = refused.headers or {}
    return JSONResponse(refused.to_dict(), refused.status_code, headers=dict(headers))


def hostname(netloc: str) -> str:
    """The name in `name:port`, lower-case; empty where it is none."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _carries(authorization: str, token: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    return secrets.compare_digest(given.strip().encode(), token.encode()) and scheme.lower() == "bearer"
