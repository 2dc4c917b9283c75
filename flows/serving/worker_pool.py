"""A pool of worker processes that score uploads, with a bounded queue and limits on time and memory.

A file that hangs or crashes its decoder, or exhausts memory, costs only a worker process, which is replaced. The
server process itself never opens an upload.
"""

from __future__ import annotations

import contextvars
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from extractors.execution.workers import MEMORY_LIMIT, Worker, WorkerLostError, resident_memory
from flows.display.metrics import class_words, format_clock
from flows.serving.errors import ApiError, stopping_error
from flows.serving.telemetry import observe_parts
from flows.serving.worker import InvalidOptionError, Model, Upload, examine, prepare, prepare_examiner, score
from media.container import FrameSizeError, MediaError
from model.checkpoint.description import first_notice, read_description
from model.data.info import is_generated

logger = logging.getLogger(__name__)

START_LIMIT = 300.0
"""Maximum seconds for a worker to load its models, which may include a large speech recogniser."""

EXAMINE_LIMIT = 10.0
"""Maximum seconds to read a file's headers and count its packets, which takes well under a second for usual files."""

EXAMINERS = 4
"""Processes that examine uploads, so that a file that takes long does not hold up the others. Started when needed."""

POLL_SECONDS = 0.2
"""Seconds between two checks while processes end."""

MEMORY_GROWTH_LIMIT = 512 << 20
"""Bytes by which a worker's memory may grow after its start, before it is replaced between two uploads."""

MAX_RETRY_AFTER = 60
"""Maximum value of the Retry-After header in seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on uploads.

    Attributes:
        size: Bytes of a request.
        length: Seconds of a clip.
        upload_seconds: Seconds from a request's headers to its last byte.
        scoring_seconds: Seconds of a worker's time for one clip.
        memory: Bytes of a worker process.
        waiting: Uploads that may be received or queued, in addition to those being scored.
    """

    size: int = 200 << 20
    length: float = 300.0
    upload_seconds: float = 300.0
    scoring_seconds: float = 120.0
    memory: int = MEMORY_LIMIT
    waiting: int = 8

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > (-1 if name == "waiting" else 0):
                raise ValueError(f"{name.replace('_', ' ')} is {getattr(self, name)}: it must be more than 0")


@dataclass(slots=True)
class _Job:
    upload: Upload
    answer: Future[dict[str, Any]] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)  # the request's, for the log


