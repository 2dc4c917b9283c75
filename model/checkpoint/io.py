"""Checkpoints: weights in safetensors, and a JSON description with everything else that prediction needs."""

from __future__ import annotations

import json
import logging
import platform
import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.numpy
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.checkpoint.description import DESCRIPTION, REMEDY, SCHEMA_VERSION, read_description
from model.config import (
    AugmentConfig,
    ContrastiveConfig,
    IntervalConfig,
    MiningConfig,
    ModelConfig,
    PaddingConfig,
    TextConfig,
    TrainConfig,
)
from model.data.info import DatasetInfo, format_versions
from model.data.tokens import TextBackbone
from model.files import atomic_file, atomic_folder, sha256_of
from model.network.registry import build_network

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch

    from model.network.base import Network

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
DENSITY = "density.safetensors"
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
        calibration: Half-widths of the prediction intervals, see `model.evaluation.intervals`; empty until training
            has ended.
        calibrated_by: How they were calibrated, see `add_calibration`; empty for older checkpoints.
        density: Distribution of the training clips, see `model.evaluation.outliers`; empty until training has ended,
            for older checkpoints, and if read without the weights.
    """

    model: ModelConfig
    train: TrainConfig
    dataset: DatasetInfo
    seed: int
    epoch: int
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    calibration: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    calibrated_by: Mapping[str, Any] = field(default_factory=dict)
    density: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)

    def check_compatible(self, dataset: DatasetInfo) -> None:
        """Check that the network can be evaluated on a dataset of the same label range, see `check_features`.

        Raises:
            ValueError: Another label range, or as `check_features`.
        """
        if dataset.label_range != self.dataset.label_range:
            raise ValueError(
                f"the checkpoint predicts labels in {list(self.dataset.label_range)}, the dataset has "
                f"{list(dataset.label_range)}; train on this dataset, or evaluate a corpus of that range"
            )
        self.check_features(dataset)

    def check_features(self, dataset: DatasetInfo) -> None:
        """Check that the network can read a dataset's features.

        Modalities that it was trained without do not matter, nor do text features if it reads transcripts.

        Other versions of the libraries that computed the features are logged as a warning.

        Raises:
            ValueError: Another extractor signature, feature width or normalisation, or, for a text encoder trained
                from scratch, another language; the message names both and what to do.
        """
        if self.model.text.mode == "scratch" and dataset.language != self.dataset.language:
            raise ValueError(
                f"the checkpoint's text encoder was trained from scratch on {self.dataset.language!r}, the dataset's "
                f"transcripts are {dataset.language!r}; train on this dataset, or with model.text.mode finetune and an "
                "encoder of several languages"
            )
        for modality in self.train.modalities:
            if modality == "text" and self.model.text.mode != "frozen":
                continue
            if modality == "audio" and dataset.normalise_audio != self.dataset.normalise_audio:
                raise ValueError(
                    f"the checkpoint was trained with align.normalise_audio {self.dataset.normalise_audio}, the "
                    f"dataset was aligned with {dataset.normalise_audio}; align it with the same, or train on it"
                )
            trained, found = self.dataset.modalities[modality], dataset.modalities[modality]
            if not trained.matches(found):
                raise ValueError(
                    f"the checkpoint was trained on {modality} features {trained.signature} "
                    f"({trained.dim} wide), the dataset holds {found.signature} ({found.dim} wide); "
                    f"train again on this dataset, or extract {modality} again with {trained.extractor} "
                    f"and {dict(trained.options)}"
                )
            if trained.versions != found.versions:
                log.warning(
                    "%s features were computed with %s in training, and with %s here",
                    modality, format_versions(trained.versions), format_versions(found.versions),
                )  # fmt: skip

    def differences(self, dataset: DatasetInfo) -> tuple[str, ...]:
        """Return what may make the network worse on a dataset of another corpus, although it can read its features."""
        trained, found = self.dataset, dataset
        notes = []
        if found.language != trained.language:
            notes.append(f"the transcripts are {found.language}, those of the training {trained.language}")
        if found.mode != trained.mode:
            notes.append(f"the modalities are {found.mode}, those of the training {trained.mode}")
        if set(found.mask_invalid) != set(trained.mask_invalid):
            names = [", ".join(info.mask_invalid) or "no modality" for info in (found, trained)]
            notes.append(f"invalid steps are hidden of {names[0]}, in training of {names[1]}")
        if {found.generated, trained.generated} == {True, False}:
            kinds = ["generated" if info.generated else "recorded" for info in (found, trained)]
            notes.append(f"the clips are {kinds[0]}, those of the training {kinds[1]}")
        return tuple(notes)


def save_checkpoint(
    folder: Path, network: Network, train: TrainConfig, seed: int, epoch: int, metrics: Mapping[str, float]
) -> None:
    """Write `folder`/model.safetensors, checkpoint.json and, for a network that reads transcripts, text/.

    The folder is replaced atomically and is self-contained. checkpoint.json holds the SHA-256 of the other files.
    """
    description = {
        "schema_version": SCHEMA_VERSION,
        "model": asdict(network.config),
        "train": asdict(train),
        "dataset": network.info.to_dict(),
        "seed": seed,
        "epoch": epoch,
        "metrics": dict(metrics),
        "versions": _library_versions(),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_folder(Path(folder)) as temporary:
        save_file(weights, temporary / WEIGHTS)
        if network.text:
            network.text.save(temporary / TEXT)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        description["sha256"] = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in files}
        (temporary / DESCRIPTION).write_text(_as_json(description), encoding="utf-8")


@cache
def _library_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a checkpoint records."""
    return {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES}


