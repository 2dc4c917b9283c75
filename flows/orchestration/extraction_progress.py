"""How far extraction is: a bar on the terminal, a line now and then in a log, a progress artifact, a summary table."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextvars import copy_context
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from extractors.execution.units import Summary, UnitReport
from flows.display.console import console
from flows.orchestration import engine

TICK = 1.0  # seconds between two looks at the figures, and the least between two updates of the artifact
LOG_EVERY = 30.0  # seconds between two lines where no bar can be drawn
LEGEND = "new: extracted now; media: their seconds; wall: seconds this took; RTF: wall / media"


class Meter:
    """Adds up reports from any thread while extraction runs, and shows them.

    The real-time factor is wall seconds for each second of media extracted, by all workers together (below 1 is
    faster than the media play). What an earlier run left is counted as done, not as work.
    """

    def __init__(self, modality: str, clips: int) -> None:
        self._modality, self._clips = modality, clips
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._done = self._extracted = 0
        self._media = 0.0
        self._failed: set[str] = set()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failed]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,  # the summary takes its place
        )
        self._row = self._bar.add_task(modality, total=clips, rates="", failed="")
        self._over = threading.Event()
        self._ticker = threading.Thread(target=copy_context().run, args=(self._tick,), daemon=True)

    def add(self, report: UnitReport) -> None:
        """Count what was done; called as soon as it is."""
        with self._lock:
            self._done += report.extracted + report.reused + len(report.problems)
            self._done = min(self._done, self._clips)  # a task that is tried again reports some clips twice
            self._extracted += report.extracted
            self._media += report.seconds
            self._failed |= {problem.clip_id for problem in report.problems}
            self._bar.update(
                self._row,
                completed=self._done,
                rates=self._rates(),
                failed=f"[red]{len(self._failed)} failed" if self._failed else "",
            )

    @property
    def seconds(self) -> float:
        """Wall seconds since the start."""
        return time.monotonic() - self._start

    def _rates(self) -> str:
        """Clips a second and the real-time factor, of what was extracted now."""
        if not self._extracted or not self.seconds:
            return ""
        factor = f" RTF {self.seconds / self._media:.3f}" if self._media else ""
        return f"{self._extracted / self.seconds:.1f} clips/s{factor}"

    def line(self) -> str:
        """All of it in words."""
        with self._lock:
            words = [f"{self._done} of {self._clips} clips", self._rates(), f"{len(self._failed)} failed"]
            left = self._bar.tasks[0].time_remaining
        if left is not None:
            words.insert(2, f"{timedelta(seconds=round(left))} left")
        return f"{self._modality}: {', '.join(filter(None, words))}"

    def _tick(self) -> None:
        publish = engine.publish_progress(f"extract-{self._modality}-progress", f"Clips of {self._modality} done")
        shown, logged = -1, 0.0
        while not self._over.wait(TICK):
            if self._done != shown:
                shown = self._done
                publish(100 * shown / max(self._clips, 1), self.line())
            if not console.is_terminal and self.seconds - logged > LOG_EVERY:
                logged = self.seconds
                console.print(self.line())
        publish(100 * self._done / max(self._clips, 1), self.line())

    def __enter__(self) -> Self:
        self._bar.start()
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._ticker.join(timeout=5)  # longer than that only where the server has gone
        self._bar.stop()


def summarise(features: int, reports: Sequence[UnitReport], summary: Summary, seconds: float) -> dict[str, str]:
    """What a modality's extraction came to, by the names of its figures."""
    extracted, media = sum(r.extracted for r in reports), sum(r.seconds for r in reports)
    return {
        "clips": str(summary.rows + summary.failed),
        "new": str(extracted),
        "reused": str(sum(r.reused for r in reports)),
        "missing": str(summary.missing),
        "failed": str(summary.failed),
        "steps": str(summary.steps),
        "features": str(features),
        "media": f"{media:.0f}",
        "wall": f"{seconds:.1f}",
        "clips/s": f"{extracted / seconds:.1f}" if extracted else "",
        "RTF": f"{seconds / media:.3f}" if media else "",
    }


def table(figures: dict[str, str]) -> Table:
    """The figures for the terminal."""
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in figures:
        made.add_column(name, justify="right")
    made.add_row(*figures.values())
    return made
