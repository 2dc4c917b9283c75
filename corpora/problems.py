"""The problems table: which clip went wrong, where, and why. Nothing is skipped without a row here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PROBLEMS_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stage", pa.string()),
        ("modality", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("traceback", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that went wrong with one clip.

    `stage` is prepare, transcribe, extract or align; `modality` is text, audio, vision or empty where the whole clip is
    meant; `error` a short class such as `MissingMedia`; `message` says what was found and what to do. `traceback`
    is the name, without its ending, of the file with the error's full trace
    (`extractors.execution.cache.traceback_path`); empty where there is none.
    """

    clip_id: str
    stage: str
    modality: str
    error: str
    message: str
    traceback: str = ""


def write_problems(problems: Iterable[Problem], path: Path) -> None:
    """Write the table, also when it is empty: an empty table says that nothing went wrong."""
    table = pa.Table.from_pylist([asdict(p) for p in problems], schema=PROBLEMS_SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_problems(paths: Sequence[Path]) -> list[Problem]:
    """Rows of several problem tables, in the order of `paths`; a column that a table of old lacks is empty there."""
    tables = (pq.read_table(path, schema=PROBLEMS_SCHEMA) for path in paths)
    return [
        Problem(**{name: value or "" for name, value in row.items()}) for table in tables for row in table.to_pylist()
    ]
