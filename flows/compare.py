"""`dashfusion compare`: train networks with the same budget and seeds, and rank them on the test split.

A comparison is a study whose variants are networks: its trainings are kept, resumed and run like those of a study. The
settings of each network are chosen on `valid`, and what was chosen is measured on `test`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from prefect import flow, task
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

from extractors.execution.workers import WorkerLostError
from extractors.transcripts.table import read_transcripts
from flows.config.params import SEARCH_SEED, Params, load_params
from flows.display.baselines import ZERO_SHOT
from flows.display.console import console
from flows.evaluate import count_look, labels_of
from flows.orchestration import engine
from flows.orchestration.training_pool import StoppedError
from flows.orchestration.workspace import workspace
from flows.pipeline import run_stages
from flows.report.leaderboard import cost_picture
from flows.report.provenance import RunProvenance
from flows.studies.cross_corpus import (
    MATRIX,
    MATRIX_METRICS,
    CrossCorpusResult,
    cross_corpus_matrix,
    matrix_rows,
    matrix_table,
    write_matrix,
)
from flows.studies.leaderboard import leaderboard_table
from flows.studies.results import (
    ALL_CLIPS,
    CLEAN,
    COMPARISON,
    SEARCH,
    VALID_MAE,
    NetworkComparison,
    Row,
    StudyResult,
    write_study,
)
from flows.studies.search import Settings, compared_networks, plan_settings
from flows.studies.spec import StudySpec, metric_keys
from flows.studies.statistics import Measurements, best_network, leaderboard_rows
from flows.studies.tables import leaderboard_tables
from flows.study import Trial, TrialFailedError, call_training, map_trials, predict_trial, trial_pool, update_report
from flows.zero_shot.answers import answer_files
from flows.zero_shot.comparison import zero_shot_rows
from model.data.info import read_info

if TYPE_CHECKING:
    from model.data.clips import ClipTable
    from model.evaluate import Evaluation

T = TypeVar("T")

MEASURED_SPLIT = "test"
"""Split that the networks are ranked by; settings, epochs and the best network are chosen on `valid`."""

METRICS = ("mae", "acc2", "corr", "f1", "acc3", "acc5", "acc7")
"""Metrics that are compared, the one that ranks first."""

TEXT = "text"
"""Network of the text encoder alone: the bar that a fusion has to clear."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a training: its costs, or why the network cannot be trained; and its validation error."""

    costs: Mapping[str, float]
    valid_mae: float = float("inf")
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A network's settings, the validation error of each (infinite: it failed), and the number of the chosen ones."""

    settings: Sequence[Settings]
    errors: Sequence[float]
    number: int

    @property
    def params(self) -> Params:
        """The parameters of the chosen settings."""
        return self.settings[self.number].params


