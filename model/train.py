"""Training of one network: from a dataset to its best and last checkpoint.

The loop reports metrics to an observer and stores state through `model.checkpoint` and `model.training.resume`. All
random numbers come from generators keyed by seed, epoch and batch, so that two counters determine the state of a run.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoint.description import REFERENCE
from model.checkpoint.io import add_calibration, add_folder, load_checkpoint, save_checkpoint
from model.checkpoint.model_card import write_card
from model.config import MODALITIES, ModelConfig, TrainConfig, check_together
from model.data.batching import sorted_batches, training_batches
from model.data.tokens import prepare_text
from model.device import flush_denormals, peak_megabytes, prefetch, resolve_device, start_fabric
from model.evaluation.inference import infer, predict
from model.evaluation.intervals import calibrate, split_half_width, subset_errors
from model.evaluation.metrics import defined_metrics
from model.evaluation.outliers import clip_vectors, fit_density, sample_rows
from model.network.registry import build_network, check_network
from model.training.batch_planner import CHUNK_OVERHEAD, BatchPlanner, RankBatch
from model.training.labelled import check_unimodal_labels, read_training
from model.training.mining import Partners, is_mined, label_classes, mine
from model.training.objective import LOSS_TERMS, Objective, mining_embeddings
from model.training.optimizer import learning_rate_factor, parameter_groups
from model.training.resume import RunStore, run_signature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_fabric import Fabric

    from model.data.clips import ClipTable
    from model.network.base import Network
    from model.training.folds import Fold

MAPPED = "mapped"
"""Folder of memory-mapped features, in scratch."""

MINING_BATCH = {"cpu": 64, "cuda": 512}
"""Clips per forward pass, by device, when the training clips are encoded for mining."""

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Receiver of the training progress."""

    def on_batch(self, epoch: int, done: int, total: int) -> None:
        """Report that `done` of `total` batches of `epoch` (from 1) are trained."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Report a saved epoch, with the keys of `TrainResult.history`; a resumed run reports earlier ones first."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        best: Checkpoint with the lowest validation MAE.
        last: Checkpoint of the last epoch.
        best_epoch: Epoch of the best checkpoint, from 1.
        history: Metrics by epoch: train_loss and its terms train_regression, train_semantic, train_supervised,
            train_unimodal (with unimodal heads) and train_auxiliary (of a network that has one); valid_mae, valid_acc2
            and valid_corr (acc2 is negative / positive for [-3, 3]; left out if undefined); learning_rate at the end of
            the epoch; short_of_partners, the clips with fewer partners than configured; seconds; clips_per_second
            (regressed clips) and steps_per_second (encoded steps without padding, partners included) of the training
            part; peak_megabytes so far, of the GPU's tensors or of the process.
        unlabelled: Number of training clips left out because they have no label.
        truncated: Modality -> training clips cut to model.max_positions, or to model.text.max_tokens.
        device: Device that the run used.
        seconds: Duration of the whole run, including earlier, killed parts as far as they were saved.
        resumed: (epoch, trained batches of it) at which an earlier run was resumed; None: a fresh run.
    """

    best: Path
    last: Path
    best_epoch: int
    history: Sequence[Mapping[str, float]]
    unlabelled: int
    truncated: Mapping[str, int]
    device: str
    seconds: float
    resumed: tuple[int, int] | None = None


