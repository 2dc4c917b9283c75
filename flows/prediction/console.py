"""Prediction results for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.display.metrics import format_clock, format_number
from model.prediction.results import Result

BLOCKS = "▁▂▃▄▅▆▇█"
LINE_WIDTH = 60  # characters of a time line


def _watched(results: Iterator[Result], total: int) -> Iterator[Result]:
    """The same, with a bar on the terminal's standard error."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=total < 2 or not console.is_terminal) as progress:
        yield from progress.track(results, total=total, description="scoring")


def show(console: Console, results: Sequence[dict[str, Any]], label_range: Sequence[float]) -> None:
    """The results as a table, then what is to be known of each video, and the time lines."""
    from rich.text import Text

    console.print(results_table(results, label_range))
    for result in results:
        lines = [result["error"]["message"]] if result["error"] else [w["message"] for w in result["warnings"]]
        if lines:
            console.print(Text.assemble((Path(result["file"]).name, "bold"), ": ", "; ".join(lines)))
    for result in results:
        if result["windows"]:
            name, end = Path(result["file"]).name, format_clock(result["windows"][-1]["end"])
            line = time_line(result["windows"], label_range)
            console.print(Text.assemble((name, "bold"), f"  0:00 {line} {end}"))


def results_table(results: Sequence[dict[str, Any]], label_range: Sequence[float]) -> Table:
    """One row a video: score, sentiment, interval, modalities with what they change, seconds."""
    from rich.table import Table
    from rich.text import Text

    low, high = label_range
    levels = [f"{result['interval']['level']:.0%} interval" for result in results if result["interval"]]
    table = Table(title=f"sentiment from {low:g} (negative) to {high:g} (positive)", title_justify="left")
    for column, justify in (
        ("file", "left"), ("score", "right"), ("", "left"), ("class", "right"),
        (levels[0] if levels else "interval", "right"),
        ("from (change by each)", "left"), ("seconds", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, overflow="fold")
    names = [Path(result["file"]).name for result in results]
    for result, short in zip(results, names, strict=True):
        name = Text(short if len({*names}) == len(names) else result["file"])  # what a file is called is no markup
        if result["error"]:
            table.add_row(name, "", Text(result["error"]["class"], "red"), "", "", "", "")
            continue
        interval, shares = result["interval"], result["contributions"]
        table.add_row(
            name,
            format_number(result["score"]),
            result["sentiment"],
            result["class"],
            f"{format_number(interval['low'])} to {format_number(interval['high'])}" if interval else "not known",
            ", ".join(f"{m} {format_number(shares[m], sign=True)}" if shares else m for m in result["used"]),
            f"{sum(result['seconds'].values()):.1f}",
        )
    return table


def time_line(windows: Sequence[dict[str, Any]], label_range: Sequence[float]) -> str:
    """The windows' scores as blocks, low for negative and high for positive; a space where there is none."""
    low, high = label_range
    scores = [window["score"] for window in windows]
    columns = min(len(scores), LINE_WIDTH)
    edges = [round(i * len(scores) / columns) for i in range(columns + 1)]
    line = ""
    for first, stop in itertools.pairwise(edges):
        known = [score for score in scores[first:stop] if score is not None]
        share = (sum(known) / len(known) - low) / (high - low) if known else -1.0
        line += BLOCKS[min(int(share * len(BLOCKS)), len(BLOCKS) - 1)] if known else " "
    return line
