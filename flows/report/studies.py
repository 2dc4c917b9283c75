"""What studies found, for the page: tables of variants, curves over a condition's levels, plots of cost and metric."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.display.metrics import LESS_IS_BETTER, METRICS, MINUS, NOTHING, format_metric, format_difference, format_interval
from flows.display.plots import MUTED, SERIES, Plot, plotting, to_svg
from flows.studies.results import ALL_CLIPS, CLEAN, Answer, Row, StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {
    "madds": ("Multiply-adds", "M"),
    "fusion_madds": ("of the fusion", "M"),
    "parameters": ("Parameters", ""),
    "step_seconds": ("A step", "s"),
    "train_seconds": ("Training", "s"),
}
"""Key -> its name as a column and its unit."""

DASHES = ((0, ()), (0, (4, 2)), (0, (1.5, 1.5)))
"""Of more variants than there are colours."""


MOST_TICKS = 8
"""Levels of a condition that each have a tick."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric of a variant: its value with the spread over seeds, and the paired difference to the reference.

    Attributes:
        better: whether the difference's interval is all on one side of 0, and on which; None where it is not.
    """

    value: str
    spread: str = ""
    difference: str = ""
    between: str = ""
    better: bool | None = None


@dataclass(frozen=True, slots=True)
class VariantRow:
    """A line of a study's table: `style` is how its line is drawn, `changes` what the variant changes."""

    variant: str
    style: int
    is_reference: bool
    changes: str
    cells: Sequence[Cell]
    costs: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Variants by columns; `caption` says what the columns are."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[VariantRow]
    costs: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class StudyView:
    """A study as the page shows it.

    Attributes:
        number: from 1, for ids.
        other: what it was measured on where that is not what the report is about; empty where it is.
        seeds: of each variant.
        tables: the variants' metrics first.
        curves: of the first metric, one a condition that has levels.
    """

    number: int
    name: str
    title: str
    question: str
    on: str
    other: Sequence[str]
    reference: str
    seeds: int
    answers: Sequence[Answer]
    tables: Sequence[Table]
    curves: Sequence[Plot]
    pareto: Plot | None
    notes: Sequence[str]

    @property
    def has_key(self) -> bool:
        return bool(self.curves or self.pareto)


class _Numbers:
    """The rows of a study by what they are of."""

    def __init__(self, study: StudyResult) -> None:
        self.study = study
        self._rows = {(r.variant, r.seed, r.condition, r.level, r.clips, r.metric, r.statistic): r for r in study.rows}

    def one(
        self,
        variant: str,
        metric: str,
        statistic: str = "mean",
        condition: str = CLEAN,
        level: float | None = None,
        clips: str = ALL_CLIPS,
    ) -> Row | None:
        """A number of all seeds together."""
        return self._rows.get((variant, None, condition, level, clips, metric, statistic))

    def cost(self, variant: str, key: str) -> float | None:
        """What training or predicting costs: of all seeds together, or the mean of the seeds' own."""
        whole = self.one(variant, key)
        if whole is not None:
            return whole.value
        found = [r.value for r in self.study.find(variant=variant, metric=key, statistic="value")]
        if not found and key == "madds":
            found = [r.cost for r in self.study.find(variant=variant)][:1]
        return statistics.fmean(found) if found and None not in found else None

    def levels(self, condition: str) -> list[float]:
        """In rising order; none where the condition has no levels."""
        found = {r.level for r in self.study.find(condition=condition, statistic="mean") if r.level is not None}
        return sorted(found)


def study_views(
    studies: Sequence[StudyResult], corpus: str, split: str, data: Mapping[str, str | None]
) -> list[StudyView]:
    """The studies as the page shows them.

    Args:
        corpus, split: what the report is about.
        data: hashes in the report's record.
    """
    return [_view(number, study, corpus, split, data) for number, study in enumerate(studies, start=1)]


