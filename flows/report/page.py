"""The page itself: what it is made from, and how it is put together.

Nothing in it is fetched: style, script and plots are inline. Its content policy allows this one script and this one
style by their hashes and nothing else, so that no transcript, id or message can do anything, however it is spelled.
The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.files import atomic_file
from flows.display import COLOURS
from flows.display import metrics as metric_texts
from flows.display.metrics import NOTHING, Interval, PreviousEvaluation
from flows.report.explorer import ExplorerInput, explorer
from flows.report.figures import calibration_plots, curve_plots, error_plots
from flows.report.provenance import provenance_rows, version_rows
from flows.report.studies import study_views
from flows.report.subgroups import Breakdown, part_table, video_table

if TYPE_CHECKING:
    import pyarrow as pa

    from corpora.manifest import Clip
    from corpora.problems import Problem
    from flows.report.corpus_card import CorpusCard
    from flows.studies.results import StudyResult
    from model.evaluation.calibration import Bin, Coverage

TEMPLATES = Path(__file__).parent / "templates"
"""Of all our pages."""
LISTED_PROBLEMS = 200


@dataclass(frozen=True, slots=True)
class CalibrationInput:
    """How far the predictions can be trusted.

    Attributes:
        bins: mean label by prediction.
        coverage: of the checkpoints' intervals.
        widths: subset of modalities -> n and half-width by level, see `model.evaluation.calibration`.
    """

    bins: Sequence[Bin] = ()
    coverage: Sequence[Coverage] = ()
    widths: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything that a report shows. Of one split: `metrics` and `predictions`. What is not given is left out.

    Attributes:
        corpus, split: named in the title.
        label_range: (-3, 3) or (-1, 1).
        metrics: as in metrics/<split>.json; several seeds bring `<key>_std` and `seeds`.
        predictions: columns clip_id, label (null = unlabelled), prediction, and any `prediction_without_<modality>`;
            one row a clip and seed.
        clips: clip_id -> its row of the manifest, all splits.
        intervals: of the metrics, 95 %.
        before: the last evaluation before this one.
        breakdown: metrics of parts of the split.
        calibration: of the checkpoints, on this split.
        explorer: what can be looked at in the clips.
        studies: of `dashfusion study`.
        curves: one row an epoch and seed: `seed`, `epoch` (from 1), keys of `drawings.CURVES`; others are ignored.
        problems: rows of the problems tables of all stages.
        word_times: as in dataset.json: by method, what it timed and, where true times are known, its `error`.
        record: of this run, with those of its trainings under `train`, as in metrics/run.json.
        card: of the corpus, all splits.
    """

    corpus: str
    split: str
    label_range: tuple[float, float]
    metrics: Mapping[str, Any]
    predictions: pa.Table
    clips: Mapping[str, Clip]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    before: PreviousEvaluation | None = None
    breakdown: Breakdown | None = None
    calibration: CalibrationInput | None = None
    explorer: ExplorerInput = field(default_factory=ExplorerInput)
    studies: Sequence[StudyResult] = ()
    curves: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[Problem] = ()
    word_times: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    card: CorpusCard | None = None


def write_report(path: Path, report: ReportInput) -> None:
    """Write the report as one self-contained HTML file; it appears whole or not at all.

    Raises:
        ValueError: a label range other than [-3, 3] and [-1, 1].
    """
    from markupsafe import Markup

    files = COLOURS, TEMPLATES / "page.css", TEMPLATES / "explorer.js"
    colours, layout, script = (file.read_text(encoding="utf-8") for file in files)
    style = colours + layout
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            style=Markup(style),
            script=Markup(script),
            policy=content_policy(style, script),
            **_metrics(report),
            **_predictions(report),
            **_background(report),
        )
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def content_policy(style: str, script: str) -> str:
    """What the page may do: be styled by this style and run this script. The icon is an empty one, not to be asked for.

    Raises:
        ValueError: either could end its own element.
    """
    if "</" in style or "</script" in script.lower():
        raise ValueError("the page's style or script would end its element early; write `<\\/` in strings")
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = metric_texts.format_number
    environment.globals |= {"NOTHING": NOTHING, "MINUS": metric_texts.MINUS}
    return environment


def _metrics(report: ReportInput) -> dict[str, Any]:
    """The headline and the table of metrics."""
    before = report.before.metrics if report.before else None
    rows = metric_texts.metric_table(report.metrics, report.intervals, before)
    by_key = {row.key: row for row in rows}
    return {
        "measured": any(row.value != NOTHING for row in rows),
        "rows": rows,
        "cards": [by_key[key] for key in metric_texts.HEADLINE if key in by_key][: metric_texts.MAX_CARDS],
        "counts": metric_texts.counts(report.metrics),
        "languages": sorted({clip.language for clip in report.clips.values()}),
    }


def _predictions(report: ReportInput) -> dict[str, Any]:
    """What is told and drawn of single predictions, and of parts of the split."""
    from model.evaluation.predictions import ClipPredictions

    clips = ClipPredictions.of(report.predictions)
    labelled = clips.labelled()
    calibration, breakdown = report.calibration, report.breakdown
    return {
        "errors": error_plots(labelled.label_N, labelled.mean_N, report.label_range),
        "calibration_plots": calibration_plots(calibration.bins, calibration.coverage, report.label_range)
        if calibration
        else [],
        "parts": part_table(breakdown) if breakdown else None,
        "videos": video_table(breakdown) if breakdown and breakdown.videos else None,
        "explorer": explorer(clips.clip_ids, clips.label_N, clips.mean_N, clips.without, report.clips, report.explorer),
    }


def _background(report: ReportInput) -> dict[str, Any]:
    """Studies, training, problems, and what it all was made from."""
    kinds = Counter((p.stage, p.modality, p.error) for p in report.problems)
    return {
        "studies": study_views(report.studies, report.corpus, report.split, report.record.get("data", {})),
        "curves": curve_plots(report.curves),
        "problem_kinds": sorted(kinds.items(), key=lambda item: (-item[1], item[0])),
        "listed_problems": list(report.problems)[:LISTED_PROBLEMS],
        "facts": provenance_rows(report.record),
        "settings": _settings(report.record.get("params", {})),
        "versions": version_rows(report.record),
    }


def _settings(blocks: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """One (block, [(dotted key, value)]) a stage; values outside any block come first."""
    loose = [
        (key, metric_texts.format_parameter(value)) for key, value in blocks.items() if not isinstance(value, Mapping)
    ]
    nested = [(name, list(_flatten(block))) for name, block in blocks.items() if isinstance(block, Mapping)]
    return [("general", loose)] * bool(loose) + [(name, rows) for name, rows in nested if rows]


def _flatten(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", metric_texts.format_parameter(value)
