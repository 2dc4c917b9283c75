"""Progress of a stage: a bar in a terminal, else a line now and then.

A stage that DVC runs for `dashfusion pipeline` writes into a pipe, which the pipeline reads line by line. If the
pipeline has a terminal, the stage sends the state of its bars through the pipe, and the pipeline draws them: two
processes that draw in one terminal would disturb each other.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any, Self

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.display.console import console
from flows.display.metrics import format_duration

LINE_EVERY = 30.0
"""Seconds without a line after which one tells the progress, if there is no terminal."""

RECORD_EVERY = 0.2
"""Seconds between two records of a bar."""

RECORDS = "DASHFUSION_PROGRESS_RECORDS"
"""Environment variable: 1 asks a process whose output is read by `BarReader` for records of its bars."""

MARK = "\x1eprogress "
"""Start of a record's line. Nothing else starts like this: the console escapes control characters."""


class StageProgress(Progress):
    """Bars of a stage, or the same in lines. Used as a context manager.

    Args:
        unit: What is counted.
    """

    def __init__(self, unit: str = "clips") -> None:
        super().__init__(
            TextColumn("[bold]{task.description:<16}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,  # what the stage prints at its end takes their place
        )
        self._unit = unit
        self._as_records = self.disable and os.environ.get(RECORDS) == "1"
        self._written = time.monotonic()
        self._sent: dict[TaskID, dict[str, Any]] = {}
        self._stopped = threading.Event()
        self._ticker: threading.Thread | None = None

    def add_task(self, description: str, *, total: float | None, **fields: Any) -> TaskID:  # type: ignore[override]
        """Add a bar.

        Args:
            description: What is done.
            total: Number of steps; None: not known yet.
            **fields: `note`: text beside the bar; `rate`: text in place of the rate of the last 30 s, in lines.
        """
        return super().add_task(description, total=total, **{"unit": self._unit, "note": "", "rate": None, **fields})

    def start(self) -> None:
        """Start to show progress."""
        super().start()
        if self.disable and not self._ticker:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()

    def stop(self) -> None:
        """Remove the bars."""
        self._stopped.set()
        if self._ticker:
            self._ticker.join()
        if self._as_records:
            for task in self.tasks:
                self._send({"bar": task.id, "done": True})
        super().stop()

    def print_line(self, row: TaskID, text: str) -> None:
        """Print a line on a bar's work, unless bars are shown."""
        if self.disable and not self._as_records:
            self._print(f"{self._tasks[row].description}: {text}")

    def line(self, row: TaskID) -> str:
        """Return a bar's state as text: done, rate, time left, note."""
        return _format(self._tasks[row])

    def print_if_due(self) -> None:
        """Print a line for each unfinished bar, if there was none for `LINE_EVERY` seconds."""
        if time.monotonic() - self._written >= LINE_EVERY:
            for task in self.tasks:
                if not task.finished:
                    self._print(_format(task))

    def _print(self, line: str) -> None:
        console.print(line, markup=False)
        self._written = time.monotonic()

    def _tick(self) -> None:
        while not self._stopped.wait(RECORD_EVERY if self._as_records else min(LINE_EVERY / 10, 1.0)):
            if self._as_records:
                self._send_changes()
            else:
                self.print_if_due()

    def _send_changes(self) -> None:
        for task in self.tasks:
            state = {"bar": task.id, "description": task.description, "completed": task.completed, "total": task.total}
            state |= {"unit": task.fields["unit"], "note": task.fields["note"]}
            if self._sent.get(task.id) != state:
                self._sent[task.id] = state
                self._send(state)

    @staticmethod
    def _send(record: dict[str, Any]) -> None:
        console.file.write(f"{MARK}{json.dumps(record)}\n")
        console.file.flush()


def _format(task: Task) -> str:
    unit, rate, note = (task.fields[name] for name in ("unit", "rate", "note"))
    if task.total is None and not task.completed:  # the first step is yet to come
        return f"{task.description.strip()}: {format_duration(task.elapsed or 0)} so far"
    done = f"{task.completed:,.0f}" + ("" if task.total is None else f" of {task.total:,.0f}")
    if rate is None and task.speed:
        rate = f"{task.speed:.1f} {unit}/s" if task.speed >= 0.1 else f"{60 * task.speed:.1f} {unit}/min"
    left = "" if task.time_remaining is None else f"{format_duration(task.time_remaining)} left"
    return f"{task.description.strip()}: {', '.join(filter(None, (f'{done} {unit}', rate, left, note)))}"


class BarReader:
    """Draws the bars of a process whose output is read. Used as a context manager, which removes them at its end."""

    def __init__(self) -> None:
        self._bars: StageProgress | None = None
        self._rows: dict[int, TaskID] = {}

    def take(self, line: str) -> bool:
        """Show a line's record; return whether it has one."""
        if not line.startswith(MARK):
            return False
        try:
            record = json.loads(line.removeprefix(MARK))
            bar, done = int(record.pop("bar")), record.pop("done", False)
            state = {} if done else {name: record[name] for name in ("description", "completed", "total")}
            state |= {name: escape(str(record[name])) for name in ("unit", "note") if not done}
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if done:
            self._remove(bar)
        elif bar in self._rows and self._bars:
            self._bars.update(self._rows[bar], **state)
        else:
            if not self._bars:
                self._bars = StageProgress()
                self._bars.start()
            self._rows[bar] = self._bars.add_task(**state)
        return True

    def _remove(self, bar: int) -> None:
        if self._bars and bar in self._rows:
            self._bars.remove_task(self._rows.pop(bar))
            if not self._rows:
                self._bars.stop()
                self._bars = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for bar in list(self._rows):
            self._remove(bar)
