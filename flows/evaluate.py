"""Stage `evaluate`: dataset and checkpoints -> metrics, predictions, plot data and the report."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task

from corpora.manifest import read_manifest
from corpora.problems import read_problems
from extractors.transcripts.table import read_transcripts, with_transcripts
from flows.config.params import Params, load_params
from flows.display.baselines import ZERO_SHOT, baseline_verdict
from flows.display.console import console
from flows.display.progress import StageProgress
from flows.orchestration import engine, settings
from flows.orchestration.evaluations import (
    ON,
    append_to_history,
    previous_evaluation,
    previous_metrics,
    print_metrics,
    print_other_corpus,
    read_lines,
)
from flows.orchestration.settings import REPORT_PAGE, REPORT_URL
from flows.report import (
    Looks,
    ReportInput,
    compared_rows,
    metrics_rows,
    plot_images,
    write_plot_data,
    write_report,
)
from flows.report.analysis import PARTS, analyse, checkpoints
from flows.report.corpus_card import corpus_card
from flows.report.provenance import PROVENANCE_FILE, RunProvenance, read_training_provenance
from flows.studies.cross_corpus import MATRIX, CrossCorpusResult, measure_on, read_matrix
from flows.studies.results import read_studies
from flows.zero_shot.comparison import zero_shot_rows
from model.data.info import is_generated, read_info
from model.evaluation.predictions import ClipPredictions
from model.files import sha256_of

if TYPE_CHECKING:
    import pyarrow as pa

LOOKS = "test_looks.jsonl"
"""File in the state folder: one line for each set of models that was evaluated on a test split."""


def inputs(params: Params) -> dict[str, Path]:
    """Return the files and folders that the metrics depend on, by their names in the run's record."""
    paths = params.paths
    named = {"manifest": paths.manifest, "transcripts": paths.transcripts, "dataset": paths.dataset}
    named |= {"other_dataset": params.other_dataset} if params.other_dataset else {}
    return named | {f"weights-{folder.parent.name}": folder / "model.safetensors" for folder in checkpoints(params)}


def training_curves(params: Params) -> list[dict[str, float]]:
    """Return the metrics of every epoch and seed, one row each."""
    rows = []
    for seed in params.train.seeds:
        history = json.loads((params.paths.models / f"seed-{seed}" / "history.json").read_text(encoding="utf-8"))
        rows += [{"seed": seed, "epoch": epoch, **row} for epoch, row in enumerate(history, start=1)]
    return rows


@task
def measure(params: Params) -> Any:
    """Evaluate the checkpoints on the split, and write metrics and predictions."""
    from model.evaluate import evaluate as evaluate_model
    from model.evaluate import write_metrics, write_predictions

    dataset, folders, split = params.paths.dataset, checkpoints(params), params.evaluate.split
    used = len(params.train.modalities)
    passes = len(folders) * (1 + (used if used > 1 else 0))
    with StageProgress("predictions") as bar:
        row = bar.add_task("evaluate", total=passes * read_info(dataset).clips.get(split, 0))
        advance = partial(bar.advance, row)
        result = evaluate_model(dataset, folders, split, device=params.train.device, progress=advance)
    if zero_shot := compare_with_chat_models(params, result):
        result.metrics["baselines"][ZERO_SHOT] = zero_shot
    write_metrics(result.metrics, params.paths.metrics / f"{split}.json")
    write_predictions(result.predictions, params.paths.predictions)
    return result


def compare_with_chat_models(params: Params, result: Any) -> list[dict[str, Any]]:
    """Return the rows of the chat models that `dashfusion zero-shot` asked about the split."""
    if "baselines" not in result.metrics:
        return []
    transcripts, manifest = read_transcripts(params.paths.transcripts), read_manifest(params.paths.manifest)
    clips = ClipPredictions.of(result.predictions)
    texts = {clip_id: transcripts[clip_id].text for clip_id in clips.clip_ids}
    return zero_shot_rows(
        params.paths.studies,
        params.prepare.corpus,
        params.evaluate.split,
        clips.clip_ids,
        texts,
        clips.prediction_SN,
        clips.label_N,
        result.speakers,
        manifest.label_range,
    )


@task
def measure_other_corpus(params: Params) -> CrossCorpusResult | None:
    """Measure the model on the split of `evaluate.also_on`, if that is another dataset, and write metrics/on.json."""
    from model.evaluate import write_metrics

    path, dataset, split = params.paths.metrics / ON, params.other_dataset, params.evaluate.split
    if dataset is None:
        write_metrics({}, path)
        return None
    folders = checkpoints(params)
    result, evaluation = measure_on(folders, dataset, split, params.train.device)
    write_metrics(result.to_json(), path)
    looks = count_look(result.corpus, labels_of(evaluation.predictions), folders) if split == "test" else None
    return replace(result, looks=looks.text if looks else "")