def add_calibration(
    folder: Path,
    calibration: Mapping[str, Mapping[str, float | None]],
    calibrated_by: Mapping[str, Any],
    density: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Add the half-widths of the prediction intervals and the distribution of the training clips to a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        calibration: Half-widths, see `model.evaluation.intervals`.
        calibrated_by: `method`, a value of train.intervals.method; of cross-validation also `folds`, `epochs`, `seed`
            and `speakers`.
        density: Distribution of the training clips; None: leave it as it is.
    """
    folder = Path(folder)
    description = read_description(folder) | {"calibration": calibration, "calibrated_by": calibrated_by}
    if density:
        with atomic_file(folder / DENSITY) as temporary:
            safetensors.numpy.save_file(dict(density), temporary)
        description["sha256"] = description.get("sha256", {}) | {DENSITY: sha256_of(folder / DENSITY)}
    with atomic_file(folder / DESCRIPTION) as temporary:
        temporary.write_text(_as_json(description), encoding="utf-8")


def add_folder(folder: Path, name: str, source: Path) -> None:
    """Copy the files of `source` to `folder`/`name`, and their hashes into the description of the checkpoint."""
    folder, target = Path(folder), Path(folder) / name
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    description = read_description(folder)
    hashes = {f"{name}/{path.name}": sha256_of(path) for path in sorted(target.iterdir())}
    kept = {path: value for path, value in description.get("sha256", {}).items() if not path.startswith(f"{name}/")}
    description["sha256"] = kept | hashes
    with atomic_file(folder / DESCRIPTION) as temporary:
        temporary.write_text(_as_json(description), encoding="utf-8")


def _as_json(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """Read a checkpoint's description without its weights. Raises as `load_checkpoint` does."""
    return _parse(read_description(folder), Path(folder) / DESCRIPTION)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[Network, CheckpointInfo]:
    """Read a checkpoint: the network, in eval mode on `device`, and its description.

    Raises:
        FileNotFoundError: No checkpoint there; the message says which stage makes it.
        ValueError: Another schema version, or a file that is missing or damaged; the message names it.
    """
    folder = Path(folder)
    raw = read_description(folder)
    info = _parse(raw, folder / DESCRIPTION)
    _check_files(folder, raw.get("sha256", {}))
    stored = info.model.text.tokens == "text_bert"
    text = None if info.model.text.mode == "frozen" else TextBackbone.load(folder / TEXT, stored)
    try:
        network = build_network(info.model, info.dataset, text)
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION}: {error}") from error
    network.load_state_dict(read_weights(folder / WEIGHTS, network.state_dict()))
    return network.to(device).eval(), replace(info, density=_read_density(folder / DENSITY))


def _check_files(folder: Path, sha256: Mapping[str, str]) -> None:
    """Compare the files with their hashes in checkpoint.json; older checkpoints have none."""
    for name, expected in sha256.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the checkpoint is incomplete without this file; {REMEDY}")
        found = sha256_of(path)
        if found != expected:
            raise ValueError(
                f"{path}: damaged or replaced (SHA-256 {found[:12]}..., {DESCRIPTION} says {expected[:12]}...); "
                f"{REMEDY}"
            )


def _read_density(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); {REMEDY}") from error


def read_weights(path: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read the weights, which must have the names and shapes of `expected`."""
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: the checkpoint is incomplete without its weights; {REMEDY}") from error
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); {REMEDY}") from error
    for name, tensor in expected.items():
        if name not in weights:
            raise ValueError(f"{path}: lacks the network's tensor {name}; {REMEDY}")
        if weights[name].shape != tensor.shape:
            found, needed = list(weights[name].shape), list(tensor.shape)
            raise ValueError(f"{path}: {name} is {found}, {DESCRIPTION} describes {needed}; {REMEDY}")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"{path}: the network in {DESCRIPTION} has no tensor {unknown[0]}; {REMEDY}")
    return weights


def _parse(raw: dict[str, Any], path: Path) -> CheckpointInfo:
    try:
        return _to_info(raw, path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not the settings of a network ({type(error).__name__}: {error}); {REMEDY}"
        ) from error


def _to_info(raw: dict[str, Any], path: Path) -> CheckpointInfo:
    train = raw["train"]
    config = TrainConfig(
        **train
        | {
            "modalities": tuple(train["modalities"]),
            "seeds": tuple(train["seeds"]),
            "augment": AugmentConfig(**train["augment"]),
            "contrastive": ContrastiveConfig(**train["contrastive"]),
            "mining": MiningConfig(**train["mining"]),
            "intervals": IntervalConfig(**train.get("intervals", {})),
        }
    )
    return CheckpointInfo(
        model=ModelConfig(
            **raw["model"]
            | {
                "text": TextConfig(**raw["model"].get("text", {})),
                "padding": PaddingConfig(**raw["model"].get("padding", {})),
            }
        ),
        train=config,
        dataset=DatasetInfo.from_dict(raw["dataset"], str(path)),
        seed=raw["seed"],
        epoch=raw["epoch"],
        metrics=raw["metrics"],
        versions=raw["versions"],
        calibration=raw.get("calibration", {}),
        calibrated_by=raw.get("calibrated_by", {}),
    )
