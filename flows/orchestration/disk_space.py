"""The message for a full disk."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

from flows.orchestration.settings import scratch_folder

PHRASE = "No space left on device"
"""The operating system's message, which errors of libraries contain even if they are not an `OSError`."""


def full_disk_message(error: BaseException) -> str | None:
    """Return a line that names the full disk and what can be freed; None if no full disk caused the error."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) == errno.ENOSPC or PHRASE in str(cause):
            scratch = scratch_folder()
            place = getattr(cause, "filename", None) or _fullest(Path.cwd(), scratch, Path(tempfile.gettempdir()))
            size = sum(file.lstat().st_size for file in scratch.rglob("*")) / 2**30
            return (
                f"no space left on the disk of {place}; finished work is kept, and the next run resumes from there. "
                f"To free some: {scratch} holds {size:.1f} GiB, of which `dashfusion cache prune` removes what "
                "params.yaml does not need; `dvc gc --workspace` removes outputs of earlier settings from DVC's cache"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _fullest(*folders: Path) -> Path:
    """Return the folder with the least free space: a failed write does not name its file."""
    return min((folder for folder in folders if folder.exists()), key=lambda folder: shutil.disk_usage(folder).free)
