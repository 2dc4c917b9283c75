"""What a user sees of extraction's progress: the same figures in a bar, a log line, and the summary."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from corpora.problems import Problem
from extractors.execution.units import UnitReport
from extractors.store import FeatureMeta, Summary
from flows.display import progress
from flows.orchestration import extraction_progress

META = FeatureMeta("audio", "fake.audio", {}, ("a", "b"), "fake-v1")


def report(extracted: int = 0, reused: int = 0, failed: tuple[str, ...] = (), seconds: float = 0.0) -> UnitReport:
    problems = tuple(Problem(clip_id, "extract", "audio", "MediaError", "cut off") for clip_id in failed)
    return UnitReport(META, extracted, reused, 0, problems, seconds)


@pytest.fixture
def clock(monkeypatch) -> dict[str, float]:
    """The meter's clock, to be set."""
    now = {"seconds": 100.0}
    monkeypatch.setattr(extraction_progress.time, "monotonic", lambda: now["seconds"])
    return now


def test_rates_are_of_what_was_extracted_now(clock):
    meter = extraction_progress.Meter("audio", 40)
    meter.add(report(reused=20))
    clock["seconds"] += 2.0
    assert meter.line() == "audio: 20 of 40 clips, 0 failed"
    meter.add(report(extracted=7, failed=("v/1",), seconds=40.0))
    line = meter.line()
    assert line.startswith("audio: 28 of 40 clips, 3.5 clips/s RTF 0.050") and line.endswith("1 failed")


def test_a_unit_that_is_tried_again_counts_no_clip_beyond_the_last(clock):
    meter = extraction_progress.Meter("audio", 8)
    for _ in range(2):
        meter.add(report(extracted=6, failed=("v/1", "v/2")))
    assert meter.line().startswith("audio: 8 of 8 clips") and meter.line().endswith("2 failed")


def test_the_bar_shows_the_failures(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, force_terminal=True, width=80))
    with extraction_progress.Meter("audio", 8) as meter:
        meter.add(report(extracted=7, seconds=4.0, failed=("v/1",)))
    assert "8/8" in out.getvalue() and "1 failed" in out.getvalue()


def test_the_summary_adds_up_the_units():
    reports = [report(extracted=10, reused=5, seconds=30.0), report(extracted=9, failed=("v/1",), seconds=20.0)]
    figures = extraction_progress.summarise(2, reports, Summary(rows=24, missing=3, steps=700, failed=1), seconds=5.0)
    assert figures == {
        "clips": "25", "new": "19", "reused": "5", "missing": "3", "failed": "1", "steps": "700", "features": "2",
        "media s": "50", "wall s": "5.0", "clips/s": "3.8", "RTF": "0.100",
    }  # fmt: skip


def test_the_summary_fits_on_a_narrow_terminal():
    figures = extraction_progress.summarise(
        1024, [report(extracted=22_856, seconds=237_600.0)], Summary(22_856, 1234, 5_940_123, 345), seconds=8_000.0
    )
    out = io.StringIO()
    Console(file=out, width=80).print(extraction_progress.table(figures))
    (row,) = (line for line in out.getvalue().splitlines() if "23201" in line)
    assert row.split() == list(figures.values())


def test_nothing_extracted_has_no_rates():
    figures = extraction_progress.summarise(2, [report(reused=5)], Summary(5, 0, 10, 0), seconds=1.0)
    assert figures["clips/s"] == figures["RTF"] == ""