@task
def report(
    params: Params,
    result: Any,
    record: dict[str, Any],
    looks: Looks | None,
    other: CrossCorpusResult | None,
) -> Path:
    """Write the report and the data of DVC's plots, and return the report's path."""
    transcripts = read_transcripts(params.paths.transcripts)
    manifest = with_transcripts(read_manifest(params.paths.manifest), transcripts)
    problems = read_problems([params.paths.all_problems])
    dataset = json.loads((params.paths.dataset / "dataset.json").read_text(encoding="utf-8"))
    path = params.paths.report / REPORT_PAGE
    write_plot_data(params.paths.metrics / "plots", result.predictions, manifest.label_range)
    with StageProgress("parts") as bar:
        row = bar.add_task("report", total=len(PARTS))

        def begin(part: str) -> None:
            bar.update(row, completed=PARTS.index(part), note=part)

        analysis = analyse(params, result, manifest, transcripts, begin)
    write_report(
        path,
        ReportInput(
            corpus=manifest.corpus,
            split=params.evaluate.split,
            label_range=manifest.label_range,
            metrics=result.metrics,
            predictions=result.predictions,
            clips={clip.clip_id: clip for clip in manifest.clips},
            previous=previous_evaluation(params, result.metrics),
            looks=looks,
            other=other,
            studies=read_studies(params.paths.studies),
            matrix=read_matrix(params.paths.studies / MATRIX),
            curves=training_curves(params),
            problems=problems,
            word_times=dataset["word_times"],
            provenance=record,
            generated=bool(is_generated(dataset)),
            card=corpus_card(manifest, transcripts, params.paths.dataset, problems, params.align.mask_invalid),
            **analysis,
        ),
    )
    return path


def labels_of(predictions: pa.Table) -> dict[str, float | None]:
    """Return the clips of a table of predictions as clip id -> label."""
    return dict(zip(predictions["clip_id"].to_pylist(), predictions["label"].to_pylist(), strict=True))


def record_look(params: Params, predictions: pa.Table) -> Looks | None:
    """Record that these models were evaluated on the test split, see `count_look`; None for other splits."""
    if params.evaluate.split != "test":
        return None
    return count_look(params.prepare.corpus, labels_of(predictions), checkpoints(params))


def count_look(corpus: str, clips: Mapping[str, float | None], folders: Sequence[Path]) -> Looks:
    """Record that models were evaluated on the test split, and return how many were so far.

    A split is known by its clips and labels, models by their weights: the same models count once, however often they
    are evaluated. Copies of the project that DVC makes for experiments count with the project. What DVC restores from
    its cache was counted when it was computed.

    Args:
        corpus: Name of the corpus.
        clips: Clip id -> label, None where unlabelled.
        folders: Checkpoints of the seeds of one model.
    """
    look = {
        "dataset": _digest([corpus, sorted(clips.items())]),
        "models": _digest(sorted(sha256_of(folder / "model.safetensors") for folder in folders)),
    }
    path = settings.project_folder() / settings.STATE / LOOKS
    same_split = [entry for entry in read_lines(path) if entry.get("dataset") == look["dataset"] and "models" in entry]
    if look["models"] not in {entry["models"] for entry in same_split}:
        same_split.append({"time": datetime.now(UTC).isoformat(timespec="seconds"), **look})
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(same_split[-1]) + "\n")
    return Looks(len(same_split), same_split[0]["time"])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def publish_metrics(params: Params, metrics: Mapping[str, Any], prefix: str = "") -> None:
    """Publish the metrics with their change, and a link to the report, under keys that start with `prefix`."""
    title, before = f"{params.prepare.corpus}, {params.evaluate.split} split", previous_metrics(params, metrics)
    columns = ("metric", "value", "last run", "change")[: 4 if before else 2]
    rows = compared_rows(metrics, before) if before else metrics_rows(metrics)
    lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    lines += ["", baseline_verdict(metrics.get("baselines", {}))]
    engine.publish_markdown(f"{prefix}metrics", "\n".join(lines), title)
    page, served = (params.paths.report / REPORT_PAGE).resolve(), os.environ.get(REPORT_URL)
    link = f"{served.rstrip('/')}/{page.name}" if served else page.as_uri()
    engine.publish_link(f"{prefix}report", link, f"Report on {title}", str(page))


def publish_plots(params: Params, result: Any) -> None:
    """Publish the plots as images in a markdown artifact."""
    if not engine.engine_active():
        return
    label_range = read_manifest(params.paths.manifest).label_range
    plots = [
        f"**{name}**\n\n![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"
        for name, png in plot_images(result.predictions, label_range, training_curves(params))
    ]
    title = f"{params.prepare.corpus}, {params.evaluate.split} split"
    engine.publish_markdown("plots", "\n\n".join(plots), title)


@flow(name="evaluate", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def evaluate(params_file: Path = Path("params.yaml")) -> dict[str, Any]:
    """Evaluate the trained model on a held-out split, and write the report.

    Args:
        params_file: Parameters of all stages.
    """
    params = load_params(params_file)
    run = RunProvenance(params, inputs(params))
    result = engine.call(measure, params)
    training = read_training_provenance(params.paths.models, params.train.seeds)
    record = run.write(params.paths.metrics / PROVENANCE_FILE, train=training)
    append_to_history(params, result.metrics)
    looks = record_look(params, result.predictions)
    other = engine.call(measure_other_corpus, params)
    path = engine.call(report, params, result, record, looks, other)
    publish_metrics(params, result.metrics)
    publish_plots(params, result)
    print_metrics(params, result.metrics)
    if looks:
        console.print(f"the test split of this dataset has been evaluated {looks.text}")
    if other:
        print_other_corpus(other)
    console.print(f"report: {path.resolve()}")
    return dict(result.metrics)


if __name__ == "__main__":
    engine.main(evaluate)
