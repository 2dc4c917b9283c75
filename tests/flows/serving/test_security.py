"""Who may use the server: the token, other sites' pages, other hosts' names; and how much a request may be."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flows.serving import server
from flows.serving.security import HEADERS, LOOPBACK, PAGE_PATHS, Guard, hostname
from flows.serving.server import Settings, is_loopback, upload_folder
from flows.serving.worker import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN = "correct-horse-battery"
HERE = "127.0.0.1:8000"


def reason(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        TOKEN,
        f"Basic {TOKEN}",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer ñ",
    ],
)
def test_without_the_token_nothing_of_the_model_is_had(new_client, header, uploads):
    client = new_client(token=TOKEN)
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method, path in (("GET", "/model"), ("POST", "/predict"), ("GET", "/nowhere"), ("POST", "/health/../model")):
        answer = client.request(method, path, headers=headers)
        assert reason(answer) == (401, "no_token")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert not list(uploads.iterdir())


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_token_everything_is_answered(new_client, clip, scheme):
    client = new_client(token=TOKEN)
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert client.get("/model", headers=headers).status_code == 200
    answer = client.post("/predict", headers=headers, files={"file": ("a.mp4", clip.read_bytes())})
    assert answer.status_code == 200


def test_the_page_and_health_need_no_token(new_client):
    client = new_client(token=TOKEN)
    for path in (*PAGE_PATHS, "/health", "/openapi.json"):
        assert client.get(path).status_code == 200, path
    schema = client.get("/openapi.json").json()
    assert schema["paths"]["/predict"]["post"]["security"] and "security" not in schema["paths"]["/health"]["get"]


@pytest.mark.parametrize("host", [HERE, "localhost:8000", "LOCALHOST", "localhost.", "[::1]:8000", "127.0.0.1"])
def test_loopbacks_own_names_are_answered(client, host):
    assert client.get("/model", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example:80", "[::1", "", "0.0.0.0"],
)
def test_a_name_that_was_made_to_point_here_is_refused(client, host):
    for path in ("/", "/model", "/health"):
        assert reason(client.get(path, headers={"Host": host})) == (403, "foreign_host")


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://127.0.0.1:9000", "http://localhost", "null", "http://127.0.0.1:8000.evil.example",
     "http://[", "file://", "http://evil.example@127.0.0.1:8000"],
)  # fmt: skip
def test_pages_of_other_sites_are_refused(client, origin):
    answer = client.post("/predict", headers={"Origin": origin, "Host": HERE}, files={"file": b"x"})
    assert reason(answer) == (403, "foreign_origin")


def test_the_servers_own_page_is_answered(client):
    for host in (HERE, "localhost:8000", "[::1]:8000"):
        answer = client.get("/model", headers={"Origin": f"http://{host}", "Host": host})
        assert answer.status_code == 200


def test_behind_a_proxy_its_name_is_the_servers(new_client):
    client = new_client(hosts=(*LOOPBACK, "mood.example"), names=("mood.example",))
    for host in ("mood.example", HERE):
        assert client.get("/model", headers={"Host": host, "Origin": "https://mood.example"}).status_code == 200
    assert reason(client.get("/model", headers={"Host": "other.example"})) == (403, "foreign_host")
    assert reason(client.get("/model", headers={"Host": HERE, "Origin": "https://other.example"}))[0] == 403


def test_bound_elsewhere_any_name_will_do_but_no_other_sites_page(new_client):
    client = new_client(hosts=(), token=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "192.168.7.7:8000"}
    assert client.get("/model", headers=headers).status_code == 200
    assert client.get("/model", headers=headers | {"Origin": "http://192.168.7.7:8000"}).status_code == 200
    assert reason(client.get("/model", headers=headers | {"Origin": "http://evil.example"}))[0] == 403


def test_a_length_that_is_too_much_is_refused_before_the_body(new_client, uploads):
    client = new_client(size=1000)
    assert reason(client.post("/predict", files={"file": bytes(2000)})) == (413, "too_large")
    answer = client.get("/model", headers={"Content-Length": "5000"})
    assert reason(answer) == (413, "too_large")
    assert not list(uploads.iterdir())


def test_bytes_are_counted_where_no_length_is_told(new_client, uploads):
    client = new_client(size=50_000)
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
        for _ in range(20):
            sent += 10_000
            yield bytes(10_000)

    answer = client.post("/predict", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert reason(answer) == (413, "too_large") and sent == 200_000
    assert not list(uploads.iterdir())


def ask(
    app: Any, chunks: list[bytes | None], headers: dict[str, str], leaves: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """What the application sends for a POST of these chunks, and how many of them it read.

    None stands for a client that keeps silent; one that leaves does so before the last chunk.
    """
    waiting, sent, read = list(chunks), [], 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        if not waiting:
            return {"type": "http.disconnect"}
        if waiting[0] is None:
            await asyncio.sleep(3600)
        read += 1
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or leaves}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
             "headers": raw, "http_version": "1.1", "scheme": "http", "root_path": ""}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent, read


@pytest.fixture
def guarded(new_client) -> Callable[..., Guard]:
    return lambda **rules: new_client(**rules).app


FORM = {"Host": HERE, "Content-Type": "multipart/form-data; boundary=x"}
BEGIN = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'


def test_an_upload_that_stalls_ends_with_408(guarded, scoring_pool, uploads, monkeypatch):
    monkeypatch.setattr("flows.serving.security.DRAIN_SECONDS", 0.05)
    sent, _ = ask(guarded(seconds=0.2), [BEGIN, bytes(100), None], FORM)
    assert sent[0]["status"] == 408
    assert scoring_pool.waiting == 0 and not list(uploads.iterdir())


@pytest.mark.parametrize("chunks", [[BEGIN], [BEGIN, bytes(2 << 20)]], ids=["at its start", "in its midst"])
def test_a_client_that_leaves_during_its_upload_leaves_nothing(guarded, scoring_pool, uploads, chunks):
    ask(guarded(), chunks, FORM, leaves=True)
    assert scoring_pool.waiting == 0 and not list(uploads.iterdir())


def test_a_refused_upload_is_read_to_its_end_so_that_a_browser_sees_the_answer(guarded):
    sent, read = ask(guarded(token=TOKEN), [bytes(1000)] * 50, FORM)
    assert sent[0]["status"] == 401 and read == 50


def test_a_client_that_asks_first_is_told_without_its_upload(guarded):
    sent, read = ask(guarded(token=TOKEN), [bytes(1000)] * 50, FORM | {"Expect": "100-continue"})
    assert sent[0]["status"] == 401 and read == 0


def test_every_refusal_carries_the_protecting_headers(guarded):
    sent, _ = ask(guarded(), [b""], {"Host": "evil.example"})
    found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= found.items()


@pytest.mark.parametrize(
    ("netloc", "name"),
    [
        ("A.example:80", "a.example"),
        ("[::1]:9", "::1"),
        ("a.example.", "a.example"),
        ("", ""),
        ("[::1", ""),
        ("u@h", "h"),
    ],
)
def test_hostname(netloc, name):
    assert hostname(netloc) == name


MODEL = Model(Path("nowhere"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.7", "mood.example", ""])
def test_other_machines_are_not_let_in_without_a_token(host):
    for open_access in (False, True):
        with pytest.raises(ValueError, match=r"token is needed: set DASHFUSION_TOKEN .*leave --host out"):
            Settings(MODEL, host=host, open_access=open_access)
    assert Settings(MODEL, host=host, token=TOKEN).rules().hosts == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_token_and_knows_its_names(host):
    assert is_loopback(host)
    rules = Settings(MODEL, host=host, names=("Mood.example",), open_access=True).rules()
    assert {*LOOPBACK, host.strip("[]"), "mood.example"} == set(rules.hosts) and rules.names == ("mood.example",)


def test_behind_a_proxy_a_token_is_needed_or_its_absence_wanted():
    for names in (("mood.example",), ("localhost", "10.0.0.7")):
        with pytest.raises(ValueError, match=r"a token is needed: set DASHFUSION_TOKEN .* or add --no-token"):
            Settings(MODEL, names=names)
        assert Settings(MODEL, names=names, token=TOKEN).rules().token == TOKEN
        assert Settings(MODEL, names=names, open_access=True).rules().token == ""
    assert Settings(MODEL, names=("localhost", "127.0.0.1")).rules().token == ""
    with pytest.raises(ValueError, match="leave out one of them"):
        Settings(MODEL, token=TOKEN, open_access=True)


@pytest.mark.parametrize("token", ["short", "fifteen-letters", "with a line\nbreak in it", "ünïcödé-ünïcödé-ünïcödé"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token):
    with pytest.raises(ValueError, match="16 printable ASCII"):
        Settings(MODEL, token=token)


@pytest.mark.parametrize("name", ["https://mood.example", "mood.example:443", "mood.example/path", ""])
def test_an_allowed_host_is_a_name(name):
    with pytest.raises(ValueError, match="without scheme and port"):
        Settings(MODEL, names=(name,))


def test_what_a_killed_server_left_is_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    gone = 2**22 + 7  # above the largest process id that Linux gives
    ours = tmp_path / server._prefix()
    left, running = Path(f"{ours}{gone}.abc"), Path(f"{ours}{os.getppid()}.abc")
    reused = Path(f"{ours}{os.getpid()}.abc")  # of a server that had our process's id before us
    others = Path(f"{ours}{gone}x.abc"), tmp_path / f"{server.PREFIX}.elsewhere.{gone}.abc", tmp_path / "talk"
    for folder in (left, reused, running, *others):
        folder.mkdir()
        (folder / "upload").write_bytes(b"x")
    before = psutil.Process().create_time() - 3600
    os.utime(reused, (before, before))
    linked = Path(f"{ours}{gone + 1}.abc")
    linked.symlink_to(tmp_path / "talk")
    with upload_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.parent == tmp_path
        assert set(tmp_path.iterdir()) == {folder, running, linked, *others}
        (folder / "upload").write_bytes(b"x")
    assert not folder.exists() and (tmp_path / "talk/upload").exists()


def test_a_port_that_is_taken_is_told_of_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(MODEL, port=taken.getsockname()[1])
        with pytest.raises(OSError, match="choose another --port"):
            server.serve(settings)
