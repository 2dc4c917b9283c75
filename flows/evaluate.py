"""Stage `evaluate`: dataset and checkpoints -> metrics, predictions, plot data and the report."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from corpora.manifest import MODALITIES, Manifest, read_manifest
from corpora.problems import read_problems
from extractors.store import FeatureReader
from extractors.transcripts import Transcript, read_transcripts, with_transcripts
from flows import runtime, server
from flows.corpus_card import corpus_card
from flows.params import Params, load_params
from flows.record import RECORD, RunRecord, read_training
from flows.report import (
    Before,
    Breakdown,
    CalibrationInput,
    ExplorerInput,
    ReportInput,
    compared_rows,
    metrics_rows,
    pictures,
    write_plot_data,
    write_report,
)
from flows.report.explorer import choose_clips
from flows.runtime import console
from flows.study_table import read_studies

from prefect import flow, task  # isort: skip  (flows.runtime sets Prefect's switches before it is imported)

if TYPE_CHECKING:
    from model.breakdown import ClipFacts, Part
    from model.evaluate import ClipPredictions

HISTORY = server.STATE / "metrics.jsonl"
"""A line an evaluation in this folder. DVC removes a stage's files before it runs, so what was there before is here."""

MOST_VIDEOS = 12
"""In the report's table; of more, the worst and the best."""

REPORT_PAGE = "index.html"
REPORT_URL = "DASHFUSION_REPORT_URL"  # where the report's folder is served, if it is; pages may not link to files


def checkpoints(params: Params) -> list[Path]:
    """The best checkpoint of each seed."""
    return [params.paths.models / f"seed-{seed}" / "best" for seed in params.train.seeds]


def inputs(params: Params) -> dict[str, Path]:
    """What the figures come from, by the name that it has in the run's record."""
    paths = params.paths
    named = {"manifest": paths.manifest, "transcripts": paths.transcripts, "dataset": paths.dataset}
    return named | {f"weights-{folder.parent.name}": folder / "model.safetensors" for folder in checkpoints(params)}


def training_curves(params: Params) -> list[dict[str, float]]:
    """One row an epoch and seed."""
    rows = []
    for seed in params.train.seeds:
        history = json.loads((params.paths.models / f"seed-{seed}" / "history.json").read_text(encoding="utf-8"))
        rows += [{"seed": seed, "epoch": epoch, **row} for epoch, row in enumerate(history, start=1)]
    return rows


@task
def measure(params: Params) -> Any:
    """Metrics and predictions of the split, written to where params.yaml says."""
    from model.evaluate import evaluate as evaluate_model
    from model.evaluate import write_metrics, write_predictions

    split = params.evaluate.split
    result = evaluate_model(params.paths.dataset, checkpoints(params), split, device=params.train.device)
    write_metrics(result.metrics, params.paths.metrics / f"{split}.json")
    write_predictions(result.predictions, params.paths.predictions)
    return result


@task
def report(params: Params, result: Any, record: dict[str, Any]) -> Path:
    """The report and the data of DVC's plots."""
    transcripts = read_transcripts(params.paths.transcripts)
    manifest = with_transcripts(read_manifest(params.paths.manifest), transcripts)
    problems = read_problems([params.paths.all_problems])
    dataset = json.loads((params.paths.dataset / "dataset.json").read_text(encoding="utf-8"))
    path = params.paths.report / REPORT_PAGE
    write_plot_data(params.paths.metrics / "plots", result.predictions, manifest.label_range)
    write_report(
        path,
        ReportInput(
            corpus=manifest.corpus,
            split=params.evaluate.split,
            label_range=manifest.label_range,
            metrics=result.metrics,
            predictions=result.predictions,
            clips={clip.clip_id: clip for clip in manifest.clips},
            before=evaluation_before(params, result.metrics),
            studies=read_studies(params.paths.studies),
            curves=training_curves(params),
            problems=problems,
            word_times=dataset["word_times"],
            record=record,
            card=corpus_card(manifest, transcripts, params.paths.dataset, problems, params.align.mask_invalid),
            **analysed(params, result, manifest, transcripts),
        ),
    )
    return path


