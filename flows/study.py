"""`dashfusion study`: variants times seeds, trained beside each other and compared; the table goes into the report.

No stage of DVC's: nobody wants an hour of ablations for a `dvc repro`. A training is kept in scratch by what it depends
on, so a study goes on where it was stopped, and studies share trainings. The report depends on the results.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task

from corpora.manifest import MODALITIES
from extractors.corruption.conditions import Condition as Corrupted
from extractors.corruption.dataset import CorruptedSplit, Original, corrupt_split, read_original, unsupported_reason
from extractors.execution.cache import tag_scratch
from extractors.execution.workers import GRACE, Worker, WorkerPool
from flows.config.params import Params, load_params
from flows.display.console import console, progress
from flows.display.metrics import METRICS
from flows.orchestration import engine
from flows.orchestration.dvc import StageResult, up_to_date
from flows.orchestration.settings import scratch_folder
from flows.orchestration.workspace import workspace
from flows.pipeline import run_stages
from flows.report.provenance import RunRecord
from flows.studies.results import ALL_CLIPS, CLEAN, StudyResult, write_study
from flows.studies.spec import StudySpec, metric_keys, read_spec, variant_params
from flows.studies.statistics import Numbers, answers, tidy_rows
from flows.studies.tables import tables, yes_or_no


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a study."""

    variant: str
    seed: int
    params: Params


class TrialFailedError(RuntimeError):
    """A training of a study failed; the message says which, and why. Those that ended are kept."""


class _Crew:
    """Worker processes that trainings take turns on; with GPUs one for each, which sees no other.

    Args:
        workers: processes.
        threads: of each.
        gpus: whether the n-th process is to see the n-th GPU alone.
    """

    def __init__(self, workers: int, threads: int, gpus: bool) -> None:
        self.workers = [Worker(threads=threads) for _ in range(workers)]
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopped = False
        self._gpus = gpus
        for number in range(workers):
            self._idle.put(number)

    def call(self, function: Any, *arguments: Any) -> Any:
        """`function(*arguments)` in the next free process. To be called from several threads at a time."""
        number = self._idle.get()
        worker = self.workers[number]
        try:
            if self._stopped:
                raise RuntimeError("the study was stopped")
            if self._gpus and not worker.running:
                worker.call(None, _see_gpu, number)
            return worker.call(None, function, *arguments)
        except KeyboardInterrupt:  # of the terminal, which reaches the workers first
            self._stopped = True
            raise
        finally:
            self._idle.put(number)

    def close(self, grace: float) -> None:
        """End the processes, by force after `grace` seconds."""
        for worker in self.workers:
            worker.close(grace)


