"""ScoringPool: worker processes that each hold a whole predictor, a line of uploads before them, and limits on both.

A file that hangs its decoder, crashes it, or takes all memory costs a worker process, which is replaced; the server's
own process opens no upload.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from extractors.execution.workers import Worker, WorkerLostError
from flows.prediction.html import clock
from flows.serving.errors import ApiError
from flows.serving.worker import InvalidOptionError, Model, Upload, examine, prepare, score
from media.container import MediaError, MediaInfo
from model.checkpoint.description import read_description

logger = logging.getLogger(__name__)

START_LIMIT = 300.0
"""Seconds that a worker may take to load its models, a large recogniser's weights included."""

EXAMINE_LIMIT = 20.0
"""Seconds that reading a file's headers and counting its packets may take."""

LOOK = 0.2
"""Seconds between two looks at the workers' memory."""

MEMORY_GROWTH_LIMIT = 512 << 20
"""Bytes. A worker that has so much more than after its start is replaced before the next upload."""

LONGEST_WAIT = 60
"""Seconds: the most that Retry-After says."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an upload may cost.

    Attributes:
        size: bytes of a request.
        length: seconds of a clip.
        pixels: of a picture; 7680 x 4320 is what the largest cameras make.
        upload_seconds: from a request's headers to its last byte.
        scoring_seconds: of a worker's time for one clip.
        memory: bytes that a worker process may take.
        waiting: uploads that may be on their way or in line, beside those that are being scored.
    """

    size: int = 200 << 20
    length: float = 300.0
    pixels: int = 7680 * 4320
    upload_seconds: float = 300.0
    scoring_seconds: float = 120.0
    memory: int = 4 << 30
    waiting: int = 8

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > (-1 if name == "waiting" else 0):
                raise ValueError(f"{name.replace('_', ' ')} is {getattr(self, name)}: it must be more than 0")


@dataclass(slots=True)
class _Job:
    upload: Upload
    answer: Future[dict[str, Any]]


