"""`dashfusion doctor`: contents and problems of a corpus, the time of its extraction, and errors of parameters."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from rich.table import Table

from corpora.detection import DetectedCorpus, detect_corpus, detect_label_range, features_of, is_corpus_file
from corpora.inspection import CorpusInspection, inspect_corpus, label_histogram
from corpora.languages import likely_language
from corpora.manifest import MODALITIES, Clip, split_name
from corpora.readers.feature_corpus import ImportedCorpus
from corpora.readers.table import SEPARATORS
from extractors.execution.units import extract_unit, limit_threads
from flows.cli.use_line import use_line
from flows.config.checks import check_project
from flows.config.params import Params
from flows.display.console import console
from flows.display.metrics import format_count, format_duration
from flows.display.progress import StageProgress

MAX_ITEMS = 5
"""Items of a long list that are shown; the others are counted."""

LAYOUTS = {
    "mmsa": "label.csv and Raw/<video_id>/<clip_id>.mp4",
    "folder": "videos, with a table of their own or without one",
    "csd": "features as CMU-MultimodalSDK stores them",
    "mmsa_pickle": "features as MMSA stores them",
}

BAR = 24
"""Characters of a histogram's longest bar."""


def doctor(path: Path, params: Params, *, sample: int = 3) -> bool:
    """Find out how a corpus is read, inspect it, and print the findings and the command that selects it.

    Args:
        path: Folder of the corpus, in any layout that `prepare` reads; or a file: features, or the table of its folder.
        params: Parameters; used are the extractors and `max_failed_fraction`.
        sample: Clips to extract for the estimate; 0: none.

    Returns:
        Whether the pipeline would accept it.

    Raises:
        FileNotFoundError: No such folder or file.
        ValueError: No corpus in it, its table cannot be read, or an extractor cannot be built.
    """
    detected, corpus = _inspect(path)
    console.print(_reading(detected))
    for table in (_overview(corpus), _formats(corpus), _labels(corpus), _problems(corpus)):
        if table.row_count:
            console.print(table)
    chosen = sample_clips(corpus, sample)
    if chosen:
        console.print(_estimate(corpus, chosen, params))
    limit, share = params.extract.max_failed_fraction, corpus.unusable / max(1, corpus.rows)
    fit = share <= limit
    console.print(
        f"{path}: {corpus.unusable} of {corpus.rows} rows cannot be used ({share:.1%}; extract.max_failed_fraction "
        f"allows {limit:.1%})" + ("" if fit else f": repair or remove them, or allow them with {_allow_line(share)}"),
        style=None if fit else "bold red",
        markup=False,
    )
    console.print("To use this corpus:", style="bold")
    console.print(use_line(detected), markup=False)
    return fit


def _allow_line(share: float) -> str:
    return f"dashfusion use extract.max_failed_fraction={math.ceil(100 * share) / 100:g}"


def doctor_project(params: Params) -> bool:
    """Print what the checks of `dashfusion use` find in the parameters, and return whether no stage would stop."""
    findings = check_project(params)
    for finding in findings:
        level, style = ("error", "bold red") if finding.error else ("warning", "yellow")
        console.print(f"{level}: {finding.message}", style=style, markup=False)
    errors = sum(finding.error for finding in findings)
    counts = f"{format_count(errors, 'error')}, {format_count(len(findings) - errors, 'warning')}"
    console.print(
        f"params.yaml: {counts}. Checked were output paths, packages, extractors, models, and the corpus's table; "
        "dashfusion doctor FOLDER reads its media as well.",
        markup=False,
    )
    return not errors


def _inspect(path: Path) -> tuple[DetectedCorpus, CorpusInspection]:
    """Return how the corpus in a folder, or of a file, can be read, and what is in it."""
    if features := features_of(path):
        return _inspect_features(*features)
    root, table = (path.parent, path.name) if is_corpus_file(path) else (path, None)
    detected = detect_corpus(root, table)
    with StageProgress() as bar:
        row = bar.add_task("read media", total=None)
        corpus = inspect_corpus(
            root,
            language=detected.language,
            label_range=detected.label_range,
            layout="mmsa" if detected.layout == "mmsa" else "folder",
            columns=detected.columns,
            encoding=detected.encoding,
            split=detected.split,
            table=detected.table or None,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        )
    return detected, corpus


