"""Crash-safe writing of files and folders: a reader sees the old content or the whole new content."""

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

CACHE_TAG = "CACHEDIR.TAG"
CACHE_TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Features of clips; safe to delete.\n"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it replaces `path`, on an exception it is removed.

    The content is on disk before the new name appears, so that a power failure leaves no empty or partial file.
    Machine, process and thread are part of the temporary name: concurrent writers of one path do not collide, and the
    next writer removes the file of a killed one. Missing parent folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{platform.node()[:32]}."
    for leftover in [entry for entry in path.parent.iterdir() if entry.name.startswith(prefix)]:
        if not _is_running(leftover.name.removeprefix(prefix).removesuffix(".tmp").partition("-")[0]):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f"{prefix}{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`. On success it replaces `path`, on an exception it is removed.

    As with `atomic_file`, all content is on disk before the new name appears. A killed run leaves its temporary folder
    behind, which the next one removes, or completes if only its last rename was missing: a folder may only have one
    writer at a time.
    """
    path = Path(path)
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    _finish_replacing(path, temporary, old)
    for leftover in (old, temporary):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            _sync(entry)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        _finish_replacing(path, temporary, old)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _finish_replacing(path: Path, temporary: Path, old: Path) -> None:
    """Complete the replacement of a folder by a complete one that was interrupted between its two renames.

    Only there do both folders exist, and `path` does not: a writer removes `old` before it creates `temporary`.
    """
    if temporary.exists() and old.exists() and not path.exists():
        temporary.replace(path)


def _sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    if path.is_dir() and os.name != "posix":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(pid: str) -> bool:
    """Return whether this machine runs a process with that id; True as well where that cannot be determined."""
    if os.name != "posix":  # elsewhere signal 0 is not a harmless query
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's content, read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def tag_scratch(scratch: Path) -> None:
    """Mark a folder as scratch: backup tools skip it, and `prune` may clean it."""
    if not (scratch / CACHE_TAG).exists():
        with atomic_file(scratch / CACHE_TAG) as temporary:
            temporary.write_text(CACHE_TAG_TEXT)
