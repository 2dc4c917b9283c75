"""The evaluations in this folder so far, and their metrics on the terminal; without Prefect, for a quick command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from flows.config.params import Params
from flows.display.baselines import baseline_table, baseline_verdict, is_better
from flows.display.console import console
from flows.display.metrics import PreviousEvaluation, compared_rows, counts, metric_table, metrics_rows
from flows.orchestration.settings import STATE

if TYPE_CHECKING:
    from flows.studies.cross_corpus import CrossCorpusResult

ON = "on.json"
"""File in the metrics folder with the metrics on another corpus; an empty object without one."""

HISTORY = STATE / "metrics.jsonl"
"""One line per evaluation in this folder. DVC removes a stage's outputs, the previous metrics, before it runs it."""


def append_to_history(params: Params, metrics: Mapping[str, Any]) -> None:
    """Append an evaluation to the history."""
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": params.prepare.corpus,
        "split": params.evaluate.split,
        "metrics": dict(metrics),
    }
    HISTORY.parent.mkdir(exist_ok=True)
    with HISTORY.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def history() -> list[dict[str, Any]]:
    """Return the evaluations in this folder, oldest first."""
    return read_lines(HISTORY)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object a line; none if there is no file."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # incomplete after a kill or on a full disk; the others are still useful
            continue
    return entries


def previous_evaluation(params: Params, metrics: Mapping[str, Any]) -> PreviousEvaluation | None:
    """Return the evaluation of the same corpus and split before the one with `metrics`, if any.

    If DVC has restored `metrics` from its cache, that is the last evaluation that ran here.
    """
    key = params.prepare.corpus, params.evaluate.split
    entries = [entry for entry in history() if (entry["corpus"], entry["split"]) == key]
    if entries and entries[-1]["metrics"] == metrics:
        entries.pop()
    return PreviousEvaluation(entries[-1]["time"], entries[-1]["metrics"]) if entries else None


def previous_metrics(params: Params, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the metrics of `previous_evaluation`."""
    before = previous_evaluation(params, metrics)
    return dict(before.metrics) if before else None


def metrics_table(params: Params, metrics: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Table:
    """Return the metrics as a table for the terminal, with their change since `before`."""
    table = Table(title=f"{params.prepare.corpus}, {params.evaluate.split} split", title_justify="left")
    table.add_column("metric")
    for column in ("value", "last run", "change")[: 3 if before else 1]:
        table.add_column(column, justify="left" if column == "change" else "right")
    for row in compared_rows(metrics, before) if before else metrics_rows(metrics):
        table.add_row(*row)
    return table


def read_other_corpus(params: Params) -> CrossCorpusResult | None:
    """Return the metrics on another corpus that the last evaluation wrote; None without one."""
    path = params.paths.metrics / ON
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not values:
        return None
    from flows.studies.cross_corpus import CrossCorpusResult

    return CrossCorpusResult(**values)


def other_corpus_table(other: CrossCorpusResult) -> Table:
    """Return the metrics on another corpus as a table for the terminal."""
    table = Table(title=escape(other.subject), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for row in metric_table(other.metrics, other.intervals):
        table.add_row(row.name, f"{row.value} ± {row.spread}" if row.spread else row.value, row.interval)
    for name, count in counts(other.metrics):
        table.add_row(name, count, "")
    return table


def print_other_corpus(other: CrossCorpusResult) -> None:
    """Print the metrics on another corpus, how labels were mapped, and how the corpora differ."""
    console.print(other_corpus_table(other))
    if other.mapping:
        console.print(other.mapping, markup=False)
    for note in other.notes:
        console.print(f"{other.corpus}: {note}", style="yellow", markup=False)
    if found := other.metrics.get("baselines"):
        console.print(f"On {other.corpus}: {baseline_verdict(found)}", markup=False)
    if other.looks:
        console.print(f"the test split of {other.corpus} has been evaluated {other.looks}", markup=False)


def print_metrics(params: Params, metrics: Mapping[str, Any]) -> None:
    """Print the metrics, and what the baselines make of them."""
    console.print(metrics_table(params, metrics, previous_metrics(params, metrics)))
    if found := metrics.get("baselines"):
        if "verdict" in found:
            console.print(baseline_table(found))
        console.print(baseline_verdict(found), style="" if is_better(found) else "bold yellow", markup=False)