def _view(number: int, study: StudyResult, corpus: str, split: str, data: Mapping[str, str | None]) -> StudyView:
    numbers = _Numbers(study)
    flat = [condition for condition in study.conditions if not numbers.levels(condition)]
    with_levels = [condition for condition in study.conditions if numbers.levels(condition)]
    slices = dict.fromkeys(r.clips for r in study.find(condition=CLEAN, statistic="mean") if r.clips != ALL_CLIPS)
    tables, curves = [_metrics_table(numbers)], []
    for metric in study.metrics[:1]:
        name = _name(metric)
        tables += [
            _table(numbers, f"{name} of some clips only", [*slices], [{"metric": metric, "clips": c} for c in slices]),
            _table(numbers, f"{name} under conditions", flat, [{"metric": metric, "condition": c} for c in flat]),
            _area_table(numbers, metric, with_levels),
        ]
        curves = [_curve_plot(numbers, number, metric, condition) for condition in with_levels]
    return StudyView(
        number=number,
        name=study.study,
        title=study.title,
        question=study.question,
        on=f"{study.corpus}, {study.split} split, {study.clips:,} clips",
        other=_differences(study, corpus, split, data),
        reference=study.reference,
        seeds=len(study.seeds),
        answers=study.answers,
        tables=[table for table in tables if table.columns and table.rows],
        curves=curves,
        pareto=_pareto_plot(numbers, number, *study.pareto) if study.pareto else None,
        notes=study.notes,
    )


def _differences(study: StudyResult, corpus: str, split: str, data: Mapping[str, str | None]) -> list[str]:
    """In what a study is not of what the report is about."""
    if study.corpus != corpus:
        return [f"another corpus, {study.corpus}"]
    found = [f"another split, {study.split}"] if study.split != split else []
    theirs = study.record.get("data", {}).get("dataset")
    ours = data.get("dataset")
    if theirs is None or ours is None:
        return [*found, "perhaps another dataset: its record does not say which"]
    return [*found, "another dataset: features, transcripts or labels have changed"] if theirs != ours else found


def _metrics_table(numbers: _Numbers) -> Table:
    """Every metric of the split as it is, and what each variant costs."""
    study = numbers.study
    costs = [key for key in COSTS if any(numbers.cost(variant, key) is not None for variant in study.variants)]
    names = [METRICS[m].short if m in METRICS else m for m in study.metrics]
    found = _table(numbers, "", names, [{"metric": m} for m in study.metrics], costs)
    return Table("", found.columns, found.rows, [COSTS[key][0] for key in costs])


def _table(
    numbers: _Numbers,
    caption: str,
    columns: Sequence[str],
    places: Sequence[Mapping[str, Any]],
    costs: Sequence[str] = (),
) -> Table:
    study = numbers.study
    rows = [
        VariantRow(
            variant=variant,
            style=style,
            is_reference=variant == study.reference,
            changes=", ".join(f"{key}: {_plain(value)}" for key, value in changes.items()),
            cells=[_cell(numbers, variant, **place) for place in places],
            costs=[_told_cost(key, numbers.cost(variant, key)) for key in costs],
        )
        for style, (variant, changes) in enumerate(study.variants.items())
    ]
    return Table(caption, columns, rows)


def _cell(numbers: _Numbers, variant: str, metric: str, **place: Any) -> Cell:
    mean, std, difference = (numbers.one(variant, metric, kind, **place) for kind in ("mean", "std", "difference"))
    if mean is None or mean.value is None:
        return Cell(NOTHING)
    spread = "" if std is None or std.value is None else _spread(metric, std.value)
    if difference is None or difference.value is None or variant == numbers.study.reference:
        return Cell(format_metric(metric, mean.value), spread)
    low, high = difference.low, difference.high
    known = low is not None and high is not None
    between = f"{format_difference(metric, low)}, {format_difference(metric, high)}" if known else ""
    better = (low < 0) == (metric in LESS_IS_BETTER) if known and (low > 0 or high < 0) else None
    return Cell(format_metric(metric, mean.value), spread, format_difference(metric, difference.value), between, better)


def _area_table(numbers: _Numbers, metric: str, conditions: Sequence[str]) -> Table:
    """The mean of a metric over each condition's levels: the area under its curve."""
    shown = [c for c in conditions if any(numbers.study.find(condition=c, metric=metric, statistic="area"))]
    rows = []
    for style, variant in enumerate(numbers.study.variants):
        found = [numbers.one(variant, metric, "area", condition) for condition in shown]
        cells = [Cell(format_metric(metric, None if row is None else row.value), between=_between(metric, row)) for row in found]
        rows.append(VariantRow(variant, style, variant == numbers.study.reference, "", cells))
    return Table(f"{_name(metric)}, mean over the levels: the area under each curve", shown, rows)


def _between(metric: str, row: Row | None) -> str:
    return format_interval(metric, (row.low, row.high)) if row and None not in (row.low, row.high) else ""


