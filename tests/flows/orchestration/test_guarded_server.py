"""The guard of the Prefect servers that we start, before an application that accepts everything."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from flows.orchestration.guarded_server import LoopbackGuard

PORT = 4200
OWN = ["127.0.0.1:4200", "localhost:4200", "[::1]:4200"]
FOREIGN_HOSTS = ["evil.example", "evil.example:4200", "127.0.0.1", "127.0.0.1:80", "127.0.0.1.evil.example:4200", ""]
FOREIGN_ORIGINS = [
    "https://evil.example",
    "http://127.0.0.1:4201",
    "http://localhost",
    "https://127.0.0.1:4200",
    "http://127.0.0.1:4200.evil.example",
    "null",
    "",
]


@pytest.fixture
def reached() -> list[str]:
    """Requests that came through to the application."""
    return []


@pytest.fixture
def client(reached) -> TestClient:
    async def answer(request):
        reached.append(request.method)
        return JSONResponse({})

    async def stream(websocket):
        reached.append("websocket")
        await websocket.accept()
        await websocket.send_text("event")
        await websocket.close()

    routes = [Route("/api", answer, methods=["GET", "POST", "OPTIONS"]), WebSocketRoute("/api/events", stream)]
    return TestClient(LoopbackGuard(Starlette(routes=routes), PORT), base_url=f"http://127.0.0.1:{PORT}")


def event(client: TestClient, **headers: str) -> str:
    with client.websocket_connect("/api/events", headers=headers) as socket:
        return socket.receive_text()


@pytest.mark.parametrize("host", OWN)
def test_clients_and_the_own_page_are_served(client, host):
    for headers in ({}, {"origin": f"http://{host}"}, {"origin": "http://localhost:4200"}):
        response = client.post("/api", json={}, headers={"host": host, **headers})
        assert response.status_code == 200
        assert response.headers["x-frame-options"] == "DENY"
        assert event(client, host=host, **headers) == "event"


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_foreign_host_names_are_refused(client, reached, host):
    assert client.get("/api", headers={"host": host}).status_code == 403
    assert client.post("/api", headers={"host": host, "origin": f"http://{host}"}).status_code == 403
    with pytest.raises(WebSocketDenialResponse) as refused:
        event(client, host=host)
    assert refused.value.status_code == 403
    assert reached == []


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_pages_of_other_origins_are_refused(client, reached, origin):
    for method in ("GET", "POST", "OPTIONS"):
        response = client.request(method, "/api", headers={"origin": origin})
        assert response.status_code == 403 and "may not use this server" in response.text
        assert "access-control-allow-origin" not in response.headers
    with pytest.raises(WebSocketDenialResponse) as refused:
        event(client, origin=origin)
    assert refused.value.status_code == 403
    assert reached == []


def test_a_second_header_does_not_lift_the_rule(client, reached):
    for name, own, foreign in (("host", OWN[0], "evil.example"), ("origin", f"http://{OWN[0]}", "http://evil.example")):
        assert client.get("/api", headers=[(name, own), (name, foreign)]).status_code == 403
    assert reached == []
