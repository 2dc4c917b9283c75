"""`dashfusion study`: train variants with several seeds, compare them on `valid`, and add the results to the report.

A study is not a DVC stage, so that `dvc repro` does not run an hour of ablations. Trainings are cached in scratch by
their inputs, so that an interrupted study resumes and studies share trainings. The report depends on the results.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

from corpora.files import tag_scratch
from corpora.manifest import MODALITIES
from extractors.corruption.conditions import Condition as Corruption
from extractors.corruption.dataset import CorruptedSplit, Original, corrupt_split, read_original, unsupported_reason
from extractors.execution.workers import WorkerPool
from flows.config.params import Params, load_params
from flows.display.console import console
from flows.display.metrics import format_difference
from flows.display.progress import StageProgress
from flows.orchestration import engine
from flows.orchestration.dvc import up_to_date
from flows.orchestration.settings import scratch_folder
from flows.orchestration.training_pool import TrainingPool, training_pool
from flows.orchestration.workspace import workspace
from flows.pipeline import run_stages
from flows.report.provenance import RunProvenance
from flows.studies.results import ALL_CLIPS, CLEAN, COMPARISON, StudyResult, write_study
from flows.studies.spec import SPLIT, StudySpec, metric_keys, read_spec, variant_params
from flows.studies.statistics import Measurements, tidy_rows
from flows.studies.tables import tables


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a study."""

    variant: str
    seed: int
    params: Params

    def folder(self, scratch: Path) -> Path:
        """Return the folder of the training, see `flows.studies.trial.trial_folder`."""
        from flows.studies.trial import trial_folder

        params = self.params
        return trial_folder(scratch, params.paths.dataset, params.model, params.train, self.seed)


class TrialFailedError(RuntimeError):
    """A training of a study failed; the message names it and the reason. Finished trainings are kept."""


_pools: dict[str, TrainingPool] = {}  # by study: processes cannot be passed as a task's parameter


@contextmanager
def trial_pool(study: str, device: str, workers: int, trials: int) -> Iterator[dict[str, Any]]:
    """Provide processes for a study's trainings, and the arguments that `map_trials` passes to its tasks."""
    scratch = scratch_folder()
    tag_scratch(scratch)
    with training_pool(device, workers, trials) as _pools[study]:
        try:
            yield {"workers": _pools[study].size, "study": study, "scratch": scratch}
        finally:
            del _pools[study]


def call_training(trial: Trial, study: str, scratch: Path) -> dict[str, float]:
    """Run one training in a process of the study's pool, and return its costs."""
    from flows.studies.trial import train_trial as train

    params = trial.params
    arguments = params.paths.dataset, params.model, params.train, trial.seed, scratch, SPLIT
    costs: dict[str, float] = _pools[study].call(train, *arguments)
    return costs


@task(task_run_name="{trial.variant}, seed {trial.seed}")
def train_trial(trial: Trial, *, study: str, scratch: Path) -> dict[str, float]:
    """Run one training and return its costs."""
    try:
        return call_training(trial, study, scratch)
    except (ValueError, OSError, ArithmeticError) as error:
        raise TrialFailedError(f"study {study}, variant {trial.variant!r}, seed {trial.seed}: {error}") from error


@task(task_run_name="{trial.variant}, seed {trial.seed}: predict")
def predict_trial(
    trial: Trial, *, study: str, scratch: Path, views: Sequence[Any], split: str = SPLIT
) -> list[np.ndarray]:
    """Return a training's predictions for each view of the split."""
    from flows.studies.trial import predict_views

    device = trial.params.train.device
    predictions: list[np.ndarray] = _pools[study].call(predict_views, trial.folder(scratch), views, split, device)
    return predictions


