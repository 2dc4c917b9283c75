"""Stand-ins for what the server's worker processes run, for tests of the processes that need no model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flows.serving import worker

if TYPE_CHECKING:
    from pathlib import Path


def examine(path: Path, max_seconds: float) -> float:
    """Examine a file; one whose name begins with `slow` takes an hour."""
    if path.name.startswith("slow"):
        time.sleep(3600)
    return worker.examine(path, max_seconds)


def prepare(model: worker.Model, folder: Path) -> str | None:
    """Load no model; on the device `nonsense` the first process fails, and another one takes an hour."""
    if model.device == "nonsense":
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            time.sleep(3600)
        raise ValueError(f"no such device: {model.device}")
    return None


def score(upload: worker.Upload) -> dict[str, Any]:
    """Score an upload with 0: one whose name begins with `slow` after an hour, `waits` once its file is there."""
    if upload.name.startswith("slow"):
        time.sleep(3600)
    while upload.name.startswith("waits") and not upload.path.exists():
        time.sleep(0.01)
    return {"file": upload.name, "error": None, "raw_score": 0.0, "seconds": {}}