@task(task_run_name="{trial.variant}, seed {trial.seed}")
def train_network(trial: Trial, *, study: str, scratch: Path) -> Outcome:
    """Run one training; a network that the dataset or its settings do not allow to train is no error of the flow."""
    from flows.studies.trial import validation_error

    try:
        costs = call_training(trial, study, scratch)
    except (StoppedError, WorkerLostError):
        raise  # says nothing about the network: the next run trains it
    except OSError as error:
        raise TrialFailedError(f"{trial.variant}, seed {trial.seed}: {error}") from error
    except (ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        engine.log(f"{trial.variant}, seed {trial.seed}, cannot be trained: {reason}")
        return Outcome({}, failure=reason)
    return Outcome(costs, validation_error(trial.folder(scratch)))


@flow(name=COMPARISON, flow_run_name=engine.run_name, on_running=[engine.add_tags])
def compare(
    models: Sequence[str] = (),
    seeds: Sequence[int] = (),
    trials: int | None = None,
    workers: int = 0,
    wait: bool = True,
    on: Sequence[Path] = (),
    params_file: Path = Path("params.yaml"),
) -> Any:
    """Train networks with the same budget and seeds, rank them on the test split, and add the result to the report.

    Args:
        models: Networks to compare, in place of `compare.models`.
        seeds: Seeds, in place of `compare.seeds`.
        trials: Settings to try for each network, in place of `compare.trials`.
        workers: Number of parallel trainings; 0 for one per core, or per GPU.
        wait: Whether to wait while another run works in the same folder; otherwise fail at once.
        on: Dataset folders of other corpora, on whose test split the networks are measured as well.
        params_file: Parameters of the dataset, and the block `compare`.

    Returns:
        The `StudyResult`; the state `Cancelled`, which names the stage, if the own run of a stage was cancelled.
    """
    params = load_params(params_file)
    budget = params.compare
    given = tuple(models) or budget.models, tuple(seeds) or budget.seeds, budget.trials if trials is None else trials
    params = replace(params, compare=replace(budget, models=given[0], seeds=given[1], trials=given[2]))
    compared_networks(params.compare.models)  # refuses a single one before a stage runs
    for folder in on:
        read_info(folder)  # and a folder without a dataset
    with workspace(wait):
        try:
            run_stages(["align"], wait=wait)
            result = _compare(params, workers, on)
            path = write_study(result, params.paths.studies)
            publish(result)
            reported = update_report(wait)
        except CancelledRun as error:
            return Cancelled(message=str(error))
    for table in leaderboard_tables(result, console.width):
        console.print(table, soft_wrap=False)
    for note in result.notes:
        console.print(note, style="yellow", markup=False)
    console.print(f"{path}" + (f"; report: {(params.paths.report / 'index.html').resolve()}" if reported else ""))
    if not reported:
        console.print("the next `dashfusion evaluate` adds it to the report: the model itself is not trained yet")
    return result


def _compare(params: Params, workers: int, on: Sequence[Path] = ()) -> StudyResult:
    """Choose the settings of each network, train it with every seed, and measure it, on other corpora as well."""
    from flows.studies.trial import View
    from model.data.clips import ClipTable

    provenance = RunProvenance(params, {"dataset": params.paths.dataset}, study=COMPARISON)
    table = ClipTable.read(params.paths.dataset, MEASURED_SPLIT, params.model.max_positions, cache=None)
    if not np.isfinite(table.labels).any():
        raise ValueError(f"the {MEASURED_SPLIT} split has no labelled clip to rank networks by")
    planned, left_out = plan_settings(params)
    seeds = params.compare.seeds
    with trial_pool(COMPARISON, params.train.device, workers, max(1, len(planned)) * len(seeds)) as fixed:
        chosen = _search(planned, left_out, fixed)
        trials = [Trial(name, seed, found.params) for name, found in chosen.items() for seed in seeds]
        outcomes = _by_network(trials, map_trials("train", train_network, trials, **fixed))
        _leave_out(chosen, outcomes, left_out)
        measured = [trial for trial in trials if trial.variant in chosen]
        views = [View(params.paths.dataset)]
        predictions = map_trials("evaluate", predict_trial, measured, views=views, split=MEASURED_SPLIT, **fixed)
    clips = dict(zip(table.clip_ids.tolist(), map(_finite, table.labels.tolist()), strict=True))
    folders = _by_network(measured, [trial.folder(fixed["scratch"]) / "best" for trial in measured])
    for name in chosen:
        count_look(params.prepare.corpus, clips, folders[name])
    if on:
        measure_across(params, folders, on)
    by_network = _by_network(measured, [found[0] for found in predictions])
    return _result(params, chosen, left_out, table, outcomes, by_network, provenance)


def _by_network(trials: Sequence[Trial], values: Sequence[T]) -> dict[str, list[T]]:
    """Return network -> its trials' values, in the order of the seeds."""
    found: dict[str, list[T]] = {}
    for trial, value in zip(trials, values, strict=True):
        found.setdefault(trial.variant, []).append(value)
    return found


def _search(
    planned: Mapping[str, Sequence[Settings]], left_out: dict[str, str], fixed: Mapping[str, Any]
) -> dict[str, Chosen]:
    """Train each network with each of its settings, and choose those with the lowest validation error.

    Networks with a single setting are not trained here. Those that fail with all settings are left out.
    """
    tried = {name: settings for name, settings in planned.items() if len(settings) > 1}
    trials = [
        Trial(f"{name}, settings {number}", SEARCH_SEED, one.params)
        for name, settings in tried.items()
        for number, one in enumerate(settings)
    ]
    outcomes = iter(map_trials("search", train_network, trials, **fixed) if trials else ())
    chosen = {}
    for name, settings in planned.items():
        found = [next(outcomes) for _ in settings] if name in tried else []
        errors = [outcome.valid_mae for outcome in found]
        if found and not np.isfinite(errors).any():
            left_out[name] = found[0].failure
        else:
            chosen[name] = Chosen(settings, errors, int(np.argmin(errors)) if errors else 0)
    return chosen


def _leave_out(chosen: dict[str, Chosen], outcomes: Mapping[str, Sequence[Outcome]], left_out: dict[str, str]) -> None:
    """Move the networks that failed with any seed to those that are left out, with the reason.

    Raises:
        TrialFailedError: none is left.
    """
    for name, by_seed in outcomes.items():
        if failures := [outcome.failure for outcome in by_seed if outcome.failure]:
            left_out[name] = failures[0]
            del chosen[name]
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise TrialFailedError(f"no network could be trained on this dataset: {reasons}")


def _result(
    params: Params,
    chosen: Mapping[str, Chosen],
    left_out: Mapping[str, str],
    table: ClipTable,
    outcomes: Mapping[str, Sequence[Outcome]],
    predictions: Mapping[str, Sequence[np.ndarray]],
    provenance: RunProvenance,
) -> StudyResult:
    """Return the comparison: its description, provenance and table of numbers."""
    valid_mae = {name: [outcome.valid_mae for outcome in outcomes[name]] for name in chosen}
    best = best_network(valid_mae)
    references = [best, *([TEXT] if TEXT in chosen and best != TEXT else [])]
    variants = {name: dict(found.settings[found.number].changes) for name, found in chosen.items()}
    budget = params.compare
    title, question = "Networks compared", "Which network is best on this corpus, at which cost?"
    spec = StudySpec(COMPARISON, title, question, variants, best, METRICS, budget.seeds)
    measured = Measurements(
        spec=spec,
        label=table.labels,
        speaker=table.clip_ids if table.speakers is None else table.speakers,
        label_range=table.info.label_range,
        metrics=metric_keys(METRICS, table.info.label_range),
        slices={},
        predictions={(name, CLEAN, None): np.stack(predictions[name]) for name in chosen},
        costs={name: [outcome.costs for outcome in outcomes[name]] for name in chosen},
    )
    return StudyResult(
        study=COMPARISON,
        title=title,
        question=question,
        corpus=params.prepare.corpus,
        split=MEASURED_SPLIT,
        clips=int(np.isfinite(table.labels).sum()),
        reference=best,
        variants=variants,
        seeds=list(budget.seeds),
        metrics=measured.metrics,
        notes=[
            f"{name} has {len(found.settings)} settings to try, fewer than the budget's {budget.trials}"
            for name, found in chosen.items()
            if len(found.settings) < budget.trials
        ],
        provenance=provenance.to_dict(),
        rows=[*leaderboard_rows(measured, references), *_validation_rows(budget.seeds, valid_mae, chosen)],
        comparison=NetworkComparison(
            references=references,
            budget={"trials": budget.trials, "epochs": budget.epochs, "patience": budget.patience},
            settings={name: [dict(one.changes) for one in found.settings] for name, found in chosen.items()},
            chosen={name: found.number for name, found in chosen.items()},
            baselines=_baselines(params, measured, table.clip_ids.tolist()),
            left_out=left_out,
        ),
    )


def _baselines(params: Params, measured: Measurements, clip_ids: Sequence[str]) -> dict[str, Any]:
    """Return each network's comparison with the baselines, and with the chat models that were asked about the split."""
    from model.evaluation.baselines import compare_with_baselines, fit_baselines

    baselines = fit_baselines(params.paths.dataset, MEASURED_SPLIT)
    transcripts = read_transcripts(params.paths.transcripts) if any(answer_files(params.paths.studies)) else {}
    texts = {clip_id: transcripts[clip_id].text for clip_id in clip_ids if transcripts}
    asked = params.paths.studies, params.prepare.corpus, MEASURED_SPLIT, clip_ids, texts
    place = measured.label, measured.speaker, measured.label_range
    found: dict[str, Any] = {}
    for name in measured.spec.variants:
        prediction_SN = measured.predictions[name, CLEAN, None]
        found[name] = compare_with_baselines(prediction_SN, *place, baselines)
        if chat_models := zero_shot_rows(*asked, prediction_SN, *place):
            found[name][ZERO_SHOT] = chat_models
    return found


def _validation_rows(
    seeds: Sequence[int], valid_mae: Mapping[str, Sequence[float]], chosen: Mapping[str, Chosen]
) -> list[Row]:
    """Return the validation errors of the seeds, their mean, and those of the settings that were tried."""
    rows = []
    for name, errors in valid_mae.items():
        rows += [
            Row(name, seed, CLEAN, None, ALL_CLIPS, VALID_MAE, "value", error)
            for seed, error in zip(seeds, errors, strict=True)
        ]
        rows.append(Row(name, None, CLEAN, None, ALL_CLIPS, VALID_MAE, "mean", float(np.mean(errors))))
        rows += [
            Row(name, SEARCH_SEED, SEARCH, float(number), ALL_CLIPS, VALID_MAE, "value", _finite(error))
            for number, error in enumerate(chosen[name].errors)
        ]
    return rows


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def measure_across(params: Params, folders: Mapping[str, Sequence[Path]], on: Sequence[Path]) -> None:
    """Measure networks on the test splits of the own and of other corpora; write, print and publish the matrix.

    Args:
        params: Parameters with the own dataset.
        folders: Network -> its checkpoints, one per seed.
        on: Dataset folders of the other corpora.
    """

    def count(result: CrossCorpusResult, evaluation: Evaluation) -> None:
        count_look(result.corpus, labels_of(evaluation.predictions), folders[result.model])

    datasets = [params.paths.dataset, *on]
    results = cross_corpus_matrix(folders, datasets, MEASURED_SPLIT, params.train.device, count)
    path = params.paths.studies / MATRIX
    write_matrix(results, path)
    for metric in MATRIX_METRICS:
        console.print(matrix_table(results, metric))
    console.print(f"{path}", markup=False)
    engine.publish_table("cross-corpus", matrix_rows(results), "Networks on the test splits of several corpora")


def publish(result: StudyResult) -> None:
    """Publish the leaderboard and the picture of quality against cost as artifacts of the flow run."""
    title = f"{result.title}: {result.corpus}, {result.split} split, {len(result.seeds)} seeds"
    engine.publish_table("leaderboard", leaderboard_table(result), title)
    if engine.engine_active():
        picture = base64.b64encode(cost_picture(result)).decode()
        engine.publish_markdown("quality-and-cost", f"![{title}](data:image/png;base64,{picture})", title)


if __name__ == "__main__":
    engine.main(compare)