@flow(name="study", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def study(
    name: str,
    seeds: Sequence[int] = (),
    changes: Mapping[str, Any] | None = None,
    workers: int = 0,
    wait: bool = True,
    params_file: Path = Path("params.yaml"),
) -> Any:
    """Train a study's variants, compare them, and add the results to the report.

    Args:
        name: Name of a file in studies/, or a path.
        seeds: Seeds to use instead of the file's, at least 3.
        changes: Changes to params.yaml for all variants: dotted keys of the blocks model and train.
        workers: Number of parallel trainings; 0 for one per core, or per GPU.
        wait: Whether to wait while another run works in the same folder; otherwise fail at once.
        params_file: Parameters that the variants start from.

    Returns:
        The `StudyResult`; the state `Cancelled`, which names the stage, if the own run of a stage was cancelled.
    """
    params, spec = load_params(params_file), read_spec(name)
    spec = replace(spec, base={**spec.base, **(changes or {})}, seeds=tuple(seeds) or spec.seeds)
    trials = [
        Trial(variant, seed, variant_values)
        for variant in spec.variants
        for variant_values in (variant_params(params, spec, variant),)  # all are validated before the first is trained
        for seed in spec.seeds
    ]
    with workspace(wait):
        try:
            run_stages(["align"], wait=wait)
            result = _run_trials(params, spec, trials, workers)
            path = write_study(result, params.paths.studies)
            publish(result)
            reported = update_report(wait)
        except CancelledRun as error:
            return Cancelled(message=str(error))
    for table in tables(result):
        console.print(table)
    if result.refusal:
        console.print(result.refusal, style="bold yellow", markup=False)
    for note in result.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    console.print(f"{path}" + (f"; report: {(params.paths.report / 'index.html').resolve()}" if reported else ""))
    if not reported:
        console.print("the next `dashfusion evaluate` adds it to the report: the model itself is not trained yet")
    return result


def _run_trials(params: Params, spec: StudySpec, trials: Sequence[Trial], workers: int) -> StudyResult:
    """Train what is not trained yet, evaluate it, and return the study's result."""
    from model.data.clips import ClipTable
    from model.evaluation.subgroups import slice_rows

    provenance = RunProvenance(params, {"dataset": params.paths.dataset}, study=spec.name)
    table = ClipTable.read(params.paths.dataset, SPLIT, params.model.max_positions, cache=None)
    original = _original(params, spec)
    spec, notes = _drop_unsupported(spec, original)
    views = _views(params, spec, original, scratch_folder())
    with trial_pool(spec.name, params.train.device, workers, len(trials)) as fixed:
        costs = map_trials("train", train_trial, trials, **fixed)
        predictions = map_trials("evaluate", predict_trial, trials, views=list(views.values()), **fixed)
    measured = Measurements(
        spec=spec,
        label=table.labels,
        speaker=table.clip_ids if table.speakers is None else table.speakers,
        label_range=table.info.label_range,
        metrics=metric_keys(spec.metrics, table.info.label_range),
        slices={name: slice_rows(table, name) for name in spec.slices},
        predictions={
            (variant, *view): np.stack([p[i] for t, p in zip(trials, predictions, strict=True) if t.variant == variant])
            for variant in spec.variants
            for i, view in enumerate(views)
        },
        costs={v: [c for t, c in zip(trials, costs, strict=True) if t.variant == v] for v in spec.variants},
    )
    notes += [f"no clip is known to be one whose {name}" for name in spec.slices if name not in measured.groups]
    return _result(params, measured, notes, provenance)


def _result(params: Params, measured: Measurements, notes: Sequence[str], provenance: RunProvenance) -> StudyResult:
    """Return the study's result: its description, provenance and table of numbers."""
    from model.evaluation.baselines import compare_with_baselines, fit_baselines

    spec = measured.spec
    uses_text = "text" in variant_params(params, spec, spec.reference).train.modalities
    reference_SN = measured.predictions[spec.reference, CLEAN, None]
    compared = reference_SN, measured.label, measured.speaker, measured.label_range
    baselines = compare_with_baselines(*compared, fit_baselines(params.paths.dataset, SPLIT, uses_text))
    pareto_metric = metric_keys([spec.pareto.metric], measured.label_range) if spec.pareto else []
    return StudyResult(
        study=spec.name,
        title=spec.title,
        question=spec.question,
        corpus=params.prepare.corpus,
        split=SPLIT,
        clips=len(measured.groups[ALL_CLIPS]),
        reference=spec.reference,
        variants={name: {**spec.base, **changes} for name, changes in spec.variants.items()},
        seeds=list(spec.seeds),
        metrics=measured.metrics,
        conditions={name: item.unit for name, item in spec.conditions.items()},
        pareto=(spec.pareto.cost, pareto_metric[0]) if spec.pareto and pareto_metric else None,
        notes=notes,
        provenance=provenance.to_dict(),
        rows=tidy_rows(measured),
        baselines=baselines,
    )


def _drop_unsupported(spec: StudySpec, original: Original | None) -> tuple[StudySpec, list[str]]:
    """Return the study without the corruptions that this corpus does not support, and a note for each."""
    reasons = {
        name: reason
        for name, condition in spec.conditions.items()
        if condition.corrupt and original
        if (reason := unsupported_reason(original, Corruption(condition.corrupt, condition.levels[0])))
    }
    conditions = {name: condition for name, condition in spec.conditions.items() if name not in reasons}
    return replace(spec, conditions=conditions), [f"{name} was left out: {why}" for name, why in reasons.items()]


def _original(params: Params, spec: StudySpec) -> Original | None:
    """Return the clean split if any condition corrupts it."""
    if not any(item.corrupt for item in spec.conditions.values()):
        return None
    paths = params.paths
    features = {m: paths.features / m for m in MODALITIES}
    return read_original(paths.manifest, paths.transcripts, features, SPLIT, params.align)


@task(task_run_name="{condition.corruption} {condition.level:g}")
def corrupt(
    condition: Corruption, *, original: Original, params: Params, scratch: Path, pool: WorkerPool
) -> CorruptedSplit:
    """Write the corrupted split as a dataset of its own."""
    return corrupt_split(original, condition, scratch, pool, params.extract.max_failed_fraction)


def _views(
    params: Params, spec: StudySpec, original: Original | None, scratch: Path
) -> dict[tuple[str, float | None], Any]:
    """Corrupt the split where a condition asks for it; return (condition, level) -> `flows.studies.trial.View`."""
    from flows.studies.trial import View

    datasets: dict[tuple[str, float | None], Path] = {}
    corruptions = {
        (name, level): Corruption(condition.corrupt, level)
        for name, condition in spec.conditions.items()
        if condition.corrupt
        for level in condition.levels
    }
    if corruptions:
        workers = params.extract.workers or os.cpu_count() or 1
        with WorkerPool(workers, params.extract.clip_timeout) as pool, StageProgress("conditions") as bar:
            row = bar.add_task("study: corrupt", total=len(corruptions))
            for (name, strength), corruption in corruptions.items():
                bar.update(row, note=f"{name} {strength:g}")
                split = engine.call(corrupt, corruption, original=original, params=params, scratch=scratch, pool=pool)
                datasets[name, strength] = split.dataset
                bar.advance(row)
    views: dict[tuple[str, float | None], View] = {(CLEAN, None): View(params.paths.dataset)}
    for name, condition in spec.conditions.items():
        levels: Sequence[float | None] = condition.levels or (None,)
        for level in levels:
            drop = (condition.drop, level) if condition.drop and level is not None else None
            views[name, level] = View(datasets.get((name, level), params.paths.dataset), condition.show, drop)
    return views


def map_trials(step: str, trial_task: Any, trials: Sequence[Trial], *, study: str, **options: Any) -> list[Any]:
    """Return `trial_task(trial, study=study, ...)` for every trial, with a progress bar."""
    kind = COMPARISON if study == COMPARISON else "study"
    publish = engine.publish_progress(f"{kind}-{step}-progress", f"Trainings: {step}")
    done = 0
    with StageProgress("trainings") as bar:
        row = bar.add_task(f"{kind}: {step}", total=len(trials))

        def each(result: Any) -> None:
            nonlocal done
            done += 1
            bar.advance(row)
            publish(100 * done / len(trials), f"{done} of {len(trials)}")

        return engine.map_tasks(trial_task, trials, each=each, study=study, **options)


def update_report(wait: bool) -> bool:
    """Run the evaluate stage, unless a model would have to be trained for it; return whether it ran."""
    if "train" not in up_to_date():
        return False
    return bool(run_stages(["evaluate"], wait=wait))


def publish(result: StudyResult) -> None:
    """Publish the variants' means and their differences to the reference as an artifact of the flow run."""
    rows = []
    for mean in result.find(condition=CLEAN, clips=ALL_CLIPS, statistic="mean"):
        row = {"variant": mean.variant, "metric": mean.metric, "mean": mean.value, "low": mean.low, "high": mean.high}
        difference = result.get(mean.variant, mean.metric, "difference")
        row["difference"] = format_difference(mean.metric, difference.value, difference.interval) if difference else ""
        row["p"] = difference.p if difference else None
        row["p adjusted"] = difference.p_adjusted if difference else None
        row["verdict"] = result.verdict(difference) if difference else ""
        rows.append(row)
    title = f"{result.title}: means over the seeds, differences to {result.reference}"
    engine.publish_table(f"study-{result.study.replace('_', '-')}", rows, title)


if __name__ == "__main__":
    engine.main(study, "name")
