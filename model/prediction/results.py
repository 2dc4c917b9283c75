"""The result of scoring one video, as dataclasses, JSON, Parquet and CSV.

The keys of `to_dict` and the columns of `RESULTS_SCHEMA` are a stable interface (docs/predict.md): new ones may be
added, none may change.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint.description import GENERATED_NOTICE
from model.config import MODALITIES
from model.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from model.evaluation.outliers import OutlierTest
    from model.prediction.protocol import Note

SCHEMA_VERSION = 1

SENTIMENTS = ("negative", "neutral", "positive")

GENERATED_TRAINING = "generated_training"
"""Code of the first warning of every score of a model that was trained on generated videos."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001  (spreadsheets take them)
"""Beginnings of text that a spreadsheet may run as a formula."""

UNLIKE_TRAINING = "unlike_training"
"""Code of the warning of a clip that is unlike the training clips."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Prediction interval of a score, see `model.evaluation.intervals`.

    Attributes:
        level: Nominal coverage, in (0, 1).
        low, high: Bounds, within the corpus's label range.
        clips: Held-out clips that the width was calibrated on.
    """

    level: float
    low: float
    high: float
    clips: int


@dataclass(frozen=True, slots=True)
class Score:
    """Sentiment of a clip.

    Attributes:
        value: Sentiment clipped to the corpus's label range, negative to positive.
        raw: Output of the network, not clipped.
        sentiment: One of `SENTIMENTS`, the corpus's three classes.
        label_class: The corpus's finest class: one of seven for [-3, 3], one of five for [-1, 1].
        interval: None if the checkpoint has no calibration for `used`, or if the clip is an outlier.
        used: Modalities that the score is based on.
        contributions: Score minus the score without the modality, for each used one; empty if only one was used.
        outlier_test: Whether the clip is like the training clips; None if the checkpoint cannot tell.
    """

    value: float
    raw: float
    sentiment: str
    label_class: str
    interval: Interval | None
    used: tuple[str, ...]
    contributions: Mapping[str, float]
    outlier_test: OutlierTest | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """A window of a video, in seconds from its start; `score` is None without a usable modality."""

    start: float
    end: float
    text: str
    score: Score | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A scored video.

    Attributes:
        name: File name as given.
        score: Score of the whole video.
        scored_by: `clip` (one forward pass over the whole video) or `windows` (mean over the windows, for a video far
            longer than the training clips).
        duration: Seconds; None for a prediction from features.
        text: Transcript, if known.
        text_source: `given`, `file` or `asr`; empty without a text.
        windows: Windows of a long video, in order; empty for a short one.
        warnings: Reasons to trust the score less.
        seconds: Time spent on `decode`, `features`, `transcribe` and `model`, which may overlap; `model` is the batch's
            time divided by its videos.
    """

    name: str
    score: Score
    scored_by: str
    duration: float | None
    text: str
    text_source: str
    windows: tuple[Window, ...]
    warnings: tuple[Note, ...]
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return {
            "file": self.name,
            "error": None,
            **_score_dict(self.score),
            "scored_by": self.scored_by,
            "duration": _rounded(self.duration, 3),
            "text": self.text,
            "text_source": self.text_source,
            "windows": [_window_dict(window) for window in self.windows],
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """A video that could not be scored: a short error class, and a message that says what was found and what to do."""

    name: str
    error: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as plain values for JSON, with the keys of `Prediction.to_dict`."""
        return {
            "file": self.name,
            "error": {"class": self.error, "message": self.message},
            **dict.fromkeys(("score", "raw_score", "sentiment", "class", "interval", "outlier_test")),
            "used": [],
            "contributions": {},
            **dict.fromkeys(("scored_by", "duration")),
            "text": "",
            "text_source": "",
            "windows": [],
            "warnings": [],
            "seconds": {},
        }


