"""Devices, distributed setup and prefetching."""

from __future__ import annotations

import os
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lightning_fabric import Fabric

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` selects the first available one of cuda, mps and cpu.

    Raises:
        ValueError: The device is not available on this machine, or to this build of torch.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
    }
    if not available.get(device.type, False):
        raise ValueError(f"train.device is {name!r}, but torch {torch.__version__} finds none here; use auto or cpu")
    return device


def start_fabric(device: torch.device, precision: str | int) -> Fabric:
    """Start Lightning Fabric for one process on `device`, or for the processes that `torchrun` started.

    Args:
        device: Device of a single process; several processes use one device of this type each.
        precision: auto, 32 or bf16, see `TrainConfig`.

    Raises:
        ModuleNotFoundError: Lightning Fabric is not installed; prediction and evaluation work without it.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "training needs Lightning Fabric: pip install lightning-fabric (prediction does without)"
        ) from error
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else 32
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    single_device = [device.index] if device.index is not None else 1
    fabric = Fabric(
        accelerator=device.type,
        strategy=DDPStrategy() if distributed else "auto",
        devices=local_processes if distributed else single_device,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")) if distributed else 1,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Compute with zeros in place of denormal numbers, in this thread.

    Gradients through hundreds of LSTM steps vanish into denormals, with which CPUs compute several times slower.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def prefetch(make: Callable[[Argument], Result], arguments: Iterable[Argument], ahead: int = 2) -> Iterator[Result]:
    """Yield `make(argument)` for each argument, in order, computed by a thread up to `ahead` results in advance."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    waiting: deque[Future[Result]] = deque()
    try:
        for argument in arguments:
            waiting.append(pool.submit(make, argument))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def peak_megabytes(device: torch.device) -> float | None:
    """Return the peak memory so far in MiB: of the GPU's tensors, or else of the process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
