"""What a prediction says of one video, as data, as JSON and as a Parquet row.

The keys of `to_dict` and the columns of `RESULTS_SCHEMA` are described in docs/predict.md and stay as they are: what
is new comes beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.config import MODALITIES
from model.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA_VERSION = 1

SENTIMENTS = ("negative", "neutral", "positive")


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true label of such a clip lies in `level` of the cases, by the errors on `clips` held-out ones."""

    level: float
    low: float
    high: float
    clips: int


@dataclass(frozen=True, slots=True)
class Notice:
    """What to know before trusting a score: a stable code, and the message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Score:
    """Sentiment of a clip.

    Attributes:
        value: within the corpus's range, negative to positive.
        raw: the network's own number, which may lie a little outside the range.
        sentiment: one of `SENTIMENTS`: the corpus's classes of three.
        label_class: the corpus's finest class: of seven for [-3, 3], of five for [-1, 1].
        interval: None where it is not known.
        used: modalities that the score is from.
        contributions: of each of these, how much higher the score is with it than without; empty where there is one.
    """

    value: float
    raw: float
    sentiment: str
    label_class: str
    interval: Interval | None
    used: tuple[str, ...]
    contributions: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a video, seconds from its start; `score` is None where there is nothing in it to go by."""

    start: float
    end: float
    text: str
    score: Score | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A scored video.

    Attributes:
        name: the file, as it was given.
        score: of the whole video.
        scored_by: clip: the network has seen all of it at once. windows: it is far longer than what the network was
            trained on, and its score is the mean over the windows.
        duration: seconds; None where it was made from features.
        text: what is said, as far as is known.
        text_source: given, file or asr; empty where there is no text.
        windows: the time line of a long video, in order; empty for a short one.
        warnings: in plain words.
        seconds: `decode`, `features`, `transcribe`, `model`. They may overlap; a batch's `model` is shared out evenly.
    """

    name: str
    score: Score
    scored_by: str
    duration: float | None
    text: str
    text_source: str
    windows: tuple[Window, ...]
    warnings: tuple[Notice, ...]
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
    """A video that could not be scored: a short class, and what was found and what to do."""

    name: str
    error: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the keys of `Prediction.to_dict`."""
        return {
            "file": self.name,
            "error": {"class": self.error, "message": self.message},
            **dict.fromkeys(("score", "raw_score", "sentiment", "class", "interval")),
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


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write the results as Parquet (zstd), one row a video."""
    table = pa.Table.from_pylist([result.to_dict() for result in results], schema=RESULTS_SCHEMA)
    with atomic_file(Path(path)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