class _Run:
    """State of a run, most of which is saved for resumption.

    Attributes:
        epoch: The next batch's epoch, from 1.
        batch: The next batch, from 0.
        partners: Candidates mined for this epoch.
        sums: Sums of `LOSS_TERMS` over the epoch's clips so far.
        steps: Steps encoded in the epoch so far.
        began, epoch_began: Start times of the run and of the epoch, less the time that earlier processes spent.
    """

    def __init__(self, fabric: Fabric, network: Network, config: TrainConfig, planner: BatchPlanner) -> None:
        self.fabric, self.network, self.config, self.planner = fabric, network, config, planner
        self.auxiliary = network.auxiliary_loss(planner.clips)
        self.objective = fabric.setup_module(Objective(network, config, fabric.world_size, self.auxiliary))
        groups = parameter_groups(network, config)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epoch, self.batch, self.steps = 1, 0, 0
        self.sums = torch.zeros(len(LOSS_TERMS), device=fabric.device)
        self.partners: Partners | None = None
        self.history: list[dict[str, float]] = []
        self.best_mae, self.best_epoch = float("inf"), 0
        self.began, self.epoch_began = time.perf_counter(), time.perf_counter()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or patience is exhausted."""
        waited = len(self.history) - self.best_epoch
        return self.epoch > self.config.epochs or (self.best_epoch > 0 and waited >= self.config.patience)

    def start_epoch(self) -> None:
        """Reset the statistics of the epoch."""
        self.epoch_began, self.steps = time.perf_counter(), 0
        self.sums.zero_()

    def finish_epoch(self, metrics: dict[str, float]) -> bool:
        """Move on to the next epoch; return whether this one is the best so far."""
        mae, improved = metrics["valid_mae"], metrics["valid_mae"] < self.best_mae
        if self.config.best_epoch == "last":
            improved = self.epoch > 1 and round(mae, 4) <= round(self.best_mae, 4)
        if improved:
            self.best_mae, self.best_epoch = mae, self.epoch
        self.history.append(metrics)
        self.epoch, self.batch = self.epoch + 1, 0
        return improved

    def state(self) -> dict[str, Any]:
        """Return the state for resumption as tensors and plain values."""
        partners = self.partners and [
            torch.from_numpy(p) for p in (self.partners.positives, self.partners.hard, self.partners.easy)
        ]
        now = time.perf_counter()
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "auxiliary": self.auxiliary.state_dict() if self.auxiliary else None,
            "position": (self.epoch, self.batch, self.steps),
            "sums": self.sums.cpu(),
            "partners": partners,
            "history": self.history,
            "best": (self.best_mae, self.best_epoch),
            "seconds": (now - self.began, now - self.epoch_began),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.auxiliary:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.epoch, self.batch, self.steps = state["position"]
        self.sums = state["sums"].to(self.fabric.device)
        if state["partners"]:
            positives, hard, easy = (p.numpy() for p in state["partners"])
            self.partners = Partners(positives, hard, easy, self.config.mining)
        self.history = list(state["history"])
        self.best_mae, self.best_epoch = state["best"]
        self.began, self.epoch_began = (time.perf_counter() - seconds for seconds in state["seconds"])


def train(
    dataset: Path,
    out: Path,
    model: ModelConfig,
    config: TrainConfig,
    seed: int,
    observer: Observer | None = None,
    scratch: Path | None = None,
    fold: Fold | None = None,
) -> TrainResult:
    """Train one network and write its best and last checkpoints to `out`/best and `out`/last.

    The same seed on the same CPU and number of threads gives the same metrics, even if the run was killed and resumed.
    Under `torchrun` the processes share each batch; only the first one writes and calls `observer`.

    Args:
        dataset: Folder of the dataset.
        out: Folder of the checkpoints.
        model: Configuration of the network.
        config: Configuration of the training.
        seed: Seed of all random numbers.
        observer: Receiver of the progress.
        scratch: Folder for memory-mapped features and for the training state. A run with the same dataset,
            configuration, seed and code resumes from that state, or returns at once if the earlier run had finished;
            `forget_run` removes it. None: features in memory, and no resumption.
        fold: Train without this fold of both splits and validate on it, without calibration; None: use the splits.

    Raises:
        FileNotFoundError: No dataset there.
        ModuleNotFoundError: Lightning Fabric is not installed.
        ValueError: No labelled clips to train or validate on or none with any of the modalities, features that are not
            finite, or an unavailable device or text encoder.
        FloatingPointError: The loss or its gradient is not finite; the message names the batch's clips.
    """
    check_together(model, config)
    check_network(model, config)
    fabric = start_fabric(resolve_device(config.device), config.precision)
    device, cache = fabric.device, scratch and Path(scratch) / MAPPED

    # Load the data
    with fabric.rank_zero_first():
        text = prepare_text(model, dataset)
        clips, valid, unlabelled = read_training(dataset, model, config.modalities, cache, text, fold)
    check_unimodal_labels(clips, model)

    # Build the network and its optimizer
    torch.manual_seed(seed)
    network = build_network(model, clips.info, text).to(device)
    run = _Run(fabric, network, config, _planner(clips, config, seed, fabric))

    # Resume an interrupted run
    name = fold.name if fold else f"seed-{seed}"
    store = RunStore(scratch and runs_folder(scratch, dataset, model, config) / name)
    resumed = _resume(run, store, out, observer)

    while not run.finished:
        # Mine contrastive partners
        if run.batch == 0:
            run.start_epoch()
            if is_mined(config) and (run.epoch - 1) % config.mining.refresh_epochs == 0:
                run.partners = _mine(run)

        # Train
        _train_epoch(run, store, observer)

        # Validate
        epoch, metrics = run.epoch, _epoch_metrics(run, valid)
        improved = run.finish_epoch(metrics)

        # Save
        if fabric.is_global_zero:
            _save_epoch(run, store, out, improved)
            if observer:
                observer.on_epoch(epoch, metrics)

    # Calibrate
    if fabric.is_global_zero and not fold:
        _calibrate(run, out / "best", valid)
        for folder in (out / "best", out / "last") if (Path(dataset) / REFERENCE).is_dir() else ():
            add_folder(folder, REFERENCE, Path(dataset) / REFERENCE)
    return _finish(run, out, unlabelled, resumed)


def forget_run(
    scratch: Path, dataset: Path, model: ModelConfig, config: TrainConfig, seeds: Sequence[int] | None = None
) -> None:
    """Remove the training state of runs with this configuration from `scratch`; memory-mapped features stay.

    Args:
        scratch: Scratch folder.
        dataset: Folder of the dataset.
        model: Configuration of the network.
        config: Configuration of the training.
        seeds: Seeds of the runs; None: `config.seeds`.
    """
    folder = runs_folder(scratch, dataset, model, config)
    for seed in config.seeds if seeds is None else seeds:
        shutil.rmtree(folder / f"seed-{seed}", ignore_errors=True)
    with suppress(OSError):  # not empty: runs with other seeds
        folder.rmdir()


def runs_folder(scratch: Path, dataset: Path, model: ModelConfig, config: TrainConfig) -> Path:
    """Return the folder of the training states of runs with this configuration, one subfolder per seed.

    Raises:
        FileNotFoundError: No dataset there.
    """
    return Path(scratch) / f"training-{run_signature(dataset, model, config)}"


def _planner(clips: ClipTable, config: TrainConfig, seed: int, fabric: Fabric) -> BatchPlanner:
    classes = label_classes(clips.labels, clips.info.label_range, config.mining.class_rounding)
    overhead = CHUNK_OVERHEAD.get(fabric.device.type, CHUNK_OVERHEAD["cuda"])
    return BatchPlanner(clips, classes, config, seed, fabric.global_rank, fabric.world_size, overhead)


def _save_epoch(run: _Run, store: RunStore, out: Path, improved: bool) -> None:
    """Write the checkpoints and the training state after the last epoch of the history."""
    epoch, metrics = len(run.history), run.history[-1]
    arguments = run.network, run.config, run.planner.seed, epoch, metrics
    save_checkpoint(out / "last", *arguments)
    if improved:
        save_checkpoint(out / "best", *arguments)
        store.keep_best(out / "best", epoch)
    store.save(run.state(), run.best_epoch)


def _calibrate(run: _Run, best: Path, valid: ClipTable) -> None:
    """Calibrate the best checkpoint by the validation split: intervals and outlier test; write its model card."""
    modalities, clips = run.config.modalities, run.planner.clips
    network, _ = load_checkpoint(best, run.fabric.device)
    sample = clips.select(sample_rows(len(clips)))
    vectors = [clip_vectors(table, infer(network, table, modalities).pooled) for table in (sample, valid)]
    calibration = calibrate(subset_errors(network, valid, modalities), split_half_width)
    add_calibration(best, calibration, {"method": "split"}, fit_density(*vectors))
    write_card(best)


def _finish(run: _Run, out: Path, unlabelled: int, resumed: tuple[int, int] | None) -> TrainResult:
    """Return the run's result once all processes have finished."""
    if len(run.history) < run.config.epochs:
        log.info("no better validation MAE for %d epochs: stopped after %d", run.config.patience, len(run.history))
    run.fabric.barrier()
    return TrainResult(
        best=out / "best",
        last=out / "last",
        best_epoch=run.best_epoch,
        history=run.history,
        unlabelled=unlabelled,
        truncated=run.planner.clips.truncated,
        device=str(run.fabric.device),
        seconds=time.perf_counter() - run.began,
        resumed=resumed,
    )


