"""The comparison of networks for the page, and its picture of quality against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from corpora.files import atomic_file
from flows.display.metrics import (
    METRICS,
    format_difference,
    format_metric,
    format_parameter,
    format_spread,
    metric_label,
)
from flows.display.plots import Plot, plotting, to_png, to_svg
from flows.report.studies import Cell, Table, VariantRow, data_mismatches, draw_trade_offs, format_cost
from flows.studies.leaderboard import format_budget, ranking, write_leaderboard
from flows.studies.results import COMPARISON, COSTS, VALID_MAE, StudyResult

SHOWN_METRICS = 3
"""Metrics that have a table with differences; the others have a column of the first."""

PICTURED_COSTS = ("madds", "step_seconds")


@dataclass(frozen=True, slots=True)
class LeaderboardView:
    """A comparison of networks as the page shows it.

    Attributes:
        study: The results.
        metric: Name of the metric that ranks.
        budget: What each network was given.
        mismatches: How its data differ from the report's; empty where they do not.
        tables: A table for each of the first metrics, in the order of the ranking.
        pictures: Plots of quality against cost.
        left_out: Network, reason.
        refusals: Why networks have no verdicts.
    """

    study: StudyResult
    metric: str
    budget: str
    mismatches: Sequence[str]
    tables: Sequence[Table]
    pictures: Sequence[Plot]
    left_out: Sequence[tuple[str, str]]
    refusals: Sequence[str]


def leaderboard_view(study: StudyResult, corpus: str, data: Mapping[str, str | None]) -> LeaderboardView:
    """Return a comparison as the page shows it.

    Args:
        study: The comparison.
        corpus: The report's corpus.
        data: Hashes of the data in the report's provenance.
    """
    comparison = study.comparison
    assert comparison is not None
    return LeaderboardView(
        study=study,
        metric=metric_label(study.metrics[0]).lower(),
        budget=format_budget(comparison.budget),
        mismatches=data_mismatches(study, corpus, study.split, data),
        tables=[_table(study, metric, first=not number) for number, metric in enumerate(study.metrics[:SHOWN_METRICS])],
        pictures=list(_pictures(study)),
        left_out=list(comparison.left_out.items()),
        refusals=[refusal for name in study.variants if (refusal := comparison.refusal(name))],
    )


def _table(study: StudyResult, metric: str, first: bool) -> Table:
    """Return a metric's table; the first has the other metrics and the costs as well."""
    comparison = study.comparison
    assert comparison is not None
    best = comparison.references[0]
    others = [m for m in study.metrics if m != metric] if first else []
    costs = [key for key in COSTS if any(study.get(name, key) for name in study.variants)] if first else []
    styles = {name: style for style, name in enumerate(study.variants)}
    rows = []
    for name in ranking(study):
        valid = study.get(name, VALID_MAE)
        cells = [_value(study, name, metric)]
        cells += [_difference(study, name, metric, reference) for reference in comparison.references]
        cells += [Cell(format_metric("mae", valid.value if valid else None))] if first else []
        cells += [_value(study, name, other) for other in others]
        settings = {key: value for key, value in study.variants[name].items() if key != "model.name"}
        changes = ", ".join(f"{key}: {format_parameter(value)}" for key, value in settings.items())
        prices = [format_cost(study, name, key) for key in costs]
        rows.append(VariantRow(name, styles[name], name == best, changes, cells, prices))
    columns = [METRICS[metric].short, *(f"to {reference}" for reference in comparison.references)]
    columns += ["MAE on valid", *(METRICS[other].short for other in others)] if first else []
    return Table("" if first else METRICS[metric].label, columns, rows, [COSTS[key][0] for key in costs])


def _value(study: StudyResult, name: str, metric: str) -> Cell:
    mean, std = (study.get(name, metric, statistic) for statistic in ("mean", "std"))
    return Cell(format_metric(metric, mean.value if mean else None), format_spread(metric, std.value if std else None))


def _difference(study: StudyResult, name: str, metric: str, reference: str) -> Cell:
    row = study.get(name, metric, "difference", reference=reference)
    if row is None:
        return Cell("")
    text = format_difference(metric, row.value, row.interval)
    return Cell("", difference=text, p=row.p_text, verdict=study.verdict(row))


def _pictures(study: StudyResult) -> Sequence[Plot]:
    found = []
    for cost in PICTURED_COSTS:
        with plotting(4.6, 3.8) as (figure, axes):
            if title := draw_trade_offs(axes, study, cost, study.metrics[0], all_names=True):
                found.append(Plot(title, to_svg(figure, title, f"{COMPARISON}-{title}")))
    return found


def cost_picture(study: StudyResult) -> bytes:
    """Return the first metric against the multiply-adds as a PNG."""
    with plotting(7.0, 4.6) as (figure, axes):
        draw_trade_offs(axes, study, PICTURED_COSTS[0], study.metrics[0], all_names=True)
        return to_png(figure)


def save_leaderboard(study: StudyResult, path: Path) -> None:
    """Write a comparison's table to a .csv file, or its picture to a .png file, atomically."""
    if path.suffix == ".csv":
        write_leaderboard(study, path)
    else:
        with atomic_file(path) as temporary:
            temporary.write_bytes(cost_picture(study))
