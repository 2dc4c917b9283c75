"""What a study found, for the terminal and for the flow run's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flows.display.metrics import METRICS, NOTHING
from flows.studies.results import ALL_CLIPS, CLEAN, Row, StudyResult

TERMINAL_METRICS = 3
"""Of a study's metrics, those that a terminal has room for."""


def yes_or_no(holds: bool | None) -> str:
    return {True: "Yes. ", False: "No. ", None: ""}[holds]


def tables(result: StudyResult) -> list[Table]:
    """For the terminal: the variants on the split as it is, and on its slices; then what the conditions make of it."""
    groups = dict.fromkeys(row.clips for row in result.rows)
    found = [_variants_table(result, CLEAN, clips) for clips in groups]
    without_levels = [name for name in result.conditions if result.one(condition=name, level=None, statistic="mean")]
    found += [_conditions_table(result, without_levels)] if without_levels else []
    found += [_levels_table(result, name) for name in result.conditions if name not in without_levels]
    return found


def _variants_table(result: StudyResult, condition: str, clips: str) -> Table:
    of = f"{result.corpus}, {result.split} split, {len(result.seeds)} seeds"
    of += "" if clips == ALL_CLIPS else f", clips whose {clips}"
    table = Table(title=f"{result.title} ({of})", title_justify="left", caption_justify="left")
    table.add_column("variant")
    shown, others = result.metrics[:TERMINAL_METRICS], result.metrics[TERMINAL_METRICS:]
    for name in (*(METRICS[m].short for m in shown), "MAdds", "s a step"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in result.variants:
        where = {"variant": variant, "condition": condition, "level": None, "clips": clips}
        costs = [result.one(variant=variant, metric=m, statistic="mean") for m in ("madds", "step_seconds")]
        told = [f"{row.value:{form}}" for row, form in zip(costs, (".1f", ".2f"), strict=True) if row and row.value]
        cells = [_cell(result, metric, where) for metric in shown]
        table.add_row(variant, *cells, *told, end_section=variant == result.reference)
    table.caption = (
        f"Under a mean: its difference to '{result.reference}', and the 95 % interval of that over the clips. "
        "MAdds: millions of multiply-adds of a clip."
        + (f" {', '.join(METRICS[m].short for m in others)}: in the report." if others else "")
    )
    return table


def _conditions_table(result: StudyResult, conditions: Sequence[str]) -> Table:
    metric = result.metrics[0]
    table = Table(title=f"{METRICS[metric].short} in each condition", title_justify="left")
    table.add_column("variant")
    for name in ("as it is", *conditions):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in result.variants:
        at = {"variant": variant, "level": None, "clips": ALL_CLIPS}
        cells = (_cell(result, metric, at | {"condition": c}, False) for c in (CLEAN, *conditions))
        table.add_row(variant, *cells)
    return table


def _levels_table(result: StudyResult, condition: str) -> Table:
    metric = result.metrics[0]
    levels = list(dict.fromkeys(row.level for row in result.find(condition=condition, statistic="mean")))
    unit = result.conditions[condition]
    table = Table(title=f"{METRICS[metric].short}: {condition}{f' ({unit})' if unit else ''}", title_justify="left")
    table.add_column("variant")
    for name in ("as it is", *(f"{level:g}" for level in levels if level is not None), "area"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in result.variants:
        at = {"variant": variant, "clips": ALL_CLIPS}
        where = [
            at | {"condition": CLEAN, "level": None},
            *(at | {"condition": condition, "level": n} for n in levels),
        ]
        cells = [_cell(result, metric, place, False) for place in where]
        area = result.one(**at, condition=condition, metric=metric, statistic="area")
        table.add_row(variant, *cells, _number(metric, area.value if area else None))
    return table


def _cell(result: StudyResult, metric: str, where: Mapping[str, Any], compared: bool = True) -> str:
    """Mean and standard deviation, and below it, if there is room for it, the difference to the reference."""
    rows: dict[str, Row | None] = {
        name: result.one(**where, metric=metric, statistic=name) for name in ("mean", "std", "difference")
    }
    mean, std, difference = rows["mean"], rows["std"], rows["difference"]
    shown = _number(metric, mean.value if mean else None)
    if std and std.value is not None:
        shown += f" ± {_number(metric, std.value)}"
    if compared and difference and difference.value is not None:
        ends = [_number(metric, value, signed=True) for value in (difference.low, difference.high)]
        shown += f"\n{_number(metric, difference.value, signed=True)} [{ends[0]}, {ends[1]}]"
    return shown


def _number(metric: str, value: float | None, signed: bool = False) -> str:
    """A fraction in percent without its sign, the rest with three decimals."""
    if value is None:
        return NOTHING
    form = ("+" if signed else "") + (".1f" if METRICS[metric].is_fraction else ".3f")
    return f"{100 * value if METRICS[metric].is_fraction else value:{form}}"