def _see_gpu(number: int) -> None:
    """In a worker, before CUDA starts there."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)


_crews: dict[str, _Crew] = {}  # by study: processes cannot travel through a task's parameters


@contextmanager
def _crew(name: str, params: Params, workers: int, trials: int) -> Iterator[int]:
    """The study's processes for the length of the block; how many."""
    from model.device import resolve_device

    gpus = 0
    if resolve_device(params.train.device).type == "cuda":
        import torch

        gpus = torch.cuda.device_count()
    cores = os.cpu_count() or 1
    count = max(1, min(trials, workers or gpus or cores, gpus or trials))
    crew = _crews[name] = _Crew(count, 1 if not gpus and count > 1 else max(1, cores // count), bool(gpus))
    grace = 0.0
    try:
        with engine.gpu_slot() if gpus else nullcontext():
            yield count
            grace = GRACE
    finally:
        crew.close(grace)
        del _crews[name]


@task(task_run_name="{trial.variant}, seed {trial.seed}")
def train_trial(trial: Trial, *, study: str, scratch: Path) -> dict[str, float]:
    """One training; what it cost."""
    from flows.studies.trial import train_trial as train

    params = trial.params
    arguments = params.paths.dataset, params.model, params.train, trial.seed, scratch, params.evaluate.split
    try:
        return _crews[study].call(train, *arguments)
    except (ValueError, OSError, ArithmeticError) as error:
        raise TrialFailedError(f"study {study}, variant {trial.variant!r}, seed {trial.seed}: {error}") from error


@task(task_run_name="{trial.variant}, seed {trial.seed}: predict")
def predict_trial(trial: Trial, *, study: str, scratch: Path, views: Sequence[Any]) -> list[np.ndarray]:
    """A training's predictions for each view of the split."""
    from flows.studies.trial import predict_views, trial_folder

    params = trial.params
    folder = trial_folder(scratch, params.paths.dataset, params.model, params.train, trial.seed)
    return _crews[study].call(predict_views, folder, views, params.evaluate.split, params.train.device)


@flow(name="study", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def study(
    name: str,
    seeds: Sequence[int] = (),
    changes: Mapping[str, Any] | None = None,
    workers: int = 0,
    wait: bool = True,
    params_file: Path = Path("params.yaml"),
) -> StudyResult:
    """Train a study's variants, compare them, and add what was found to the report.

    Args:
        name: Of the study: a file of studies/, or the path of one.
        seeds: In place of the file's.
        changes: Over params.yaml, for all variants: dotted keys of the blocks model and train, such as train.epochs.
        workers: Trainings at a time; 0: one a core, or one a GPU.
        wait: Where another run works in the same folder, wait for its end; otherwise fail at once.
        params_file: The parameters that the variants start from.
    """
    params, spec = load_params(params_file), read_spec(name)
    spec = replace(spec, base={**spec.base, **(changes or {})}, seeds=tuple(seeds) or spec.seeds)
    trials = [
        Trial(variant, seed, trained)
        for variant in spec.variants
        for trained in (variant_params(params, spec, variant),)  # all of them are checked before the first is trained
        for seed in spec.seeds
    ]
    with workspace(wait):
        run_stages(["align"], wait=wait)
        result = _measured(params, spec, trials, workers)
        path = write_study(result, params.paths.studies)
        publish(result)
        reported = _into_the_report(wait)
    for table in tables(result):
        console.print(table)
    for answer in result.answers:
        console.print(f"{answer.question} {yes_or_no(answer.holds)}{answer.answer}", markup=False)
    for note in result.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    console.print(f"{path}" + (f"; report: {(params.paths.report / 'index.html').resolve()}" if reported else ""))
    if not reported:
        console.print("the report takes it in with the next `dashfusion evaluate`: the model itself is not trained yet")
    return result


def _measured(params: Params, spec: StudySpec, trials: Sequence[Trial], workers: int) -> StudyResult:
    """Train what is not trained yet, evaluate, and put the numbers together."""
    from model.data.clips import ClipTable
    from model.evaluation.subgroups import slice_rows

    scratch = scratch_folder()
    tag_scratch(scratch)
    record = RunRecord(params, {"dataset": params.paths.dataset}, study=spec.name)
    split = params.evaluate.split
    table = ClipTable.read(params.paths.dataset, split, params.model.max_positions, cache=None)
    original = _original(params, spec)
    spec, notes = _possible(params, spec, original)
    views = _views(params, spec, original, scratch)
    with _crew(spec.name, params, workers, len(trials)) as count:
        fixed = {"study": spec.name, "scratch": scratch}
        costs = _with_bar("train", train_trial, trials, count, **fixed)
        predictions = _with_bar("evaluate", predict_trial, trials, count, views=list(views.values()), **fixed)
    numbers = Numbers(
        spec=spec,
        label=table.labels,
        label_range=table.info.label_range,
        metrics=metric_keys(spec.metrics, METRICS, table.info.label_range),
        slices={name: slice_rows(table, name) for name in spec.slices},
        predictions={
            (variant, *view): np.stack([p[i] for t, p in zip(trials, predictions, strict=True) if t.variant == variant])
            for variant in spec.variants
            for i, view in enumerate(views)
        },
        costs={v: [c for t, c in zip(trials, costs, strict=True) if t.variant == v] for v in spec.variants},
    )
    metric_of = {name: key for name in spec.metrics for key in metric_keys([name], METRICS, numbers.label_range)}
    notes += [f"no clip is known to be one whose {name}" for name in spec.slices if name not in numbers.groups]
    return StudyResult(
        study=spec.name,
        title=spec.title,
        question=spec.question,
        corpus=params.prepare.corpus,
        split=split,
        clips=len(numbers.groups[ALL_CLIPS]),
        reference=spec.reference,
        variants={name: {**spec.base, **changes} for name, changes in spec.variants.items()},
        seeds=list(spec.seeds),
        metrics=numbers.metrics,
        conditions={name: item.unit for name, item in spec.conditions.items()},
        pareto=(spec.pareto.cost, metric_of[spec.pareto.metric]) if spec.pareto else None,
        answers=answers(numbers, spec.checks, metric_of),
        notes=notes,
        record=record.facts(),
        rows=tidy_rows(numbers),
    )


def _possible(params: Params, spec: StudySpec, original: Original | None) -> tuple[StudySpec, list[str]]:
    """The study without the conditions that this corpus does not allow, and why; and without what was asked of them."""
    left_out: dict[str, str] = {}
    for name, item in spec.conditions.items():
        if item.corrupt and original:
            reason = unsupported_reason(original, Corrupted(item.corrupt, item.levels[0]))
            left_out |= {name: reason} if reason else {}
    conditions = {name: item for name, item in spec.conditions.items() if name not in left_out}
    checks = [c for c in spec.checks if not {c.of.condition, c.against.condition} & left_out.keys()]
    notes = [f"{name} was left out: {reason}" for name, reason in left_out.items()]
    return replace(spec, conditions=conditions, checks=tuple(checks)), notes


def _original(params: Params, spec: StudySpec) -> Original | None:
    """The split as it is, where it is to be corrupted."""
    if not any(item.corrupt for item in spec.conditions.values()):
        return None
    paths, split = params.paths, params.evaluate.split
    features = {m: paths.features / m for m in MODALITIES}
    return read_original(paths.manifest, paths.transcripts, features, split, params.align)


@task(task_run_name="{what.corruption} {what.level:g}")
def corrupt(what: Corrupted, *, original: Original, params: Params, scratch: Path, pool: WorkerPool) -> CorruptedSplit:
    """The split's clips, corrupted, as a dataset of its own."""
    return corrupt_split(original, what, scratch, pool, params.extract.max_failed_fraction)


def _views(params: Params, spec: StudySpec, original: Original | None, scratch: Path) -> dict[tuple, Any]:
    """How the split is shown: (condition, level) -> `flows.studies.trial.View`; what is to be corrupted is so by then."""
    from flows.studies.trial import View

    views: dict[tuple[str, float | None], Any] = {(CLEAN, None): View(params.paths.dataset)}
    corrupted = [(name, level) for name, item in spec.conditions.items() if item.corrupt for level in item.levels]
    datasets: dict[tuple[str, float], Path] = {}
    if corrupted:
        workers = params.extract.workers or os.cpu_count() or 1
        with WorkerPool(workers, params.extract.clip_timeout) as pool, progress("conditions") as bar:
            row = bar.add_task("study: corrupt", total=len(corrupted), note="")
            for name, level in corrupted:
                bar.update(row, note=f"{name} {level:g}")
                what = Corrupted(spec.conditions[name].corrupt, level)
                made = engine.call(corrupt, what, original=original, params=params, scratch=scratch, pool=pool)
                datasets[name, level] = made.dataset
                bar.advance(row)
    for name, item in spec.conditions.items():
        for level in item.levels or (None,):
            dataset = datasets.get((name, level), params.paths.dataset)
            drop = (item.drop, level) if item.drop else None
            views[name, level] = View(dataset, show=item.show, drop=drop)
    return views


def _with_bar(what: str, one: Any, trials: Sequence[Trial], workers: int, **fixed: Any) -> list[Any]:
    """`one(trial)` of every trial, with a progress bar of them."""
    publish = engine.publish_progress(f"study-{what}-progress", f"Trainings of the study: {what}")
    done = 0
    with progress("trainings") as bar:
        row = bar.add_task(f"study: {what}", total=len(trials), note="")

        def each(result: Any) -> None:
            nonlocal done
            done += 1
            bar.advance(row)
            publish(100 * done / len(trials), f"{done} of {len(trials)}")

        return engine.map_tasks(one, trials, workers=workers, each=each, **fixed)


def _into_the_report(wait: bool) -> bool:
    """Let the evaluate stage make the report anew, unless a model would have to be trained for it; whether it did."""
    if "train" not in up_to_date():
        return False
    results: list[StageResult] = run_stages(["evaluate"], wait=wait)
    return bool(results)


def publish(result: StudyResult) -> None:
    """The summary as an artifact of the flow run."""
    rows = [
        {"variant": row.variant, "metric": row.metric, "mean": row.value, "low": row.low, "high": row.high}
        for row in result.find(condition=CLEAN, clips=ALL_CLIPS, statistic="mean")
    ]
    engine.publish_table(f"study-{result.study.replace('_', '-')}", rows, f"{result.title}: means over the seeds")
    lines = [f"- **{a.question}** {yes_or_no(a.holds)}{a.answer}" for a in result.answers]
    if lines:
        key = f"study-{result.study.replace('_', '-')}-answers"
        engine.publish_markdown(key, "\n".join(lines), f"{result.title}: answers")


if __name__ == "__main__":
    import sys

    engine.main(study, name=sys.argv[1])
