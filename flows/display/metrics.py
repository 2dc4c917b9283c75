"""Formatting of metrics, numbers and times for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from corpora.manifest import MODALITIES
from model.evaluation.metrics import UNIT, WIDE, class_names

NOTHING = "–"  # noqa: RUF001  (an en dash stands for an undefined value)
MINUS = "\u2212"
"""As wide as a plus, so that columns line up."""

FINEST_CLASSES = {
    WIDE: (
        "strongly negative",
        "negative",
        "weakly negative",
        "neutral",
        "weakly positive",
        "positive",
        "strongly positive",
    ),
    UNIT: ("negative", "weakly negative", "neutral", "weakly positive", "positive"),
}
"""Label range -> names of its finest classes, as in the papers of CMU-MOSI and CH-SIMS."""

Interval = tuple[float, float] | None
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, slots=True)
class MetricText:
    """Texts of a metric.

    Attributes:
        label: Full name.
        short: Column header.
        is_fraction: Whether it is shown in percent.
        meaning: What it measures.
    """

    label: str
    short: str
    is_fraction: bool
    meaning: str


METRICS = {
    "acc2_np": MetricText("Acc-2 (negative / positive)", "Acc-2", True, "sign right, clips labelled 0 left out"),
    "f1_np": MetricText("F1 (negative / positive)", "F1", True, "weighted by class, clips labelled 0 left out"),
    "acc2_nn": MetricText("Acc-2 (negative / non-negative)", "Acc-2, with 0", True, "all clips, 0 is non-negative"),
    "f1_nn": MetricText("F1 (negative / non-negative)", "F1, with 0", True, "weighted by class, all clips"),
    "acc2": MetricText("Acc-2 (non-positive / positive)", "Acc-2", True, "all clips, 0 is non-positive"),
    "f1": MetricText("F1 (non-positive / positive)", "F1", True, "weighted by class, all clips"),
    "acc3": MetricText("Acc-3", "Acc-3", True, "negative, neutral, positive"),
    "acc5": MetricText("Acc-5", "Acc-5", True, "right class of five"),
    "acc7": MetricText("Acc-7", "Acc-7", True, "right class of seven, from -3 to 3"),
    "mae": MetricText("Mean absolute error", "MAE", False, "in units of the label, less is better"),
    "corr": MetricText("Pearson correlation", "Correlation", False, "predicted against true"),
}
METRICS |= {
    f"{key}_{m}": MetricText(
        f"{name}, {m} alone", f"{name}, {m}", key == "acc2", "its own head, against its own labels"
    )
    for m in MODALITIES
    for key, name in {"acc2": "Acc-2", "mae": METRICS["mae"].label, "corr": METRICS["corr"].label}.items()
}
LESS_IS_BETTER = {key for key in METRICS if key.startswith("mae")}
_NOT_METRICS = {"n", "seeds", "undefined", "baselines"}
"""Keys of metrics/<split>.json with something else."""

HEADLINE = ("acc2_np", "acc2", "f1_np", "f1", "mae", "corr", "acc7", "acc5")
"""Metrics of the report's cards, most important first."""
MAX_CARDS = 5


# --- numbers and times -------------------------------------------------------------------------------------------


def format_number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """Format a number, with a plus if `sign`; an en dash for None."""
    return NOTHING if value is None else f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def class_words(label_range: Sequence[float]) -> dict[str, str]:
    """Return the finest classes of a label range as name (`2`, `(-0.1, 0.1]`) -> words (`positive`)."""
    low, high = label_range
    words = FINEST_CLASSES[low, high]
    return dict(zip(class_names((low, high), len(words)), words, strict=True))


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Format a number of things: `1 clip`, `2 clips`. `plural` is that of the noun, if it is not made with -s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def format_clock(seconds: float) -> str:
    """Format a position in a video: `1:05` or `1:02:03`; below a minute with a tenth, `0:03.5`."""
    if seconds < 60:
        return f"0:{seconds:04.1f}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_duration(seconds: float) -> str:
    """Format a length of time: `3 h 20 min`, `4 min 05 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def format_parameter(value: Any) -> str:
    """Format a parameter as in params.yaml, without brackets and quotes; an en dash for an empty one."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(format_parameter(item) for item in value) or NOTHING
    return str(value)


# --- values of one metric ----------------------------------------------------------------------------------------


def metric_label(key: str) -> str:
    """Return the metric's full name; an unknown one's key."""
    return METRICS[key].label if key in METRICS else key


def is_fraction(key: str) -> bool:
    """Return whether the metric is shown in percent."""
    return key in METRICS and METRICS[key].is_fraction


def format_metric(key: str, value: float | None) -> str:
    """Format a value of the metric `key`: `91.7%` or `0.507`; an en dash for None."""
    return f"{value:.1%}" if value is not None and is_fraction(key) else format_number(value, 3)


def format_spread(key: str, std: float | None) -> str:
    """Format a standard deviation of the metric: `1.2` (percentage points) or `0.012`; empty for None."""
    if std is None:
        return ""
    return f"{100 * std:.1f}" if is_fraction(key) else f"{std:.3f}"


