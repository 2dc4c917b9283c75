"""Checkpoints: weights in safetensors, and a JSON description with everything else that prediction needs."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from model.checkpoint.description import DESCRIPTION, SCHEMA_VERSION, read_description
from model.config import AugmentConfig, ContrastiveConfig, MiningConfig, ModelConfig, TextConfig, TrainConfig
from model.data.info import DatasetInfo
from model.data.tokens import TextBackbone
from model.files import atomic_file, atomic_folder
from model.network.dashfusion import DashFusion

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

WEIGHTS = "model.safetensors"
TEXT = "text"
"""Folder with the trained text encoder's tokenizer and configuration; its weights are among the network's."""

RECORDED_PACKAGES = ("torch", "numpy", "pyarrow", "safetensors", "transformers", "tokenizers")


@dataclass(frozen=True)
class CheckpointInfo:
    """Description of a checkpoint: everything but the weights.

    Attributes:
        model: Configuration of the network.
        train: Configuration of the training.
        dataset: The training dataset: extractors, signatures, feature names, statistics, label range.
        seed: Seed of the run.
        epoch: Epoch after which it was saved, from 1.
        metrics: Metrics of that epoch.
        versions: Versions of Python and of the packages used.
        calibration: Half-widths of the prediction intervals, see `model.evaluation.calibration`; empty until training
            has ended.
    """

    model: ModelConfig
    train: TrainConfig
    dataset: DatasetInfo
    seed: int
    epoch: int
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    calibration: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    def check_compatible(self, dataset: DatasetInfo) -> None:
        """Check that the network can be evaluated on a dataset.

        Modalities that it was trained without do not matter, nor do text features if it reads transcripts.

        Raises:
            ValueError: Another label range, extractor signature or feature width, or, for a text encoder trained from
                scratch, another language; the message names both and what to do.
        """
        if dataset.label_range != self.dataset.label_range:
            raise ValueError(
                f"the checkpoint predicts labels in {list(self.dataset.label_range)}, the dataset has "
                f"{list(dataset.label_range)}; train on this dataset, or evaluate a corpus of that range"
            )
        if self.model.text.mode == "scratch" and dataset.language != self.dataset.language:
            raise ValueError(
                f"the checkpoint's text encoder was trained from scratch on {self.dataset.language!r}, the dataset's "
                f"transcripts are {dataset.language!r}; train on this dataset, or with model.text.mode finetune and an "
                "encoder of several languages"
            )
        for modality in self.train.modalities:
            if modality == "text" and self.model.text.mode != "frozen":
                continue
            trained, found = self.dataset.modalities[modality], dataset.modalities[modality]
            if (trained.signature, trained.dim) != (found.signature, found.dim):
                raise ValueError(
                    f"the checkpoint was trained on {modality} features {trained.signature} "
                    f"({trained.dim} wide), the dataset holds {found.signature} ({found.dim} wide); "
                    f"train again on this dataset, or extract {modality} again with {trained.extractor} "
                    f"and {dict(trained.options)}"
                )


def save_checkpoint(
    folder: Path, network: DashFusion, train: TrainConfig, seed: int, epoch: int, metrics: Mapping[str, float]
) -> None:
    """Write `folder`/model.safetensors, checkpoint.json and, for a network that reads transcripts, text/.

    The folder is replaced atomically and is self-contained.
    """
    description = {
        "schema_version": SCHEMA_VERSION,
        "model": asdict(network.config),
        "train": asdict(train),
        "dataset": network.info.to_dict(),
        "seed": seed,
        "epoch": epoch,
        "metrics": dict(metrics),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES},
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_folder(Path(folder)) as temporary:
        save_file(weights, temporary / WEIGHTS)
        if network.text:
            network.text.save(temporary / TEXT)
        (temporary / DESCRIPTION).write_text(_as_json(description), encoding="utf-8")


def add_calibration(folder: Path, calibration: Mapping[str, Mapping[str, float | None]]) -> None:
    """Add the half-widths of the prediction intervals to a checkpoint's description."""
    path = Path(folder) / DESCRIPTION
    description = read_description(folder) | {"calibration": calibration}
    with atomic_file(path) as temporary:
        temporary.write_text(_as_json(description), encoding="utf-8")


def _as_json(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """Read a checkpoint's description without its weights. Raises as `load_checkpoint` does."""
    return _parse(read_description(folder), Path(folder) / DESCRIPTION)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[DashFusion, CheckpointInfo]:
    """Read a checkpoint: the network, in eval mode on `device`, and its description.

    Raises:
        FileNotFoundError: No checkpoint there; the message says which stage makes it.
        ValueError: Another schema version.
    """
    info = read_checkpoint_info(folder)
    text = None if info.model.text.mode == "frozen" else TextBackbone.load(Path(folder) / TEXT)
    network = DashFusion(info.model, info.dataset, text)
    network.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return network.to(device).eval(), info


def _parse(raw: dict[str, Any], path: Path) -> CheckpointInfo:
    train = raw["train"]
    config = TrainConfig(
        **train
        | {
            "modalities": tuple(train["modalities"]),
            "seeds": tuple(train["seeds"]),
            "augment": AugmentConfig(**train["augment"]),
            "contrastive": ContrastiveConfig(**train["contrastive"]),
            "mining": MiningConfig(**train["mining"]),
        }
    )
    return CheckpointInfo(
        model=ModelConfig(**raw["model"] | {"text": TextConfig(**raw["model"].get("text", {}))}),
        train=config,
        dataset=DatasetInfo.from_dict(raw["dataset"], str(path)),
        seed=raw["seed"],
        epoch=raw["epoch"],
        metrics=raw["metrics"],
        versions=raw["versions"],
        calibration=raw.get("calibration", {}),
    )
