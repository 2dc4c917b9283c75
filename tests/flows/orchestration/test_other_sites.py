"""Pages of other sites in a browser on this machine, against a real Prefect server that we have started."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import urllib.request
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from flows.orchestration import prefect_server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.server, pytest.mark.browser]

SEND = """async ([address, options]) => {
    try { return (await fetch(address, options)).status } catch (error) { return error.name }
}"""
CONNECT = """address => new Promise(resolve => {
    const socket = new WebSocket(address)
    socket.onopen = () => { socket.close(); resolve("open") }
    socket.onerror = () => resolve("refused")
})"""


@pytest.fixture(scope="module")
def server(running_server, tmp_path_factory) -> Iterator[str]:
    """API address of a server with a new database."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("other_sites")
        patch.chdir(folder)
        patch.delenv("PREFECT_HOME", raising=False)
        with running_server() as api_url:
            yield api_url
        assert list((folder / ".dashfusion/prefect").glob("*/prefect.db")), "the database is not the project's"


@pytest.fixture
def other_site(tmp_path) -> Iterator[str]:
    """Address of another server on loopback."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    pages = http.server.ThreadingHTTPServer((prefect_server.HOST, 0), handler)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    yield f"http://{prefect_server.HOST}:{pages.server_port}"
    pages.shutdown()
    pages.server_close()


def flows_on(api_url: str) -> set[str]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{api_url}/flows/filter", data=b"{}", headers=headers)
    with urllib.request.urlopen(request) as answer:
        return {flow["name"] for flow in json.load(answer)}


def attack(page: Any, api_url: str, name: str) -> dict[str, Any]:
    """Try to create a flow in two ways, to read, and to connect; how each ended."""
    body = json.dumps({"name": name})
    as_json = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": body}
    sockets = api_url.replace("http", "ws")
    return {
        "json": page.evaluate(SEND, [f"{api_url}/flows/", as_json]),
        "no-cors": page.evaluate(SEND, [f"{api_url}/flows/", {"method": "POST", "mode": "no-cors", "body": body}]),
        "read": page.evaluate(SEND, [f"{api_url}/admin/version", {}]),
        "events": page.evaluate(CONNECT, f"{sockets}/events/in"),
        "logs": page.evaluate(CONNECT, f"{sockets}/logs/out"),
    }


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_prefects_own_page_may_do_everything(browser, server, name):
    page = browser.new_page()
    page.goto(prefect_server.pages(server).replace("127.0.0.1", name))
    page.get_by_text("Dashboard").first.wait_for()
    outcome = attack(page, server, f"by-{name}")
    assert (outcome["json"], outcome["read"], outcome["events"], outcome["logs"]) == (201, 200, "open", "open"), outcome
    assert f"by-{name}" in flows_on(server)
    page.close()


def test_a_page_of_another_port_can_neither_write_nor_read(browser, server, other_site):
    before = flows_on(server)
    page = browser.new_page()
    page.goto(other_site)
    outcome = attack(page, server, "evil")
    refused = {"json": "TypeError", "read": "TypeError", "events": "refused", "logs": "refused"}
    assert outcome.items() >= refused.items(), outcome
    page.close()
    assert flows_on(server) == before


def test_another_name_of_this_machine_is_refused(chromium, server):
    """DNS rebinding: a site's name resolves to loopback once its page is loaded."""
    port = int(prefect_server.pages(server).rpartition(":")[2])
    rebound = chromium("--host-resolver-rules=MAP rebound.test 127.0.0.1")
    page = rebound.new_page()
    assert page.goto(f"http://rebound.test:{port}/").status == 403
    page.close()
    before = flows_on(server)
    connection = http.client.HTTPConnection(prefect_server.HOST, port)
    headers = {"Host": f"rebound.test:{port}", "Content-Type": "application/json"}
    connection.request("POST", "/api/flows/", json.dumps({"name": "evil"}), headers)
    assert connection.getresponse().status == 403
    assert flows_on(server) == before
