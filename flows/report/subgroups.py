"""Tables of subgroups: a row each, with the metrics as text and as marks on a common scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.display.metrics import METRICS, Interval, MetricText, format_interval, format_metric

if TYPE_CHECKING:
    from model.evaluation.subgroups import SubgroupMetrics

MIN_CLIPS = 10
"""Smaller subgroups are grey, and do not stretch the scale."""


@dataclass(frozen=True, slots=True)
class SubgroupAnalysis:
    """Metrics of the whole split, its subgroups and its speakers.

    Attributes:
        whole: The whole split.
        subgroups: Subgroups of clips.
        speakers: Speakers, or videos where they are unknown, with enough clips, largest error first; of many, the worst
            and the best.
        speakers_measured: Number of speakers with enough clips.
        accuracy: Key of the metric `SubgroupMetrics.accuracy`.
    """

    whole: SubgroupMetrics
    subgroups: Sequence[SubgroupMetrics]
    speakers: Sequence[SubgroupMetrics]
    speakers_measured: int
    accuracy: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Range of a column of marks, and the value of the whole split."""

    low: float
    high: float
    whole: float | None

    def position(self, value: float) -> float:
        """Return the position of a value, from 0 to 100; values beyond the range are clipped."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(100 * min(max(share, 0), 1), 1)


@dataclass(frozen=True, slots=True)
class Mark:
    """Positions, from 0 to 100, of a value, its interval and the whole split's value."""

    value: float
    low: float | None
    high: float | None
    whole: float | None


@dataclass(frozen=True, slots=True)
class SubgroupRow:
    """A row of a table; a cell is (value, interval, mark), `small` tells that there are too few clips."""

    group: str
    name: str
    clips: str
    small: bool
    cells: Sequence[tuple[str, str, Mark | None]]


@dataclass(frozen=True, slots=True)
class SubgroupTable:
    """Rows, the ends of the scale of each column of marks, and the texts of the accuracy."""

    rows: Sequence[SubgroupRow]
    scales: Sequence[tuple[str, str]]
    accuracy: MetricText


def subgroup_table(analysis: SubgroupAnalysis) -> SubgroupTable:
    """Return the table of the whole split and its subgroups."""
    return _table(analysis, [analysis.whole, *analysis.subgroups], MIN_CLIPS)


def speaker_table(analysis: SubgroupAnalysis) -> SubgroupTable:
    """Return the table of the speakers, which has scales of its own: their metrics vary more."""
    return _table(analysis, analysis.speakers, 0)


def _table(analysis: SubgroupAnalysis, measured: Sequence[SubgroupMetrics], min_clips: int) -> SubgroupTable:
    on_scale = [analysis.whole, *(metrics for metrics in measured if metrics.clips >= min_clips)]
    columns = [
        (analysis.accuracy, "accuracy", _scale(on_scale, "accuracy", 1.0)),
        ("mae", "mae", _scale(on_scale, "mae", None)),
    ]
    rows = [
        SubgroupRow(
            group=metrics.group,
            name=metrics.name,
            clips=f"{metrics.clips:,}",
            small=metrics.clips < min_clips,
            cells=[
                _cell(key, getattr(metrics, name), getattr(metrics, f"{name}_interval"), scale)
                for key, name, scale in columns
            ],
        )
        for metrics in measured
    ]
    scales = [(_format_end(key, scale.low), _format_end(key, scale.high)) for key, _, scale in columns]
    return SubgroupTable(rows, scales, METRICS[analysis.accuracy])


def _format_end(key: str, end: float) -> str:
    """Format an end of a scale, which is a round number."""
    return f"{end:.0%}" if METRICS[key].is_fraction else f"{end:.1f}"


def _cell(key: str, value: float | None, interval: Interval, scale: Scale) -> tuple[str, str, Mark | None]:
    if value is None:
        return format_metric(key, None), "", None
    low, high = map(scale.position, interval) if interval and interval[0] < interval[1] else (None, None)
    whole = None if scale.whole is None else scale.position(scale.whole)
    return format_metric(key, value), format_interval(key, interval), Mark(scale.position(value), low, high, whole)


def _scale(measured: Sequence[SubgroupMetrics], name: str, high: float | None) -> Scale:
    """Return the range of all intervals, rounded to tenths; `measured` begins with the whole split."""
    whole: float | None = getattr(measured[0], name)
    ends = [end for metrics in measured for end in getattr(metrics, f"{name}_interval") or ()]
    ends += [] if whole is None else [whole]
    if not ends:
        return Scale(0.0, high or 1.0, None)
    return Scale(math.floor(10 * min(ends)) / 10, math.ceil(10 * max(ends)) / 10 if high is None else high, whole)
