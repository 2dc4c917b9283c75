"""One training run: from a dataset to its best and last checkpoint.

The loop hands numbers to an observer and state to `checkpoint`, and knows the back end of neither.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import checkpoint
from model.batching import sorted_batches, training_batches
from model.config import MODALITIES, ModelConfig, TrainConfig
from model.data import ClipTable
from model.device import resolve_device
from model.evaluate import predict
from model.losses import semantic_loss, supervised_loss
from model.metrics import evaluate_metrics
from model.mining import Partners, label_classes, mine
from model.network import DashFusion, Embedding

GRADIENT_NORM = 1.0
EMBED_BATCH = 32
"""Partners are embedded in batches of at most this size, sorted by length, which pads less than one batch."""

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who wants to know how training goes."""

    def on_batch(self, epoch: int, done: int, total: int) -> None:
        """`done` of `total` batches of `epoch` (counted from 1) are trained on."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch is validated and saved; the keys are those of `TrainResult.history`."""


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        best: checkpoint of the lowest validation MAE.
        last: checkpoint of the last epoch.
        best_epoch: counted from 1.
        history: metrics of each epoch: train_loss and its parts train_regression, train_semantic and
            train_supervised; valid_mae, valid_acc2 and valid_corr (acc2 is negative / positive for [-3, 3];
            absent in an epoch where it is undefined); learning_rate at the epoch's end; seconds, and
            clips_per_second of its training part; short_of_partners, clips that draw fewer than asked.
        unlabelled: training clips left out for want of a label.
        truncated: modality -> training clips that were cut to model.max_positions.
        device: it ran on.
        seconds: of the whole run.
    """

    best: Path
    last: Path
    best_epoch: int
    history: Sequence[Mapping[str, float]]
    unlabelled: int
    truncated: Mapping[str, int]
    device: str
    seconds: float


@dataclass(frozen=True)
class Losses:
    """Parts of a step's loss, each a scalar."""

    regression: Tensor
    semantic: Tensor
    supervised: Tensor

    def total(self, weight: float) -> Tensor:
        """`L = MSE + weight * (semantic + supervised)`."""
        return self.regression + weight * (self.semantic + self.supervised)


def train(
    dataset: Path,
    out: Path,
    model: ModelConfig,
    config: TrainConfig,
    seed: int,
    observer: Observer | None = None,
) -> TrainResult:
    """Train one network and keep its best and last checkpoint in `out`/best and `out`/last.

    The same seed on the same CPU and number of threads gives the same metrics.

    Raises:
        FileNotFoundError: no dataset there.
        ValueError: no labelled clips to train or to validate on, features that are not finite, or a device
            that is not there.
        FloatingPointError: the loss or its gradient is not finite; the message names the batch's clips.
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    device = resolve_device(config.device)
    clips, unlabelled = _read_labelled(dataset, "train", model)
    valid, _ = _read_labelled(dataset, "valid", model)
    classes = label_classes(clips.labels, clips.info.label_range)
    lengths = clips.lengths(config.modalities)
    network = DashFusion(model, clips.info).to(device)
    steps = -(-len(clips) // config.batch_size)
    optimizer = torch.optim.AdamW(_parameter_groups(network, config), lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_then_linear(steps, config))
    # Epochs count from 1: the partners draw from no stream that shuffles an epoch's batches.
    partners, partner_rng = None, np.random.default_rng((seed, 0))
    best_mae, best_epoch = float("inf"), 0
    history: list[dict[str, float]] = []

    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        if config.contrastive.weight > 0 and (epoch - 1) % config.mining.refresh_epochs == 0:
            partners = _mine(network, clips, classes, config)

        network.train()
        sums = torch.zeros(4, device=device)
        batches = training_batches(lengths, config.batch_size, seed, epoch)
        for done, rows in enumerate(batches, start=1):
            losses = _losses(network, clips, rows, partners, partner_rng, config)
            total = losses.total(config.contrastive.weight)
            _step(network, optimizer, total, clips.clip_ids[rows])
            schedule.step()
            parts = torch.stack([total, losses.regression, losses.semantic, losses.supervised])
            sums += parts.detach() * len(rows)
            if observer:
                observer.on_batch(epoch, done, len(batches))
        trained = time.perf_counter()

        names = ("train_loss", "train_regression", "train_semantic", "train_supervised")
        metrics = dict(zip(names, (sums / len(clips)).tolist(), strict=True))
        metrics |= _validate(network, valid, config.modalities)
        metrics["learning_rate"] = schedule.get_last_lr()[0]
        metrics["short_of_partners"] = partners.short if partners else 0
        metrics["clips_per_second"] = len(clips) / (trained - started)
        metrics["seconds"] = time.perf_counter() - started
        history.append(metrics)

        checkpoint.save(out / "last", network, config, seed, epoch, metrics)
        if metrics["valid_mae"] < best_mae:
            best_mae, best_epoch = metrics["valid_mae"], epoch
            checkpoint.save(out / "best", network, config, seed, epoch, metrics)
        if observer:
            observer.on_epoch(epoch, metrics)
        if epoch - best_epoch >= config.patience:
            log.info("no better validation MAE for %d epochs: stopped after epoch %d", config.patience, epoch)
            break

    return TrainResult(
        best=out / "best",
        last=out / "last",
        best_epoch=best_epoch,
        history=history,
        unlabelled=unlabelled,
        truncated=clips.truncated,
        device=str(device),
        seconds=time.perf_counter() - began,
    )


def _read_labelled(dataset: Path, split: str, model: ModelConfig) -> tuple[ClipTable, int]:
    """The split's labelled clips, and how many others there are."""
    table = ClipTable.read(dataset, split, model.max_positions)
    labelled = table.labelled
    if not labelled.any():
        found = f"{len(table)} clips, none with a label" if len(table) else "no clips"
        raise ValueError(
            f"{dataset}: the {split} split has {found}; training needs labelled clips in train and in valid: "
            "check the corpus's split column, then run the prepare, extract and align stages"
        )
    for modality, count in table.truncated.items():
        if count:
            log.warning("%s: %s of %d clips cut to %d steps", split, modality, count, model.max_positions)
    if not labelled.all():
        log.warning("%s: %d clips without a label are left out", split, (~labelled).sum())
    return table.select(labelled), int((~labelled).sum())


