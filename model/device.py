"""Where tensors live."""

from __future__ import annotations

import torch


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
