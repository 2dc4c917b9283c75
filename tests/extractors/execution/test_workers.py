"""Workers that hang, die or lose their parent take one clip with them at the most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from corpora.files import sha256_of
from corpora.manifest import Clip
from extractors.execution.units import BATCH_CLIPS, THREAD_LIMITS, UnitReport
from extractors.execution.workers import Stage, Worker, WorkerLostError, WorkerPool, close_own_pools, own_pool
from extractors.registry import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NAME = "fake.trouble"
LIMIT = 3.0  # seconds; what a good clip takes is far below
MODULE = '''
import os, re, signal, time
import numpy as np
from extractors.base import FeatureSequence

class Trouble:
    """One step a clip; the file's text can ask for trouble."""
    modality, feature_names, signature = "audio", ("pid",), "trouble-v1"

    def __init__(self, batched=True):
        self.batched = batched

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


def write_clips(tmp_path: Path, contents: Sequence[str]) -> list[Clip]:
    clips = []
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.mp4").write_text(content)
        digest = sha256_of(tmp_path / f"{i}.mp4")
        clips.append(Clip(f"v/{i}", "v", "train", "en", f"{i}.mp4", "", sha256=digest, duration=2.0))
    return clips


def extract(
    tmp_path: Path,
    contents: Sequence[str],
    limit: float = LIMIT,
    each: Callable[[UnitReport], None] | None = None,
    batched: bool = True,
) -> UnitReport:
    clips = write_clips(tmp_path, contents)
    with WorkerPool(1, limit, each=each) as pool:
        return pool.run(clips, tmp_path, NAME, {"batched": batched}, tmp_path / "scratch")


@pytest.mark.parametrize(("batched", "calls"), [(True, [3]), (False, [1, 1, 1])])
def test_only_an_extractor_that_gains_from_it_is_given_several_clips(tmp_path, installed, batched, calls):
    given: list[int] = []
    extract(tmp_path, ["one", "two", "three"], each=lambda report: given.append(report.extracted), batched=batched)
    assert given == calls


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


@pytest.mark.parametrize("batched", [True, False])
def test_finished_clips_are_not_lost_with_the_worker(installed, tmp_path, batched):
    contents = [*(str(i) for i in range(10)), "crash"]
    report = extract(tmp_path, contents, batched=batched)
    assert (report.extracted, report.reused, [p.clip_id for p in report.problems]) == (10, 0, ["v/10"])
    results = list((tmp_path / "scratch").rglob("*.npz"))
    assert len(results) == 10
    assert extract(tmp_path, contents, batched=batched).reused == 10


def test_every_batch_is_reported_as_soon_as_it_is_done(installed, tmp_path):
    reports: list[UnitReport] = []
    whole = extract(tmp_path, [*(str(i) for i in range(BATCH_CLIPS + 1)), "crash"], each=reports.append)
    found = [(report.extracted, report.seconds, len(report.problems)) for report in reports]
    assert found == [(BATCH_CLIPS, 2.0 * BATCH_CLIPS, 0), (1, 2.0, 0), (0, 0.0, 1)]
    assert (whole.extracted, whole.seconds, len(whole.problems)) == (BATCH_CLIPS + 1, 2.0 * (BATCH_CLIPS + 1), 1)


def worker_processes() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if "--multiprocessing-fork" in child.cmdline()}


def stage(tmp_path: Path) -> Stage:
    """One whose folder and mark are there."""
    (tmp_path / "mark").touch()
    return Stage("here", tmp_path, tmp_path / "mark", LIMIT)


def test_a_cluster_process_has_one_worker_for_a_stage(installed, tmp_path):
    """Its relative paths start from the project's folder, wherever the cluster was started."""
    clips = write_clips(tmp_path, "ab")
    others = worker_processes()  # of tests before this one
    try:
        pool = own_pool(stage(tmp_path))
        assert pool.run(clips[:1], Path(), NAME, {}, tmp_path / "scratch").extracted == 1
        assert own_pool(stage(tmp_path)) is pool
        assert pool.run(clips, Path(), NAME, {}, tmp_path / "scratch").reused == 1
        (child,) = worker_processes() - others
        (tmp_path / "other").touch()
        other = own_pool(replace(stage(tmp_path), mark=tmp_path / "other"))
        assert other is not pool and not child.is_running()
        assert other.run(clips, Path(), NAME, {}, tmp_path / "scratch").reused == 2
    finally:
        close_own_pools()
    assert worker_processes() <= others


@pytest.mark.parametrize("missing", ["folder", "mark"])
def test_a_machine_that_does_not_share_the_folders_is_refused(tmp_path, missing):
    with pytest.raises(ValueError, match=r"nowhere is on here but not on .*DASHFUSION_SCRATCH"):
        own_pool(replace(stage(tmp_path), **{missing: tmp_path / "nowhere"}))


def test_a_process_that_may_have_no_workers_is_refused(tmp_path):
    worker = Worker()
    try:
        with pytest.raises(ValueError, match="--no-nanny"):
            worker.call(None, own_pool, stage(tmp_path))
    finally:
        worker.close()


def test_the_limit_of_threads_holds_for_libraries_that_a_worker_loads_at_its_start(monkeypatch):
    for name in THREAD_LIMITS:
        monkeypatch.delenv(name, raising=False)
    threadpool_info = pytest.importorskip("threadpoolctl").threadpool_info
    worker = Worker()
    try:
        found = worker.call(None, threadpool_info)
    finally:
        worker.close()
    assert found and all(library["num_threads"] == 1 for library in found)
    assert not any(name in os.environ for name in THREAD_LIMITS)


def test_an_interrupt_stops_the_pool(installed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path, ["interrupt"])


def test_an_error_says_where_in_the_worker_it_was_raised(installed, tmp_path):
    with pytest.raises(ValueError, match="no extractor is called") as raised, WorkerPool(1, LIMIT) as pool:
        pool.run([], tmp_path, "fake.nothing", {}, tmp_path)
    assert "extractors/registry.py" in raised.value.__notes__[0]


def test_a_lost_worker_is_replaced():
    worker = Worker()
    try:
        first = worker.call(None, os.getpid)
        assert worker.call(None, os.getpid) == first != os.getpid()
        with pytest.raises(WorkerLostError, match="signal 9"):
            worker.call(None, os.kill, first, signal.SIGKILL)
        assert not worker.running
        assert worker.call(None, os.getpid) != first
    finally:
        worker.close()
    assert not psutil.pid_exists(first)


def test_a_worker_that_needs_too_much_memory_is_killed_and_replaced():
    worker = Worker(memory=1)
    try:
        with pytest.raises(WorkerLostError, match=r"more than 0\.0 GiB of memory") as lost:
            worker.call(60, time.sleep, 3600)
        assert lost.value.error == "OutOfMemory" and not worker.running
        assert lost.value.explain("a.mp4", "x").startswith("a.mp4: more than")
        worker.memory = 1 << 40
        assert worker.call(60, os.getpid) != os.getpid()
        with pytest.raises(WorkerLostError, match=r"no result after 0\.3 s"):
            worker.call(0.3, time.sleep, 3600)
    finally:
        worker.close()


ORPHAN = """
import os, sys, threading, time
from extractors.execution.workers import Worker

if __name__ == "__main__":
    idle, busy = Worker(), Worker()
    pids = idle.call(None, os.getpid), busy.call(None, os.getpid)
    threading.Thread(target=busy.call, args=(None, time.sleep, 3600)).start()
    print(*pids, flush=True)
    time.sleep(3600)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "orphan.py").write_text(ORPHAN)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "orphan.py")],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
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
