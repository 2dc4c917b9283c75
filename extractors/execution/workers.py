"""Worker processes that survive what a media file can do to them: a decoder that hangs, or takes its process down.

A worker gets a clip a call, or several where its extractor gains from that. Where it gives no answer in time, or dies,
it is replaced and the clips go through one by one; a clip that fails so by itself becomes a row in the problems table,
and the others go on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from corpora.problems import Problem
from corpora.processes import exit_with_parent
from extractors.execution.units import THREAD_LIMITS, UnitReport, clips_at_a_time, describe, extract_unit, limit_threads

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import TracebackType

    from corpora.manifest import Clip
    from extractors.base import MediaCondition
    from extractors.store import FeatureMeta

logger = logging.getLogger(__name__)

Job = tuple[Path, str, Mapping[str, Any], Path, "MediaCondition | None"]  # what `extract_unit` takes beside the clips

GRACE = 10.0
"""Seconds that an idle worker has to end by itself."""


class WorkerLostError(RuntimeError):
    """A worker process ended, or was killed, before it gave its answer. `error` is the problem's class."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error

    def __reduce__(self) -> tuple[type[WorkerLostError], tuple[str, str]]:
        return type(self), (self.error, str(self))


def _serve(calls: Connection, folder: Path | None, threads: int) -> None:
    """The life of a worker process: calls from its parent, one by one, until either of them ends."""
    limit_threads(threads)
    exit_with_parent()
    if folder is not None:
        os.chdir(folder)
    try:
        while True:
            function, arguments = calls.recv()
            try:
                answer = function(*arguments), None
            except (Exception, KeyboardInterrupt) as error:  # raised again where the call came from
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = None, error
            calls.send(answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


_environment = threading.Lock()


@contextmanager
def _thread_limits(threads: int) -> Iterator[None]:
    """The environment of a process that is started: it loads numpy, which looks there, before it comes to `_serve`."""
    with _environment:
        before = {name: os.environ.get(name) for name in THREAD_LIMITS}
        os.environ.update(dict.fromkeys(THREAD_LIMITS, str(threads)))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


class Worker:
    """One worker process; it is started by the first call, and again by the first one after it was lost.

    Args:
        folder: what relative paths in the calls start from; None: this process's working directory.
        threads: that its numeric libraries may use. Sums go in another order with other numbers of them, so features,
            which may not depend on the number of workers, want one.
    """

    def __init__(self, folder: Path | None = None, threads: int = 1) -> None:
        self._folder = folder
        self._threads = threads
        self._process: multiprocessing.process.BaseProcess | None = None
        self._calls: Connection | None = None

    @property
    def running(self) -> bool:
        """Whether the next call finds the process of the last one."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Of the process; None where none runs."""
        process = self._process
        return process.pid if process else None

    def _start(self) -> Connection:
        spawn = multiprocessing.get_context("spawn")  # forked children of a threaded process can deadlock
        self._calls, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, self._folder, self._threads), daemon=True)
        with _thread_limits(self._threads):
            self._process.start()
        theirs.close()  # the worker's end is then the only one, and its death an end of file
        return self._calls

    def call(self, timeout: float | None, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)` in the process.

        Args:
            timeout: seconds that it may take; None: any time.

        Raises:
            WorkerLostError: the process died (`WorkerDied`), or was killed at the time limit (`Timeout`).
            Exception: whatever the function raises.
        """
        calls = self._calls or self._start()
        try:
            calls.send((function, arguments))
            if not calls.poll(timeout):
                self.close(grace=0)
                raise WorkerLostError("Timeout", f"no result after {timeout:g} s, and the worker was killed")
            result, error = calls.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as gone:
            code = self.close()
            raise WorkerLostError("WorkerDied", f"the worker process died ({_death(code)})") from gone
        if error is not None:
            raise error
        return result

    def close(self, grace: float = GRACE) -> int | None:
        """End the process, by force after `grace` seconds; its exit code."""
        process, calls = self._process, self._calls
        self._process = self._calls = None
        if process is None or calls is None:
            return None
        if grace:
            calls.close()  # which ends an idle worker
            process.join(grace)
        process.kill()
        process.join()
        calls.close()
        return process.exitcode


def _death(code: int | None) -> str:
    """An exit code in words; killed by signal 9 it was most likely for the memory that it took."""
    if code is None or code >= 0:
        return f"exit status {code}"
    return f"signal {-code}" + (", perhaps for want of memory" if code == -9 else "")


class WorkerPool:
    """Worker processes for `extract_unit`, each with its own extractor, built once.

    Args:
        workers: processes.
        clip_timeout: seconds that one clip may take.
        folder: see `Worker`.
        each: called with the report on every batch of clips, in the thread that called `run`.
    """

    def __init__(
        self,
        workers: int,
        clip_timeout: float,
        *,
        folder: Path | None = None,
        each: Callable[[UnitReport], None] | None = None,
    ) -> None:
        self.clip_timeout = clip_timeout
        self._each = each
        self._closed = False
        self._workers = [Worker(folder) for _ in range(workers)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    @property
    def size(self) -> int:
        """Calls of `run` that go on at a time; further ones wait."""
        return len(self._workers)

    def run(
        self,
        clips: Sequence[Clip],
        root: Path,
        extractor: str,
        options: Mapping[str, Any],
        scratch: Path,
        condition: MediaCondition | None = None,
    ) -> UnitReport:
        """`extract_unit` in the next free worker process. To be called from several threads at a time.

        Raises:
            ValueError: no such extractor or option.
            OSError: scratch cannot be written.
            WorkerLostError: a worker does not come up at all.
        """
        worker = self._idle.get()
        job = (root, extractor, options, scratch, condition)
        try:
            meta: FeatureMeta = worker.call(None, describe, extractor, options)
            size: int = worker.call(None, clips_at_a_time, extractor, options)
            batches = [clips[i : i + size] for i in range(0, len(clips), size)]
            return _joined(meta, [report for batch in batches for report in self._batch(worker, meta, batch, job)])
        except KeyboardInterrupt:  # of the terminal, which reaches the workers first
            self._closed = True
            raise
        finally:
            self._idle.put(worker)

    def _batch(self, worker: Worker, meta: FeatureMeta, clips: Sequence[Clip], job: Job) -> list[UnitReport]:
        """Reports on the clips: one, or after a loss one a clip, since nothing tells which of them it was."""
        if self._closed:
            raise RuntimeError("extraction was stopped")
        if not worker.running:
            worker.call(None, describe, *job[1:3])  # building the extractor is no clip's time
        try:
            report = worker.call(self.clip_timeout, extract_unit, clips, *job)
        except WorkerLostError as lost:
            if len(clips) > 1:
                logger.warning("%s among %d clips, going through them one by one", lost, len(clips))
                return [report for clip in clips for report in self._batch(worker, meta, [clip], job)]
            report = _lost(meta, clips[0], lost)
        if self._each:
            self._each(report)
        return [report]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(GRACE if kind is None else 0)

    def close(self, grace: float = GRACE) -> None:
        """End the workers, by force after `grace` seconds; calls of `run` that go on end with an error."""
        self._closed = True
        for worker in self._workers:
            worker.close(grace)


@dataclass(frozen=True, slots=True)
class Stage:
    """What a cluster's process, perhaps on another machine, has to know of the stage that it works for.

    Attributes:
        host: the stage's machine, for messages.
        folder: the project's, where relative paths in parameters and manifest start; the same on all machines.
        mark: a file in scratch that is there as long as the stage runs; who does not see it has another scratch.
        clip_timeout: as for `WorkerPool`.
    """

    host: str
    folder: Path
    mark: Path
    clip_timeout: float


_own: dict[int, tuple[Stage, WorkerPool]] = {}  # by thread, of which a cluster's process may have several


def own_pool(stage: Stage) -> WorkerPool:
    """This thread's pool of one worker for the stage; it is made on demand and ends with this process.

    Raises:
        ValueError: this machine does not share the stage's folders, or this process may have no workers.
    """
    thread = threading.get_ident()
    known, pool = _own.get(thread, (None, None))
    if pool is not None and known == stage:
        return pool
    if pool is not None:
        pool.close()
    here = platform.node()
    for path in (stage.folder, stage.mark):
        if not path.exists():
            raise ValueError(
                f"{path} is on {stage.host} but not on {here}: the project's folder and scratch "
                "(DASHFUSION_SCRATCH) must be on a disk that all machines of the cluster see under the same path"
            )
    if multiprocessing.current_process().daemon:
        raise ValueError(
            f"the Dask worker on {here} may not start processes: start it with --no-nanny, "
            "or with DASK_DISTRIBUTED__WORKER__DAEMON=False in its environment"
        )
    pool = WorkerPool(1, stage.clip_timeout, folder=stage.folder)
    _own[thread] = stage, pool
    return pool


def close_own_pools() -> None:
    """End the workers of `own_pool`, at once: the stage that they worked for is over."""
    while _own:
        _, (_, pool) = _own.popitem()
        pool.close(grace=0)


def _lost(meta: FeatureMeta, clip: Clip, lost: WorkerLostError) -> UnitReport:
    advice = "raise extract.clip_timeout if the clip is long" if lost.error == "Timeout" else "try it again"
    message = f"{clip.media or clip.clip_id}: {lost}; convert the file with a current ffmpeg, or {advice}"
    problem = Problem(clip.clip_id, "extract", meta.modality, lost.error, message)
    return UnitReport(meta, 0, 0, 0, (problem,))


def _joined(meta: FeatureMeta, reports: Sequence[UnitReport]) -> UnitReport:
    """One report of several on different clips."""
    return UnitReport(
        meta,
        sum(report.extracted for report in reports),
        sum(report.reused for report in reports),
        sum(report.missing for report in reports),
        tuple(problem for report in reports for problem in report.problems),
        sum(report.seconds for report in reports),
    )
