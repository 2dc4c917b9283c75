"""Prediction results on the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from flows.display.console import error_console, printable
from flows.display.metrics import format_clock, format_number
from model.prediction.results import GENERATED_TRAINING, Result, generated_notice

BLOCKS = "▁▂▃▄▅▆▇█"
MAX_SPARKLINE_WIDTH = 60


def with_progress(results: Iterator[Result], total: int) -> Iterator[Result]:
    """Yield the results, with a progress bar on standard error if that is a terminal."""
    disable = total < 2 or not error_console.is_terminal
    with Progress(console=error_console, transient=True, disable=disable) as progress:
        yield from progress.track(results, total=total, description="scoring")


def show(console: Console, results: Sequence[dict[str, Any]], label_range: Sequence[float]) -> None:
    """Print the results as a table, followed by errors and warnings, and the time lines of long videos.

    The warning that the model was trained on generated videos comes first, and once.
    """
    if notice := generated_notice(results):
        console.print(Text(notice, "bold"))
    console.print(results_table(results, label_range))
    for result in results:
        warnings = [warning for warning in result["warnings"] if warning["code"] != GENERATED_TRAINING]
        notices = [result["error"]] if result["error"] else warnings
        if notices:
            messages = "; ".join(notice["message"] for notice in notices)
            console.print(Text.assemble((Path(result["file"]).name, "bold"), ": ", messages))
    for result in results:
        if result["windows"]:
            name, end = Path(result["file"]).name, format_clock(result["windows"][-1]["end"])
            console.print(Text.assemble((name, "bold"), f"  0:00 {sparkline(result['windows'], label_range)} {end}"))


def results_table(results: Sequence[dict[str, Any]], label_range: Sequence[float]) -> Table:
    """Return a table with one row per video: score, sentiment, class, interval, contributions and seconds."""
    low, high = label_range
    levels = [f"{result['interval']['level']:.0%} interval" for result in results if result["interval"]]
    table = Table(title=f"sentiment from {low:g} (negative) to {high:g} (positive)", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("score", justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    table.add_column("class", justify="right", overflow="fold")
    table.add_column(levels[0] if levels else "interval", justify="right", overflow="fold")
    table.add_column("from (change by each)", overflow="fold")
    table.add_column("seconds", justify="right", overflow="fold")
    names = [Path(result["file"]).name for result in results]
    unique = len({*names}) == len(names)
    for result, name in zip(results, names, strict=True):
        file = Text(printable(name if unique else result["file"]))  # not a string, whose brackets would be markup
        if result["error"]:
            table.add_row(file, "", Text(result["error"]["class"], "red"), "", "", "", "")
            continue
        contributions = result["contributions"]
        table.add_row(
            file,
            format_number(result["score"]),
            result["sentiment"],
            result["class"],
            _format_interval(result),
            ", ".join(
                f"{m} {format_number(contributions[m], sign=True)}" if contributions else m for m in result["used"]
            ),
            f"{sum(result['seconds'].values()):.1f}",
        )
    return table


def _format_interval(result: dict[str, Any]) -> str:
    interval, test = result["interval"], result["outlier_test"]
    if interval:
        return f"{format_number(interval['low'])} to {format_number(interval['high'])}"
    return "unlike training" if test and test["modalities"] else "not known"


def sparkline(windows: Sequence[dict[str, Any]], label_range: Sequence[float]) -> str:
    """Return the windows' scores as block characters, low for negative; a space for windows without a score."""
    low, high = label_range
    scores = [window["score"] for window in windows]
    columns = min(len(scores), MAX_SPARKLINE_WIDTH)
    edges = [round(i * len(scores) / columns) for i in range(columns + 1)]
    line = ""
    for start, stop in itertools.pairwise(edges):
        known = [score for score in scores[start:stop] if score is not None]
        if known:
            fraction = (sum(known) / len(known) - low) / (high - low)
            line += BLOCKS[min(int(fraction * len(BLOCKS)), len(BLOCKS) - 1)]
        else:
            line += " "
    return line