def _inspect_features(layout: Literal["csd", "mmsa_pickle"], path: Path) -> tuple[DetectedCorpus, CorpusInspection]:
    """Return how extracted features can be read, and what is in them. Their values are not looked at."""
    from flows.prepare import READERS

    def read(language: str, label_range: tuple[float, float]) -> ImportedCorpus:
        return READERS[layout](path, corpus=path.stem, language=language, label_range=label_range, root=str(path))

    try:
        corpus = read("en", (-3.0, 3.0))
    except ValueError:  # a published file of another language and range
        corpus = read("zh", (-1.0, 1.0))
    clips = corpus.manifest.clips
    label_range, remarks = detect_label_range([clip.label for clip in clips if clip.label is not None])
    language = likely_language(clip.text for clip in clips)
    corpus = read(language, label_range)
    remarks = [*corpus.remarks, *remarks]
    detected = DetectedCorpus(layout, path, label_range=label_range, language=language, remarks=tuple(remarks))
    return detected, CorpusInspection(corpus.manifest, tuple(corpus.problems), {})


def _reading(detected: DetectedCorpus) -> Table:
    """Return how the corpus is read: one row per finding."""
    table = _table("How it is read", "", "")
    _row(table, "layout", f"{detected.layout}: {LAYOUTS[detected.layout]}")
    if detected.table:
        _row(table, "table", f"{detected.table}, {SEPARATORS[detected.separator]}, {detected.encoding or 'UTF-8'}")
    for name, found in detected.other_tables.items():
        _row(table, "not read", f"{name}: {found}")
    if detected.columns:
        _row(table, "columns", ", ".join(f"{ours}: {theirs}" for ours, theirs in detected.columns.items()))
    if detected.splits:
        named = (f"{split_name(value) or 'unknown'}: {value or '(empty)'}" for value in detected.splits)
        _row(table, "splits", ", ".join(named))
    elif detected.split:
        _row(table, "splits", f"to be drawn {detected.split}")
    _row(table, "labels", "in [{:g}, {:g}]".format(*detected.label_range))
    _row(table, "language", detected.language)
    for remark in detected.remarks:
        _row(table, "check", remark)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name == "clips" else "left")
    return table


def _row(table: Table, *cells: object) -> None:
    """Add a row of plain text: a corpus's strings are not markup."""
    from rich.text import Text

    table.add_row(*(Text(str(cell)) for cell in cells))


def _overview(corpus: CorpusInspection) -> Table:
    table = _table(str(corpus.manifest.root), "", "clips", "")
    _row(table, "usable rows", corpus.rows - corpus.unusable, f"of {corpus.rows}")
    for split, clips in corpus.splits().items():
        _row(table, f"  {split}", len(clips), "")
    for language, count in corpus.languages().items():
        _row(table, f"language {language}", count, "")
    seconds = corpus.durations()
    if len(seconds):
        low, *quartiles, high = np.quantile(seconds, (0, 0.25, 0.5, 0.75, 1))
        shape = f"{low:.1f} least, {' | '.join(f'{q:.1f}' for q in quartiles)} quartiles, {high:.1f} s longest"
        _row(table, f"{format_duration(seconds.sum())} in all", len(seconds), shape)
    for modality, clip_ids in corpus.missing_modalities().items():
        _row(table, f"without {modality}", len(clip_ids), _some(clip_ids))
    unlabelled = [clip.clip_id for clip in corpus.manifest.clips if clip.label is None]
    _row(table, "without label", len(unlabelled), _some(unlabelled))
    return table


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_ITEMS} more" if len(items) > MAX_ITEMS else ""
    return ", ".join(items[:MAX_ITEMS]) + more


