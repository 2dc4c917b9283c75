"""Stage `train`: dataset -> a checkpoint a seed, with learning curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from corpora.files import atomic_path
from flows import runtime
from flows.params import Params, load_params
from flows.runtime import console, progress

from prefect import flow, task  # isort: skip  (flows.runtime sets Prefect's switches before it is imported)


class CurveObserver:
    """Hands the loop's numbers to DVCLive and to the progress bar; the loop knows neither."""

    def __init__(self, live: Any, bar: Progress, row: TaskID, epochs: int) -> None:
        self.live, self.bar, self.row, self.epochs = live, bar, row, epochs

    def on_batch(self, epoch: int, done: int, total: int) -> None:
        """Move the bar by one batch."""
        self.bar.update(self.row, completed=(epoch - 1) * total + done, total=self.epochs * total)

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log one epoch's numbers as a step of the curves."""
        for name, value in metrics.items():
            self.live.log_metric(name, value)
        self.live.next_step()
        self.bar.update(
            self.row,
            note=f"epoch {epoch}  loss {metrics['train_loss']:.3f}  valid MAE {metrics['valid_mae']:.3f}",
        )


@task(task_run_name="seed {seed}")
def train_seed(seed: int, params: Params) -> dict[str, Any]:
    """Train with one seed: checkpoints and history in `models/seed-<n>`, curves in `metrics/training/seed-<n>`."""
    from dvclive import Live

    from model.train import train as train_model

    out = params.paths.models / f"seed-{seed}"
    curves = params.paths.training_curves / f"seed-{seed}"
    live = Live(dir=str(curves), dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)
    with live, progress("batches") as bar:
        row = bar.add_task(f"train seed {seed}", total=None, note="")
        observer = CurveObserver(live, bar, row, params.train.epochs)
        result = train_model(params.paths.dataset, out, params.model, params.train, seed, observer)
    with atomic_path(out / "history.json") as temporary:
        temporary.write_text(json.dumps(list(result.history), indent=1), encoding="utf-8")
    best = result.history[result.best_epoch - 1]
    console.print(
        f"seed {seed}: best validation MAE {best['valid_mae']:.3f} in epoch {result.best_epoch} of "
        f"{len(result.history)}, {result.seconds:.0f} s on {result.device} -> {result.best}"
    )
    return {"seed": seed, "best_epoch": result.best_epoch, "seconds": round(result.seconds, 1), **best}


@flow(name="train", flow_run_name=runtime.run_name)
def train(params_file: Path = Path("params.yaml")) -> list[dict[str, Any]]:
    """Train DashFusion once for each seed of `train.seeds`, and keep the best epoch by validation MAE."""
    params = load_params(params_file)
    results = [runtime.call(train_seed, seed, params) for seed in params.train.seeds]
    runtime.publish_table("training", results, "One row a seed: its best epoch with that epoch's metrics")
    return results


if __name__ == "__main__":
    runtime.main(train)
