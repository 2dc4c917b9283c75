"""One training run: from a dataset to its best and last checkpoint.

The loop hands numbers to an observer and state to `checkpoint` and `resume`, and knows the back end of none. What is
random is drawn from generators keyed by seed, epoch and batch, so that a run's place is two counters.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from model.checkpoint.io import add_calibration, load_checkpoint, save_checkpoint
from model.checkpoint.model_card import write_card
from model.config import MODALITIES, ModelConfig, TrainConfig, check_together
from model.data.batching import sorted_batches, training_batches
from model.data.clips import ClipTable
from model.data.tokens import TextBackbone, prepare_text
from model.device import peak_megabytes, prefetch, resolve_device, start_fabric
from model.evaluation.calibration import calibrate
from model.evaluation.inference import predict
from model.evaluation.metrics import evaluate_metrics
from model.network.dashfusion import DashFusion
from model.training.mining import Partners, label_classes, mine
from model.training.objective import CHUNK_OVERHEAD, LOSS_TERMS, Objective, BatchPlanner, RankBatch, mining_embeddings
from model.training.resume import RunStore, run_signature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_fabric import Fabric

GRADIENT_NORM = 1.0

MAPPED = "mapped"
"""Folder of memory-mapped features, in scratch."""

MINING_BATCH = {"cpu": 64, "cuda": 512}
"""Clips that are embedded at a time when the training clips are ranked."""

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who wants to know how training goes."""

    def on_batch(self, epoch: int, done: int, total: int) -> None:
        """`done` of `total` batches of `epoch` (counted from 1) are trained on."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch is validated and saved; the keys are those of `TrainResult.history`.

        A run that goes on after a kill tells of its earlier epochs first.
        """


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        best: checkpoint of the lowest validation MAE.
        last: checkpoint of the last epoch.
        best_epoch: counted from 1.
        history: metrics of each epoch: train_loss and its parts train_regression, train_semantic, train_supervised
            and, of unimodal heads, train_unimodal; valid_mae, valid_acc2 and valid_corr (acc2 is negative / positive
            for [-3, 3]; absent in an epoch where it is undefined); learning_rate at the epoch's end;
            short_of_partners, clips that draw fewer than asked; seconds; of its training part clips_per_second
            (regressed clips) and steps_per_second (real steps encoded, partners included); peak_megabytes so far, of
            the GPU's tensors or of the process.
        unlabelled: training clips left out for want of a label.
        truncated: modality -> training clips that were cut to model.max_positions, tokens to model.text.max_tokens.
        device: it ran on.
        seconds: of the whole run, parts that ended in a kill included as far as they were saved.
        resumed: (epoch, batches trained of it) at which an earlier, killed run was taken up; None = a fresh run.
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
    """A run's moving parts, and what of them a killed run needs to go on.

    Attributes:
        epoch, batch: what comes next: a batch, counted from 0, of an epoch, counted from 1.
        partners: mined for this epoch.
        sums: of the epoch's `LOSS_TERMS` over its clips so far; steps: encoded so far.
        seconds, epoch_seconds: spent before this process, or in this epoch, at the last save.
    """

    def __init__(self, fabric: Fabric, network: DashFusion, config: TrainConfig, planner: BatchPlanner) -> None:
        self.fabric, self.network, self.config, self.planner = fabric, network, config, planner
        self.objective = fabric.setup_module(Objective(network, config, fabric.world_size))
        groups = _parameter_groups(network, config)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.highest_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epoch, self.batch, self.steps = 1, 0, 0
        self.sums = torch.zeros(len(LOSS_TERMS), device=fabric.device)
        self.partners: Partners | None = None
        self.history: list[dict[str, float]] = []
        self.best_mae, self.best_epoch = float("inf"), 0
        self.began, self.epoch_began = time.perf_counter(), time.perf_counter()

    @property
    def ended(self) -> bool:
        """All epochs are done, or patience is spent."""
        waited = len(self.history) - self.best_epoch
        return self.epoch > self.config.epochs or (self.best_epoch > 0 and waited >= self.config.patience)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        partners = self.partners and [
            torch.from_numpy(p) for p in (self.partners.positives, self.partners.hard, self.partners.easy)
        ]
        now = time.perf_counter()
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": (self.epoch, self.batch, self.steps),
            "sums": self.sums.cpu(),
            "partners": partners,
            "history": self.history,
            "best": (self.best_mae, self.best_epoch),
            "seconds": (now - self.began, now - self.epoch_began),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.batch, self.steps = state["position"]
        self.sums = state["sums"].to(self.fabric.device)
        if state["partners"]:
            self.partners = Partners(*(p.numpy() for p in state["partners"]), self.config.mining)
        self.history = list(state["history"])
        self.best_mae, self.best_epoch = state["best"]
        before, in_epoch = state["seconds"]
        now = time.perf_counter()
        self.began, self.epoch_began = now - before, now - in_epoch


