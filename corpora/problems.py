"""The problems table: which clips failed, in which stage, and why. Nothing is skipped without a row here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.tables import write_table

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


def printable(text: str) -> str:
    """Return a text with escapes for surrogates, which stand for bytes of file names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of one clip. All its texts are `printable`.

    Attributes:
        stage: prepare, transcribe, extract or align.
        modality: text, audio or vision; empty where the problem is the whole clip's.
        error: a short class such as `MissingMedia`.
        message: what was found and what to do.
        traceback: reference of the stored traceback (`extractors.execution.cache.traceback_path`); empty for none.
    """

    clip_id: str
    stage: str
    modality: str
    error: str
    message: str
    traceback: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, printable(getattr(self, field.name)))


def write_problems(problems: Iterable[Problem], path: Path) -> None:
    """Write the table, also when it is empty: an empty table says that nothing went wrong."""
    write_table([asdict(problem) for problem in problems], PROBLEMS_SCHEMA, path)


def read_problems(paths: Sequence[Path]) -> list[Problem]:
    """Read several problem tables in the order of `paths`. Columns that an older table lacks are read as empty."""
    tables = (pq.read_table(path, schema=PROBLEMS_SCHEMA) for path in paths)
    return [
        Problem(**{name: value or "" for name, value in row.items()}) for table in tables for row in table.to_pylist()
    ]
