"""The problems table: which clips failed, in which stage, and why. Nothing is skipped without a row here."""

from __future__ import annotations

from collections import Counter
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


class TooManyFailuresError(RuntimeError):
    """More clips failed than the parameters allow. The message summarises what failed and what to do."""


def check_failures(
    problems: Sequence[Problem], total: int, max_failed_fraction: float, table: Path, tracebacks: Path | None = None
) -> None:
    """Raise an error if more than `max_failed_fraction` of `total` clips failed.

    Args:
        problems: problems of the stage, one or more per failed clip.
        total: number of clips.
        max_failed_fraction: maximum fraction of failed clips, from 0 to 1.
        table: path of the problems table, for the message.
        tracebacks: folder of the tracebacks, for the message; None: the stage keeps none.

    Raises:
        TooManyFailuresError: with the counts by error, the first clips, and what to do.
    """
    failed = len({problem.clip_id for problem in problems})
    if failed <= max_failed_fraction * total:
        return
    counts = ", ".join(f"{error} {count}" for error, count in Counter(p.error for p in problems).most_common())
    first = "\n".join(
        f"  {p.clip_id}{f' ({p.modality})' if p.modality else ''}: {p.error}: {p.message}" for p in problems[:5]
    )
    where = f"; its column `traceback` names the files in {tracebacks}" if tracebacks else ""
    raise TooManyFailuresError(
        f"{failed} of {total} clips failed, {failed / total:.1%}; max_failed_fraction allows "
        f"{max_failed_fraction:.1%}.\nBy error: {counts}\nThe first:\n{first}\n"
        f"All of them are in {table}, which `dashfusion problems` shows{where}. Repair or remove these clips and run "
        "the stage again (finished work is kept), or raise extract.max_failed_fraction."
    )