class ScoringPool:
    """Workers that score uploads, one at a time each.

    Args:
        model: what they load.
        limits: what an upload may cost.
        workers: processes; each holds all the models.
        folder: where a worker may write a clip to try itself with.

    Attributes:
        description: the content of the checkpoint's checkpoint.json.
        recogniser: what uploads without a text are heard by; None: nothing. Known once `start` has returned.

    Raises:
        FileNotFoundError, ValueError: no checkpoint, or one of another version.
    """

    def __init__(self, model: Model, limits: Limits, workers: int, folder: Path) -> None:
        self.model, self.limits = model, limits
        self.description = read_description(model.folder)
        self.recogniser: str | None = None
        self._folder = folder
        self._workers = [Worker() for _ in range(workers)]
        self._first_memory: dict[Worker, int] = {}
        self._too_large: set[int] = set()
        self._examiner = Worker()
        self._examining = ThreadPoolExecutor(1, thread_name_prefix="examine")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]
        self._places = workers + limits.waiting
        self._held = 0
        self._seconds = 1.0  # of a typical upload
        self._stopping, self._closed = threading.Event(), threading.Event()

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workers)

    @property
    def stopping(self) -> bool:
        """Whether no upload is taken any more."""
        return self._stopping.is_set()

    @property
    def waiting(self) -> int:
        """Uploads that are on their way, in line, or being scored."""
        return self._held

    def start(self) -> None:
        """Start the processes; returns when all of them can score.

        Raises:
            FileNotFoundError, ValueError: the model cannot be used here; the message says the way out.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            starting = [pool.submit(self._prepare, worker) for worker in self._workers]
            try:
                for future in starting:
                    self.recogniser = future.result()
            except BaseException as error:
                while self._kill_all() or not all(future.done() for future in starting):
                    time.sleep(LOOK)
                if isinstance(error, WorkerLostError):
                    raise ValueError(f"no worker process could be started: {error}") from error
                raise
        for thread in (*self._threads, threading.Thread(target=self._watch_memory, daemon=True)):
            thread.start()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line, which an upload holds from its first byte on. Taken by one thread, the event loop's.

        Raises:
            ApiError: there is none, or the server is being stopped.
        """
        if self.stopping:
            raise ApiError("stopping", "the server is being stopped")
        if self._held >= self._places:
            wait = min(max(round(self._seconds * self._held / self.workers), 1), LONGEST_WAIT)
            message = f"{self._held} uploads are being scored or wait; try again in {wait} s"
            raise ApiError("busy", message, {"Retry-After": str(wait)})
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def examine(self, path: Path, name: str) -> Future[None]:
        """Look whether a file may be scored, in a process of its own; the future raises `ApiError` where it may not."""
        return self._examining.submit(self._examine, path, name)

    def score(self, upload: Upload) -> Future[dict[str, Any]]:
        """The result as `to_dict` of `model.prediction.results` gives it; the future raises `ApiError` where there is none.

        One that is cancelled before a worker takes it is not begun.
        """
        job = _Job(upload, Future())
        self._jobs.put(job)
        return job.answer

    def stop(self) -> None:
        """Take no upload any more, and refuse those that wait; what is being scored goes on."""
        self._stopping.set()

    def close(self, grace: float = 0.0) -> None:
        """Stop, and end all processes: those that score, `grace` seconds later at most."""
        self.stop()
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + grace
        begun = [thread for thread in self._threads if thread.ident is not None]
        for thread in begun:
            thread.join(max(deadline - time.monotonic(), 0.0))
        while any(thread.is_alive() for thread in begun):  # one of them may just be starting a process
            self._kill_all()
            time.sleep(LOOK)
        self._kill_all()
        self._examining.shutdown(cancel_futures=True)
        self._closed.set()
        for worker in (*self._workers, self._examiner):
            worker.close(grace=0)

    def _kill_all(self) -> bool:
        """End the processes at once; whether there were any."""
        return any([_kill(worker) for worker in (*self._workers, self._examiner)])

    def _prepare(self, worker: Worker) -> str | None:
        recogniser: str | None = worker.call(START_LIMIT, prepare, self.model, self._folder)
        self._first_memory[worker] = _memory(worker.pid)
        return recogniser

    def _examine(self, path: Path, name: str) -> None:
        _reap(self._examiner)
        try:
            info, length = self._examiner.call(EXAMINE_LIMIT, examine, path, self.limits.length)
        except MediaError as error:
            raise ApiError("not_media", str(error).replace(str(path), name)) from error
        except WorkerLostError as lost:
            message = f"{name}: its headers cannot be read ({lost}); convert it with a current ffmpeg"
            raise ApiError("stopping" if self.stopping else "crashed", message) from lost
        check(info, length, name, self.limits)

    def _serve(self, worker: Worker) -> None:
        """The life of the thread that belongs to a worker: job by job, until it is told to end."""
        while (job := self._jobs.get()) is not None:
            if not job.answer.set_running_or_notify_cancel():
                continue
            began = time.monotonic()
            try:
                if self.stopping:
                    raise ApiError("stopping", "the server is being stopped")
                job.answer.set_result(self._score(worker, job.upload))
            except Exception as error:  # raised again where it is waited for
                job.answer.set_exception(error)
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            self._replace_grown(worker)

    def _score(self, worker: Worker, upload: Upload) -> dict[str, Any]:
        limits = self.limits
        _reap(worker)
        try:
            if not worker.running:
                self._prepare(worker)
        except (WorkerLostError, ValueError, OSError, KeyboardInterrupt) as error:  # the last: the terminal's, to the worker
            logger.error("no worker can be started: %s", error)
            raise ApiError("stopping" if self.stopping else "no_worker", "no worker can be started") from error
        pid = worker.pid
        try:
            result: dict[str, Any] = worker.call(limits.scoring_seconds, score, upload)
        except InvalidOptionError as error:
            raise ApiError("invalid", str(error)) from error
        except MemoryError as error:
            raise ApiError("too_much_memory", f"{upload.name}: scoring it needs too much memory") from error
        except WorkerLostError as lost:
            raise self._lost(lost, pid, upload.name) from lost
        if result["error"]:
            raise ApiError("not_scorable", result["error"]["message"])
        return result

    def _lost(self, lost: WorkerLostError, pid: int | None, name: str) -> ApiError:
        """What a lost worker's upload is answered."""
        if self.stopping:
            return ApiError("stopping", "the server is being stopped")
        logger.warning("a worker was lost and is replaced: %s", lost)
        if pid in self._too_large:
            most = f"{self.limits.memory / 2**30:.1f} GiB"
            return ApiError("too_much_memory", f"{name}: scoring it took more than {most}; make its picture smaller")
        if lost.error == "Timeout":
            most = f"{self.limits.scoring_seconds:g} s"
            return ApiError("clip_timeout", f"{name}: scoring it took longer than {most}; cut it shorter")
        return ApiError("crashed", f"{name}: {lost}; convert it with a current ffmpeg")

    def _replace_grown(self, worker: Worker) -> None:
        """Give a worker whose memory has grown a new process, now that nobody waits for it."""
        first = self._first_memory.get(worker, 0)
        if self.stopping or not worker.running or _memory(worker.pid) < first + MEMORY_GROWTH_LIMIT:
            return
        logger.info("a worker's memory has grown from %d to %d MiB", first >> 20, _memory(worker.pid) >> 20)
        worker.close()
        with suppress(WorkerLostError, ValueError, OSError):  # the next upload tries again, and tells
            self._prepare(worker)

    def _watch_memory(self) -> None:
        """Kill workers that take more memory than they may; who waits for them hears of it."""
        while not self._closed.wait(LOOK):
            for worker in (*self._workers, self._examiner):
                if (pid := worker.pid) is not None and _memory(pid) > self.limits.memory:
                    self._too_large.add(pid)
                    _kill(worker)