def _resume(run: _Run, store: RunStore, out: Path, observer: Observer | None) -> tuple[int, int] | None:
    """Restore the state, checkpoints and reported history of an interrupted run; None if there is none."""
    state = store.load()
    run.fabric.barrier()  # all processes have read it before one writes
    if state is None:
        return None
    run.load_state(state)
    if run.fabric.is_global_zero and run.history:
        if run.best_epoch:
            store.restore_best(out / "best", run.best_epoch)
        if run.batch == 0:
            epoch, metrics = len(run.history), run.history[-1]
            save_checkpoint(out / "last", run.network, run.config, run.planner.seed, epoch, metrics)
    if run.fabric.is_global_zero and observer:
        for epoch, metrics in enumerate(run.history, start=1):
            observer.on_epoch(epoch, metrics)
    log.info("resumed at epoch %d, batch %d", run.epoch, run.batch)
    return run.epoch, run.batch


@flush_denormals()
def _train_epoch(run: _Run, store: RunStore, observer: Observer | None) -> None:
    """Train the remaining batches of the epoch: update after every `accumulate` of them, save every few minutes."""
    fabric, config, planner = run.fabric, run.config, run.planner
    device, first = fabric.device, fabric.is_global_zero
    lengths = planner.clips.lengths(config.modalities)
    balanced = planner.classes if config.contrastive.scope == "in_batch" else None
    batches = training_batches(
        lengths,
        config.batch_size,
        planner.seed,
        run.epoch,
        config.batch_tokens,
        balanced,
        shuffled=config.batching == "shuffled",
    )
    updates = -(-len(batches) // config.accumulate)

    def make(number: int) -> RankBatch:
        batch = planner.plan(batches[number], run.partners, run.epoch, number)
        return batch.pin() if device.type == "cuda" else batch

    run.objective.train()
    saved = time.perf_counter()
    clip_ids: list[str] = []
    remaining = range(run.batch, len(batches))
    for number, batch in zip(remaining, prefetch(make, remaining), strict=True):
        # Forward and backward
        first_of_update = number - number % config.accumulate
        group = batches[first_of_update : first_of_update + config.accumulate]
        is_update = number + 1 == first_of_update + len(group)
        torch.manual_seed(_dropout_seed(planner.seed, run.epoch, number, fabric.global_rank))
        with fabric.no_backward_sync(run.objective, enabled=not is_update):
            losses = run.objective(batch.to(device))
            fabric.backward(losses[0] * (batch.clips / sum(map(len, group))))
        run.sums += losses.detach() * batch.clips
        run.steps += batch.steps
        clip_ids += batch.clip_ids
        # Update
        if is_update:
            done = run.epoch - 1 + number // config.accumulate / updates
            _update(run, learning_rate_factor(done, 1 / updates, config), clip_ids)
            run.batch, clip_ids = number + 1, []
            # Save
            if first and time.perf_counter() - saved >= 60 * config.checkpoint_minutes and number + 1 < len(batches):
                store.save(run.state(), run.best_epoch)
                saved = time.perf_counter()
        if first and observer:
            observer.on_batch(run.epoch, number + 1, len(batches))


def _update(run: _Run, factor: float, clip_ids: Sequence[str]) -> None:
    """Clip the gradient and take one optimizer step at `factor` of the peak learning rates.

    Raises:
        FloatingPointError: The gradient is not finite.
    """
    parameters = [p for p in run.network.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm.item()} in a batch of the clips {', '.join(clip_ids)}; "
            "look at these clips' features, or lower train.learning_rate"
        )
    limit = run.config.clip_norm
    if 0 < limit < norm:  # usually not: skip a pass over the text encoder's gradients
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    for group, peak in zip(run.optimizer.param_groups, run.peak_rates, strict=True):
        group["lr"] = peak * factor
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def _all_reduce(fabric: Fabric, tensor: Tensor, operation: str) -> Tensor:
    return cast("Tensor", fabric.all_reduce(tensor, reduce_op=operation))  # typed for collections of tensors as well


