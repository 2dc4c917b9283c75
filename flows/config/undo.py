"""Files that `dashfusion use` writes, with a record of their bytes before its last change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from corpora.files import atomic_file

RECORD = Path(".dashfusion/undo.json")
"""The record, in the project's folder: path of each file -> its content before the last change, null for none."""


def write_recorded(project: Path, contents: Mapping[Path, bytes | None]) -> None:
    """Write files, after recording their present content; None removes a file. Without a difference nothing happens.

    Each file appears whole or not at all, in the order given. A killed process leaves the first files new and the
    others old; the record is complete by then.
    """
    before = {path: _read(path) for path in contents}
    if before == contents:
        return
    record = {_name(path, project): _decode(content) for path, content in before.items()}
    _write(project / RECORD, json.dumps(record, indent=1).encode())
    for path, content in contents.items():
        _write(path, content)


def restore(project: Path, paths: Sequence[Path]) -> None:
    """Write what the record has of these files, and record what they hold now: a second call takes this back.

    Raises:
        ValueError: There is no record, or it cannot be read.
    """
    try:
        record = json.loads((project / RECORD).read_text(encoding="utf-8"))
        contents = {path: _encode(record[_name(path, project)]) for path in paths}
    except FileNotFoundError as error:
        raise ValueError("nothing to undo: dashfusion use has changed nothing in this folder") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{RECORD}: not a record of dashfusion use ({error!r}); remove it") from error
    write_recorded(project, contents)


def _name(path: Path, project: Path) -> str:
    return path.relative_to(project).as_posix()


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def _decode(content: bytes | None) -> str | None:
    """Return bytes as text; whatever is not UTF-8 survives the way back."""
    return None if content is None else content.decode("utf-8", "surrogateescape")


def _encode(content: str | None) -> bytes | None:
    return None if content is None else content.encode("utf-8", "surrogateescape")
