"""A study's results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from flows.display.baselines import baseline_rows, baseline_table
from flows.display.metrics import (
    METRICS,
    NOTHING,
    format_difference,
    format_metric,
    format_number,
    format_parameter,
    format_spread,
)
from flows.studies.leaderboard import chosen_changes, ranking
from flows.studies.results import ALL_CLIPS, CLEAN, VALID_MAE, NetworkComparison, StudyResult

TERMINAL_METRICS = 3
"""Number of a study's metrics that fit into a terminal."""

LEADERBOARD_WIDTH, METRIC_WIDTH = 76, 15
"""Columns of the terminal that a leaderboard takes, and each metric beside the first."""


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
    result: StudyResult,
    variant: str,
    metric: str,
    statistic: str = "mean",
    short: bool = False,
    differences: bool = True,
    **place: Any,
) -> str:
    """Return the mean with its spread, and below it, unless `short`, the difference to the reference; the verdict."""
    names = ("mean", "std", "difference") if statistic == "mean" else ("area", "", "area_difference")
    mean, std, difference = (result.get(variant, metric, name, **place) for name in names)
    if mean is None:
        return NOTHING
    lines = [format_metric(metric, mean.value) + (f" ± {format_spread(metric, std.value)}" if std else "")]
    if difference and differences:
        lines += [] if short else [format_difference(metric, difference.value, difference.interval), difference.p_text]
        lines += (
            [result.verdict(difference)] if difference.level is None else []
        )  # single levels are judged by their area
    return "\n".join(filter(None, lines))


def _cost(result: StudyResult, variant: str, metric: str, digits: int) -> str:
    row = result.get(variant, metric)
    return format_number(row.value if row else None, digits)


def leaderboard_tables(result: StudyResult, width: int) -> list[Table]:
    """Return the tables of a comparison of networks: quality, cost, what was chosen, and what was left out.

    Args:
        result: The comparison.
        width: Columns of the terminal.
    """
    comparison = result.comparison
    assert comparison is not None
    best = comparison.references[0]
    tables = [_quality_table(result, comparison, width), _cost_table(result)]
    if baseline_rows(comparison.baselines[best]):
        tables.append(baseline_table(comparison.baselines[best]))
        tables[-1].title, tables[-1].title_justify = f"Baselines, and the difference of {best} to each", "left"
    if comparison.budget["trials"] > 1:
        tables.append(_settings_table(result, comparison))
    refusals = {name: refusal for name in ranking(result) if (refusal := comparison.refusal(name))}
    for title, reasons in {"No verdict": refusals, "Left out": comparison.left_out}.items():
        if reasons:
            table = _plain_table(title, "network", "reason")
            for item in reasons.items():
                table.add_row(*item)
            tables.append(table)
    return tables


def _plain_table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _quality_table(result: StudyResult, comparison: NetworkComparison, width: int) -> Table:
    """Return the networks by rank: the first metric with its differences, and others as far as they fit."""
    title = f"{result.title} ({result.corpus}, {result.split} split, {result.clips:,} clips, {len(result.seeds)} seeds)"
    table = _plain_table(title, "", "network")
    metric, *others = result.metrics
    others = others[: max(0, width - LEADERBOARD_WIDTH) // METRIC_WIDTH]
    best = comparison.references[0]
    names = ["to the best" if reference == best else f"to {reference}" for reference in comparison.references]
    for name in (METRICS[metric].short, *names, *(METRICS[other].short for other in others)):
        table.add_column(name, justify="right", no_wrap=True)
    for rank, network in enumerate(ranking(result), start=1):
        differences = [_difference(result, network, metric, reference) for reference in comparison.references]
        cells = [_cell(result, network, other, short=True, differences=False) for other in (metric, *others)]
        table.add_row(str(rank), network, cells[0], *differences, *cells[1:])
    table.caption = (
        f"Mean and standard deviation over the seeds; the best: {best}, by the error on the validation split. Below a "
        "difference: its 95 % interval for other seeds and speakers, adjusted for all comparisons by this metric "
        "(Holm). The verdict is undecided if the interval includes 0."
    )
    return table


def _difference(result: StudyResult, network: str, metric: str, reference: str) -> str:
    row = result.get(network, metric, "difference", reference=reference)
    if row is None:
        return NOTHING
    value, _, interval = format_difference(metric, row.value, row.interval).partition(" ")
    return f"{value} {result.verdict(row)}\n{interval}".strip()


def _cost_table(result: StudyResult) -> Table:
    table = _plain_table("Cost", "network")
    for column in ("valid MAE", "parameters", "MAdds", "s a step", "s a clip", "epochs"):
        table.add_column(column, justify="right", no_wrap=True)
    for network in ranking(result):
        parameters = result.get(network, "parameters")
        table.add_row(
            network,
            _cost(result, network, VALID_MAE, 3),
            NOTHING if parameters is None else f"{parameters.value:,.0f}",
            _cost(result, network, "madds", 1),
            _cost(result, network, "step_seconds", 3),
            _cost(result, network, "clip_seconds", 4),
            _cost(result, network, "epochs", 1),
        )
    table.caption = (
        "MAdds: millions of multiply-adds of a clip of median length. A step: a batch in training, of the network's "
        "own size. A clip: prediction from features, in batches. Epochs: trained before validation stopped improving."
    )
    return table


def _settings_table(result: StudyResult, comparison: NetworkComparison) -> Table:
    table = _plain_table("Settings chosen on the validation split", "network", "trial", "other than published")
    for network in ranking(result):
        changes = chosen_changes(result, network).items()
        text = ", ".join(f"{key} {format_parameter(value)}" for key, value in changes)
        number, tried = comparison.chosen[network] + 1, len(comparison.settings[network])
        table.add_row(network, f"{number} of {tried}", text or "nothing")
    return table
