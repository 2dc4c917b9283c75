"""Results of studies for the page: tables of variants, curves over a condition's levels, and cost against quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.display.metrics import (
    LESS_IS_BETTER,
    METRICS,
    MINUS,
    NOTHING,
    format_difference,
    format_metric,
    format_parameter,
    format_spread,
    is_fraction,
    metric_label,
)
from flows.display.plots import MUTED, SERIES, Plot, plotting, to_svg
from flows.studies.results import COSTS, StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

DASHES = ((0, ()), (0, (4, 2)), (0, (1.5, 1.5)))
"""Line styles, for more variants than there are colours."""

MAX_TICKS = 8
"""Number of levels up to which each has a tick."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric of a variant: its value and spread; its difference to the reference with p value and verdict."""

    value: str
    spread: str = ""
    difference: str = ""
    p: str = ""
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class VariantRow:
    """A row of a table: `style` is the number of the variant's line style, `changes` what the variant changes."""

    variant: str
    style: int
    is_reference: bool
    changes: str
    cells: Sequence[Cell]
    costs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of variants; `costs` are the headers of the columns of cost."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[VariantRow]
    costs: Sequence[str]


@dataclass(frozen=True, slots=True)
class StudyView:
    """A study as the page shows it.

    Attributes:
        study: The results.
        number: Number from 1, for ids.
        mismatches: How its data differ from the report's; empty where they do not.
        tables: Tables, the variants' metrics first.
        curves: Plots of the first metric, one for each condition that has levels.
        pareto: Plot of the best trade-offs.
    """

    study: StudyResult
    number: int
    mismatches: Sequence[str]
    tables: Sequence[Table]
    curves: Sequence[Plot]
    pareto: Plot | None


def study_views(
    studies: Sequence[StudyResult], corpus: str, split: str, data: Mapping[str, str | None]
) -> list[StudyView]:
    """Return the studies as the page shows them.

    Args:
        studies: Results of studies.
        corpus: The report's corpus.
        split: The report's split.
        data: Hashes of the data in the report's provenance.
    """
    return [
        StudyView(
            study=study,
            number=number,
            mismatches=data_mismatches(study, corpus, split, data),
            tables=_tables(study),
            curves=[_curve_plot(study, number, condition) for condition in study.conditions if study.levels(condition)],
            pareto=_pareto_plot(study, number, *study.pareto) if study.pareto else None,
        )
        for number, study in enumerate(studies, start=1)
    ]


def data_mismatches(study: StudyResult, corpus: str, split: str, data: Mapping[str, str | None]) -> list[str]:
    """Return how a study's data differ from the report's."""
    if study.corpus != corpus:
        return [f"another corpus, {study.corpus}"]
    mismatches = [f"another split, {study.split}"] if study.split not in (split, "valid") else []
    if any(row.p is None and row.interval for row in study.find(statistic="difference")):
        mismatches.append("intervals of an earlier version, over clips only: run the study again")
    elif not study.baselines and study.comparison is None:
        mismatches.append("an earlier version, which did not compare the reference with baselines")
    theirs, ours = study.provenance.get("data", {}).get("dataset"), data.get("dataset")
    if theirs is None or ours is None:
        return [*mismatches, "perhaps another dataset: its provenance does not tell"]
    return (
        [*mismatches, "another dataset: features, transcripts or labels have changed"] if theirs != ours else mismatches
    )


def _tables(study: StudyResult) -> list[Table]:
    """Return the tables that have any row and column."""
    columns = {METRICS[m].short if m in METRICS else m: {"metric": m} for m in study.metrics}
    costs = [key for key in COSTS if any(study.get(variant, key) for variant in study.variants)]
    tables = [_table(study, "", columns, costs)]
    for metric in study.metrics[:1]:
        label = metric_label(metric)
        without_levels = [name for name in study.conditions if not study.levels(name)]
        areas = [name for name in study.conditions if any(study.find(condition=name, metric=metric, statistic="area"))]
        tables += [
            _table(study, f"{label} on slices", {c: {"metric": metric, "clips": c} for c in study.slices}),
            _table(study, f"{label} under conditions", {c: {"metric": metric, "condition": c} for c in without_levels}),
            _table(
                study,
                f"{label}, mean over the levels: the area under each curve",
                {c: {"metric": metric, "condition": c, "statistic": "area"} for c in areas},
            ),
        ]
    return [table for table in tables if table.columns and table.rows]


def _table(
    study: StudyResult, caption: str, columns: Mapping[str, Mapping[str, Any]], costs: Sequence[str] = ()
) -> Table:
    """Return a table; `columns` maps a header to arguments of `StudyResult.get`."""
    rows = [
        VariantRow(
            variant=variant,
            style=style,
            is_reference=variant == study.reference,
            changes=", ".join(f"{key}: {format_parameter(value)}" for key, value in changes.items()),
            cells=[_cell(study, variant, **place) for place in columns.values()],
            costs=[format_cost(study, variant, key) for key in costs],
        )
        for style, (variant, changes) in enumerate(study.variants.items())
    ]
    return Table(caption, list(columns), rows, [COSTS[key][0] for key in costs])


def _cell(study: StudyResult, variant: str, metric: str, statistic: str = "mean", **place: Any) -> Cell:
    names = ("mean", "std", "difference") if statistic == "mean" else ("area", "", "area_difference")
    mean, std, difference = (study.get(variant, metric, name, **place) for name in names)
    if mean is None:
        return Cell(NOTHING)
    return Cell(
        value=format_metric(metric, mean.value),
        spread=format_spread(metric, std.value if std else None),
        difference=format_difference(metric, difference.value, difference.interval) if difference else "",
        p=difference.p_text if difference else "",
        verdict=study.verdict(difference) if difference else "",
    )


