"""Worker processes that isolate the extraction from media files that hang or crash a decoder.

A worker gets one clip per call, or a batch if its extractor is faster with several. A worker that does not answer in
time, or dies, is replaced, and the clips of its batch are processed one by one: only the clip at fault gets a row in
the problems table.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from corpora.problems import Problem
from corpora.processes import exit_with_parent
from extractors.execution.reference import save_reference
from extractors.execution.units import (
    THREAD_LIMITS,
    UnitReport,
    clips_per_call,
    describe,
    extract_unit,
    isolate_failures,
    limit_threads,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import TracebackType

    from corpora.manifest import Clip
    from extractors.base import MediaCondition
    from extractors.store import FeatureMeta

logger = logging.getLogger(__name__)

Job = tuple[Path, str, Mapping[str, Any], Path, "MediaCondition | None"]
"""Arguments of `extract_unit` after the clips."""

GRACE = 10.0
"""Seconds in which an idle worker may exit by itself before it is killed."""

MEMORY_LIMIT = 4 << 30
"""Default limit on the bytes of a process that reads files of other people."""

MEMORY_POLL_SECONDS = 0.2
"""Seconds between two checks of a worker's memory."""


class WorkerLostError(RuntimeError):
    """A worker process died, or was killed, before it returned a result.

    Attributes:
        error: Error class for the problems table: `WorkerDied`, `Timeout` or `OutOfMemory`.
    """

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error

    def __reduce__(self) -> tuple[type[WorkerLostError], tuple[str, str]]:
        return type(self), (self.error, str(self))

    def explain(self, file: str, on_timeout: str) -> str:
        """Return a message that names the file and what to do; `on_timeout`: what to do after a timeout."""
        if self.error == "OutOfMemory":
            return f"{file}: {self}; reduce its resolution or length, or allow more memory"
        advice = on_timeout if self.error == "Timeout" else "try it again"
        return f"{file}: {self}; convert the file with a current ffmpeg, or {advice}"


def _serve(calls: Connection, folder: Path | None, threads: int) -> None:
    """Run a worker process: execute calls from its parent, one by one, until either of them ends."""
    limit_threads(threads)
    exit_with_parent()
    if folder is not None:
        os.chdir(folder)
    try:
        while True:
            function, arguments = calls.recv()
            result, raised = None, None
            try:
                result = function(*arguments)
            except (Exception, KeyboardInterrupt) as error:  # raised again in the caller
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                raised = error
            calls.send((result, raised))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


_environment = threading.Lock()