def analysed(params: Params, result: Any, manifest: Manifest, transcripts: Mapping[str, Transcript]) -> dict[str, Any]:
    """What is measured for the report alone: `ReportInput`'s explorer and, where there are labels, the other three."""
    from model.breakdown import split_into_parts
    from model.evaluate import ClipPredictions

    clips = ClipPredictions.of(result.predictions)
    valid = {m: FeatureReader(params.paths.features / m, m).valid_steps() for m in ("audio", "vision")}
    facts = clip_facts(clips, result.steps, manifest, valid)
    parts = split_into_parts(facts)
    labelled = clips.labelled()
    found = {"explorer": explorer_input(params, clips, result.steps, parts, transcripts, valid)}
    if not labelled.clip_ids:
        return found
    return found | {
        "intervals": metric_intervals(labelled, manifest.label_range),
        "breakdown": breakdown(clips, parts, facts, manifest.label_range),
        "calibration": calibration(params, clips, result.steps),
    }


def clip_facts(
    clips: ClipPredictions,
    steps: Mapping[str, np.ndarray],
    manifest: Manifest,
    valid: Mapping[str, Mapping[str, np.ndarray]],
) -> ClipFacts:
    """What the predicted clips are told apart by, in their order."""
    from model.breakdown import ClipFacts

    by_id = {clip.clip_id: clip for clip in manifest.clips}
    rows = [by_id[clip_id] for clip_id in clips.clip_ids]
    shares = {m: [of[c].mean() if len(of.get(c, ())) else np.nan for c in clips.clip_ids] for m, of in valid.items()}
    return ClipFacts(
        seconds_N=_numbers(clip.duration for clip in rows),
        video_N=np.array([clip.video_id for clip in rows], object),
        steps=steps,
        valid={m: np.array(share_N, np.float64) for m, share_N in shares.items()},
        label_N=clips.label_N,
        own_label={m: _numbers(getattr(clip, f"label_{m}") for clip in rows) for m in MODALITIES},
    )


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def metric_intervals(labelled: ClipPredictions, label_range: tuple[float, float]) -> dict[str, Any]:
    """A 95 % interval of each metric of the split."""
    from model.intervals import interval, resampled_metrics

    draws = resampled_metrics(labelled.prediction_SN, labelled.label_N, label_range)
    return {key: interval(values_R) for key, values_R in draws.items()}


def breakdown(
    clips: ClipPredictions, parts: Sequence[Part], facts: ClipFacts, label_range: tuple[float, float]
) -> Breakdown:
    """Metrics of the whole split, its parts and its videos."""
    from model.breakdown import Part, accuracy_key, measure_parts, measure_videos

    whole = Part("", "all clips", np.ones(len(clips.clip_ids), bool))
    measured = measure_parts([whole, *parts], clips.prediction_SN, clips.label_N, label_range)
    videos, count = measure_videos(facts, clips.prediction_SN, label_range, MOST_VIDEOS)
    return Breakdown(measured[0], measured[1:], videos, count, accuracy_key(label_range))


def calibration(params: Params, clips: ClipPredictions, steps: Mapping[str, np.ndarray]) -> CalibrationInput:
    """How far the predictions of the split, and the checkpoints' intervals, can be trusted there."""
    from model.calibration import coverage, mean_widths, reliability, subset_name
    from model.checkpoint import read_info

    infos = [read_info(folder) for folder in checkpoints(params)]
    shown = infos[0].train.modalities
    subset_N = [subset_name([m for m in shown if steps[m][n]]) for n in range(len(clips.clip_ids))]
    labelled, known = clips.labelled(), np.isfinite(clips.label_N)
    subset_n = [subset for subset, keep in zip(subset_N, known, strict=True) if keep]
    calibrations = [info.calibration for info in infos]
    return CalibrationInput(
        bins=reliability(labelled.mean_N, labelled.label_N),
        coverage=coverage(calibrations, subset_n, labelled.prediction_SN, labelled.label_N),
        widths=mean_widths(calibrations),
    )


def explorer_input(
    params: Params,
    clips: ClipPredictions,
    steps: Mapping[str, np.ndarray],
    parts: Sequence[Part],
    transcripts: Mapping[str, Transcript],
    valid: Mapping[str, Mapping[str, np.ndarray]],
) -> ExplorerInput:
    """What can be looked at in the clips that the explorer holds; attention by the first seed's network."""
    from model.data import read_info
    from model.explain import explain

    chosen = [clips.clip_ids[n] for n in choose_clips(clips.label_N, clips.mean_N)]
    words = {clip_id: transcripts[clip_id].words for clip_id in chosen}
    missing = {
        clip_id: lacks for n, clip_id in enumerate(clips.clip_ids) if (lacks := [m for m in steps if not steps[m][n]])
    }
    whole_steps = read_info(params.paths.dataset).mode == "unaligned"  # else pooled: not the steps that were measured
    return ExplorerInput(
        explanation=explain(
            params.paths.dataset, checkpoints(params)[0], params.evaluate.split, words, params.train.device
        ),
        words=words,
        valid=valid if whole_steps else {},
        missing=missing,
        parts=parts,
    )