def _formats(corpus: CorpusInspection) -> Table:
    table = _table("Formats", "", "", "clips")
    for name, counts in corpus.formats().items():
        shown, rest = counts.most_common(MAX_ITEMS), counts.most_common()[MAX_ITEMS:]
        for i, (value, clips) in enumerate(shown):
            _row(table, name if not i else "", value, clips)
        if rest:
            _row(table, "", f"{len(rest)} others", sum(clips for _, clips in rest))
    return table


def _labels(corpus: CorpusInspection) -> Table:
    """Return the histogram of labels: one row per bin, one column per split, bars scaled by split."""
    low, high = corpus.manifest.label_range
    splits = {name: clips for name, clips in corpus.splits().items() if any(clip.label is not None for clip in clips)}
    table = _table("Labels", "", *splits)
    if not splits:
        return table
    bins = 7
    edges = np.linspace(low, high, bins + 1)
    counts = {name: label_histogram(clips, (low, high), bins) for name, clips in splits.items()}
    for i in range(bins):
        bars = (f"{'█' * round(BAR * count[i] / max(count.max(), 1))} {count[i]}" for count in counts.values())
        _row(table, f"{edges[i]:+.2f} to {edges[i + 1]:+.2f}", *bars)
    return table


def _problems(corpus: CorpusInspection) -> Table:
    table = _table("Problems", "error", "clips", "message")
    for error, clips in Counter(problem.error for problem in corpus.problems).most_common():
        messages = [problem.message for problem in corpus.problems if problem.error == error]
        for i, message in enumerate(messages[:MAX_ITEMS]):
            _row(table, error if not i else "", clips if not i else "", message)
        if clips > MAX_ITEMS:
            _row(table, "", "", f"and {clips - MAX_ITEMS} more")
    return table


def sample_clips(corpus: CorpusInspection, count: int) -> list[Clip]:
    """Return up to `count` readable clips, spread evenly from the shortest to the longest."""
    readable = [clip for clip in corpus.manifest.clips if clip.clip_id in corpus.media and clip.duration]
    readable.sort(key=lambda clip: clip.duration or 0.0)
    places = np.linspace(0, len(readable) - 1, min(count, len(readable))).round().astype(int)
    return [readable[i] for i in places]


def _estimate(corpus: CorpusInspection, chosen: Sequence[Clip], params: Params) -> Table:
    """Estimate the time of extraction from that of the chosen clips on this machine."""
    workers = params.extract.workers or os.cpu_count() or 1
    limit_threads(1)
    root, sample_seconds = Path(corpus.manifest.root), sum(clip.duration or 0.0 for clip in chosen)
    corpus_seconds = corpus.durations().sum()
    processes = format_count(workers, "process", "processes")
    title = f"Extraction by {processes}, going by {format_count(len(chosen), 'clip')}"
    table = _table(title, "modality", "extractor", "seconds a second", "whole corpus")
    whole = 0.0
    for modality in MODALITIES:
        extractor = getattr(params.extract, modality)
        seconds, failed = _measure(chosen, root, extractor.extractor, extractor.options)
        if failed:
            _row(table, modality, extractor.extractor, f"failed: {failed}", "")
            continue
        rate = seconds / sample_seconds
        estimate = rate * corpus_seconds / workers
        whole += estimate
        _row(table, modality, extractor.extractor, f"{rate:.3f}", format_duration(estimate))
    _row(table, "all", "", "", format_duration(whole))
    return table


def _measure(clips: Sequence[Clip], root: Path, extractor: str, options: dict[str, object]) -> tuple[float, str]:
    """Return the seconds that the clips take once models are loaded, and the first failure's message, if any."""
    with tempfile.TemporaryDirectory() as scratch:
        extract_unit(clips[:1], root, extractor, options, Path(scratch) / "warm")
        start = time.perf_counter()
        report = extract_unit(clips, root, extractor, options, Path(scratch) / "timed")
        return time.perf_counter() - start, report.problems[0].message if report.problems else ""
