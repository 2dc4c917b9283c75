"""The server's log: one line an event, whatever a request brings, with the request's id."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

from flows.serving import worker_pool
from flows.serving.logs import REQUEST_ID, Event, JsonFormatter, LogFormat, TextFormatter, configure_logs
from flows.serving.security import REQUEST_ID_HEADER
from flows.serving.worker import Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOSTILE = (
    'a\n{"event": "forged"}.mp4',
    "a\r\n2026-01-01 00:00:00Z info forged.mp4",
    "a\x85b\u2028c\u2029d\x0be\x1cf.mp4",
    "\x1b[2J\x1b]0;title\x07.mp4",
    "\u202egpj.exe",
    'quote" back\\slash \ud800 \x00.mp4',
)


@pytest.fixture
def written(capsys) -> Iterator[Callable[[LogFormat], Callable[[], list[str]]]]:
    """Configures the log, and returns what reads its lines."""
    root = logging.getLogger()
    before = root.level, list(root.handlers), logging.getLogger("flows.serving").level

    def configure(log_format: LogFormat) -> Callable[[], list[str]]:
        configure_logs(log_format)
        return lambda: capsys.readouterr().out.removesuffix("\n").split("\n")

    yield configure
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logging.getLogger("flows.serving").setLevel(before[2])
    logging.captureWarnings(False)


def record(message: str, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("flows.serving.x", logging.WARNING, __file__, 1, "%s: lost", (message,), info)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_a_line_of_json(name):
    line = JsonFormatter().format(record(name, ValueError(name)))
    assert line.isascii() and len(line.splitlines()) == 1
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["message"]) == ("message", "warning", f"{name}: lost")
    assert entry["exception"].endswith(name) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_a_line_of_text_nor_moves_the_cursor(name):
    lines = TextFormatter().format(record(name, ValueError(name))).splitlines()
    assert lines[0].endswith(": lost") and all(line.startswith("  ") for line in lines[1:])
    assert all(character.isprintable() for line in lines for character in line)


def test_an_event_adds_its_fields_and_the_request_its_id():
    one = record("x")
    one.serving_event = Event("request", {"status": 200})
    token = REQUEST_ID.set("abc")
    try:
        entry, line = json.loads(JsonFormatter().format(one)), TextFormatter().format(one)
    finally:
        REQUEST_ID.reset(token)
    assert (entry["event"], entry["status"], entry["request_id"]) == ("request", 200, "abc")
    assert line.endswith("warning x: lost [abc]")


def upload(client: Any, name: str, headers: dict[str, str] | None = None) -> Any:
    """Post a file that is no clip under a name that is sent as it is."""
    quoted = name.encode("utf-8", "replace").replace(b'"', b"%22")
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + quoted + b'"\r\n\r\nno clip\r\n--x--\r\n'
    return client.post(
        "/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"} | (headers or {})
    )


def test_a_request_is_a_line_with_its_status_and_seconds_and_without_its_names(client, written):
    lines = written(LogFormat.JSON)
    answers = [upload(client, name) for name in HOSTILE]
    client.get("/nowhere%0A{}")
    client.get("/health")
    entries = [json.loads(line) for line in lines()]
    assert len(entries) == len(HOSTILE) + 1, "a successful probe is no line"
    for answer, entry in zip(answers, entries, strict=False):
        assert (entry["event"], entry["level"], entry["route"]) == ("request", "info", "/predict")
        assert entry["status"] == answer.status_code and entry["error"] == answer.json()["error"]
        assert entry["request_id"] == answer.headers[REQUEST_ID_HEADER] and 0 <= entry["seconds"] < 60
        assert "mp4" not in json.dumps(entry) and "exe" not in json.dumps(entry)
    assert entries[-1]["route"] == "other" and entries[-1]["status"] == 404


def test_a_proxys_id_is_kept_if_it_is_one(client):
    assert upload(client, "a", {REQUEST_ID_HEADER: "Proxy_1.a-b"}).headers[REQUEST_ID_HEADER] == "Proxy_1.a-b"
    for wrong in ("", "a b", "x" * 65, 'a"', "é".encode()):
        given = client.get("/health", headers={REQUEST_ID_HEADER: wrong}).headers[REQUEST_ID_HEADER]
        assert re.fullmatch("[0-9a-f]{32}", given)


def test_what_is_logged_while_a_worker_scores_has_the_requests_id(scoring_pool, clip, written, monkeypatch):
    def score(*_: Any) -> dict[str, Any]:
        worker_pool.logger.warning("a worker was lost")
        return {"seconds": {}}

    lines = written(LogFormat.JSON)
    monkeypatch.setattr(scoring_pool, "_score", score)
    token = REQUEST_ID.set("the-request")
    try:
        scoring_pool.score(Upload(clip, "a.mp4")).result(timeout=120)
    finally:
        REQUEST_ID.reset(token)
    entry = json.loads(lines()[-1])
    assert (entry["request_id"], entry["message"]) == ("the-request", "a worker was lost")
