"""Worker processes for the trainings of a study, one per GPU or sharing the cores."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from extractors.execution.workers import GRACE, Worker
from flows.orchestration import engine


class StoppedError(RuntimeError):
    """The trainings were stopped before this call began."""


class TrainingPool:
    """Worker processes that run calls in turn.

    Args:
        workers: Number of processes.
        threads: Threads of each process.
        gpus: Whether the n-th process sees only the n-th GPU.
    """

    def __init__(self, workers: int, threads: int, gpus: bool) -> None:
        self._workers = [Worker(threads=threads) for _ in range(workers)]
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopped = False
        self._gpus = gpus
        for number in range(workers):
            self._idle.put(number)

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self._workers)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function(*arguments)` in the next idle process; safe to call from several threads."""
        number = self._idle.get()
        worker = self._workers[number]
        try:
            if self._stopped:
                raise StoppedError("the study was stopped")
            if self._gpus and not worker.running:
                worker.call(None, _select_gpu, number)
            return worker.call(None, function, *arguments)
        except KeyboardInterrupt:  # a terminal's Ctrl-C reaches the workers first
            self._stopped = True
            raise
        finally:
            self._idle.put(number)

    def close(self, grace: float) -> None:
        """End the processes, by force after `grace` seconds."""
        for worker in self._workers:
            worker.close(grace)


def _select_gpu(number: int) -> None:
    """Restrict a worker process to one GPU, before it initialises CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)


@contextmanager
def training_pool(device: str, workers: int, trials: int) -> Iterator[TrainingPool]:
    """Provide a pool sized for the machine; on GPUs it holds the slot that keeps other trainings off them.

    Args:
        device: As in `train.device`.
        workers: Number of processes; 0: one per GPU, or per core if no GPU is used.
        trials: Number of trainings: the pool has no more processes.
    """
    from model.device import resolve_device

    gpus = 0
    if resolve_device(device).type == "cuda":
        import torch

        gpus = torch.cuda.device_count()
    cores = os.cpu_count() or 1
    count = max(1, min(trials, workers or gpus or cores, gpus or trials))
    threads = 1 if not gpus and count > 1 else max(1, cores // count)
    engine.log(f"runner: processes, {count} of this machine, {'one GPU' if gpus else f'threads: {threads}'} each")
    pool = TrainingPool(count, threads, bool(gpus))
    grace = 0.0
    try:
        with engine.gpu_slot() if gpus else nullcontext():
            yield pool
            grace = GRACE
    finally:
        pool.close(grace)
