"""`dashfusion problems`: what could not be used, in which stage, and why."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.app import app, plain_errors

if TYPE_CHECKING:
    from rich.table import Table

    from corpora.problems import Problem
    from flows.config.params import Paths

Stage = Literal["prepare", "transcribe", "extract", "align"]
RUNS = ("prepare", "transcribe", "extract text", "extract audio", "extract vision", "align")
"""Runs that list problems, by the arguments of `dashfusion` that start them."""

MAX_NAME = 28
"""Width of the column of clips, so that the messages are readable in a terminal of 80 columns."""


@app.command()
def problems(
    stage: Annotated[Stage | None, typer.Option(help="Stage, out of those that list problems; by default all.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output, all columns as stored.")] = False,
) -> None:
    """List the rows and clips that could not be used, with the reason and what to do.

    The problems are those of each stage's last run, also of one that stopped. The exit status is 1 if the stage, or
    every stage, has not run yet.
    """
    from flows.config.params import load_params
    from flows.display.console import console, error_console

    with plain_errors(stderr=as_csv):
        paths = load_params().paths
        runs = [run for run in RUNS if stage in (None, run.split()[0])]
        found = {run: _read(paths, run) for run in runs}
    listed = [problem for rows in found.values() for problem in rows or ()]
    absent = [run for run, rows in found.items() if rows is None]
    if as_csv:
        _write_csv(listed)
    elif listed:
        for table in _tables(listed):
            console.print(table)
        console.print(_summary(listed), markup=False)
    elif len(absent) < len(found):
        console.print(f"no problems in {', '.join(run for run in runs if run not in absent)}")
    if absent:
        line = f"not run yet: {', '.join(absent)}; `dashfusion {absent[0]}` runs the first of them"
        (error_console if as_csv else console).print(line)
    if len(absent) == len(found):
        raise typer.Exit(1)


def _read(paths: Paths, run: str) -> list[Problem] | None:
    """Return the problems of a run; None if there was none. Those of align are only in the table of all stages."""
    from corpora.problems import read_problems

    table = paths.all_problems if run == "align" else paths.problems / f"{run.replace(' ', '-')}.parquet"
    stage = run.split()[0]
    return [problem for problem in read_problems([table]) if problem.stage == stage] if table.is_file() else None


def _tables(listed: Sequence[Problem]) -> list[Table]:
    """Return a table for each kind of problem, in the order of the stages, with a row for each clip."""
    from rich.table import Table
    from rich.text import Text

    from flows.display.console import printable

    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in listed:
        run = f"{problem.stage} {problem.modality}".strip()
        kinds.setdefault((run, problem.error), []).append(problem)
    tables = []
    for (run, error), rows in kinds.items():
        title = Text(f"{run}: {error} ({len(rows)})", style="bold")  # not a string, whose brackets would be markup
        table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(overflow="fold", max_width=MAX_NAME)
        table.add_column(overflow="fold")
        for problem in rows:
            table.add_row(Text(printable(problem.clip_id)), Text(printable(problem.message)))
        tables.append(table)
    return tables


def _summary(listed: Sequence[Problem]) -> str:
    from extractors.execution.cache import TRACEBACKS
    from flows.display.metrics import format_count
    from flows.orchestration.settings import scratch_folder

    stages = ", ".join(f"{stage} {count}" for stage, count in Counter(p.stage for p in listed).items())
    line = f"{format_count(len(listed), 'problem')} ({stages})"
    if any(problem.traceback for problem in listed):
        line += f"; tracebacks are in {scratch_folder() / TRACEBACKS}, named by the column traceback of --csv"
    return line


def _write_csv(listed: Sequence[Problem]) -> None:
    """Write the table in UTF-8, whatever the locale; for a terminal, control characters become escapes."""
    from corpora.problems import PROBLEMS_SCHEMA
    from flows.display.console import printable

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, PROBLEMS_SCHEMA.names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, listed))
    content = printable(text.getvalue()) if sys.stdout.isatty() else text.getvalue()
    sys.stdout.buffer.write(content.encode())
    sys.stdout.buffer.flush()