@torch.inference_mode()
def _mine(run: _Run) -> Partners:
    """Rank the partners of each training clip by the current network's embeddings.

    Each process encodes its share of the batches. The first process ranks, and broadcasts the partners to the others.
    """
    fabric, network, clips, config = run.fabric, run.network, run.planner.clips, run.config
    network.eval()
    device = fabric.device
    embeddings_Nd = torch.zeros(len(clips), len(MODALITIES) * network.config.dim, device=device)
    batches = sorted_batches(clips.lengths(config.modalities), MINING_BATCH.get(device.type, MINING_BATCH["cuda"]))
    own = batches[fabric.global_rank :: fabric.world_size]
    for rows, batch in zip(own, prefetch(lambda rows: clips.batch(rows, config.modalities), own), strict=True):
        with fabric.autocast():
            embedding = network.embed(batch.to(device))
        embeddings_Nd[torch.from_numpy(rows).to(device)] = mining_embeddings(embedding)
    if fabric.world_size > 1:
        embeddings_Nd = _all_reduce(fabric, embeddings_Nd, "sum")
    partners: Partners | None = None
    if fabric.is_global_zero:
        rng = np.random.default_rng((run.planner.seed, run.epoch, 2))
        partners = mine(embeddings_Nd, run.planner.classes, config.mining, rng)
        if partners.short_count:
            log.info(
                "%d of %d clips have fewer partners than configured: small classes", partners.short_count, len(clips)
            )
    partners = fabric.broadcast(partners)
    assert partners is not None
    return partners


