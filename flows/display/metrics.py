"""How metrics are written for people: their names, values, intervals and changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corpora.manifest import MODALITIES

NOTHING = "–"  # noqa: RUF001  (an en dash stands for an undefined value)
MINUS = "\u2212"
"""As wide as a plus, so that columns line up."""

Interval = tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class MetricText:
    """How a metric is written for people: its name, the same as a column's head, whether it is a fraction, and what it
    measures."""

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
HEADLINE = ("acc2_np", "acc2", "f1_np", "f1", "mae", "corr", "acc7", "acc5")
CARDS = 5


@dataclass(frozen=True, slots=True)
class Before:
    """The last evaluation of the same corpus and split before this one: when (ISO 8601), and its metrics."""

    time: str
    metrics: Mapping[str, Any]

    @property
    def day(self) -> str:
        """For people: `2026-11-24 02:57 UTC`."""
        return f"{self.time[:10]} {self.time[11:16]} UTC"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A line of the table of metrics, all of it text; empty where there is nothing to say.

    Attributes:
        key: of the metric.
        between: its 95 % interval.
        before: its value at the last evaluation.
        change: since then.
        better: whether that is one for the better; None where it is the same, or cannot be told.
    """

    key: str
    name: str
    meaning: str
    value: str
    spread: str
    between: str
    before: str
    change: str
    better: bool | None


def metrics_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Metrics as (name, value) in plain language: accuracies and F1 in percent, the rest with three decimals.

    Several seeds give `mean ± standard deviation`; an undefined value is an en dash.
    """
    return [(_name(key), _value(key, metrics)) for key in _shown(metrics)] + counts(metrics)


def compared_rows(metrics: Mapping[str, Any], before: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(name, value, value before, change) of each metric; the change says whether it is one for the better."""
    rows = []
    for key in _shown(metrics):
        change, better = _change(key, metrics, before)
        said = {True: f"{change}, better", False: f"{change}, worse", None: change}[better]
        rows.append((_name(key), _value(key, metrics), _value(key, before) if key in before else "", said))
    earlier = dict(counts(before))
    return rows + [(name, value, earlier.get(name, ""), "") for name, value in counts(metrics)]


def table_rows(
    metrics: Mapping[str, Any], intervals: Mapping[str, Interval], before: Mapping[str, Any] | None
) -> list[MetricRow]:
    """The page's table of metrics."""
    rows = []
    for key in _shown(metrics):
        value, _, spread = _value(key, metrics).partition(" ± ")
        change, better = _change(key, metrics, before or {})
        rows.append(
            MetricRow(
                key=key,
                name=_name(key),
                meaning=METRICS[key].meaning if key in METRICS else "",
                value=value,
                spread=spread,
                between=told_interval(key, intervals[key]) or NOTHING if key in intervals else "",
                before=_value(key, before) if before and key in before else "",
                change=change.replace("-", MINUS),
                better=better,
            )
        )
    return rows


def counts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many clips and seeds, as far as they are known."""
    return [(name, f"{metrics[key]:,}") for key, name in {"n": "Clips", "seeds": "Seeds"}.items() if key in metrics]


def told(key: str, value: float | None) -> str:
    """A value of the metric `key`: `91.7%` or `0.507`; an en dash where it is undefined."""
    if value is None:
        return NOTHING
    if key in METRICS and METRICS[key].is_fraction:
        return f"{value:.1%}"
    return f"{value:.3f}".replace("-", MINUS)


def told_interval(key: str, between: Interval) -> str:
    """`88.2 to 97.4%`; empty where there is none, or one without width: all draws gave the same, as where every clip is
    right, which says nothing of how far off that could be."""
    if between is None or between[0] == between[1]:
        return ""
    low, high = (told(key, value) for value in between)
    return f"{low.removesuffix('%')} to {high}"


def told_difference(key: str, value: float | None) -> str:
    """With its sign: `+1.2` points of a percentage, or `+0.050`."""
    if value is None:
        return NOTHING
    shown = f"{100 * value:+.1f}" if key in METRICS and METRICS[key].is_fraction else f"{value:+.3f}"
    return shown.replace("-", MINUS)


def decimals(value: float | None) -> str:
    """Three decimals."""
    return NOTHING if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Three decimals with a sign."""
    return NOTHING if value is None else f"{value:+.3f}".replace("-", MINUS)


def _shown(metrics: Mapping[str, Any]) -> list[str]:
    """Keys of the metrics: those that are known in their usual order, then others."""
    known = {*METRICS, *(f"{key}_std" for key in metrics), "n", "seeds"}
    return [key for key in METRICS if key in metrics] + [key for key in metrics if key not in known]


def _name(key: str) -> str:
    return METRICS[key].label if key in METRICS else key


def _value(key: str, metrics: Mapping[str, Any]) -> str:
    value, spread = metrics[key], metrics.get(f"{key}_std")
    if value is None:
        return NOTHING
    if not isinstance(value, int | float):
        return str(value)
    if key in METRICS and METRICS[key].is_fraction:
        return f"{value:.1%}" + ("" if spread is None else f" ± {100 * spread:.1f}")
    return f"{value:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _change(key: str, metrics: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, bool | None]:
    """Points of a percentage, or the number itself, as exact as the values are shown; and whether it is better."""
    new, old = metrics.get(key), before.get(key)
    if new is None or old is None or key not in METRICS:
        return "", None
    difference = new - old
    shown = f"{100 * difference:+.1f} points" if METRICS[key].is_fraction else f"{difference:+.3f}"
    if not any(digit in shown for digit in "123456789"):
        return "same", None
    return shown, (difference < 0) == (key in LESS_IS_BETTER)
