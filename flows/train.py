"""Stage `train`: dataset -> one checkpoint per seed, with learning curves and prediction intervals.

The intervals come from the errors of further networks, each trained without some of the speakers (`model.intervals`).
They belong to this stage, because a checkpoint contains its intervals, and because the same dataset, parameters and
code decide both.

On several GPUs: `torchrun --standalone --nproc-per-node <n> -m flows.train`, then `dvc commit train`. The processes
share every batch; only the first one writes files, shows progress and reports to Prefect.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from rich.progress import TaskID

from flows.config.params import Params, load_params
from flows.display.console import console
from flows.display.progress import StageProgress
from flows.orchestration import engine
from flows.orchestration.settings import STATE, forced, open_scratch, scratch_folder
from flows.orchestration.training_pool import TrainingPool, training_pool
from flows.report.provenance import PROVENANCE_FILE, RunProvenance

if TYPE_CHECKING:
    from model.intervals import FoldTrainings
    from model.training.folds import Fold

MIN_PUBLISH_SECONDS = 2.0
"""Minimum time between two updates of the progress artifact: a small corpus takes less than a second an epoch."""

FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
"""Whether this is the first of the processes that torchrun has started, or the only one."""

SEVERAL_PROCESSES = os.environ.get("WORLD_SIZE", "1") != "1"
"""Whether torchrun has started several processes, which share each training."""

_pools: list[TrainingPool] = []  # of this stage: processes cannot be passed as a task's parameter


class CurveObserver:
    """Passes the training loop's metrics on to DVCLive, TensorBoard, the progress bar or lines, and Prefect.

    Args:
        live: DVCLive logger.
        board: TensorBoard writer; None: no curves for TensorBoard.
        bar: Progress bar.
        row: The training's row in it.
        epochs: Epochs of the training.
        publish: Callback that receives the percentage of epochs done, and the metrics as text.
    """

    def __init__(
        self, live: Any, board: Any, bar: StageProgress, row: TaskID, epochs: int, publish: Callable[[float, str], None]
    ) -> None:
        self.live, self.board, self.bar, self.row, self.epochs = live, board, bar, row, epochs
        self.publish, self.published = publish, 0.0
        self.trained = 0

    def on_batch(self, epoch: int, done: int, total: int) -> None:
        """Update the bar after a batch."""
        self.trained = epoch
        self.bar.update(self.row, completed=(epoch - 1) * total + done, total=self.epochs * total)

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log the metrics of an epoch as one step of the curves."""
        for name, value in metrics.items():
            self.live.log_metric(name, value)
            if self.board:
                self.board.add_scalar(name, value, epoch)
        self.live.next_step()
        note = f"epoch {epoch}  loss {metrics['train_loss']:.3f}  valid MAE {metrics['valid_mae']:.3f}"
        self.bar.update(self.row, note=note)
        if epoch == self.trained:  # not the epochs before a resumption
            text = f"epoch {epoch} of {self.epochs}, loss {metrics['train_loss']:.3f}"
            self.bar.print_line(self.row, f"{text}, valid MAE {metrics['valid_mae']:.3f}, {metrics['seconds']:.1f} s")
        if time.monotonic() - self.published > MIN_PUBLISH_SECONDS or epoch == self.epochs:
            self.publish(100 * epoch / self.epochs, note)
            self.published = time.monotonic()


@task(task_run_name="seed {seed}")
def train_seed(seed: int, params: Params) -> dict[str, Any]:
    """Train with one seed: checkpoints and history in `models/seed-<n>`, curves in `metrics/training/seed-<n>`.

    An interrupted training resumes from its last state in scratch.
    """
    from dvclive.live import Live

    from model.device import resolve_device
    from model.files import atomic_file
    from model.train import train as train_model

    scratch = open_scratch()  # holds memory-mapped features and the state for resumption
    out = params.paths.models / f"seed-{seed}"
    arguments = params.paths.dataset, out, params.model, params.train, seed
    if not FIRST_PROCESS:
        train_model(*arguments, scratch=scratch)
        return {}
    record = RunProvenance(params, {"dataset": params.paths.dataset}, seed=seed)
    curves = params.paths.training_curves / f"seed-{seed}"
    board = _tensorboard(seed) if params.train.tensorboard else None
    live = Live(dir=str(curves), dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)
    publish = engine.publish_progress(f"train-seed-{seed}-progress", f"Epochs of seed {seed}")
    on_gpu = resolve_device(params.train.device).type == "cuda"
    with engine.gpu_slot() if on_gpu else nullcontext(), live, StageProgress("batches") as bar:
        row = bar.add_task(f"train seed {seed}", total=None)
        observer = CurveObserver(live, board, bar, row, params.train.epochs, publish)
        result = train_model(*arguments, observer, scratch)
    if board:
        board.close()
    with atomic_file(out / "history.json") as temporary:
        temporary.write_text(json.dumps(list(result.history), indent=1), encoding="utf-8")
    record.write(out / PROVENANCE_FILE, resumed=result.resumed)
    publish(100.0, f"best epoch {result.best_epoch} of {len(result.history)}")
    best = result.history[result.best_epoch - 1]
    if result.resumed:
        console.print(f"seed {seed}: resumed in epoch {result.resumed[0]} after {result.resumed[1]} batches")
    console.print(
        f"seed {seed}: best validation MAE {best['valid_mae']:.3f} in epoch {result.best_epoch} of "
        f"{len(result.history)}, {result.seconds:.0f} s on {result.device} -> {result.best}"
    )
    return {"seed": seed, "best_epoch": result.best_epoch, "seconds": round(result.seconds, 1), **best}


