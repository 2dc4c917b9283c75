"""Extraction by a cluster: the same features as from this machine's own processes, and nothing left behind."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import pytest
import yaml

from corpora.manifest import write_manifest
from corpora.problems import read_problems
from corpora.readers.raw import read_raw
from flows.orchestration import task_runners

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
CLIPS = 24  # two work units
PATIENCE = 180  # seconds, for what takes some twenty
CLUSTERS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(f"prefect_{kind}") is None, reason=f"needs pip install -e '.[{kind}]'"
        ),
    )
    for kind in ("dask", "ray")
]


@dataclass(frozen=True)
class Workplace:
    """A folder with params.yaml and a manifest, and the Prefect server to report to."""

    folder: Path
    api_url: str
    mark: str

    def start(self) -> subprocess.Popen[bytes]:
        """Extraction of audio in a process group of its own."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": self.api_url, "TEST_MARK": self.mark}
        for name in ("DASHFUSION_SCRATCH", "DASHFUSION_SERVER"):
            environment.pop(name, None)
        with (self.folder / "log.txt").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.extract", "audio"],
                cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8")

    def features(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "data/features/audio").iterdir()}

    def problems(self) -> list[tuple[str, ...]]:
        rows = read_problems([self.folder / "data/problems/extract-audio.parquet"])
        return [(p.clip_id, p.stage, p.modality, p.error, p.message) for p in rows]

    def left_behind(self) -> list[str]:
        """Processes that inherited the mark, given a few seconds to end."""
        deadline = time.monotonic() + 20
        while (found := list(marked(self.mark))) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


def marked(mark: str) -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield " ".join(process.cmdline())
        except psutil.Error:
            continue


def place(folder: Path, corpus: Path, runner: str, api_url: str, hop_seconds: float = 0.064) -> Workplace:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"] |= {"layout": "mmsa", "root": str(corpus)}
    params["extract"] |= {"runner": runner, "workers": 2, "max_failed_fraction": 0.1}
    params["extract"]["audio"]["options"] = {"hop_seconds": hop_seconds}
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    manifest, _ = read_raw(corpus, corpus="c", language="en", label_range=(-3.0, 3.0))
    write_manifest(manifest, folder / "data/manifest.parquet")
    return Workplace(folder, api_url, uuid4().hex)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, demo) -> Path:
    """Copies of a few generated clips, made different by a box at their end; one has nothing that decodes."""
    root = tmp_path_factory.mktemp("corpus")
    originals = sorted((demo / "Raw").rglob("*.mp4"))
    with (root / "label.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["video_id", "clip_id", "text", "label", "mode"])
        for i in range(CLIPS):
            writer.writerow(["v", f"{i:02}", "Some words.", (i % 7) - 3, "train"])
            path = root / f"Raw/v/{i:02}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(originals[i % len(originals)].read_bytes() + struct.pack(">I4sI", 12, b"free", i))
    good = (root / "Raw/v/07.mp4").read_bytes()
    media, index = good.index(b"mdat") + 4, good.index(b"moov") - 4
    (root / "Raw/v/07.mp4").write_bytes(good[:media] + b"\xff" * (index - media) + good[index:])
    return root


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory, corpus, api_url) -> Workplace:
    made = place(tmp_path_factory.mktemp("processes") / "place", corpus, "processes", api_url)
    assert made.start().wait(PATIENCE) == 0, made.said
    return made


@pytest.mark.server
@pytest.mark.parametrize("runner", CLUSTERS)
def test_a_cluster_gives_the_same_bytes_and_the_same_problems(tmp_path, corpus, api_url, by_processes, runner):
    other = place(tmp_path / "place", corpus, runner, api_url)
    assert other.start().wait(PATIENCE) == 0, other.said
    assert other.features() == by_processes.features()
    assert other.problems() == by_processes.problems()
    ((clip_id, *_, message),) = other.problems()
    assert clip_id == "v/07" and "nothing of its audio stream decodes" in message
    said = [line for line in other.said.splitlines() if " of 24 clips" not in line]  # which a slow machine prints
    assert any(line.startswith(f"runner: {runner}, 2 ") for line in said)
    assert len(said) == 5, f"noise: {other.said}"
    assert other.left_behind() == []
    assert not list((other.folder / ".dashfusion/scratch").glob(".run-*"))


