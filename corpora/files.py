"""Writing a file so that a reader sees the old one or the whole new one, never half of it."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on an exception it is removed.

    The temporary name carries machine, process and thread, so that two writers of one path never share it, and what a
    killed writer left behind is known and removed by the next one. The folder is made when it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writers = f".{path.name}.{platform.node()[:32]}."
    for entry in [entry for entry in os.listdir(path.parent) if entry.startswith(writers)]:
        if not _running(entry.removeprefix(writers).removesuffix(".tmp").partition("-")[0]):
            path.with_name(entry).unlink(missing_ok=True)
    temporary = path.with_name(f"{writers}{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _running(pid: str) -> bool:
    """Whether a process of this machine has that id. What cannot be told, or is no id, counts as one that has."""
    if os.name != "posix":  # elsewhere signal 0 is not the harmless question that it is here
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it replaces `path`, on an exception it is removed.

    A run that was killed leaves the temporary folder behind, and the next one clears it: a folder has one
    writer at a time.
    """
    path = Path(path)
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
