"""What a killed run goes on from.

DVC removes a stage's outputs before it runs the stage, so this lies elsewhere: `<scratch>/<signature>/seed-<n>`. The
signature covers all that the run's numbers depend on, so that a run never goes on from another one's state.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.data.sequences import fingerprint
from model.files import atomic_file, atomic_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig, TrainConfig

STATE = "state.pt"

_NOT_IN_SIGNATURE = ("seeds", "checkpoint_minutes", "tensorboard")
"""Options of a run that do not change its numbers."""


def run_signature(dataset: Path, model: ModelConfig, train: TrainConfig) -> str:
    """16 hex digits of the dataset's files, the settings, the code of `model/` and the version of torch."""
    files = [Path(dataset) / "dataset.json", *sorted(Path(dataset).glob("*/part-*.parquet"))]
    if model.text.encoder:  # a folder; nothing is found where it is a hub's id
        files += sorted(path for path in Path(model.text.encoder).expanduser().glob("*") if path.is_file())
    settings = {"model": asdict(model), "train": asdict(train)}
    for name in _NOT_IN_SIGNATURE:
        del settings["train"][name]
    content = hashlib.sha256(json.dumps([settings, fingerprint(files), torch.__version__]).encode())
    content.update(files[0].read_bytes())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


class RunStore:
    """The state of one run on disk, and beside it the best checkpoint so far. Without a folder it keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self) -> dict[str, Any] | None:
        """The last state saved, on the CPU; None where there is none."""
        if self.folder is None or not (self.folder / STATE).is_file():
            return None
        return torch.load(self.folder / STATE, map_location="cpu", weights_only=True)

    def save(self, state: Mapping[str, Any], best_epoch: int) -> None:
        """Replace the state; afterwards checkpoints of other epochs than the best are no longer needed."""
        if self.folder is None:
            return
        with atomic_file(self.folder / STATE) as temporary:
            torch.save(dict(state), temporary)
        for older in self.folder.glob("best-*"):
            if older != self._best(best_epoch):
                shutil.rmtree(older)

    def keep_best(self, checkpoint: Path, epoch: int) -> None:
        """Copy the checkpoint of `epoch`, before a state is saved that calls it the best."""
        if self.folder is not None:
            _copy(checkpoint, self._best(epoch))

    def restore_best(self, checkpoint: Path, epoch: int) -> None:
        """Copy it back."""
        _copy(self._best(epoch), checkpoint)

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}"


def _copy(source: Path, target: Path) -> None:
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