def _curve_plot(numbers: _Numbers, number: int, metric: str, condition: str) -> Plot:
    """A line a variant, its interval as a band."""
    study = numbers.study
    with plotting(4.0, 3.0) as (figure, axes):
        for style, variant in enumerate(study.variants):
            rows = [numbers.one(variant, metric, "mean", condition, level) for level in numbers.levels(condition)]
            rows = [row for row in rows if row is not None and row.value is not None]
            x = [row.level for row in rows]
            banded = [row for row in rows if None not in (row.low, row.high)]
            colour, dash = line_style(style)
            axes.fill_between(
                [row.level for row in banded],
                [_scaled(metric, row.low) for row in banded],
                [_scaled(metric, row.high) for row in banded],
                color=colour,
                alpha=0.1 if len(study.variants) < 4 else 0.05,
                linewidth=0,
            )
            y = [_scaled(metric, row.value) for row in rows]
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.6, marker="o", markersize=3.5, markeredgewidth=0)
        unit = study.conditions[condition]
        axes.set_xlabel(f"{condition} ({unit})" if unit else condition)
        _label_metric(axes, metric)
        levels = numbers.levels(condition)
        if len(levels) <= MOST_TICKS:
            axes.set_xticks(levels, [f"{level:g}".replace("-", MINUS) for level in levels])
        title = f"{_name(metric)}, {condition}"
        return Plot(title, to_svg(figure, title, f"study-{number}-{title}"))


def _pareto_plot(numbers: _Numbers, number: int, cost: str, metric: str) -> Plot | None:
    """Cost against metric, the front of the best trade-offs as a line; None where no variant has both."""
    points = []
    for style, variant in enumerate(numbers.study.variants):
        price, row = numbers.cost(variant, cost), numbers.one(variant, metric)
        if price is not None and row is not None and row.value is not None:
            points.append((price, row, style, variant))
    if not points:
        return None
    front = pareto_front([(price, row.value) for price, row, *_ in points], metric in LESS_IS_BETTER)
    with plotting(4.6, 3.4) as (figure, axes):
        line = sorted((points[i][0], _scaled(metric, points[i][1].value)) for i in front)
        axes.plot(*zip(*line, strict=True), color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        for i, (price, row, style, variant) in enumerate(points):
            colour, _ = line_style(style)
            y = _scaled(metric, row.value)
            if None not in (row.low, row.high):
                ends = [_scaled(metric, row.low), _scaled(metric, row.high)]
                axes.plot((price, price), ends, color=colour, linewidth=1.0, alpha=0.5)
            axes.plot(price, y, "o", color=colour, markersize=7 if i in front else 4.5, markeredgewidth=0)
            if i in front or variant == numbers.study.reference:  # the others' names would lie on each other
                axes.annotate(variant, (price, y), (6, 5), textcoords="offset points", fontsize=8, color=MUTED)
        name, unit = COSTS.get(cost, (cost, ""))
        whole = "Multiply-adds of the fusion" if cost == "fusion_madds" else name
        axes.set_xlabel(f"{whole} ({unit})" if unit else whole)
        axes.margins(x=0.15)
        _label_metric(axes, metric)
        title = f"{_name(metric)} against {whole.lower()}"
        return Plot(title, to_svg(figure, title, f"study-{number}-{title}"))


def pareto_front(points: Sequence[tuple[float, float]], less_is_better: bool) -> list[int]:
    """Which of (cost, metric) no other one beats: at most its cost and a better metric, or less cost for the same."""
    sign = -1 if less_is_better else 1

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return (
            one[0] <= other[0]
            and sign * one[1] >= sign * other[1]
            and (one[0] < other[0] or sign * one[1] > sign * other[1])
        )

    return [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]


def line_style(style: int) -> tuple[str, tuple[float, tuple[float, ...]]]:
    """Colour and dashes of the variant at a place of its study."""
    return SERIES[style % len(SERIES)], DASHES[style // len(SERIES) % len(DASHES)]


def _label_metric(axes: Axes, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_ylabel(_name(metric))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    if _is_fraction(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))


def _scaled(metric: str, value: float) -> float:
    return 100 * value if _is_fraction(metric) else value


def _spread(metric: str, std: float) -> str:
    return f"{100 * std:.1f}" if _is_fraction(metric) else f"{std:.3f}"


def _is_fraction(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].is_fraction


def _name(metric: str) -> str:
    return METRICS[metric].label if metric in METRICS else metric


def _told_cost(key: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    if key == "parameters":
        return f"{value:,.0f}"
    return f"{value:,.1f} {COSTS[key][1]}" if value >= 10 else f"{value:.3g} {COSTS[key][1]}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