class ScoringPool:
    """Worker processes that score one upload at a time each.

    Args:
        model: Model that each worker loads.
        limits: Limits on uploads.
        workers: Number of processes.
        folder: Folder for the clip that workers warm up with.

    Attributes:
        description: Content of the checkpoint's checkpoint.json.
        recogniser: Speech recogniser for uploads without a text, or None. Known once `start` has returned.

    Raises:
        FileNotFoundError, ValueError: There is no checkpoint, or its version is not supported.
    """

    def __init__(self, model: Model, limits: Limits, workers: int, folder: Path) -> None:
        self.model, self.limits = model, limits
        self.description = read_description(model.folder)
        self.recogniser: str | None = None
        self._folder = folder
        self._workers = [Worker(memory=limits.memory) for _ in range(workers)]
        self._start_memory: dict[Worker, int] = {}
        self._examiners = [Worker(memory=limits.memory) for _ in range(EXAMINERS)]
        self._idle_examiners = deque(self._examiners)
        self._examiner_threads = ThreadPoolExecutor(EXAMINERS, thread_name_prefix="examine")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queued: set[Future[dict[str, Any]]] = set()
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]
        self._capacity = workers + limits.waiting
        self._admitted = 0
        self._mean_seconds = 1.0  # moving average of an upload's scoring time
        self._stopping = threading.Event()

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return len(self._workers)

    @property
    def stopping(self) -> bool:
        """Whether no more uploads are admitted."""
        return self._stopping.is_set()

    @property
    def waiting(self) -> int:
        """Number of uploads being received, queued or scored."""
        return self._admitted

    @property
    def capacity(self) -> int:
        """Maximum of `waiting`."""
        return self._capacity

    @property
    def queued(self) -> int:
        """Number of uploads that wait for a worker."""
        return len(self._queued)

    def worker_memory(self) -> list[int]:
        """Return the resident bytes of each worker process, 0 for one that does not run."""
        return [resident_memory(worker.pid) for worker in self._workers]

    def start(self) -> None:
        """Start the processes, and return when all of them can score.

        Raises:
            FileNotFoundError, ValueError: The model cannot be used here; the message says what to do.
        """
        with ThreadPoolExecutor(self.workers) as threads:
            starts = [threads.submit(self._prepare, worker) for worker in self._workers]
            try:
                for future in starts:
                    self.recogniser = future.result()
            except BaseException as error:
                while self._kill_all() or not all(future.done() for future in starts):
                    time.sleep(POLL_SECONDS)
                if isinstance(error, WorkerLostError):
                    raise ValueError(f"no worker process could be started: {error}") from error
                raise
        for thread in self._threads:
            thread.start()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Reserve capacity for an upload, from its first byte on. Must be called from the event loop's thread.

        Raises:
            ApiError: The pool is at capacity, or stopping.
        """
        if self.stopping:
            raise stopping_error()
        if self._admitted >= self._capacity:
            wait = min(max(round(self._mean_seconds * self._admitted / self.workers), 1), MAX_RETRY_AFTER)
            message = f"{self._admitted} uploads are being scored or wait; try again in {wait} s"
            raise ApiError("busy", message, {"Retry-After": str(wait)})
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    def examine(self, path: Path, name: str) -> Future[None]:
        """Check in a separate process whether a file may be scored. The future raises `ApiError` if not."""
        return self._examiner_threads.submit(contextvars.copy_context().run, self._examine, path, name)

    def score(self, upload: Upload) -> Future[dict[str, Any]]:
        """Queue an upload for scoring.

        Returns:
            A future of `Result.to_dict()`, which raises `ApiError` if scoring fails. It can be cancelled until a
            worker takes the upload.
        """
        job = _Job(upload)
        self._queued.add(job.answer)
        job.answer.add_done_callback(self._queued.discard)  # cancelled
        self._jobs.put(job)
        return job.answer

    def stop(self) -> None:
        """Admit no more uploads and reject the queued ones; those being scored continue."""
        self._stopping.set()

    def close(self, grace: float = 0.0) -> None:
        """Stop, wait up to `grace` seconds for the uploads being scored, and end all processes."""
        self.stop()
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + grace
        started = [thread for thread in self._threads if thread.ident is not None]
        for thread in started:
            thread.join(max(deadline - time.monotonic(), 0.0))
        while any(thread.is_alive() for thread in started):  # a thread may just be starting a process
            self._kill_all()
            time.sleep(POLL_SECONDS)
        self._examiner_threads.shutdown(wait=False, cancel_futures=True)
        while self._kill_all():
            time.sleep(POLL_SECONDS)
        self._examiner_threads.shutdown()
        for worker in (*self._workers, *self._examiners):
            worker.close(grace=0)

    def _kill_all(self) -> bool:
        """Kill the processes, and return whether there were any."""
        killed = [_kill(worker) for worker in (*self._workers, *self._examiners)]
        return any(killed)

    def _prepare(self, worker: Worker) -> str | None:
        recogniser: str | None = worker.call(START_LIMIT, prepare, self.model, self._folder)
        self._start_memory[worker] = resident_memory(worker.pid)
        return recogniser

    def _examine(self, path: Path, name: str) -> None:
        examiner = self._idle_examiners.popleft()  # there are as many as threads
        try:
            _reap(examiner)
            if not examiner.running:
                examiner.call(START_LIMIT, prepare_examiner)  # not counted as the file's time
            length = examiner.call(EXAMINE_LIMIT, examine, path, self.limits.length)
        except FrameSizeError as error:
            raise ApiError("too_many_pixels", str(error).replace(str(path), name)) from error
        except MediaError as error:
            raise ApiError("not_media", str(error).replace(str(path), name)) from error
        except WorkerLostError as lost:
            message = f"{name}: its headers cannot be read ({lost}); convert it with a current ffmpeg"
            raise (stopping_error() if self.stopping else ApiError("crashed", message)) from lost
        finally:
            self._idle_examiners.append(examiner)
        check_length(length, name, self.limits.length)

    def _serve(self, worker: Worker) -> None:
        """Process jobs with one worker until the queue yields None. Runs in the worker's own thread."""
        while (job := self._jobs.get()) is not None:
            if not job.answer.set_running_or_notify_cancel():
                continue
            self._queued.discard(job.answer)
            began = time.monotonic()
            observe_parts({"queue": began - job.queued_at})
            try:
                if self.stopping:
                    raise stopping_error()
                result = job.context.run(self._score, worker, job.upload)
                observe_parts(result["seconds"])
                job.answer.set_result(result)
            except Exception as error:
                job.answer.set_exception(error)
            self._mean_seconds += 0.1 * (time.monotonic() - began - self._mean_seconds)
            self._replace_if_grown(worker)

    def _score(self, worker: Worker, upload: Upload) -> dict[str, Any]:
        _reap(worker)
        try:
            if not worker.running:
                self._prepare(worker)
        except (WorkerLostError, ValueError, OSError, KeyboardInterrupt) as error:  # Ctrl-C reaches the worker too
            logger.error("no worker can be started: %s", error)
            raise ApiError("stopping" if self.stopping else "no_worker", "no worker can be started") from error
        try:
            result: dict[str, Any] = worker.call(self.limits.scoring_seconds, score, upload)
        except InvalidOptionError as error:
            raise ApiError("invalid", str(error)) from error
        except MemoryError as error:
            raise ApiError("too_much_memory", f"{upload.name}: scoring it needs too much memory") from error
        except WorkerLostError as lost:
            raise self._explain_loss(lost, upload.name) from lost
        if result["error"]:
            raise ApiError("not_scorable", result["error"]["message"])
        return result

    def _explain_loss(self, lost: WorkerLostError, name: str) -> ApiError:
        """Return the error for an upload whose worker was lost."""
        if self.stopping:
            return stopping_error()
        logger.warning("a worker was lost and is replaced: %s", lost)
        if lost.error == "OutOfMemory":
            return ApiError("too_much_memory", f"{name}: {lost}; reduce its resolution")
        if lost.error == "Timeout":
            limit = f"{self.limits.scoring_seconds:g} s"
            return ApiError("clip_timeout", f"{name}: scoring it took longer than {limit}; cut it shorter")
        return ApiError("crashed", f"{name}: {lost}; convert it with a current ffmpeg")

    def _replace_if_grown(self, worker: Worker) -> None:
        """Replace a worker whose memory has grown, now that no upload waits for it."""
        at_start = self._start_memory.get(worker, 0)
        memory = resident_memory(worker.pid)
        if self.stopping or not worker.running or memory < at_start + MEMORY_GROWTH_LIMIT:
            return
        logger.info("a worker's memory has grown from %d to %d MiB", at_start >> 20, memory >> 20)
        worker.close()
        with suppress(WorkerLostError, ValueError, OSError):  # the next upload tries again, and reports the error
            self._prepare(worker)