def format_difference(key: str, value: float | None, interval: Interval = None) -> str:
    """Format a difference: `+1.2` (percentage points) or `+0.050`; with its interval `+1.2 [+0.4, +2.1]`."""
    scale, digits = (100, 1) if is_fraction(key) else (1, 3)
    text = NOTHING if value is None else format_number(scale * value, digits, sign=True)
    if interval is None:
        return text
    low, high = (format_number(scale * end, digits, sign=True) for end in interval)
    return f"{text} [{low}, {high}]"


def direction(key: str, interval: Interval) -> Verdict:
    """Return whether a difference of the metric with this 95 % interval is for the better."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "better" if (interval[1] < 0) == (key in LESS_IS_BETTER) else "worse"


def format_interval(key: str, interval: Interval) -> str:
    """Format an interval of the metric: `88.2 to 97.4%`.

    Empty for None and for an interval of width 0: all bootstrap draws gave the same value, as where every clip is
    right, and that tells nothing about the uncertainty.
    """
    if interval is None or interval[0] == interval[1]:
        return ""
    low, high = (format_metric(key, value) for value in interval)
    return f"{low.removesuffix('%')} to {high}"


# --- tables of an evaluation -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PreviousEvaluation:
    """The evaluation of the same corpus and split before this one: its time (ISO 8601) and its metrics."""

    time: str
    metrics: Mapping[str, Any]

    @property
    def day(self) -> str:
        """The time as `2026-11-24 02:57 UTC`."""
        return f"{self.time[:10]} {self.time[11:16]} UTC"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A line of the table of metrics as text; empty where there is nothing to show.

    Attributes:
        key: Key of the metric.
        name: Its full name.
        meaning: What it measures.
        value: Its value.
        reason: Why it has none.
        spread: Standard deviation over the seeds.
        interval: 95 % interval.
        previous: Value in the previous evaluation.
        change: Change since then; of single trainings it is often the seed's alone, so that no verdict is given.
    """

    key: str
    name: str
    meaning: str
    value: str
    reason: str
    spread: str
    interval: str
    previous: str
    change: str


def metric_table(
    metrics: Mapping[str, Any],
    intervals: Mapping[str, Interval] | None = None,
    previous: Mapping[str, Any] | None = None,
) -> list[MetricRow]:
    """Return a row for each metric: the known ones in their usual order, then others.

    Args:
        metrics: As in metrics/<split>.json; `<key>_std` is the standard deviation of `<key>` over the seeds, and
            `undefined` has the reasons of those that are None.
        intervals: 95 % intervals of some of the metrics.
        previous: Metrics of the previous evaluation.
    """
    intervals, previous = intervals or {}, previous or {}
    others = metrics.keys() - METRICS.keys() - {f"{key}_std" for key in metrics} - _NOT_METRICS
    keys = [*(key for key in METRICS if key in metrics), *(key for key in metrics if key in others)]
    return [
        MetricRow(
            key=key,
            name=metric_label(key),
            meaning=METRICS[key].meaning if key in METRICS else "",
            value=format_metric(key, metrics[key]),
            reason=_reason(key, metrics),
            spread=_spread(key, metrics),
            interval=_interval(key, metrics, intervals),
            previous=_with_spread(key, previous) if key in previous else "",
            change=_change(key, metrics[key], previous.get(key)),
        )
        for key in keys
    ]


def metrics_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of each metric, then the counts; several seeds give `mean ± standard deviation`."""
    return [(row.name, _with_spread(row.key, metrics)) for row in metric_table(metrics)] + counts(metrics)


def compared_rows(metrics: Mapping[str, Any], previous: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (name, value, previous value, change) of each metric, then the counts."""
    rows = [
        (row.name, _with_spread(row.key, metrics), row.previous, row.change)
        for row in metric_table(metrics, previous=previous)
    ]
    before = dict(counts(previous))
    return rows + [(name, count, before.get(name, ""), "") for name, count in counts(metrics)]


def counts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, number) of the clips and of the seeds, where known."""
    return [(name, f"{metrics[key]:,}") for key, name in {"n": "Clips", "seeds": "Seeds"}.items() if key in metrics]


def _spread(key: str, metrics: Mapping[str, Any]) -> str:
    return "" if metrics[key] is None else format_spread(key, metrics.get(f"{key}_std"))


def _reason(key: str, metrics: Mapping[str, Any]) -> str:
    return str(metrics.get("undefined", {}).get(key, ""))


def _interval(key: str, metrics: Mapping[str, Any], intervals: Mapping[str, Interval]) -> str:
    if key not in intervals:
        return ""
    return NOTHING if metrics[key] is None else format_interval(key, intervals[key]) or NOTHING


def _with_spread(key: str, metrics: Mapping[str, Any]) -> str:
    """Return the value with its spread, or an en dash with the reason."""
    value, spread, reason = format_metric(key, metrics[key]), _spread(key, metrics), _reason(key, metrics)
    return f"{value} ± {spread}" if spread else f"{value} ({reason})" if reason else value


def _change(key: str, new: float | None, old: float | None) -> str:
    """Return the change, with the precision that values are shown with."""
    if new is None or old is None or key not in METRICS:
        return ""
    change = format_difference(key, new - old) + (" points" if is_fraction(key) else "")
    return change if any(digit in change for digit in "123456789") else "same"