@contextmanager
def _thread_limits(threads: int) -> Iterator[None]:
    """Limit the threads of a process that is started: it imports numpy, which reads them, before it runs `_serve`."""
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
    """One worker process. The first call starts it, as does the first call after it was lost.

    Args:
        folder: Working directory, for relative paths in the calls; None: this process's.
        threads: Threads of its numeric libraries. The order of summation depends on their number, so features, which
            must not depend on the number of workers, need 1.
        memory: Bytes of resident memory beyond which the process is killed during a call; None: no limit.
    """

    def __init__(self, folder: Path | None = None, threads: int = 1, memory: int | None = None) -> None:
        self.memory = memory
        self._folder = folder
        self._threads = threads
        self._process: multiprocessing.process.BaseProcess | None = None
        self._calls: Connection | None = None

    @property
    def running(self) -> bool:
        """Whether the process is running, so that the next call need not start it."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Id of the process; None if it is not running."""
        process = self._process
        return process.pid if process else None

    def _start(self) -> Connection:
        spawn = multiprocessing.get_context("spawn")  # forked children of a threaded process can deadlock
        self._calls, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, self._folder, self._threads), daemon=True)
        with _thread_limits(self._threads):
            self._process.start()
        theirs.close()  # now the worker holds the only other end, and its death gives an end of file
        return self._calls

    def call(self, timeout: float | None, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function(*arguments)` in the process and return its result.

        Args:
            timeout: Seconds that the call may take; None: no limit.
            function: A picklable function.
            *arguments: Its picklable arguments.

        Raises:
            WorkerLostError: The process died (`WorkerDied`), or was killed at the time limit (`Timeout`) or the memory
                limit (`OutOfMemory`).
            Exception: Whatever the function raises.
        """
        calls = self._calls or self._start()
        try:
            calls.send((function, arguments))
            self._await_result(calls, timeout)
            result, error = calls.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as gone:
            code = self.close()
            raise WorkerLostError("WorkerDied", f"the worker process died ({_exit_reason(code)})") from gone
        if error is not None:
            raise error
        return result

    def _await_result(self, calls: Connection, timeout: float | None) -> None:
        """Wait until there is a result, or the process has died; kill the process if it exceeds a limit."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            waits = [] if self.memory is None else [MEMORY_POLL_SECONDS]
            if deadline is not None:
                waits.append(max(deadline - time.monotonic(), 0.0))
            if calls.poll(min(waits, default=None)):
                return
            if self.memory is not None and resident_memory(self.pid) > self.memory:
                self.close(grace=0)
                limit = f"{self.memory / 2**30:.1f} GiB"
                raise WorkerLostError("OutOfMemory", f"more than {limit} of memory used, and the worker was killed")
            if deadline is not None and time.monotonic() >= deadline:
                self.close(grace=0)
                raise WorkerLostError("Timeout", f"no result after {timeout:g} s, and the worker was killed")

    def close(self, grace: float = GRACE) -> int | None:
        """Stop the process, by force after `grace` seconds, and return its exit code."""
        process, calls = self._process, self._calls
        self._process = self._calls = None
        if process is None or calls is None:
            return None
        if grace:
            calls.close()  # stops an idle worker
            process.join(grace)
        process.kill()
        process.join()
        calls.close()
        return process.exitcode


def resident_memory(pid: int | None) -> int:
    """Return a process's resident memory in bytes, or 0 if it has ended."""
    try:
        return psutil.Process(pid).memory_info().rss if pid else 0
    except psutil.Error:
        return 0


def _exit_reason(code: int | None) -> str:
    """Describe an exit code; signal 9 most likely comes from the kernel's out-of-memory killer."""
    if code is None or code >= 0:
        return f"exit status {code}"
    return f"signal {-code}" + (", perhaps out of memory" if code == -9 else "")


class WorkerPool:
    """Worker processes for `extract_unit`, each of which builds its extractor once.

    Args:
        workers: Number of processes.
        clip_timeout: Seconds that one call may take.
        folder: See `Worker`.
        each: Called with the report of every batch of clips, in the thread that called `run`.
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
        """Number of concurrent calls of `run`; further ones wait."""
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
        """Run `extract_unit` in the next free worker process. May be called from several threads.

        Raises:
            ValueError: Unknown extractor or option.
            OSError: Scratch is not writable.
            WorkerLostError: A worker does not start.
        """
        worker = self._idle.get()
        job = (root, extractor, options, scratch, condition)
        try:
            meta: FeatureMeta = worker.call(None, describe, extractor, options)
            if condition is None:
                self._save_reference(worker, extractor, options, scratch)
            size: int = worker.call(None, clips_per_call, extractor, options)
            batches = [clips[i : i + size] for i in range(0, len(clips), size)]
            return _merged(meta, [report for batch in batches for report in self._extract(worker, meta, batch, job)])
        except KeyboardInterrupt:  # Ctrl-C reaches the workers first
            self._closed = True
            raise
        finally:
            self._idle.put(worker)

    def _save_reference(self, worker: Worker, extractor: str, options: Mapping[str, Any], scratch: Path) -> None:
        """Extract the reference clip; that a worker is lost with it must not stop an extraction."""
        try:
            worker.call(self.clip_timeout, save_reference, extractor, options, scratch)
        except WorkerLostError as lost:
            logger.warning("%s: the reference clip was not extracted: %s", extractor, lost)

    def _extract(self, worker: Worker, meta: FeatureMeta, clips: Sequence[Clip], job: Job) -> Iterator[UnitReport]:
        """Yield reports of the clips: one, or one per clip if the worker was lost with them."""

        def call(batch: Sequence[Clip]) -> UnitReport:
            if self._closed:
                raise RuntimeError("extraction was stopped")
            if not worker.running:
                worker.call(None, describe, *job[1:3])  # building the extractor does not count as a clip's time
            report: UnitReport = worker.call(self.clip_timeout, extract_unit, batch, *job)
            return report

        for batch, outcome in isolate_failures(call, clips, WorkerLostError):
            report = _lost_report(meta, batch[0], outcome) if isinstance(outcome, WorkerLostError) else outcome
            if self._each:
                self._each(report)
            yield report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(GRACE if kind is None else 0)

    def close(self, grace: float = GRACE) -> None:
        """Stop the workers, by force after `grace` seconds; running calls of `run` raise an error."""
        self._closed = True
        for worker in self._workers:
            worker.close(grace)


@dataclass(frozen=True, slots=True)
class Stage:
    """The stage that a process of a cluster, perhaps on another machine, works for.

    Attributes:
        host: Name of the stage's machine, for messages.
        folder: Project folder, which relative paths in parameters and manifest start from; the same on all machines.
        mark: File in scratch that exists while the stage runs; a machine that does not see it has another scratch.
        clip_timeout: See `WorkerPool`.
    """

    host: str
    folder: Path
    mark: Path
    clip_timeout: float


_own: dict[int, tuple[Stage, WorkerPool]] = {}  # by thread: a process of a cluster may have several


def own_pool(stage: Stage) -> WorkerPool:
    """Return this thread's pool of one worker for the stage; it is created on demand and ends with this process.

    Raises:
        ValueError: This machine does not share the stage's folders, or this process may not start processes.
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
    """Kill the workers of all pools of `own_pool`: their stage has ended."""
    while _own:
        _, (_, pool) = _own.popitem()
        pool.close(grace=0)


def _lost_report(meta: FeatureMeta, clip: Clip, lost: WorkerLostError) -> UnitReport:
    message = lost.explain(clip.media or clip.clip_id, "raise extract.clip_timeout if the clip is long")
    return UnitReport(meta, 0, 0, 0, (Problem(clip.clip_id, "extract", meta.modality, lost.error, message),))


def _merged(meta: FeatureMeta, reports: Sequence[UnitReport]) -> UnitReport:
    """Combine reports on different clips."""
    return UnitReport(
        meta,
        sum(report.extracted for report in reports),
        sum(report.reused for report in reports),
        sum(report.missing for report in reports),
        tuple(problem for report in reports for problem in report.problems),
        sum(report.seconds for report in reports),
    )