def train(
    dataset: Path,
    out: Path,
    model: ModelConfig,
    config: TrainConfig,
    seed: int,
    observer: Observer | None = None,
    scratch: Path | None = None,
) -> TrainResult:
    """Train one network and keep its best and last checkpoint in `out`/best and `out`/last.

    The same seed on the same CPU and number of threads gives the same metrics, also when the run was killed in
    between. Under `torchrun` the processes share each batch; only the first of them writes and calls `observer`.

    Args:
        scratch: folder for memory-mapped features and for what a killed run goes on from. The next run with the
            same dataset, settings, seed and code goes on from there, or returns at once if it had ended;
            `forget_run` removes it. None: features in memory, and nothing to go on from.

    Raises:
        FileNotFoundError: no dataset there.
        ModuleNotFoundError: Lightning Fabric is not installed.
        ValueError: no labelled clips to train or to validate on, features that are not finite, a device that is not
            there, or a text encoder that cannot be had.
        FloatingPointError: the loss or its gradient is not finite; the message names the batch's clips.
    """
    check_together(model, config)
    fabric = start_fabric(resolve_device(config.device), config.precision)
    device, cache = fabric.device, scratch and Path(scratch) / MAPPED
    with fabric.rank_zero_first():
        text = prepare_text(model, dataset)
        clips, unlabelled = _read_labelled(dataset, "train", model, cache, text)
        valid, _ = _read_labelled(dataset, "valid", model, cache, text)
    if model.unimodal_heads:
        _require_unimodal_labels(clips)
    classes = label_classes(clips.labels, clips.info.label_range)
    torch.manual_seed(seed)
    network = DashFusion(model, clips.info, text).to(device)
    overhead = CHUNK_OVERHEAD.get(device.type, CHUNK_OVERHEAD["cuda"])
    planner = BatchPlanner(clips, classes, config, seed, fabric.global_rank, fabric.world_size, overhead)
    run = _Run(fabric, network, config, planner)
    store = RunStore(scratch and runs_folder(scratch, dataset, model, config) / f"seed-{seed}")
    resumed = _take_up(run, store, out, observer)

    while not run.ended:
        if run.batch == 0:
            run.epoch_began = time.perf_counter()
            run.sums.zero_()
            run.steps = 0
            if _mines(config) and (run.epoch - 1) % config.mining.refresh_epochs == 0:
                run.partners = _mine(run)
        _train_epoch(run, store, observer)
        metrics = _epoch_metrics(run, valid)
        epoch, better = run.epoch, metrics["valid_mae"] < run.best_mae
        if better:
            run.best_mae, run.best_epoch = metrics["valid_mae"], epoch
        run.history.append(metrics)
        run.epoch, run.batch = epoch + 1, 0
        if fabric.is_global_zero:
            save_checkpoint(out / "last", network, config, seed, epoch, metrics)
            if better:
                save_checkpoint(out / "best", network, config, seed, epoch, metrics)
                store.keep_best(out / "best", epoch)
            store.save(run.state(), run.best_epoch)
            if observer:
                observer.on_epoch(epoch, metrics)
    if len(run.history) < config.epochs:
        log.info("no better validation MAE for %d epochs: stopped after %d", config.patience, len(run.history))
    if fabric.is_global_zero:
        best, _ = load_checkpoint(out / "best", device)
        add_calibration(out / "best", calibrate(best, valid, config.modalities))
        write_card(out / "best")
    fabric.barrier()

    return TrainResult(
        best=out / "best",
        last=out / "last",
        best_epoch=run.best_epoch,
        history=run.history,
        unlabelled=unlabelled,
        truncated=clips.truncated,
        device=str(device),
        seconds=time.perf_counter() - run.began,
        resumed=resumed,
    )


def forget_run(
    scratch: Path, dataset: Path, model: ModelConfig, config: TrainConfig, seeds: Sequence[int] | None = None
) -> None:
    """Remove what runs with these settings and seeds left in `scratch` to go on from; features stay mapped.

    Args:
        seeds: None: `config.seeds`.
    """
    folder = runs_folder(scratch, dataset, model, config)
    for seed in config.seeds if seeds is None else seeds:
        shutil.rmtree(folder / f"seed-{seed}", ignore_errors=True)
    with suppress(OSError):  # it is not empty: another run has the same settings and other seeds
        folder.rmdir()


