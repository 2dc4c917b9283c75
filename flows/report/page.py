"""The report page: its input, and its rendering as one HTML file.

Nothing is fetched: style, script and plots are inline. The content security policy allows this script and this style by
their hashes and nothing else, so that no transcript, id or message can do anything, whatever it contains. The same
input gives the same bytes.
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
from flows.display.baselines import ZERO_SHOT, baseline_metrics, baseline_rows, baseline_verdict, is_better
from flows.display.metrics import (
    HEADLINE,
    MAX_CARDS,
    METRICS,
    MINUS,
    NOTHING,
    Interval,
    PreviousEvaluation,
    counts,
    format_number,
    format_parameter,
    metric_table,
)
from flows.report.explorer import ExplorerInput, explorer
from flows.report.figures import calibration_plots, curve_plots, error_plots
from flows.report.leaderboard import leaderboard_view
from flows.report.provenance import provenance_rows, version_rows
from flows.report.studies import study_views
from flows.report.subgroups import SubgroupAnalysis, speaker_table, subgroup_table
from flows.studies.cross_corpus import MATRIX_METRICS, matrix_of
from model.checkpoint.description import GENERATED_NOTICE

if TYPE_CHECKING:
    import pyarrow as pa
    from jinja2 import Environment

    from corpora.manifest import Clip
    from corpora.problems import Problem
    from flows.report.corpus_card import CorpusCard
    from flows.studies.cross_corpus import CrossCorpusResult
    from flows.studies.results import StudyResult
    from model.evaluation.calibration import Bin, Coverage

TEMPLATES = Path(__file__).parent / "templates"
MAX_LISTED_PROBLEMS = 200


@dataclass(frozen=True, slots=True)
class CalibrationInput:
    """Calibration of the predictions.

    Attributes:
        bins: Mean label by prediction.
        coverage: Coverage of the checkpoints' intervals.
        widths: Subset of modalities -> n and half-width by level, see `model.evaluation.intervals`.
        source: Splits whose clips the intervals were calibrated on.
    """

    bins: Sequence[Bin] = ()
    coverage: Sequence[Coverage] = ()
    widths: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    source: str = "valid"


@dataclass(frozen=True, slots=True)
class Looks:
    """How many sets of models were evaluated on the test split, and the time of the first (ISO 8601)."""

    count: int
    first: str

    @property
    def text(self) -> str:
        """The number as `with 3 different models since 2026-11-24`."""
        return (
            "with this model only"
            if self.count == 1
            else f"with {self.count:,} different models since {self.first[:10]}"
        )


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything that a report shows; sections without input are left out.

    Attributes:
        corpus: Name of the corpus.
        split: Evaluated split.
        label_range: (-3, 3) or (-1, 1).
        metrics: As in metrics/<split>.json; several seeds have `<key>_std` and `seeds`.
        predictions: Columns clip_id, label (null = unlabelled), prediction, and any `prediction_without_<modality>`;
            one row for each clip and seed.
        clips: Clip id -> its row of the manifest, all splits.
        intervals: 95 % intervals of the metrics.
        previous: The previous evaluation.
        looks: How often the test split was looked at; None for other splits.
        other: The same model on another corpus; None: on no other.
        subgroups: Metrics of subgroups of the split.
        calibration: Calibration of the checkpoints on this split.
        explorer: Data of single clips.
        studies: Results of `dashfusion study` and `dashfusion compare`.
        matrix: Result of `dashfusion compare --on`.
        curves: One row for each epoch and seed: `seed`, `epoch` (from 1), keys of `figures.CURVES`; others are ignored.
        problems: Rows of the problems tables of all stages.
        word_times: As in dataset.json: by method, what it timed and, where true times are known, its `error`.
        provenance: As in metrics/run.json: of this run, with that of its trainings under `train`.
        card: Card of the corpus, all splits.
        generated: Whether the corpus's clips are generated: the page states first what that means.
    """

    corpus: str
    split: str
    label_range: tuple[float, float]
    metrics: Mapping[str, Any]
    predictions: pa.Table
    clips: Mapping[str, Clip]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    previous: PreviousEvaluation | None = None
    looks: Looks | None = None
    other: CrossCorpusResult | None = None
    subgroups: SubgroupAnalysis | None = None
    calibration: CalibrationInput | None = None
    explorer: ExplorerInput = field(default_factory=ExplorerInput)
    studies: Sequence[StudyResult] = ()
    matrix: Sequence[CrossCorpusResult] = ()
    curves: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[Problem] = ()
    word_times: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    card: CorpusCard | None = None
    generated: bool = False


