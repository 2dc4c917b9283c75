"""One training of a study: cached by everything it depends on, then evaluated on several views of a split.

Shapes: N clips of a split.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from model.checkpoint.description import read_description
from model.checkpoint.io import CheckpointInfo, load_checkpoint
from model.config import MODALITIES, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.data.sequences import fingerprint
from model.device import resolve_device
from model.evaluation.inference import predict
from model.files import atomic_file
from model.network.base import Network
from model.network.flops import network_costs
from model.train import forget_run, train
from model.training.resume import run_signature

TRIALS = "trials"
"""Folder of finished trainings, in scratch."""

COSTS = "costs.json"
"""Written last: its presence marks a finished training."""

TIMED_PASSES = 3
"""Passes over the split of which the fastest is a clip's time: others were disturbed, or the first."""


@dataclass(frozen=True, slots=True)
class View:
    """A way to show a network a split.

    Attributes:
        dataset: Folder of the dataset: the training's own, or a corrupted copy.
        show: Modalities that the network sees; empty for those it was trained with.
        drop: A modality and the share of the clips that lose it.
    """

    dataset: Path
    show: tuple[str, ...] = ()
    drop: tuple[str, float] | None = None


def trial_folder(scratch: Path, dataset: Path, model: ModelConfig, config: TrainConfig, seed: int) -> Path:
    """Return the folder of a training: shared by all studies, and another one after any change of its inputs.

    Raises:
        FileNotFoundError: there is no dataset.
    """
    return Path(scratch) / TRIALS / run_signature(dataset, model, config) / f"seed-{seed}"


def is_trained(folder: Path) -> bool:
    """Return whether a trial's training has finished."""
    return (folder / COSTS).is_file()


def train_trial(
    dataset: Path, model: ModelConfig, config: TrainConfig, seed: int, scratch: Path, split: str
) -> dict[str, float]:
    """Train unless it was done before, resuming a training that was killed, and return its costs.

    Args:
        dataset: Folder of the dataset.
        model: Model configuration.
        config: Training configuration.
        seed: Random seed.
        scratch: Folder for the trial, memory-mapped features and the state of unfinished trainings.
        split: Split whose clip of median length the multiply-adds are counted on.

    Returns:
        The costs of `model.network.flops.network_costs`; train_seconds, of the whole training; step_seconds, the
        median over the epochs of the time of a batch, mining included; epochs, those trained; clip_seconds, the time
        of a clip's prediction from its features, in batches.

    Raises:
        As `model.train.train` does.
    """
    folder = trial_folder(scratch, dataset, model, config, seed)
    if not is_trained(folder):
        result = train(dataset, folder, model, config, seed, scratch=scratch)
        network, info = load_checkpoint(result.best, resolve_device(config.device))
        clips = ClipTable.read(dataset, split, model.max_positions, text=network.text)
        costs = network_costs(network, clips, info.train.modalities)
        costs["clip_seconds"] = _clip_seconds(network, clips, info.train.modalities)
        costs["train_seconds"], costs["epochs"] = result.seconds, float(len(result.history))
        costs["step_seconds"] = statistics.median(config.batch_size / h["clips_per_second"] for h in result.history)
        with atomic_file(folder / COSTS) as temporary:
            temporary.write_text(json.dumps(costs), encoding="utf-8")
        forget_run(scratch, dataset, model, config, (seed,))
    stored: dict[str, float] = json.loads((folder / COSTS).read_text(encoding="utf-8"))
    return stored


def _clip_seconds(network: Network, clips: ClipTable, modalities: Sequence[str]) -> float:
    """Return the time that a clip's prediction takes, in batches: the shortest of a few passes over the clips."""
    passes = []
    for _ in range(TIMED_PASSES):
        began = time.perf_counter()
        predict(network, clips, modalities)
        passes.append((time.perf_counter() - began) / len(clips))
    return min(passes)


def validation_error(folder: Path) -> float:
    """Return the mean absolute error on the validation split of a trial's best epoch, by which it was chosen."""
    error: float = read_description(folder / "best")["metrics"]["valid_mae"]
    return error


def predict_views(folder: Path, views: Sequence[View], split: str, device: str = "auto") -> list[np.ndarray]:
    """Return predictions [N] of a trial's best checkpoint for each view, in the order of the view's clips.

    They are stored in the trial's folder; the checkpoint is loaded only if any is missing.

    Raises:
        FileNotFoundError: there is no dataset, or the trial is not trained.
        ValueError: a view's dataset does not fit the checkpoint, or its split has no clips.
    """

    @cache
    def checkpoint() -> tuple[Network, CheckpointInfo]:
        return load_checkpoint(folder / "best", resolve_device(device))

    predictions = []
    for view in views:
        path = folder / "predictions" / f"{_view_key(view, split)}.npy"
        if not path.is_file():
            prediction_N = _predict_view(*checkpoint(), view, split)
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, prediction_N)
        predictions.append(np.load(path))
    return predictions


def _predict_view(network: Network, info: CheckpointInfo, view: View, split: str) -> np.ndarray:
    table = ClipTable.read(view.dataset, split, info.model.max_positions, text=network.text)
    info.check_compatible(table.info)
    if not len(table):
        raise ValueError(f"{view.dataset}: the {split} split has no clips; evaluate another split")
    if view.drop:
        table = table.drop_modality(view.drop[0], dropped_clips(len(table), *view.drop))
    shown = [m for m in info.train.modalities if m in (view.show or MODALITIES)]
    if not shown:
        raise ValueError(
            f"a network trained with {', '.join(info.train.modalities)} cannot be shown {', '.join(view.show)} only: "
            "leave out that variant, or that condition"
        )
    return predict(network, table, shown)


def dropped_clips(count: int, modality: str, share: float) -> np.ndarray:
    """Return which of `count` clips lose the modality, [N] bool; those of a share are among those of larger ones."""
    dropped_N: np.ndarray = np.random.default_rng(MODALITIES.index(modality)).permutation(count) < round(share * count)
    return dropped_N


def _view_key(view: View, split: str) -> str:
    parts = sorted((Path(view.dataset) / split).glob("part-*.parquet"))
    content = {**asdict(view), "dataset": fingerprint(parts), "split": split}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
