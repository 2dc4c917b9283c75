"""A stand-in for the server's examination of uploads that never ends for some files."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flows.serving import worker

if TYPE_CHECKING:
    from pathlib import Path


def examine(path: Path, max_seconds: float) -> float:
    """Examine a file; one whose name begins with `slow` takes an hour."""
    if path.name.startswith("slow"):
        time.sleep(3600)
    return worker.examine(path, max_seconds)