def check(info: MediaInfo, length: float, name: str, limits: Limits) -> None:
    """Refuse a file that is too long or too large to be decoded.

    Args:
        info: what it declares.
        length: seconds that are in it; it need not have been read beyond the limit.

    Raises:
        ApiError: the message says what was found and what to do.
    """
    lasts = max(info.duration or 0.0, length)
    if lasts > limits.length:
        raise ApiError(
            "too_long",
            f"{name}: {clock(lasts)} long; up to {clock(limits.length)} are taken, so cut it "
            "(or use `dashfusion predict`, which takes any length)",
        )
    width, height = info.width or 0, info.height or 0
    if width * height > limits.pixels:
        raise ApiError("too_many_pixels", f"{name}: a picture of {width} x {height}; make it smaller")


def default_worker_count() -> int:
    """One for every two cores, since sound and picture are read side by side; four at most: each holds all models."""
    return max(1, min((os.cpu_count() or 1) // 2, 4))


def model_facts(scorers: ScoringPool) -> Mapping[str, Any]:
    """What the checkpoint is, and what the server takes: the answer to GET /model."""
    description, limits = scorers.description, scorers.limits
    dataset = description["dataset"]
    calibration = description.get("calibration", {})
    return {
        "corpus": dataset["corpus"],
        "language": scorers.model.language or dataset["language"],
        "label_range": dataset["label_range"],
        "modalities": description["train"]["modalities"],
        "extractors": {m: entry["extractor"] for m, entry in dataset["modalities"].items()},
        "seed": description["seed"],
        "epoch": description["epoch"],
        "metrics": {name: value for name, value in description["metrics"].items() if name.startswith("valid_")},
        "levels": sorted({float(name) for known in calibration.values() for name in known if name != "n"}),
        "clip_seconds": dataset.get("training", {}).get("seconds", {}),
        "recogniser": scorers.recogniser,
        "limits": {"bytes": limits.size, "seconds": limits.length},
    }


def _memory(pid: int | None) -> int:
    """Bytes that a process takes; 0 where it is gone."""
    try:
        return psutil.Process(pid).memory_info().rss if pid else 0
    except psutil.Error:
        return 0


def _reap(worker: Worker) -> None:
    """Forget a process that has ended while it had nothing to do, lest the next file be blamed for it."""
    if worker.running and not _memory(worker.pid):
        worker.close(grace=0)


def _kill(worker: Worker) -> bool:
    """End its process at once, if there is one; whoever waits for its answer finds it lost."""
    pid = worker.pid
    try:
        if pid is None or (process := psutil.Process(pid)).status() == psutil.STATUS_ZOMBIE:
            return False
        process.kill()
    except psutil.Error:
        return False
    return True
