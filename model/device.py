"""Where tensors live, how they get there in time, and the processes that share the work."""

from __future__ import annotations

import os
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lightning_fabric import Fabric

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes the first of cuda, mps and cpu that is there.

    Raises:
        ValueError: a device that this machine, or this build of torch, does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
    }
    if not there.get(device.type, False):
        raise ValueError(f"train.device is {name!r}, but torch {torch.__version__} finds none here; use auto or cpu")
    return device


def start_fabric(device: torch.device, precision: str | int) -> Fabric:
    """Lightning Fabric for one process on `device`, or for the processes that `torchrun` started.

    Args:
        precision: auto, 32 or bf16, see `TrainConfig`.

    Raises:
        ModuleNotFoundError: Lightning Fabric is not installed; prediction and evaluation do without.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "training needs Lightning Fabric: pip install lightning-fabric (prediction does without)"
        ) from error
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else 32
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    alone = [device.index] if device.index is not None else 1
    fabric = Fabric(
        accelerator=device.type,
        strategy=DDPStrategy() if several else "auto",
        devices=processes if several else alone,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")) if several else 1,
        precision={32: "32-true", "bf16": "bf16-mixed"}[precision],
    )
    fabric.launch()
    return fabric


def prefetch(make: Callable[[Argument], Result], arguments: Iterable[Argument], ahead: int = 2) -> Iterator[Result]:
    """`make(argument)` for each argument, in their order, made by a thread up to `ahead` before they are asked for."""
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
    """The most memory that was in use so far: that of the GPU's tensors, elsewhere that of the process.

    None where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
