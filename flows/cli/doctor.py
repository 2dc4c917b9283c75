"""`dashfusion doctor`: what a corpus holds, what is wrong with it, and how long its extraction will take."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from corpora.inspection import CorpusInspection, inspect_corpus, label_histogram
from corpora.manifest import MODALITIES, Clip
from extractors.execution.units import extract_unit, limit_threads
from flows.config.params import Params
from flows.display.console import console
from flows.display.metrics import format_duration

SHOWN = 5  # of a long list: the rest is counted
BAR = 24  # characters of a histogram's longest bar


def doctor(root: Path, params: Params, *, sample: int = 3) -> bool:
    """Examine a corpus, print the findings; True where the pipeline would go through with it.

    Args:
        root: a folder in MMSA's layout, or in the parameters' own.
        params: layout, columns, language, label range, extractors and `max_failed_fraction` are of interest.
        sample: clips to extract for the estimate; 0: none.

    Raises:
        FileNotFoundError: no folder, or no table in it.
        ValueError: the table cannot be read, or an extractor not be built.
    """
    found = inspect_corpus(
        root,
        language=params.prepare.language,
        label_range=params.prepare.label_range,
        layout=params.prepare.raw_layout,
        columns=params.prepare.raw_columns,
    )
    for table in (_overview(found), _formats(found), _labels(found), _problems(found)):
        if table.row_count:
            console.print(table)
    chosen = sample_clips(found, sample)
    if chosen:
        console.print(_estimate(found, chosen, params))
    limit = params.extract.max_failed_fraction
    fit = found.unusable <= limit * found.rows
    console.print(
        f"{root}: {found.unusable} of {found.rows} rows cannot be used ({found.unusable / found.rows:.1%}; "
        f"max_failed_fraction allows {limit:.1%})" + ("" if fit else ": repair or remove them, or raise it"),
        style=None if fit else "bold red",
        markup=False,
    )
    return fit


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name == "clips" else "left")
    return table


def _row(table: Table, *cells: object) -> None:
    """Cells as they are: what comes from a corpus is no markup."""
    from rich.text import Text

    table.add_row(*(Text(str(cell)) for cell in cells))


def _overview(found: CorpusInspection) -> Table:
    table = _table(str(found.manifest.root), "", "clips", "")
    _row(table, "usable rows", found.rows - found.unusable, f"of {found.rows}")
    for split, clips in found.splits().items():
        _row(table, f"  {split}", len(clips), "")
    for language, clips in found.languages().items():
        _row(table, f"language {language}", clips, "")
    seconds = found.durations()
    if len(seconds):
        low, quarter, middle, most, high = np.quantile(seconds, (0, 0.25, 0.5, 0.75, 1))
        shape = f"{low:.1f} least, {quarter:.1f} | {middle:.1f} | {most:.1f} quartiles, {high:.1f} s longest"
        _row(table, f"{format_duration(seconds.sum())} in all", len(seconds), shape)
    for modality, clips in found.missing_modalities().items():
        _row(table, f"without {modality}", len(clips), _some(clips))
    unlabelled = [clip.clip_id for clip in found.manifest.clips if clip.label is None]
    _row(table, "without label", len(unlabelled), _some(unlabelled))
    return table


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _formats(found: CorpusInspection) -> Table:
    table = _table("Formats", "", "", "clips")
    for name, counts in found.formats().items():
        shown, rest = counts.most_common(SHOWN), counts.most_common()[SHOWN:]
        for i, (value, clips) in enumerate(shown):
            _row(table, name if not i else "", value, clips)
        if rest:
            _row(table, "", f"{len(rest)} others", sum(clips for _, clips in rest))
    return table


def _labels(found: CorpusInspection) -> Table:
    """One row a seventh of the label range, one column a split; bars in the proportion of the split."""
    low, high = found.manifest.label_range
    splits = {name: clips for name, clips in found.splits().items() if clips}
    table = _table("Labels", "", *splits)
    counts = {name: label_histogram(clips, (low, high)) for name, clips in splits.items()}
    for i in range(7):
        part = (high - low) / 7
        bars = (f"{'█' * round(BAR * of[i] / max(of.max(), 1))} {of[i]}" for of in counts.values())
        _row(table, f"{low + i * part:+.2f} to {low + (i + 1) * part:+.2f}", *bars)
    return table


def _problems(found: CorpusInspection) -> Table:
    table = _table("Problems", "error", "clips", "message")
    for error, clips in Counter(problem.error for problem in found.problems).most_common():
        messages = [problem.message for problem in found.problems if problem.error == error]
        for i, message in enumerate(messages[:SHOWN]):
            _row(table, error if not i else "", clips if not i else "", message)
        if clips > SHOWN:
            _row(table, "", "", f"and {clips - SHOWN} more")
    return table


def sample_clips(found: CorpusInspection, count: int) -> list[Clip]:
    """So many clips that can be read, spread evenly from the shortest to the longest."""
    readable = [clip for clip in found.manifest.clips if found.media[clip.clip_id] is not None and clip.duration]
    readable.sort(key=lambda clip: clip.duration)
    places = np.linspace(0, len(readable) - 1, min(count, len(readable))).round().astype(int)
    return [readable[i] for i in places]


def _estimate(found: CorpusInspection, chosen: Sequence[Clip], params: Params) -> Table:
    """Seconds that extraction will take, by those that the chosen clips take here and now."""
    workers = params.extract.workers or os.cpu_count() or 1
    limit_threads(1)
    root, of_clips = Path(found.manifest.root), sum(clip.duration for clip in chosen)
    title = f"Extraction by {workers} processes, going by {len(chosen)} clips"
    table = _table(title, "modality", "extractor", "seconds a second", "whole corpus")
    whole = 0.0
    for modality in MODALITIES:
        extractor = getattr(params.extract, modality)
        seconds, failed = _measure(chosen, root, extractor.extractor, extractor.options)
        if failed:
            _row(table, modality, extractor.extractor, f"failed: {failed}", "")
            continue
        share = seconds / of_clips
        whole += share * found.durations().sum() / workers
        _row(
            table,
            modality,
            extractor.extractor,
            f"{share:.3f}",
            format_duration(share * found.durations().sum() / workers),
        )
    _row(table, "all", "", "", format_duration(whole))
    return table


def _measure(clips: Sequence[Clip], root: Path, extractor: str, options: dict[str, object]) -> tuple[float, str]:
    """Seconds that the clips take once models are loaded; and where one of them fails, why."""
    with tempfile.TemporaryDirectory() as scratch:
        extract_unit(clips[:1], root, extractor, options, Path(scratch) / "warm")
        start = time.perf_counter()
        report = extract_unit(clips, root, extractor, options, Path(scratch) / "timed")
        return time.perf_counter() - start, report.problems[0].message if report.problems else ""
