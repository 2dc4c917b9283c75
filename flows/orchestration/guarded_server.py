"""Prefect's server on loopback, for its own pages and for clients on this machine: `python -m ... PORT`.

Prefect's API asks for no password, and whoever may create a deployment may run commands. Loopback alone does not keep
the pages of other sites away: a browser sends their requests to it (recognised by `Origin`), also under another name
that resolves to this machine, by DNS rebinding (recognised by `Host`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from flows.orchestration.prefect_server import HOST, own_hosts

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
}
"""Response headers by which browsers neither embed the pages in other sites' pages nor load responses there."""


class LoopbackGuard:
    """ASGI middleware that refuses HTTP requests and web sockets under a foreign host name or of another origin.

    Workers and other clients that are not browsers send no `Origin`.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = own_hosts(port)
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with status 403."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if not hosts or not self._hosts.issuperset(hosts):
            refusal = f"this server is not known as {', '.join(hosts)[:100]!r}; use {' or '.join(sorted(self._hosts))}"
        elif not self._origins.issuperset(origins):
            refusal = f"a page of {', '.join(origins)[:100]!r} may not use this server"
        else:
            await self._app(scope, receive, guarded_send)
            return
        await PlainTextResponse(refusal, 403)(scope, receive, guarded_send)


def main(port: int) -> None:
    """Serve Prefect's API, pages and services on this port of loopback, as `prefect server start` does."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    uvicorn.run(
        LoopbackGuard(create_app(final=True), port),
        host=HOST,
        port=port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