def remember(params: Params, metrics: Mapping[str, Any]) -> None:
    """Add an evaluation to the history."""
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": params.prepare.corpus,
        "split": params.evaluate.split,
        "metrics": dict(metrics),
    }
    HISTORY.parent.mkdir(exist_ok=True)
    with open(HISTORY, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def history() -> list[dict[str, Any]]:
    """The evaluations in this folder, the last one last."""
    entries = []
    for line in HISTORY.read_text(encoding="utf-8").splitlines() if HISTORY.is_file() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # cut short by a kill or a full disk; the others tell enough
            continue
    return entries


def evaluation_before(params: Params, metrics: Mapping[str, Any]) -> Before | None:
    """The evaluation before the one that gave `metrics`, of the same corpus and split, if any.

    DVC may have brought `metrics` from its cache; then it is the last evaluation that was run here.
    """
    of = params.prepare.corpus, params.evaluate.split
    found = [entry for entry in history() if (entry["corpus"], entry["split"]) == of]
    if found and found[-1]["metrics"] == metrics:
        found.pop()
    return Before(found[-1]["time"], found[-1]["metrics"]) if found else None


def metrics_before(params: Params, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metrics of `evaluation_before`."""
    before = evaluation_before(params, metrics)
    return dict(before.metrics) if before else None


def metrics_table(params: Params, metrics: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Table:
    """The metrics as a table for the terminal, with the change since `before`."""
    table = Table(title=f"{params.prepare.corpus}, {params.evaluate.split} split", title_justify="left")
    table.add_column("metric")
    for column in ("value", "last run", "change")[: 3 if before else 1]:
        table.add_column(column, justify="left" if column == "change" else "right")
    for row in compared_rows(metrics, before) if before else metrics_rows(metrics):
        table.add_row(*row)
    return table


def publish_metrics(params: Params, metrics: Mapping[str, Any], prefix: str = "") -> None:
    """Artifacts of the flow run, keys behind `prefix`: the metrics with their change, and where the report is."""
    title, before = f"{params.prepare.corpus}, {params.evaluate.split} split", metrics_before(params, metrics)
    columns = ("metric", "value", "last run", "change")[: 4 if before else 2]
    rows = compared_rows(metrics, before) if before else metrics_rows(metrics)
    lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    runtime.publish_markdown(f"{prefix}metrics", "\n".join(lines), title)
    page, served = (params.paths.report / REPORT_PAGE).resolve(), os.environ.get(REPORT_URL)
    link = f"{served.rstrip('/')}/{page.name}" if served else page.as_uri()
    runtime.publish_link(f"{prefix}report", link, f"Report on {title}", str(page))


def publish_plots(params: Params, result: Any) -> None:
    """An artifact of the flow run with the plots as pictures."""
    if not runtime.engine_active():
        return
    label_range = read_manifest(params.paths.manifest).label_range
    plots = [
        f"**{name}**\n\n![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"
        for name, png in pictures(result.predictions, label_range, training_curves(params))
    ]
    title = f"{params.prepare.corpus}, {params.evaluate.split} split"
    runtime.publish_markdown("plots", "\n\n".join(plots), title)


@flow(name="evaluate", flow_run_name=runtime.run_name, on_running=[runtime.add_tags])
def evaluate(params_file: Path = Path("params.yaml")) -> dict[str, Any]:
    """Measure the trained model on a split it has not seen, and write the report.

    Args:
        params_file: The parameters; every stage reads its own block of them.
    """
    params = load_params(params_file)
    begun = RunRecord(params, inputs(params))
    result = runtime.call(measure, params)
    training = read_training(params.paths.models, params.train.seeds)
    record = begun.write(params.paths.metrics / RECORD, train=training)
    remember(params, result.metrics)
    path = runtime.call(report, params, result, record)
    publish_metrics(params, result.metrics)
    publish_plots(params, result)
    console.print(metrics_table(params, result.metrics, metrics_before(params, result.metrics)))
    console.print(f"report: {path.resolve()}")
    return dict(result.metrics)


if __name__ == "__main__":
    runtime.main(evaluate)
