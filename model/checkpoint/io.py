"""A trained network on disk: weights in safetensors, and a JSON with all that it takes to predict."""

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
"""Folder with the trained text encoder's tokenizer and shape; its weights are with the network's."""
RECORDED_PACKAGES = ("torch", "numpy", "pyarrow", "safetensors", "transformers", "tokenizers")


@dataclass(frozen=True)
class CheckpointInfo:
    """What stands beside the weights.

    Attributes:
        model: size of the network.
        train: how it was trained.
        dataset: what it was trained on: extractors, signatures, feature names, statistics, label range.
        seed: of the run.
        epoch: after which it was saved, counted from 1.
        metrics: of that epoch.
        versions: of Python and the packages that it was made with.
        calibration: how far its predictions are off, see `model.evaluation.calibration`; empty until training has ended.
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
        """Refuse features that the network was not trained on; modalities that it never saw do not matter, nor
        do text features where it reads tokens.

        Raises:
            ValueError: another label range, another extractor signature or width of a modality, or another language
                than that of the transcripts which a tokenizer was trained on; the message names both and the way out.
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
            trained, given = self.dataset.modalities[modality], dataset.modalities[modality]
            if (trained.signature, trained.dim) != (given.signature, given.dim):
                raise ValueError(
                    f"the checkpoint was trained on {modality} features {trained.signature} "
                    f"({trained.dim} wide), the dataset holds {given.signature} ({given.dim} wide); "
                    f"train again on this dataset, or extract {modality} again with {trained.extractor} "
                    f"and {dict(trained.options)}"
                )


def save_checkpoint(folder: Path, network: DashFusion, train: TrainConfig, seed: int, epoch: int, metrics: Mapping) -> None:
    """Write `folder`/model.safetensors, checkpoint.json and, where the network reads tokens, text/.

    The folder appears whole or not at all, and needs no other file to predict.
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
        (temporary / DESCRIPTION).write_text(_to_text(description), encoding="utf-8")


def add_calibration(folder: Path, calibration: Mapping[str, Mapping[str, float | None]]) -> None:
    """Write into a checkpoint how far its predictions are off."""
    path = Path(folder) / DESCRIPTION
    description = read_description(folder) | {"calibration": calibration}
    with atomic_file(path) as temporary:
        temporary.write_text(_to_text(description), encoding="utf-8")


def _to_text(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """What stands beside the weights, without them. Raises as `load_checkpoint` does."""
    return _parse(read_description(folder), Path(folder) / DESCRIPTION)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[DashFusion, CheckpointInfo]:
    """The network, in eval mode on `device`, and its description.

    Raises:
        FileNotFoundError: no checkpoint there; the message says which stage makes it.
        ValueError: of another schema version.
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
