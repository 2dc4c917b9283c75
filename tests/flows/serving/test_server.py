"""`dashfusion serve` as a process on loopback: many at a time, clients that leave, its end by a signal or a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from flows.orchestration import prefect_server
from flows.serving.server import PREFIX
from tests.support.clips import join_clips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.server

TEXT = "It was fine."
HEAD = "POST /predict HTTP/1.1\nHost: {}\nContent-Type: multipart/form-data; boundary=x\n"
BEGIN = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'


@dataclass(frozen=True)
class Served:
    """A server of its own process, and the folder that holds its temporary files."""

    process: subprocess.Popen[str]
    address: str
    temporary: Path

    def folders(self) -> list[Path]:
        return list(self.temporary.glob(f"{PREFIX}*"))

    def uploads(self) -> list[Path]:
        return [path for folder in self.folders() for path in folder.iterdir() if path.name != "warm-up.mkv"]

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def post(self, clip: Path, **fields: Any) -> httpx.Response:
        with clip.open("rb") as file:
            return httpx.post(
                f"{self.address}/predict", files={"file": file}, data={"text": TEXT} | fields, timeout=300
            )

    def waiting(self) -> int:
        return httpx.get(f"{self.address}/health").json()["waiting"]


def wait(ready: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


@contextmanager
def serving(corpus: Path, temporary: Path) -> Iterator[Served]:
    port = prefect_server.free_port()
    model = ["--model", str(corpus / "models-unaligned/best"), "--device", "cpu", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", "--port", str(port), "--max-megabytes", "4", *model],
        env=os.environ | {"TMPDIR": str(temporary)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    served = Served(process, f"http://127.0.0.1:{port}", temporary)
    try:
        assert any("DashFusion is at" in line for line in process.stdout), "it ended before it was ready"
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def served(corpus, tmp_path_factory) -> Iterator[Served]:
    with serving(corpus, tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.fixture
def three_seconds(corpus) -> list[Path]:
    """Eight clips of about three seconds."""
    return sorted((corpus / "media/Raw").glob("*/*.mp4"))[:8]


def test_eight_at_a_time_are_all_scored(served, three_seconds):
    alone = [served.post(clip).json()["results"][0]["raw_score"] for clip in three_seconds]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(served.post, three_seconds))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert [answer.json()["results"][0]["raw_score"] for answer in answers] == alone
    wait(lambda: not served.uploads() and not served.waiting(), "the last to be removed")


def test_more_than_may_wait_are_told_when_to_come_again(served, three_seconds, tmp_path):
    clip = join_clips(three_seconds[:3], tmp_path / "joined.mp4")
    with ThreadPoolExecutor(14) as pool:
        answers = list(pool.map(served.post, [clip] * 14))
    busy = [answer for answer in answers if answer.status_code == 503]
    assert len(busy) >= 1 and len(answers) - len(busy) >= 8
    assert all(answer.status_code == 200 for answer in answers if answer not in busy)
    assert all(answer.json()["error"] == "busy" and int(answer.headers["Retry-After"]) >= 1 for answer in busy)


def send(address: str, head: str, body: bytes = b"") -> socket.socket:
    port = int(address.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    return connection


def test_oversized_uploads_get_their_answer_over_a_real_connection(served):
    head = HEAD.format(served.address[7:])
    body = BEGIN + bytes(6 << 20)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BEGIN, *[bytes(1 << 20)] * 6, b""))
    for kind, sent in ((f"Content-Length: {len(body)}", body), ("Transfer-Encoding: chunked", chunks)):
        with send(served.address, head + kind, sent) as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 413 "), kind
    with send(served.address, head + f"Content-Length: {6 << 20}\nExpect: 100-continue") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 "), "and not 100"
    assert not served.uploads()


def test_idle_connections_do_not_keep_others_out(served, three_seconds):
    idle: list[socket.socket] = []
    port = int(served.address.rpartition(":")[2])
    try:
        for number in range(510):
            idle.append(socket.create_connection(("127.0.0.1", port), timeout=60))
            idle[-1].sendall(b"GET / HT" if number % 2 else b"")
        assert httpx.get(f"{served.address}/health", timeout=60).json()["status"] == "ok"
        assert served.post(three_seconds[0]).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_a_client_that_leaves_leaves_nothing(served, long_clip):
    content = long_clip.read_bytes()
    body = BEGIN + content + b"\r\n--x--\r\n"
    head = HEAD.format(served.address[7:]) + f"Content-Length: {len(body)}"
    with send(served.address, head, body[: len(body) // 2]):
        wait(served.waiting, "the upload to begin")
    wait(lambda: not served.waiting(), "its place to be free")
    with send(served.address, head, body):
        wait(served.uploads, "the upload to be stored")
    wait(lambda: not served.uploads() and not served.waiting(), "the file to be removed")
    assert served.post(long_clip).status_code == 200


def test_memory_does_not_grow_with_requests(served, three_seconds):
    def taken() -> int:
        return sum(p.memory_info().rss for p in [psutil.Process(served.process.pid), *served.family()])

    for clip in three_seconds:
        served.post(clip)
    before, processes = taken(), {p.pid for p in served.family()}
    for _ in range(3):
        assert all(served.post(clip).status_code == 200 for clip in three_seconds)
    assert {p.pid for p in served.family()} == processes
    assert taken() - before < 48 << 20


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_nothing_left(corpus, tmp_path, long_clip, sign):
    with serving(corpus, tmp_path) as served, ThreadPoolExecutor(3) as pool:
        family = served.family()
        half = f"{HEAD.format(served.address[7:])}Content-Length: 1000000"
        with send(served.address, half, BEGIN):  # an upload in progress keeps the server from its end
            wait(served.waiting, "its admission")
            answers = [pool.submit(served.post, long_clip) for _ in range(3)]
            wait(lambda: len(served.uploads()) == 3, "three uploads")
            served.process.send_signal(sign)
            wait(lambda: httpx.get(f"{served.address}/health").json()["status"] == "stopping", "the shutdown")
            refused = served.post(long_clip)
            assert (refused.status_code, refused.json()["error"]) == (503, "stopping")
        assert served.process.wait(timeout=60) == 0
        statuses = sorted(answer.result().status_code for answer in answers)
        assert {answer.result().json()["error"] for answer in answers if answer.result().is_error} == {"stopping"}
        assert statuses in ([200, 503, 503], [200, 200, 503], [503, 503, 503])
        assert served.process.stdout.read().endswith("stopped\n")
        wait(lambda: not any(process.is_running() for process in family), "the end of its processes")
        assert not served.folders()


def test_a_kill_leaves_no_process_and_the_next_start_removes_the_files(corpus, tmp_path, long_clip):
    with serving(corpus, tmp_path) as served, ThreadPoolExecutor(1) as pool:
        family = served.family()
        answer = pool.submit(served.post, long_clip)
        wait(served.uploads, "an upload")
        served.process.kill()
        assert isinstance(answer.exception(), httpx.HTTPError)
        wait(lambda: not any(process.is_running() for process in family), "the end of its processes")
        [left] = served.folders()
    with serving(corpus, tmp_path) as served:
        assert len(served.folders()) == 1 and not left.exists()


def test_as_json_every_line_is_an_object_and_the_images_health_check_follows_the_server(corpus, tmp_path, clip):
    deploy = Path(__file__).parents[3] / "deploy/Dockerfile.serve"
    check = json.loads(re.search(r"^HEALTHCHECK .*\\\n +CMD (.+)$", deploy.read_text("utf-8"), re.MULTILINE)[1])

    def healthy() -> bool:
        program = check[2].replace(":8000/", f":{port}/")
        return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0

    port = prefect_server.free_port()
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port), "--log-format", "json"]
    model = ["--model", str(corpus / "models-unaligned/best"), "--device", "cpu", "--workers", "1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    assert check[:2] == ["python", "-c"] and not healthy()
    process = subprocess.Popen([*command, *model], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        lines = [process.stdout.readline()]
        assert healthy()
        for name in ('a\n{"event": "forged"}.mp4', "b\r\nforged\x85\u2028.mp4", clip.name):
            httpx.post(f"http://127.0.0.1:{port}/predict", files={"file": (name, clip.read_bytes())}, timeout=300)
        httpx.get(f"http://127.0.0.1:{port}/%0Aforged")
    finally:
        process.terminate()
        lines += process.communicate(timeout=60)[0].splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["event"] for entry in entries] == ["started", *["request"] * 4, "stopped"]
    assert [entry["status"] for entry in entries[1:-1]] == [200, 200, 200, 404]
    assert process.returncode == 0 and not healthy()


def test_without_a_token_other_machines_are_not_served():
    command = [sys.executable, "-m", "flows.cli", "serve", "--host", "0.0.0.0", "--model", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DASHFUSION_TOKEN": ""})
    assert done.returncode == 1 and "DASHFUSION_TOKEN" in done.stdout and "Traceback" not in done.stderr
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DASHFUSION_TOKEN": "x" * 20})
    assert done.returncode == 1 and "no checkpoint here" in done.stdout and "Traceback" not in done.stderr
