"""One training of a study: kept by what it depends on, and shown a split in several ways.

Shapes: N clips of a split.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.data.sequences import fingerprint
from model.device import resolve_device
from model.evaluation.inference import predict
from model.files import atomic_file
from model.network.flops import network_costs
from model.train import forget_run, train
from model.training.resume import run_signature

TRIALS = "trials"
"""Folder of finished trainings, in scratch."""

COSTS = "costs.json"
"""Written last: where it is, the training has ended."""


@dataclass(frozen=True, slots=True)
class View:
    """A way to show a network a split.

    Attributes:
        dataset: the folder; a corrupted copy of the one that was trained on, perhaps.
        show: modalities that are shown; empty: those that the network was trained with.
        drop: a modality and the share of the clips that lose it.
    """

    dataset: Path
    show: tuple[str, ...] = ()
    drop: tuple[str, float] | None = None


def trial_folder(scratch: Path, dataset: Path, model: ModelConfig, config: TrainConfig, seed: int) -> Path:
    """Where a training is kept: the same for all studies that ask for it, another after any change of its inputs.

    Raises:
        FileNotFoundError: no dataset there.
    """
    return Path(scratch) / TRIALS / run_signature(dataset, model, config) / f"seed-{seed}"


def is_trained(folder: Path) -> bool:
    """Whether a trial's training has ended."""
    return (folder / COSTS).is_file()


def train_trial(
    dataset: Path, model: ModelConfig, config: TrainConfig, seed: int, scratch: Path, split: str
) -> dict[str, float]:
    """Train, unless it was done before, and say what it cost; a training that was killed goes on where it was.

    Args:
        scratch: for the trial's folder, memory-mapped features, and what a killed training goes on from.
        split: whose clip of middling length the network's costs are counted on.

    Returns:
        What `model.network.flops.network_costs` gives; train_seconds of the whole training; step_seconds, the median over its
        epochs of what a batch took, mining included.

    Raises:
        As `model.train.train` does.
    """
    folder = trial_folder(scratch, dataset, model, config, seed)
    if not is_trained(folder):
        result = train(dataset, folder, model, config, seed, scratch=scratch)
        network, info = load_checkpoint(result.best)
        clips = ClipTable.read(dataset, split, model.max_positions, text=network.text)
        costs = network_costs(network, clips, info.train.modalities)
        costs["train_seconds"] = result.seconds
        costs["step_seconds"] = statistics.median(config.batch_size / h["clips_per_second"] for h in result.history)
        with atomic_file(folder / COSTS) as temporary:
            temporary.write_text(json.dumps(costs), encoding="utf-8")
        forget_run(scratch, dataset, model, config, (seed,))
    return json.loads((folder / COSTS).read_text(encoding="utf-8"))


def predict_views(folder: Path, views: Sequence[View], split: str, device: str = "auto") -> list[np.ndarray]:
    """Predictions [N] of a trial's best checkpoint for each view, in the order of the view's clips; kept beside it.

    Raises:
        FileNotFoundError: no dataset, or the trial has not been trained.
        ValueError: a view's dataset does not fit the checkpoint, or its split has no clips.
    """
    network, info = None, None
    found = []
    for view in views:
        path = folder / "predictions" / f"{_view_key(view, split)}.npy"
        if not path.is_file():
            if network is None:
                network, info = load_checkpoint(folder / "best", resolve_device(device))
            table = ClipTable.read(view.dataset, split, info.model.max_positions, text=network.text)
            info.check_compatible(table.info)
            if not len(table):
                raise ValueError(f"{view.dataset}: the {split} split has no clips; evaluate another split")
            if view.drop:
                table = table.drop_modality(view.drop[0], dropped_clips(len(table), *view.drop))
            shown = [m for m in info.train.modalities if m in (view.show or MODALITIES)]
            if not shown:
                raise ValueError(
                    f"a network that was trained with {', '.join(info.train.modalities)} is to be shown "
                    f"{', '.join(view.show)} only: leave out that variant, or that condition"
                )
            with atomic_file(path) as temporary, open(temporary, "wb") as handle:
                np.save(handle, predict(network, table, shown))
        found.append(np.load(path))
    return found


def dropped_clips(count: int, modality: str, share: float) -> np.ndarray:
    """Which of `count` clips lose the modality, [N] bool; those of a share are among those of all greater ones."""
    return np.random.default_rng(MODALITIES.index(modality)).permutation(count) < round(share * count)


def _view_key(view: View, split: str) -> str:
    parts = sorted((Path(view.dataset) / split).glob("part-*.parquet"))
    content = {**asdict(view), "dataset": fingerprint(parts), "split": split}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
