"""Mid-epoch training state for resumption.

DVC removes a stage's outputs before it runs the stage, so the state is kept in `<scratch>/<signature>/seed-<n>`. The
signature covers everything that the run's numbers depend on, so that a run never resumes from another run's state.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.data.sequences import fingerprint
from model.files import atomic_file, atomic_folder
from model.network.registry import BUILT_IN, find_network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig, TrainConfig

STATE = "state.pt"

_NOT_IN_SIGNATURE = ("seeds", "checkpoint_minutes", "tensorboard", "intervals")
"""Training options that do not change the numbers."""

TRAINING_CODE = (
    "config.py", "config_blocks.py", "data", "device.py", "evaluation/cv_plus.py", "evaluation/inference.py",
    "evaluation/intervals.py", "evaluation/metrics.py", "evaluation/outliers.py", "intervals.py", "network", "train.py",
    "training",
)  # fmt: skip
"""Modules and packages of `model` that training computes with."""


def run_signature(dataset: Path, model: ModelConfig, train: TrainConfig) -> str:
    """Return 16 hex digits over the dataset, the settings, the training code and the version of torch.

    The code of a network of another package is the file of its class.
    """
    files = [Path(dataset) / "dataset.json", *sorted(Path(dataset).glob("*/part-*.parquet"))]
    if model.text.encoder:  # a folder; nothing is found where it is a hub's id
        files += sorted(path for path in Path(model.text.encoder).expanduser().glob("*") if path.is_file())
    settings = {"model": asdict(model), "train": asdict(train)}
    for name in _NOT_IN_SIGNATURE:
        del settings["train"][name]
    content = hashlib.sha256(json.dumps([settings, fingerprint(files), torch.__version__]).encode())
    content.update(files[0].read_bytes())
    if model.name not in BUILT_IN:
        content.update(Path(inspect.getfile(find_network(model.name))).read_bytes())
    package = Path(__file__).parents[1]
    for name in TRAINING_CODE:
        for path in sorted((package / name).rglob("*.py")) if (package / name).is_dir() else [package / name]:
            content.update(path.read_bytes())
    return content.hexdigest()[:16]


class RunStore:
    """The state of one run on disk, with its best checkpoint so far. Without a folder nothing is stored."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self) -> dict[str, Any] | None:
        """Read the last state, with tensors on the CPU; None if there is none."""
        if self.folder is None or not (self.folder / STATE).is_file():
            return None
        state: dict[str, Any] = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return state

    def save(self, state: Mapping[str, Any], best_epoch: int) -> None:
        """Replace the state, then remove the checkpoints of epochs other than the best."""
        if self.folder is None:
            return
        with atomic_file(self.folder / STATE) as temporary:
            torch.save(dict(state), temporary)
        for older in self.folder.glob("best-*"):
            if older.name != f"best-{best_epoch}":
                shutil.rmtree(older)

    def keep_best(self, checkpoint: Path, epoch: int) -> None:
        """Store the checkpoint of `epoch`; call it before `save` names that epoch the best."""
        if self.folder is not None:
            _copy(checkpoint, self.folder / f"best-{epoch}")

    def restore_best(self, checkpoint: Path, epoch: int) -> None:
        """Copy the stored checkpoint of `epoch` to `checkpoint`."""
        assert self.folder is not None, "there is a state to resume from"
        _copy(self.folder / f"best-{epoch}", checkpoint)


def _copy(source: Path, target: Path) -> None:
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
