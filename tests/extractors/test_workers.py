"""Workers that hang, die or lose their parent take one clip with them at the most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from corpora.files import sha256_of
from corpora.manifest import Clip
from extractors.base import ENTRY_POINT_GROUP
from extractors.run import UnitReport
from extractors.workers import Worker, WorkerLost, WorkerPool

NAME = "fake.trouble"
LIMIT = 3.0  # seconds; what a good clip takes is far below
MODULE = '''
import os, re, signal, time
import numpy as np
from extractors.base import FeatureSequence

class Trouble:
    """One step a clip; the file's text can ask for trouble."""
    modality, feature_names, signature = "audio", ("pid",), "trouble-v1"

    def extract(self, sources):
        for source in sources:
            match source.media.read_text():
                case "sleep":
                    time.sleep(3600)
                case "hold the GIL":
                    re.match("(a+)+$", "a" * 64 + "b")
                case "crash":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "interrupt":
                    raise KeyboardInterrupt
            ones = np.ones(1, np.float32)
            yield FeatureSequence(ones[:, None] * os.getpid(), ones, ones + 1, ones > 0)
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package that brings the extractor, found by this process and by those it starts."""
    site = tmp_path / "site"
    (site / "trouble-1.dist-info").mkdir(parents=True)
    (site / "trouble_extractor.py").write_text(MODULE)
    (site / "trouble-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1\n")
    (site / "trouble-1.dist-info" / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\n{NAME} = trouble_extractor:Trouble\n"
    )
    monkeypatch.syspath_prepend(str(site))
    return site


def extract(tmp_path: Path, contents: Sequence[str], limit: float = LIMIT) -> UnitReport:
    clips = []
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.mp4").write_text(content)
        digest = sha256_of(tmp_path / f"{i}.mp4")
        clips.append(Clip(f"v/{i}", "v", "train", "en", f"{i}.mp4", "", sha256=digest))
    with WorkerPool(1, limit) as pool:
        return pool.run(clips, tmp_path, NAME, {}, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("content", "error", "found"),
    [("sleep", "Timeout", "clip_timeout"), ("hold the GIL", "Timeout", "3 s"), ("crash", "WorkerDied", "signal 11")],
)
def test_a_clip_that_takes_its_worker_away_is_listed_and_the_others_go_on(installed, tmp_path, content, error, found):
    report = extract(tmp_path, ["a", "b", content, "c", "d"])
    assert report.extracted == 4
    (problem,) = report.problems
    assert (problem.clip_id, problem.modality, problem.error) == ("v/2", "audio", error)
    assert found in problem.message and "2.mp4" in problem.message


def test_finished_batches_are_not_lost_with_the_worker(installed, tmp_path):
    report = extract(tmp_path, [*(str(i) for i in range(10)), "crash"])
    assert (report.extracted, report.reused, [p.clip_id for p in report.problems]) == (10, 0, ["v/10"])
    results = list((tmp_path / "scratch").rglob("*.npz"))
    assert len(results) == 10
    assert extract(tmp_path, [*(str(i) for i in range(10)), "crash"]).reused == 10


def test_an_interrupt_stops_the_pool(installed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path, ["interrupt"])


def test_an_error_says_where_in_the_worker_it_was_raised(installed, tmp_path):
    with pytest.raises(ValueError, match="no extractor is called") as raised, WorkerPool(1, LIMIT) as pool:
        pool.run([], tmp_path, "fake.nothing", {}, tmp_path)
    assert "extractors/base.py" in raised.value.__notes__[0]


def test_a_lost_worker_is_replaced():
    worker = Worker(threads=1)
    try:
        first = worker.call(None, os.getpid)
        assert worker.call(None, os.getpid) == first != os.getpid()
        with pytest.raises(WorkerLost, match="signal 9"):
            worker.call(None, os.kill, first, signal.SIGKILL)
        assert not worker.running
        assert worker.call(None, os.getpid) != first
    finally:
        worker.close()
    assert not psutil.pid_exists(first)


ORPHAN = """
import os, sys, threading, time
from extractors.workers import Worker

if __name__ == "__main__":
    idle, busy = Worker(1), Worker(1)
    pids = idle.call(None, os.getpid), busy.call(None, os.getpid)
    threading.Thread(target=busy.call, args=(None, time.sleep, 3600)).start()
    print(*pids, flush=True)
    time.sleep(3600)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "orphan.py").write_text(ORPHAN)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "orphan.py")],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    time.sleep(0.2)  # the busy one is in its call
    parent.kill()
    parent.wait()
    parent.stdout.close()  # no reading to its end: workers that live on would hold it open
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive
