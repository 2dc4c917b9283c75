"""The table of parts of the split: a row a part, with the metrics as text and as marks on a common scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.display.metrics import METRICS, Interval, MetricText, format_metric, format_interval

if TYPE_CHECKING:
    from model.evaluation.subgroups import SubgroupMetrics

FEWEST = 10
"""Clips of a part from which its metrics say something; of fewer they are grey."""


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Metrics of the whole split, of its parts, and of the videos with enough clips, the greatest error first.

    Attributes:
        videos: of many, those with the greatest and those with the least error.
        videos_measured: how many have enough clips.
        accuracy: key of the metric that `SubgroupMetrics.accuracy` is.
    """

    whole: SubgroupMetrics
    parts: Sequence[SubgroupMetrics]
    videos: Sequence[SubgroupMetrics]
    videos_measured: int
    accuracy: str


@dataclass(frozen=True, slots=True)
class Scale:
    """What a column of marks covers: from `low` to `high`, and where the whole split lies."""

    low: float
    high: float
    whole: float | None

    def place(self, value: float) -> float:
        """From 0 to 100."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(100 * min(max(share, 0), 1), 1)


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval and, to compare, the whole split's; places from 0 to 100."""

    at: float
    low: float | None
    high: float | None
    whole: float | None


@dataclass(frozen=True, slots=True)
class PartRow:
    """A line of a table; `small`: of too few clips to say much."""

    group: str
    name: str
    clips: str
    small: bool
    cells: Sequence[tuple[str, str, Mark | None]]


@dataclass(frozen=True, slots=True)
class PartTable:
    """Lines, above each column of marks what its ends are, and what the accuracy is called."""

    rows: Sequence[PartRow]
    scales: Sequence[tuple[str, str]]
    accuracy: MetricText


def part_table(breakdown: Breakdown) -> PartTable:
    """The whole split and its parts."""
    return _table(breakdown, [breakdown.whole, *breakdown.parts], FEWEST)


def video_table(breakdown: Breakdown) -> PartTable:
    """The videos, on scales of their own: their metrics are further apart."""
    return _table(breakdown, breakdown.videos, 0)


def _table(breakdown: Breakdown, parts: Sequence[SubgroupMetrics], fewest: int) -> PartTable:
    on_scale = [breakdown.whole, *(part for part in parts if part.clips >= fewest)]
    columns = [
        (breakdown.accuracy, "accuracy", _scale(on_scale, "accuracy", 1.0)),
        ("mae", "mae", _scale(on_scale, "mae", None)),
    ]
    rows = [
        PartRow(
            group=part.group,
            name=part.name,
            clips=f"{part.clips:,}",
            small=part.clips < fewest,
            cells=[
                _cell(key, getattr(part, name), getattr(part, f"{name}_interval"), scale)
                for key, name, scale in columns
            ],
        )
        for part in parts
    ]
    scales = [tuple(_told_end(key, end) for end in (scale.low, scale.high)) for key, _, scale in columns]
    return PartTable(rows, scales, METRICS[breakdown.accuracy])


def _told_end(key: str, end: float) -> str:
    """An end of a scale, which is a round number."""
    return f"{end:.0%}" if METRICS[key].is_fraction else f"{end:.1f}"


def _cell(key: str, value: float | None, between: Interval, scale: Scale) -> tuple[str, str, Mark | None]:
    """Value and interval as text, and as a mark."""
    if value is None:
        return format_metric(key, None), "", None
    low, high = (scale.place(edge) for edge in between) if between and between[0] < between[1] else (None, None)
    whole = None if scale.whole is None else scale.place(scale.whole)
    return format_metric(key, value), format_interval(key, between), Mark(scale.place(value), low, high, whole)


def _scale(parts: Sequence[SubgroupMetrics], name: str, most: float | None) -> Scale:
    """From the least end of an interval to the greatest, rounded to tenths; the first part is the whole split."""
    ends = [end for part in parts for end in getattr(part, f"{name}_interval") or ()]
    ends += [value for part in parts[:1] if (value := getattr(part, name)) is not None]
    if not ends:
        return Scale(0.0, most or 1.0, None)
    high = math.ceil(10 * max(ends)) / 10 if most is None else most
    return Scale(math.floor(10 * min(ends)) / 10, high, getattr(parts[0], name))