def _tensorboard(seed: int) -> Any:
    """Create a writer of curves to `.dashfusion/tensorboard/seed-<n>`, and remove those of an earlier run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ValueError(
            "train.tensorboard is true, but tensorboard is not installed: pip install -e '.[tensorboard]'"
        ) from error
    folder = STATE / "tensorboard" / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))


@task(task_run_name="fold {fold.number}")
def train_fold(fold: Fold, *, trainings: FoldTrainings) -> dict[str, Any]:
    """Train without a fold of the clips and return the errors on it, in a process of its own.

    An interrupted training resumes, and a finished one is not repeated.
    """
    from model.intervals import train_fold as train

    errors: dict[str, Any] = _pools[0].call(train, trainings, fold) if _pools else train(trainings, fold)
    return errors


def calibrate(params: Params) -> FoldTrainings | None:
    """Calibrate the intervals of all seeds' checkpoints, if that needs trainings; return these."""
    from model.intervals import calibrate_checkpoints, plan_folds

    config = params.train
    if config.intervals.method == "split":
        return None
    seed, began = config.seeds[0], time.monotonic()
    history = json.loads((params.paths.models / f"seed-{seed}" / "history.json").read_text(encoding="utf-8"))
    trainings = plan_folds(params.paths.dataset, params.model, config, seed, len(history), open_scratch())
    if forced() and FIRST_PROCESS:
        trainings.forget()
    if SEVERAL_PROCESSES:
        errors = [train_fold.fn(fold, trainings=trainings) for fold in trainings.folds]
    else:
        errors = _train_beside_each_other(trainings)
    if FIRST_PROCESS:
        checkpoints = [params.paths.models / f"seed-{seed}" / "best" for seed in config.seeds]
        calibrate_checkpoints(checkpoints, trainings, errors)
        console.print(
            f"intervals: errors of {len(errors)} networks on the speakers that each was trained without, "
            f"{trainings.config.epochs} epochs each, {time.monotonic() - began:.0f} s"
        )
    return trainings


def validation_metrics(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return mae, corr, acc2 on the validation split and the epoch: all of the one epoch that was kept.

    Args:
        checkpoints: Descriptions of the seeds' best checkpoints. Of several, the mean is returned, the sample standard
            deviation under `<key>_std`, and their number under `seeds`; metrics that one of them lacks are left out.
    """
    names = {"mae": "valid_mae", "corr": "valid_corr", "acc2": "valid_acc2"}
    values = {name: [c["metrics"].get(key) for c in checkpoints] for name, key in names.items()}
    values["epoch"] = [checkpoint["epoch"] for checkpoint in checkpoints]
    defined = {name: found for name, found in values.items() if None not in found}
    if len(checkpoints) == 1:
        return {name: found[0] for name, found in defined.items()}
    means = {name: statistics.fmean(found) for name, found in defined.items()}
    return (
        means
        | {f"{name}_std": statistics.stdev(found) for name, found in defined.items()}
        | {"seeds": len(checkpoints)}
    )


def _write_validation(params: Params) -> None:
    """Write `metrics/validation.json`."""
    from model.checkpoint.description import read_description
    from model.files import atomic_file

    checkpoints = [read_description(params.paths.models / f"seed-{seed}" / "best") for seed in params.train.seeds]
    with atomic_file(params.paths.metrics / "validation.json") as temporary:
        temporary.write_text(json.dumps(validation_metrics(checkpoints), indent=2) + "\n", encoding="utf-8")


def _train_beside_each_other(trainings: FoldTrainings) -> list[dict[str, Any]]:
    """Return the errors of all folds, trained in processes, one per core or GPU."""
    folds = trainings.folds
    publish = engine.publish_progress("train-intervals-progress", "Trainings for the prediction intervals")
    with training_pool(trainings.config.device, 0, len(folds)) as pool, StageProgress("trainings") as bar:
        row = bar.add_task("train intervals", total=len(folds))
        done = 0

        def each(_: Any) -> None:
            nonlocal done
            done += 1
            bar.advance(row)
            publish(100 * done / len(folds), f"{done} of {len(folds)}")

        _pools.append(pool)
        try:
            return engine.map_tasks(train_fold, folds, workers=pool.size, each=each, trainings=trainings)
        finally:
            _pools.clear()


def _remove_other_seeds(params: Params) -> None:
    """Remove what a stage with other seeds, left behind by a killed `dvc`, wrote after DVC had cleared the outputs."""
    for outputs in (params.paths.models, params.paths.training_curves):
        for folder in outputs.glob("seed-*"):
            if folder.name not in {f"seed-{seed}" for seed in params.train.seeds}:
                shutil.rmtree(folder)


@flow(name="train", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def train(params_file: Path = Path("params.yaml")) -> list[dict[str, Any]]:
    """Train DashFusion once for each seed of `train.seeds`, and keep the best epoch by validation MAE.

    An interrupted stage resumes, without training finished seeds and folds again, unless it is forced.

    Args:
        params_file: Parameters of all stages.
    """
    from model.train import forget_run

    params = load_params(params_file)
    run = scratch_folder(), params.paths.dataset, params.model, params.train
    if forced() and FIRST_PROCESS:
        forget_run(*run)
    if FIRST_PROCESS:
        _remove_other_seeds(params)
    results = [engine.call(train_seed, seed, params) for seed in params.train.seeds]
    trainings = calibrate(params)
    if FIRST_PROCESS:
        _write_validation(params)
        forget_run(*run)
        if trainings:
            trainings.forget()
        engine.publish_table("training", results, "The best epoch of every seed, with its metrics")
    return results


if __name__ == "__main__":
    if FIRST_PROCESS:
        engine.main(train)
    else:
        train.fn()
