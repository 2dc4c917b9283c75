"""The problems table: which clip went wrong, where, and why. Nothing is skipped without a row here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.files import atomic_path

PROBLEMS_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stage", pa.string()),
        ("modality", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that went wrong with one clip.

    `stage` is prepare, extract or align; `modality` is text, audio, vision or empty where the whole clip is
    meant; `error` a short class such as `MissingMedia`; `message` says what was found and what to do.
    """

    clip_id: str
    stage: str
    modality: str
    error: str
    message: str


def write_problems(problems: Iterable[Problem], path: Path) -> None:
    """Write the table, also when it is empty: an empty table says that nothing went wrong."""
    table = pa.Table.from_pylist([asdict(p) for p in problems], schema=PROBLEMS_SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_problems(paths: Sequence[Path]) -> list[Problem]:
    """Rows of several problem tables, in the order of `paths`."""
    return [Problem(**row) for path in paths for row in pq.read_table(path, schema=PROBLEMS_SCHEMA).to_pylist()]