def runs_folder(scratch: Path, dataset: Path, model: ModelConfig, config: TrainConfig) -> Path:
    """Where runs with these settings keep what they go on from, each seed in a folder of its own.

    Raises:
        FileNotFoundError: no dataset there.
    """
    return Path(scratch) / f"training-{run_signature(dataset, model, config)}"


def _take_up(run: _Run, store: RunStore, out: Path, observer: Observer | None) -> tuple[int, int] | None:
    """Go on from a killed run, if there is one: where it stood, and its checkpoints and history again."""
    state = store.load()
    run.fabric.barrier()  # nobody writes before all have read
    if state is None:
        return None
    run.load_state(state)
    if run.fabric.is_global_zero and run.history:
        store.restore_best(out / "best", run.best_epoch)
        if run.batch == 0:
            epoch, metrics = len(run.history), run.history[-1]
            save_checkpoint(out / "last", run.network, run.config, run.planner.seed, epoch, metrics)
    if run.fabric.is_global_zero and observer:
        for epoch, metrics in enumerate(run.history, start=1):
            observer.on_epoch(epoch, metrics)
    log.info("taken up at epoch %d, batch %d", run.epoch, run.batch)
    return run.epoch, run.batch


def _train_epoch(run: _Run, store: RunStore, observer: Observer | None) -> None:
    """What is left of the epoch's batches: an update after every `accumulate` of them, now and then a save."""
    fabric, config, planner = run.fabric, run.config, run.planner
    device, first = fabric.device, fabric.is_global_zero
    lengths = planner.clips.lengths(config.modalities)
    balanced = planner.classes if config.contrastive.scope == "in_batch" else None
    batches = training_batches(lengths, config.batch_size, planner.seed, run.epoch, config.batch_tokens, balanced)

    def make(number: int) -> RankBatch:
        share = planner.plan(batches[number], run.partners, run.epoch, number)
        return share.pin() if device.type == "cuda" else share

    run.objective.train()
    saved, clip_ids = time.perf_counter(), []
    todo = range(run.batch, len(batches))
    for number, share in zip(todo, prefetch(make, todo), strict=True):
        since_update = number % config.accumulate
        together = min(config.accumulate, len(batches) - number + since_update)
        updates = since_update + 1 == together
        torch.manual_seed(_dropout_seed(planner.seed, run.epoch, number, fabric.global_rank))
        with fabric.no_backward_sync(run.objective, enabled=not updates):
            parts = run.objective(share.to(device))
            fabric.backward(parts[0] / together)
        run.sums += parts.detach() * share.clips
        run.steps += share.steps
        clip_ids += share.clip_ids
        if updates:
            per_epoch = -(-len(batches) // config.accumulate)
            done = run.epoch - 1 + number // config.accumulate / per_epoch
            _update(run, learning_rate_factor(done, 1 / per_epoch, config), clip_ids)
            run.batch, clip_ids = number + 1, []
            if first and time.perf_counter() - saved >= 60 * config.checkpoint_minutes and number + 1 < len(batches):
                store.save(run.state(), run.best_epoch)
                saved = time.perf_counter()
        if first and observer:
            observer.on_batch(run.epoch, number + 1, len(batches))


def _update(run: _Run, factor: float, clip_ids: Sequence[str]) -> None:
    """One step of the optimizer, refused where it would spoil the weights."""
    parameters = [p for p in run.network.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm.item()} in a batch of the clips {', '.join(clip_ids)}; "
            "look at these clips' features, or lower train.learning_rate"
        )
    if norm > GRADIENT_NORM:  # most are less: a text encoder's need not be written again for that
        nn.utils.clip_grads_with_norm_(parameters, GRADIENT_NORM, norm)
    for group, highest in zip(run.optimizer.param_groups, run.highest_rates, strict=True):
        group["lr"] = highest * factor
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def _mines(config: TrainConfig) -> bool:
    contrastive = config.contrastive
    return contrastive.weight > 0 and contrastive.supervised and contrastive.scope == "retrieved"


@torch.inference_mode()
def _mine(run: _Run) -> Partners:
    """Rank the training clips by the network as it is now, in eval mode; the processes share the encoding."""
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
        embeddings_Nd = fabric.all_reduce(embeddings_Nd, reduce_op="sum")
    partners = None
    if fabric.is_global_zero:
        rng = np.random.default_rng((run.planner.seed, run.epoch, 2))
        partners = mine(embeddings_Nd, run.planner.classes, config.mining, rng)
        if partners.short_count:
            log.info("%d of %d clips have fewer partners than asked for: small classes", partners.short_count, len(clips))
    return fabric.broadcast(partners)


