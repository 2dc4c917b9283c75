"""Results of studies: one tidy table each, `<study>.parquet`, and all of them together as one folder of Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.files import atomic_file

SCHEMA_VERSION = 1
METADATA_KEY = b"dashfusion"

ALL_CLIPS = "all"
CLEAN = ""
"""The condition of a split that is evaluated as it is."""

STUDY_SCHEMA = pa.schema(
    [
        pa.field("study", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("condition", pa.string(), nullable=False),
        pa.field("level", pa.float64()),
        pa.field("clips", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("statistic", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("cost", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a study.

    Attributes:
        variant: what was trained.
        seed: of the training; None for what is said of all seeds together.
        condition: how the clips were shown, such as `audio noise`; `CLEAN`.
        level: of the condition, such as 10 (dB); None where it has none.
        clips: which of the split: `ALL_CLIPS`, or a slice such as `text misleads`.
        metric: a key of metrics/<split>.json, or of what training costs: madds, fusion_madds (millions of
            multiply-adds of a clip of middling length), step_seconds, train_seconds, parameters.
        statistic: value (of one seed); of all seeds mean, std, difference (to the study's reference, of the means), or
            area (mean of a metric over a condition's levels, by the trapezoidal rule).
        value: None where undefined.
        low, high: of a mean or difference, a 95 % bootstrap interval over the clips; else None.
        cost: madds of the variant, beside each of its numbers.
    """

    variant: str
    seed: int | None
    condition: str
    level: float | None
    clips: str
    metric: str
    statistic: str
    value: float | None
    low: float | None = None
    high: float | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A question that a study was made to answer; `holds` is None where it is neither yes nor no. All text is plain."""

    question: str
    answer: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What a study found.

    Attributes:
        study: its name.
        title, question: for people.
        corpus, split, clips: what it was measured on; clips is their number.
        reference: the variant that others are compared with.
        variants: in the order in which they are to be shown -> what each changes, dotted key -> value.
        seeds: of each variant.
        metrics: those to be shown, the one that the study is about first.
        conditions: in their order -> unit of the level (such as dB), empty where it has none.
        pareto: cost and metric of a plot of the best trade-offs, such as (fusion_madds, f1_np); None: no such plot.
        answers: to the questions that it was made for.
        notes: what could not be measured, and why.
        record: as in metrics/run.json: code, parameters, data, versions, machine.
        rows: the numbers.
    """

    study: str
    title: str
    question: str
    corpus: str
    split: str
    clips: int
    reference: str
    variants: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    metrics: Sequence[str]
    conditions: Mapping[str, str] = field(default_factory=dict)
    pareto: tuple[str, str] | None = None
    answers: Sequence[Answer] = ()
    notes: Sequence[str] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = ()

    def find(self, **wanted: Any) -> Iterator[Row]:
        """Rows whose attributes have these values."""
        return (row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items()))

    def one(self, **wanted: Any) -> Row | None:
        """The first of `find`; None where there is none."""
        return next(self.find(**wanted), None)


def write_study(result: StudyResult, folder: Path) -> Path:
    """Write `folder`/<study>.parquet, whole or not at all; its path."""
    meta = asdict(result)
    del meta["rows"]
    schema = STUDY_SCHEMA.with_metadata({METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION, **meta})})
    rows = [{"study": result.study, **asdict(row)} for row in result.rows]
    path = Path(folder) / f"{result.study}.parquet"
    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")
    return path


def read_study(path: Path) -> StudyResult:
    """Read one table.

    Raises:
        ValueError: the file is of another schema version, or no study at all.
    """
    table = pq.read_table(path)
    meta = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if meta.pop("schema_version", None) != SCHEMA_VERSION or table.schema.names != STUDY_SCHEMA.names:
        raise ValueError(f"{path}: no results of a study that this version reads; run the study again, or remove it")
    rows = [Row(**{k: v for k, v in row.items() if k != "study"}) for row in table.to_pylist()]
    answers = [Answer(**answer) for answer in meta.pop("answers")]
    pareto = tuple(meta.pop("pareto") or ()) or None
    return StudyResult(**meta, answers=answers, pareto=pareto, rows=rows)


def read_studies(folder: Path) -> list[StudyResult]:
    """All studies of a folder, by name. Raises as `read_study` does."""
    return [read_study(path) for path in sorted(Path(folder).glob("*.parquet"))]