Result = Prediction | Failure


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def _score_dict(score: Score | None) -> dict[str, Any]:
    interval = score.interval if score else None
    test = score.outlier_test if score else None
    return {
        "score": _rounded(score.value) if score else None,
        "raw_score": _rounded(score.raw) if score else None,
        "sentiment": score.sentiment if score else None,
        "class": score.label_class if score else None,
        "interval": interval
        and {
            "level": interval.level,
            "low": round(interval.low, 4),
            "high": round(interval.high, 4),
            "clips": interval.clips,
        },
        "outlier_test": test
        and {"p_value": round(test.p_value, 4), "clips": test.clips, "modalities": list(test.modalities)},
        "used": list(score.used) if score else [],
        "contributions": {m: round(value, 4) for m, value in score.contributions.items()} if score else {},
    }


def _window_dict(window: Window) -> dict[str, Any]:
    times = {"start": round(window.start, 3), "end": round(window.end, 3)}
    return times | {"text": window.text, **_score_dict(window.score)}


_INTERVAL = pa.struct({"level": pa.float32(), "low": pa.float32(), "high": pa.float32(), "clips": pa.int32()})
_SCORE = {
    "score": pa.float32(),
    "raw_score": pa.float32(),
    "sentiment": pa.string(),
    "class": pa.string(),
    "interval": _INTERVAL,
    "outlier_test": pa.struct({"p_value": pa.float32(), "clips": pa.int32(), "modalities": pa.list_(pa.string())}),
    "used": pa.list_(pa.string()),
    "contributions": pa.struct(dict.fromkeys(MODALITIES, pa.float32())),
}
_WINDOW = pa.struct({"start": pa.float32(), "end": pa.float32(), "text": pa.string()} | _SCORE)
RESULTS_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "error": pa.struct({"class": pa.string(), "message": pa.string()}),
        **_SCORE,
        "scored_by": pa.string(),
        "duration": pa.float32(),
        "text": pa.string(),
        "text_source": pa.string(),
        "windows": pa.list_(_WINDOW),
        "warnings": pa.list_(pa.struct({"code": pa.string(), "message": pa.string()})),
        "seconds": pa.struct(dict.fromkeys(("decode", "features", "transcribe", "model"), pa.float32())),
    },
    {"dashfusion": f'{{"schema_version": {SCHEMA_VERSION}}}'},
)


def generated_notice(results: Sequence[Mapping[str, Any]]) -> str:
    """Return `GENERATED_NOTICE` if the results, as from `to_dict`, are of such a model, else an empty string."""
    codes = {warning["code"] for result in results for warning in result["warnings"][:1]}
    return GENERATED_NOTICE if GENERATED_TRAINING in codes else ""


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write the results, one row per video: as CSV if the file's name ends in .csv, else as Parquet (zstd)."""
    rows = [result.to_dict() for result in results]
    if path.suffix.lower() == ".csv":
        _write_csv(rows, path)
        return
    schema = RESULTS_SCHEMA
    if generated_notice(rows):
        facts = {"schema_version": SCHEMA_VERSION, "generated": True, "notice": GENERATED_NOTICE}
        schema = schema.with_metadata({"dashfusion": json.dumps(facts)})
    table = pa.Table.from_pylist(rows, schema=schema)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a column per single value of `RESULTS_SCHEMA`: `interval.low` for a nested one, lists joined by spaces.

    Warnings are two columns, `warnings` (codes) and `warnings.message`; of the windows only the number is written.
    """
    columns = [name for field in RESULTS_SCHEMA for name in _columns(field)]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            flat = _flatten(row)
            writer.writerow([_cell(flat.get(name)) for name in columns])


def _columns(field: pa.Field) -> Iterator[str]:
    if field.name == "warnings":
        yield from ("warnings", "warnings.message")
    elif pa.types.is_struct(field.type):
        yield from (f"{field.name}.{name}" for part in field.type for name in _columns(part))
    else:
        yield field.name


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif key == "warnings":
            flat[key] = " ".join(warning["code"] for warning in value)
            flat[f"{key}.message"] = "; ".join(warning["message"] for warning in value)
        elif key == "windows":
            flat[key] = len(value)
        else:
            flat[f"{prefix}{key}"] = " ".join(value) if isinstance(value, list) else value
    return flat


def _cell(value: Any) -> Any:
    """Return a CSV cell; text that a spreadsheet would run as a formula starts with an apostrophe."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS) and not re.fullmatch(r"[+-]\d+(\.\d+)?", value):
        return f"'{value}"
    return value