def _epoch_metrics(run: _Run, valid: ClipTable) -> dict[str, float]:
    """Validate the network and return the metrics of the epoch, see `TrainResult.history`."""
    # Training losses
    fabric, config, clips = run.fabric, run.config, len(run.planner.clips)
    training_seconds = time.perf_counter() - run.epoch_began
    losses = (_all_reduce(fabric, run.sums.clone(), "mean") / clips).tolist()
    is_used = {"unimodal": run.network.config.unimodal_heads, "auxiliary": run.auxiliary is not None}
    terms = zip(LOSS_TERMS, losses, strict=True)
    metrics: dict[str, float] = {f"train_{term}": loss for term, loss in terms if is_used.get(term, True)}
    # Validation
    prediction = predict(run.network, valid, config.modalities, part=(fabric.global_rank, fabric.world_size))
    if fabric.world_size > 1:
        prediction = _all_reduce(fabric, torch.from_numpy(prediction).to(fabric.device), "sum").cpu().numpy()
    validation, _ = defined_metrics(prediction, valid.labels, valid.info.label_range)
    optional = {
        "valid_mae": validation["mae"],
        "valid_corr": validation["corr"],
        "valid_acc2": validation.get("acc2_np", validation.get("acc2")),
        "peak_megabytes": peak_megabytes(fabric.device),
    }
    metrics |= {name: value for name, value in optional.items() if value is not None}
    # Progress and speed
    updates = -(-run.batch // config.accumulate)
    metrics["learning_rate"] = config.learning_rate * learning_rate_factor(run.epoch, 1 / updates, config)
    metrics["short_of_partners"] = run.partners.short_count if run.partners else 0
    metrics["clips_per_second"] = clips / training_seconds
    metrics["steps_per_second"] = run.steps / training_seconds
    metrics["seconds"] = time.perf_counter() - run.epoch_began
    return metrics


def _dropout_seed(seed: int, epoch: int, number: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, 3 + rank, number)).generate_state(1, np.uint64)[0])