def _losses(
    network: DashFusion,
    clips: ClipTable,
    rows: np.ndarray,
    partners: Partners | None,
    rng: np.random.Generator,
    config: TrainConfig,
) -> Losses:
    """Forward pass of the clips at `rows` and, given `partners`, of the distinct clips that they draw."""
    device = next(network.parameters()).device
    batch = clips.batch(rows, config.modalities).to(device)
    output = network(batch)
    regression = F.mse_loss(output.prediction, batch.labels)
    if partners is None:
        zero = torch.zeros_like(regression)
        return Losses(regression, zero, zero)
    temperature = config.contrastive.temperature
    semantic = semantic_loss(output.embedding, temperature)

    partner_rows, valid = partners.draw(rng, rows)
    others = np.setdiff1d(partner_rows[valid], rows)
    position = np.zeros(len(clips), np.int64)
    position[rows] = np.arange(len(rows))
    by_length = others[np.argsort(clips.lengths(config.modalities)[others].sum(axis=1), kind="stable")]
    position[by_length] = len(rows) + np.arange(len(by_length))
    chunks = np.array_split(by_length, -(-len(by_length) // EMBED_BATCH)) if len(by_length) else []
    embeddings = [network.embed(clips.batch(chunk, config.modalities).to(device)) for chunk in chunks]
    supervised = supervised_loss(
        _concatenate([output.embedding, *embeddings]),
        len(rows),
        torch.from_numpy(position[partner_rows]).to(device),
        torch.from_numpy(valid).to(device),
        config.mining.positives,
        temperature,
    )
    return Losses(regression, semantic, supervised)


def _concatenate(embeddings: Sequence[Embedding]) -> Embedding:
    first = embeddings[0]
    return Embedding(
        {s: torch.cat([e.streams[s] for e in embeddings]) for s in first.streams},
        {s: torch.cat([e.present[s] for e in embeddings]) for s in first.present},
    )


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip_ids: np.ndarray) -> None:
    """One update, refused where it would spoil the weights."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    if not torch.isfinite(loss + norm):
        raise FloatingPointError(
            f"loss {loss.item()}, gradient norm {norm.item()} in a batch of the clips {', '.join(clip_ids)}; "
            "look at these clips' features, or lower train.learning_rate"
        )
    optimizer.step()


@torch.inference_mode()
def _mine(network: DashFusion, clips: ClipTable, classes: np.ndarray, config: TrainConfig) -> Partners:
    """Rank the training clips by the network as it is now, in eval mode."""
    network.eval()
    device = next(network.parameters()).device
    embeddings_Nd = torch.zeros(len(clips), len(MODALITIES) * network.config.dim, device=device)
    for rows in sorted_batches(clips.lengths(config.modalities), 2 * EMBED_BATCH):
        streams = network.embed(clips.batch(rows, config.modalities).to(device)).streams
        embeddings_Nd[torch.from_numpy(rows).to(device)] = torch.cat([streams[m] for m in MODALITIES], dim=1)
    partners = mine(embeddings_Nd, classes, config.mining)
    if partners.short:
        log.info("%d of %d clips have fewer partners than asked for: small classes", partners.short, len(clips))
    return partners


def _validate(network: DashFusion, valid: ClipTable, modalities: Sequence[str]) -> dict[str, float]:
    metrics = evaluate_metrics(predict(network, valid, modalities), valid.labels, valid.info.label_range)
    chosen = {
        "valid_mae": metrics["mae"],
        "valid_corr": metrics["corr"],
        "valid_acc2": metrics.get("acc2_np", metrics.get("acc2")),
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _parameter_groups(network: nn.Module, config: TrainConfig) -> list[dict]:
    """No decay on biases, LayerNorms and learned vectors, all of which have one dimension."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _warmup_then_linear(steps: int, config: TrainConfig) -> Callable[[int], float]:
    """Factor of the learning rate at a step: up to 1 over the warm-up epochs, then down to 0 at the end."""
    warmup, total = config.warmup_epochs * steps, config.epochs * steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return (total - step) / max(1, total - warmup)

    return factor
