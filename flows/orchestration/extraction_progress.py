"""Progress of an extraction: a bar or lines, a progress artifact, and a summary table."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Self

from rich.table import Table

from extractors.execution.units import UnitReport
from extractors.store import Summary
from flows.display.progress import StageProgress
from flows.orchestration import engine

TICK = 1.0
"""Seconds at least between two updates of the artifact."""


class Meter:
    """Sums up unit reports from any thread while extraction runs, and shows the progress.

    The real-time factor (RTF) is wall seconds per second of extracted media, by all workers together: below 1 is
    faster than real time. Clips that are reused from an earlier run count as done, but not towards the rates.
    """

    def __init__(self, modality: str, clips: int) -> None:
        self._modality, self._clips = modality, clips
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._done = self._extracted = 0
        self._media = 0.0
        self._failed: set[str] = set()
        self._bar = StageProgress("clips")
        self._row = self._bar.add_task(modality, total=clips, rate="", note="0 failed")
        self._finished = threading.Event()
        self._ticker = threading.Thread(target=copy_context().run, args=(self._tick,), daemon=True)

    def add(self, report: UnitReport) -> None:
        """Count the clips of a report."""
        with self._lock:
            self._done += report.extracted + report.reused + len(report.problems)
            self._done = min(self._done, self._clips)  # a retried task reports some clips twice
            self._extracted += report.extracted
            self._media += report.seconds
            self._failed |= {problem.clip_id for problem in report.problems}
            rates, failed = self._rates(), f"{len(self._failed)} failed"
            self._bar.update(self._row, completed=self._done, rate=rates, note=failed)

    @property
    def seconds(self) -> float:
        """Wall seconds since the start."""
        return time.monotonic() - self._start

    def _rates(self) -> str:
        """Format clips per second and the real-time factor of the clips extracted in this run."""
        if not self._extracted or not self.seconds:
            return ""
        factor = f" RTF {self.seconds / self._media:.3f}" if self._media else ""
        return f"{self._extracted / self.seconds:.1f} clips/s{factor}"

    def line(self) -> str:
        """Return the progress as a line of text."""
        with self._lock:
            return self._bar.line(self._row)

    def _tick(self) -> None:
        publish = engine.publish_progress(f"extract-{self._modality}-progress", f"Clips of {self._modality} done")
        shown = -1
        while not self._finished.wait(TICK):
            if self._done != shown:
                shown = self._done
                publish(100 * shown / max(self._clips, 1), self.line())
        publish(100 * self._done / max(self._clips, 1), self.line())

    def __enter__(self) -> Self:
        self._bar.start()
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        self._ticker.join(timeout=5)  # takes longer only if the server no longer answers
        self._bar.stop()


def summarise(features: int, reports: Sequence[UnitReport], summary: Summary, seconds: float) -> dict[str, str]:
    """Return the figures of a modality's extraction, formatted, by name."""
    extracted, media = sum(r.extracted for r in reports), sum(r.seconds for r in reports)
    return {
        "clips": str(summary.rows + summary.failed),
        "new": str(extracted),
        "reused": str(sum(r.reused for r in reports)),
        "missing": str(summary.missing),
        "failed": str(summary.failed),
        "steps": str(summary.steps),
        "features": str(features),
        "media s": f"{media:.0f}",
        "wall s": f"{seconds:.1f}",
        "clips/s": f"{extracted / seconds:.1f}" if extracted else "",
        "RTF": f"{seconds / media:.3f}" if media else "",
    }


def table(figures: dict[str, str]) -> Table:
    """Return the figures as a table for the terminal."""
    rendered = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in figures:
        rendered.add_column(name, justify="right")
    rendered.add_row(*figures.values())
    return rendered