def check_length(length: float, name: str, limit: float) -> None:
    """Reject a file that is too long.

    Args:
        length: Duration in seconds; it need not be exact beyond the limit.
        name: File name, for the message.
        limit: Maximum duration in seconds.

    Raises:
        ApiError: The file exceeds the limit.
    """
    if length > limit:
        raise ApiError(
            "too_long",
            f"{name}: {format_clock(length)} long; the limit is {format_clock(limit)}, so cut it "
            "(or use `dashfusion predict`, which has no limit)",
        )


def default_worker_count() -> int:
    """Return one per two cores, since audio and vision run in parallel, but at most four: each loads all models."""
    return max(1, min((os.cpu_count() or 1) // 2, 4))


def model_facts(pool: ScoringPool) -> Mapping[str, Any]:
    """Return the checkpoint's description and the upload limits, the response of GET /model."""
    description, limits = pool.description, pool.limits
    dataset = description["dataset"]
    calibration = description.get("calibration", {})
    return {
        "notice": first_notice(description) or None,
        "corpus": dataset["corpus"],
        "generated": is_generated(dataset),
        "language": pool.model.language or dataset["language"],
        "label_range": dataset["label_range"],
        "classes": class_words(dataset["label_range"]),
        "modalities": description["train"]["modalities"],
        "extractors": {m: entry["extractor"] for m, entry in dataset["modalities"].items()},
        "seed": description["seed"],
        "epoch": description["epoch"],
        "metrics": {name: value for name, value in description["metrics"].items() if name.startswith("valid_")},
        "levels": sorted({float(name) for levels in calibration.values() for name in levels if name != "n"}),
        "clip_seconds": dataset.get("training", {}).get("seconds", {}),
        "recogniser": pool.recogniser,
        "limits": {"bytes": limits.size, "seconds": limits.length},
    }


def _reap(worker: Worker) -> None:
    """Close a worker whose process has ended while idle, so that the next file is not blamed for it."""
    if worker.running and not resident_memory(worker.pid):
        worker.close(grace=0)


def _kill(worker: Worker) -> bool:
    """Kill a worker's process, and return whether there was one. A pending call raises `WorkerLostError`."""
    pid = worker.pid
    try:
        if pid is None or (process := psutil.Process(pid)).status() == psutil.STATUS_ZOMBIE:
            return False
        process.kill()
    except psutil.Error:
        return False
    return True