def _epoch_metrics(run: _Run, valid: ClipTable) -> dict[str, float]:
    """The numbers of the epoch that was just trained."""
    fabric, config, clips = run.fabric, run.config, len(run.planner.clips)
    trained = time.perf_counter() - run.epoch_began
    losses = (fabric.all_reduce(run.sums.clone(), reduce_op="mean") / clips).tolist()
    metrics = dict(zip(("train_loss", *(f"train_{part}" for part in LOSS_TERMS[1:])), losses, strict=True))
    if not run.network.config.unimodal_heads:
        del metrics["train_unimodal"]
    prediction = predict(run.network, valid, config.modalities, part=(fabric.global_rank, fabric.world_size))
    if fabric.world_size > 1:
        prediction = fabric.all_reduce(torch.from_numpy(prediction).to(fabric.device), reduce_op="sum").cpu().numpy()
    found = evaluate_metrics(prediction, valid.labels, valid.info.label_range)
    chosen = {
        "valid_mae": found["mae"],
        "valid_corr": found["corr"],
        "valid_acc2": found.get("acc2_np", found.get("acc2")),
        "peak_megabytes": peak_megabytes(fabric.device),
    }
    metrics |= {name: value for name, value in chosen.items() if value is not None}
    updates = -(-run.batch // config.accumulate)
    metrics["learning_rate"] = config.learning_rate * learning_rate_factor(run.epoch, 1 / updates, config)
    metrics["short_of_partners"] = run.partners.short_count if run.partners else 0
    metrics["clips_per_second"] = clips / trained
    metrics["steps_per_second"] = run.steps / trained
    metrics["seconds"] = time.perf_counter() - run.epoch_began
    return metrics


def _read_labelled(
    dataset: Path, split: str, model: ModelConfig, cache: Path | None, text: TextBackbone | None
) -> tuple[ClipTable, int]:
    """The split's labelled clips, and how many others there are."""
    table = ClipTable.read(dataset, split, model.max_positions, cache, text)
    labelled = table.labelled
    if not labelled.any():
        found = f"{len(table)} clips, none with a label" if len(table) else "no clips"
        raise ValueError(
            f"{dataset}: the {split} split has {found}; training needs labelled clips in train and in valid: "
            "check the corpus's split column, then run the prepare, extract and align stages"
        )
    for modality, count in table.truncated.items():
        if count:
            limit = text.limit if text and modality == "text" else model.max_positions
            log.warning("%s: %s of %d clips cut to %d steps", split, modality, count, limit)
    if not labelled.all():
        log.warning("%s: %d clips without a label are left out", split, (~labelled).sum())
    return table.select(labelled), int((~labelled).sum())


def _require_unimodal_labels(clips: ClipTable) -> None:
    if not np.isfinite(clips.unimodal_labels).any():
        raise ValueError(
            "model.unimodal_heads is true: the training clips have no labels of text, audio or vision alone; set it to "
            "false, or give the corpus's label.csv the columns label_T, label_A and label_V"
        )


def _parameter_groups(network: DashFusion, config: TrainConfig) -> list[dict]:
    """No decay on biases, LayerNorms and learned vectors, all of which have one dimension.

    A text encoder that is trained makes two more groups, with a learning rate of its own; what of it is frozen is in
    none.
    """
    text = list(network.encoders["text"].encoder.parameters()) if network.text else []
    of_text = {id(p) for p in text}
    others = [p for p in network.parameters() if id(p) not in of_text]
    groups = []
    for parameters, rate in ((others, config.learning_rate), (text, config.text_learning_rate or config.learning_rate)):
        trained = [p for p in parameters if p.requires_grad]
        groups += [
            {"params": [p for p in trained if p.ndim > 1], "lr": rate, "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
        ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(done: float, update: float, config: TrainConfig) -> float:
    """Of the learning rate at an update: up to 1 over the warm-up epochs, then down to 0 at the end.

    Args:
        done: epochs before this update, with fractions.
        update: its part of an epoch.
    """
    if done < config.warmup_epochs:
        return min(1.0, (done + update) / config.warmup_epochs)
    return (config.epochs - done) / max(update, config.epochs - config.warmup_epochs)


def _dropout_seed(seed: int, epoch: int, number: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, 3 + rank, number)).generate_state(1, np.uint64)[0])