def format_cost(study: StudyResult, variant: str, key: str) -> str:
    """Return a variant's cost with its unit; an en dash where it was not measured."""
    row = study.get(variant, key)
    if row is None or row.value is None:
        return NOTHING
    unit = COSTS[key][1]
    if not unit:
        return f"{row.value:,.0f}"
    return f"{row.value:,.1f} {unit}" if row.value >= 10 else f"{row.value:.3g} {unit}"


def _curve_plot(study: StudyResult, number: int, condition: str) -> Plot:
    """Plot the first metric over the condition's levels: a line for each variant, its interval as a band."""
    metric, levels = study.metrics[0], sorted(study.levels(condition))
    with plotting(4.0, 3.0) as (figure, axes):
        for style, variant in enumerate(study.variants):
            found = {level: study.get(variant, metric, condition=condition, level=level) for level in levels}
            values = {
                level: _scaled(metric, row.value) for level, row in found.items() if row and row.value is not None
            }
            bands = {level: row.interval for level, row in found.items() if row and row.interval}
            colour, dash = line_style(style)
            axes.fill_between(
                list(bands),
                [_scaled(metric, low) for low, _ in bands.values()],
                [_scaled(metric, high) for _, high in bands.values()],
                color=colour,
                alpha=0.1 if len(study.variants) < 4 else 0.05,
                linewidth=0,
            )
            axes.plot(
                list(values),
                list(values.values()),
                color=colour,
                linestyle=dash,
                linewidth=1.6,
                marker="o",
                markersize=3.5,
                markeredgewidth=0,
            )
        unit = study.conditions[condition]
        axes.set_xlabel(f"{condition} ({unit})" if unit else condition)
        _label_metric(axes, metric)
        if len(levels) <= MAX_TICKS:
            axes.set_xticks(levels, [f"{level:g}".replace("-", MINUS) for level in levels])
        title = f"{metric_label(metric)}, {condition}"
        return Plot(title, to_svg(figure, title, f"study-{number}-{title}"))


def _pareto_plot(study: StudyResult, number: int, cost: str, metric: str) -> Plot | None:
    """Plot cost against metric, the front of the best trade-offs as a line; None where no variant has both."""
    with plotting(4.6, 3.4) as (figure, axes):
        title = draw_trade_offs(axes, study, cost, metric)
        return Plot(title, to_svg(figure, title, f"study-{number}-{title}")) if title else None


def draw_trade_offs(axes: Axes, study: StudyResult, cost: str, metric: str, all_names: bool = False) -> str:
    """Draw the variants by cost and metric, and return the plot's title; empty where no variant has both.

    Args:
        axes: Where to draw.
        study: The results.
        cost: Key of `COSTS`.
        metric: Metric of quality.
        all_names: Whether every variant is named, on a logarithmic scale of cost; else those of the best trade-offs.
    """
    points = []
    for style, variant in enumerate(study.variants):
        paid, row = study.get(variant, cost), study.get(variant, metric)
        if paid and paid.value is not None and row and row.value is not None:
            points.append((paid.value, row.value, row.interval, style, variant))
    if not points:
        return ""
    front = pareto_front([(price, value) for price, value, *_ in points], metric in LESS_IS_BETTER)
    line = sorted((points[i][0], _scaled(metric, points[i][1])) for i in front)
    axes.plot(*zip(*line, strict=True), color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    for i, (price, value, interval, style, variant) in enumerate(points):
        colour, _ = line_style(style)
        y = _scaled(metric, value)
        if interval:
            ends = [_scaled(metric, end) for end in interval]
            axes.plot((price, price), ends, color=colour, linewidth=1.0, alpha=0.5)
        axes.plot(price, y, "o", color=colour, markersize=7 if i in front else 4.5, markeredgewidth=0)
        if all_names or i in front or variant == study.reference:  # more names would overlap
            axes.annotate(variant, (price, y), (6, 5), textcoords="offset points", fontsize=8, color=MUTED)
    name, unit = COSTS.get(cost, (cost, ""))
    name = {"fusion_madds": "Multiply-adds of the fusion", "step_seconds": "Training step"}.get(cost, name)
    axes.set_xlabel(f"{name} ({unit})" if unit else name)
    _label_metric(axes, metric)
    if all_names:
        axes.set_xscale("log")
        _spread_names(axes)
    axes.margins(x=0.15)
    return f"{metric_label(metric)} against {name.lower()}"


def _spread_names(axes: Axes) -> None:
    """Move names that would overlap apart, upwards, and make room for them on the right."""
    axes.margins(x=0.15, y=0.08)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.35)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    placed: list[Bbox] = []
    for text in sorted(axes.texts, key=lambda text: text.get_window_extent().y0):
        box = text.get_window_extent()
        while any(box.overlaps(other) for other in placed):
            x, y = text.get_position()
            text.set_position((x, y + 2))
            box = text.get_window_extent()
        placed.append(box)


def pareto_front(points: Sequence[tuple[float, float]], less_is_better: bool) -> list[int]:
    """Return the indices of the (cost, metric) that no other dominates, as good in both and better in one."""
    sign = -1 if less_is_better else 1

    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and sign * a[1] >= sign * b[1] and a != b

    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def line_style(style: int) -> tuple[str, tuple[float, tuple[float, ...]]]:
    """Return the colour and the dashes of a variant by its position in the study."""
    return SERIES[style % len(SERIES)], DASHES[style // len(SERIES) % len(DASHES)]


def _label_metric(axes: Axes, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_ylabel(metric_label(metric))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    if is_fraction(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))


def _scaled(metric: str, value: float) -> float:
    return 100 * value if is_fraction(metric) else value
