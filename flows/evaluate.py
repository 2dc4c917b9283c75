"""Stage `evaluate`: dataset and checkpoints -> metrics, predictions, plot data and the report."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from corpora.manifest import read_manifest
from corpora.problems import read_problems
from extractors.transcripts.table import read_transcripts, with_transcripts
from flows.config.params import Params, load_params
from flows.display.console import console
from flows.orchestration import engine, settings
from flows.report import (
    Before,
    ReportInput,
    compared_rows,
    metrics_rows,
    pictures,
    write_plot_data,
    write_report,
)
from flows.report.corpus_card import corpus_card
from flows.report.provenance import RECORD, RunRecord, read_training
from flows.studies.results import read_studies

from prefect import flow, task  # isort: skip  (flows.orchestration.engine sets Prefect's switches before it is imported)
from flows.orchestration.settings import REPORT_PAGE, REPORT_URL
from flows.report.analysis import analysed, checkpoints

if TYPE_CHECKING:
    pass

HISTORY = settings.STATE / "metrics.jsonl"
"""A line an evaluation in this folder. DVC removes a stage's files before it runs, so what was there before is here."""


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
    engine.publish_markdown(f"{prefix}metrics", "\n".join(lines), title)
    page, served = (params.paths.report / REPORT_PAGE).resolve(), os.environ.get(REPORT_URL)
    link = f"{served.rstrip('/')}/{page.name}" if served else page.as_uri()
    engine.publish_link(f"{prefix}report", link, f"Report on {title}", str(page))


def publish_plots(params: Params, result: Any) -> None:
    """An artifact of the flow run with the plots as pictures."""
    if not engine.engine_active():
        return
    label_range = read_manifest(params.paths.manifest).label_range
    plots = [
        f"**{name}**\n\n![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"
        for name, png in pictures(result.predictions, label_range, training_curves(params))
    ]
    title = f"{params.prepare.corpus}, {params.evaluate.split} split"
    engine.publish_markdown("plots", "\n\n".join(plots), title)


@flow(name="evaluate", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def evaluate(params_file: Path = Path("params.yaml")) -> dict[str, Any]:
    """Measure the trained model on a split it has not seen, and write the report.

    Args:
        params_file: The parameters; every stage reads its own block of them.
    """
    params = load_params(params_file)
    begun = RunRecord(params, inputs(params))
    result = engine.call(measure, params)
    training = read_training(params.paths.models, params.train.seeds)
    record = begun.write(params.paths.metrics / RECORD, train=training)
    remember(params, result.metrics)
    path = engine.call(report, params, result, record)
    publish_metrics(params, result.metrics)
    publish_plots(params, result)
    console.print(metrics_table(params, result.metrics, metrics_before(params, result.metrics)))
    console.print(f"report: {path.resolve()}")
    return dict(result.metrics)


if __name__ == "__main__":
    engine.main(evaluate)