def write_report(path: Path, report: ReportInput) -> None:
    """Write the report as one self-contained HTML file, atomically.

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
            notice=GENERATED_NOTICE if report.generated else "",
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
    """Return the content security policy: this style, this script, and `data:` images for the empty icon.

    Raises:
        ValueError: the style or the script contains text that would close its element.
    """
    if "</" in style or "</script" in script.lower():
        raise ValueError("the page's style or script would end its element early; write `<\\/` in strings")
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.globals |= {"NOTHING": NOTHING, "MINUS": MINUS}
    return environment


def _metrics(report: ReportInput) -> dict[str, Any]:
    """Return the cards and the table of metrics."""
    rows = metric_table(report.metrics, report.intervals, report.previous.metrics if report.previous else None)
    by_key = {row.key: row for row in rows}
    return {
        "measured": any(row.value != NOTHING for row in rows),
        "rows": rows,
        "cards": [by_key[key] for key in HEADLINE if key in by_key][:MAX_CARDS],
        "counts": counts(report.metrics),
        "baselines": _baselines(report.metrics.get("baselines", {})),
        "other": _other_corpus(report.other),
        "languages": sorted({clip.language for clip in report.clips.values()}),
    }


def _other_corpus(other: CrossCorpusResult | None) -> dict[str, Any] | None:
    """Return the model's metrics on another corpus."""
    if other is None:
        return None
    return {
        "result": other,
        "rows": metric_table(other.metrics, other.intervals),
        "counts": counts(other.metrics),
        "verdict": baseline_verdict(other.metrics.get("baselines", {})),
    }


def _baselines(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the comparison with the baselines: its verdict in words, and its table."""
    return {
        "verdict": baseline_verdict(found),
        "better": is_better(found),
        "columns": [METRICS[key].short for key in baseline_metrics(found)],
        "chat_models": bool(found.get(ZERO_SHOT)),
        "rows": baseline_rows(found),
    }


def _predictions(report: ReportInput) -> dict[str, Any]:
    """Return the plots and tables of errors, calibration, subgroups and clips."""
    from model.evaluation.predictions import ClipPredictions

    clips = ClipPredictions.of(report.predictions)
    labelled = clips.labelled()
    calibration, subgroups = report.calibration or CalibrationInput(), report.subgroups
    return {
        "errors": error_plots(labelled.label_N, labelled.mean_N, report.label_range),
        "calibration_plots": calibration_plots(calibration.bins, calibration.coverage, report.label_range),
        "subgroups": subgroup_table(subgroups) if subgroups else None,
        "speakers": speaker_table(subgroups) if subgroups and subgroups.speakers else None,
        "explorer": explorer(clips.clip_ids, clips.label_N, clips.mean_N, clips.without, report.clips, report.explorer),
    }


def _background(report: ReportInput) -> dict[str, Any]:
    """Return studies, training curves, problems and provenance."""
    kinds = Counter((p.stage, p.modality, p.error) for p in report.problems)
    data = report.provenance.get("data", {})
    studies = [study for study in report.studies if study.comparison is None]
    compared = [study for study in report.studies if study.comparison is not None]
    comparison = compared[0].comparison if compared else None
    beside_best = comparison.baselines[comparison.references[0]] if comparison else {}
    matrix = report.matrix if any(cell.trained_on == report.corpus for cell in report.matrix) else ()
    return {
        "leaderboard": leaderboard_view(compared[0], report.corpus, data) if compared else None,
        "leaderboard_baselines": _baselines(beside_best) if baseline_rows(beside_best) else None,
        "matrices": [matrix_of(matrix, metric) for metric in MATRIX_METRICS] if matrix else [],
        "studies": study_views(studies, report.corpus, report.split, data),
        "curves": curve_plots(report.curves),
        "problem_kinds": sorted(kinds.items(), key=lambda item: (-item[1], item[0])),
        "listed_problems": list(report.problems)[:MAX_LISTED_PROBLEMS],
        "facts": provenance_rows(report.provenance),
        "parameters": _parameters(report.provenance.get("params", {})),
        "versions": version_rows(report.provenance),
    }


def _parameters(blocks: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (block, [(dotted key, value)]) for each stage; values outside any block come first."""
    loose = [(key, format_parameter(value)) for key, value in blocks.items() if not isinstance(value, Mapping)]
    nested = [(name, list(_flatten(block))) for name, block in blocks.items() if isinstance(block, Mapping)]
    return [("general", loose)] * bool(loose) + [(name, rows) for name, rows in nested if rows]


def _flatten(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", format_parameter(value)