@pytest.mark.server
@pytest.mark.parametrize("runner", CLUSTERS)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_a_cluster_outlives_its_stage(tmp_path, corpus, api_url, runner, sign):
    """Ctrl-C reaches the whole process group, a kill the stage alone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else a process that a script put aside ignores it
    busy = place(tmp_path / "place", corpus, runner, api_url, hop_seconds=0.005)
    process = busy.start()
    deadline = time.monotonic() + PATIENCE
    while not list((busy.folder / ".dashfusion").rglob("*.npz")):
        assert process.poll() is None and time.monotonic() < deadline, busy.said
        time.sleep(0.01)
    (os.killpg if sign == signal.SIGINT else os.kill)(process.pid, sign)
    code = process.wait(PATIENCE)
    assert busy.left_behind() == []
    if sign == signal.SIGINT:
        assert code == 130
        assert "extract interrupted: finished work is kept" in busy.said and "Traceback" not in busy.said
    else:
        assert code == -sign, "it ended before it could be killed"


def test_a_cluster_without_a_prefect_server_is_refused():
    with (
        pytest.raises(ValueError, match="needs a Prefect server"),
        task_runners.task_runner("dask", "", 1, after=lambda: None),
    ):
        pass


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_missing_extra_is_named(monkeypatch, kind):
    monkeypatch.setattr(task_runners.engine, "engine_active", lambda: True)
    monkeypatch.setitem(sys.modules, f"prefect_{kind}", None)
    with (
        pytest.raises(ValueError, match=rf"pip install -e '\.\[{kind}\]'"),
        task_runners.task_runner(kind, "", 1, after=lambda: None),
    ):
        pass


@pytest.mark.parametrize("answers", ["nothing", "never"])
@pytest.mark.parametrize(("kind", "scheme"), [("dask", "tcp://"), ("ray", "ray://"), ("ray", "")])
def test_a_cluster_that_does_not_answer_is_named_after_seconds(monkeypatch, kind, scheme, answers):
    pytest.importorskip(f"prefect_{kind}")
    monkeypatch.setattr(task_runners.engine, "engine_active", lambda: True)
    monkeypatch.setattr(task_runners, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts; nobody reads
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        if answers == "nothing":
            silent.close()
        with (
            pytest.raises(OSError, match=rf"answers at {re.escape(address)} \(extract.address\) within 0.3 s"),
            task_runners.task_runner(kind, address, 1, after=lambda: None),
        ):
            pass


HTTP_1_ANSWER = b"HTTP/1.0 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n"
HTTP_2_SETTINGS = bytes.fromhex("000000040000000000000000040100000000")  # and an acknowledgement of the client's
HTTP_2_REQUEST = bytes.fromhex("010400000001")  # end of the head of a frame of headers on stream 1
HTTP_2_ANSWER = bytes.fromhex("0000010105000000018d")  # on stream 1 the header `:status: 404`


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_server_of_another_kind_is_no_cluster(monkeypatch, kind):
    pytest.importorskip(f"prefect_{kind}")
    monkeypatch.setattr(task_runners.engine, "engine_active", lambda: True)

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(HTTP_1_ANSWER if kind == "dask" else HTTP_2_SETTINGS)
            while received := self.request.recv(4096):
                if HTTP_2_REQUEST in received:
                    self.request.sendall(HTTP_2_ANSWER)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        began = time.monotonic()
        with (
            pytest.raises(OSError, match=r"no (Dask scheduler|Ray cluster) answers at 127\.0\.0\.1"),
            task_runners.task_runner(kind, f"127.0.0.1:{server.server_address[1]}", 1, after=lambda: None),
        ):
            pass
        assert time.monotonic() - began < 10
        server.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:port", "//127.0.0.1:6379"])
def test_an_address_that_ray_does_not_take_is_refused(address):
    pytest.importorskip("prefect_ray")
    with pytest.raises(ValueError, match=r"Ray takes ray://HOST:10001, HOST:6379 or auto"):
        task_runners._check_ray(address)


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("tcp://10.0.0.5:8786", True),
        ("ray://head:10001", True),
        ("tcp://127.0.0.1:8786", False),
        ("localhost:1", False),
    ],
)
def test_workers_elsewhere_need_a_server_that_they_can_reach(monkeypatch, address, refused):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(task_runners.engine, "engine_active", lambda: True)
    for server_url, fits in (("http://127.0.0.1:4200/api", not refused), ("http://10.0.0.1:4200/api", True)):
        with temporary_settings({PREFECT_API_URL: server_url}):
            if fits:
                task_runners._check_server("dask", address)
            else:
                with pytest.raises(ValueError, match="listens on loopback"):
                    task_runners._check_server("dask", address)
