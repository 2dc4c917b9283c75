"""A study's results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from flows.display.metrics import METRICS, NOTHING, format_difference, format_metric, format_number, format_spread
from flows.studies.results import ALL_CLIPS, CLEAN, StudyResult

TERMINAL_METRICS = 3
"""Number of a study's metrics that fit into a terminal."""


def tables(result: StudyResult) -> list[Table]:
    """Return the tables of the variants on all clips and on each slice, then those of the conditions."""
    found = [_variants_table(result, clips) for clips in (ALL_CLIPS, *result.slices)]
    without_levels = [name for name in result.conditions if not result.levels(name)]
    if without_levels:
        conditions = {"clean": {"condition": CLEAN}} | {name: {"condition": name} for name in without_levels}
        found.append(_conditions_table(result, "in each condition", conditions))
    for name, unit in result.conditions.items():
        if levels := result.levels(name):
            columns: dict[str, dict[str, Any]] = {"clean": {}}
            columns |= {f"{level:g}": {"condition": name, "level": level} for level in levels}
            columns["area"] = {"condition": name, "statistic": "area"}
            found.append(_conditions_table(result, f"under {name}{f' ({unit})' if unit else ''}", columns))
    return found


def _variants_table(result: StudyResult, clips: str) -> Table:
    subject = f"{result.corpus}, {result.split} split, {len(result.seeds)} seeds"
    subject += "" if clips == ALL_CLIPS else f", clips whose {clips}"
    table = Table(title=f"{result.title} ({subject})", title_justify="left", caption_justify="left")
    table.add_column("variant")
    shown, others = result.metrics[:TERMINAL_METRICS], result.metrics[TERMINAL_METRICS:]
    for name in (*(METRICS[m].short for m in shown), "MAdds", "s a step"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in result.variants:
        cells = [_cell(result, variant, metric, clips=clips) for metric in shown]
        costs = [_cost(result, variant, "madds", 1), _cost(result, variant, "step_seconds", 2)]
        table.add_row(variant, *cells, *costs, end_section=variant == result.reference)
    table.caption = (
        f"Below a mean: its difference to '{result.reference}', the 95 % interval for other seeds and speakers, p and "
        "the p adjusted for all comparisons by this metric (Holm). The verdict is undecided unless the interval "
        "excludes 0 and the adjusted p is at most 0.05. MAdds: millions of multiply-adds of a clip."
        + (f" {', '.join(METRICS[m].short for m in others)}: in the report." if others else "")
    )
    return table


def _conditions_table(result: StudyResult, title: str, columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the first metric's means and verdicts; `columns` maps a name to arguments of `StudyResult.get`."""
    metric = result.metrics[0]
    table = Table(title=f"{METRICS[metric].short} {title}", title_justify="left")
    table.add_column("variant")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for variant in result.variants:
        table.add_row(variant, *(_cell(result, variant, metric, short=True, **place) for place in columns.values()))
    return table


def _cell(
    result: StudyResult, variant: str, metric: str, statistic: str = "mean", short: bool = False, **place: Any
) -> str:
    """Return the mean with its spread, and below it, unless `short`, the difference to the reference; the verdict."""
    names = ("mean", "std", "difference") if statistic == "mean" else ("area", "", "area_difference")
    mean, std, difference = (result.get(variant, metric, name, **place) for name in names)
    if mean is None:
        return NOTHING
    lines = [format_metric(metric, mean.value) + (f" ± {format_spread(metric, std.value)}" if std else "")]
    if difference:
        lines += [] if short else [format_difference(metric, difference.value, difference.interval), difference.p_text]
        lines += (
            [result.verdict(difference)] if difference.level is None else []
        )  # single levels are judged by their area
    return "\n".join(filter(None, lines))


def _cost(result: StudyResult, variant: str, metric: str, digits: int) -> str:
    row = result.get(variant, metric)
    return format_number(row.value if row else None, digits)
