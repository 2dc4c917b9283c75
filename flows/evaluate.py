"""Stage `evaluate`: dataset and checkpoints -> metrics, predictions, plot data and the report."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from corpora.manifest import read_manifest
from corpora.problems import read_problems
from extractors.transcripts import read_transcripts, with_transcripts
from flows import runtime
from flows.params import Params, load_params
from flows.report import ReportInput, metrics_rows, write_plot_data, write_report
from flows.runtime import console

from prefect import flow, task  # isort: skip  (flows.runtime sets Prefect's switches before it is imported)

SHOWN_PACKAGES = ("dashfusion", "torch", "transformers", "mediapipe", "librosa", "pyarrow", "prefect", "dvc")


def checkpoints(params: Params) -> list[Path]:
    """The best checkpoint of each seed."""
    return [params.paths.models / f"seed-{seed}" / "best" for seed in params.train.seeds]


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
def report(params: Params, result: Any, settings: dict[str, Any]) -> Path:
    """The report and the data of DVC's plots."""
    manifest = with_transcripts(read_manifest(params.paths.manifest), read_transcripts(params.paths.transcripts))
    dataset = json.loads((params.paths.dataset / "dataset.json").read_text(encoding="utf-8"))
    path = params.paths.report / "index.html"
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
            curves=training_curves(params),
            problems=read_problems([params.paths.all_problems]),
            word_times=dataset["word_times"],
            settings=settings,
            versions={name: version(name) for name in SHOWN_PACKAGES},
        ),
    )
    return path


def metrics_table(params: Params, metrics: dict[str, Any]) -> Table:
    """The metrics as a table for the terminal."""
    table = Table(title=f"{params.prepare.corpus}, {params.evaluate.split} split", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics_rows(metrics):
        table.add_row(name, value)
    return table


@flow(name="evaluate", flow_run_name=runtime.run_name)
def evaluate(params_file: Path = Path("params.yaml")) -> dict[str, Any]:
    """Measure the trained model on a split it has not seen, and write the report."""
    params = load_params(params_file)
    result = runtime.call(measure, params)
    settings = yaml.safe_load(Path(params_file).read_text(encoding="utf-8"))
    del settings["paths"]  # where things lie on a disk says nothing of how they were made
    path = runtime.call(report, params, result, settings)
    rows = metrics_rows(result.metrics)
    markdown = "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    runtime.publish_markdown("metrics", markdown, f"{params.prepare.corpus}, {params.evaluate.split} split")
    console.print(metrics_table(params, dict(result.metrics)))
    console.print(f"report: {path.resolve()}")
    return dict(result.metrics)


if __name__ == "__main__":
    runtime.main(evaluate)
