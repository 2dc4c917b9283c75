"""ONNX export of the network: from features to the sentiment, for any number of clips and steps.

The graph needs no PyTorch and includes the normalisation by the training statistics and the embeddings of missing
modalities. Shapes: B clips, T steps of a modality, D features.
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES
from model.data.batch import Batch
from model.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.checkpoint.io import CheckpointInfo
    from model.network.base import Network

TOLERANCE = 1e-4
"""Maximum difference, in label units, between the predictions of PyTorch and of the exported graph."""

OPSET = 18

_NEEDED = "the exporter needs onnx, onnxscript and onnxruntime: pip install -e '.[onnx]'"


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported network.

    Attributes:
        path: Path of the ONNX file.
        inputs: Name -> shape of each input, in order.
        difference: Maximum difference from PyTorch's predictions, in label units.
        clips: Number of random clips compared.
    """

    path: Path
    inputs: Mapping[str, tuple[str | int, ...]]
    difference: float
    clips: int


class _TracedBatch(Batch):
    """A batch whose masks have no values yet, so that any clip may lack any modality."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "incomplete", frozenset(MODALITIES))


class _FromFeatures(nn.Module):
    """The network without its training-only parts, as a function of tensors."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.padding = network.text_padding

    def forward(
        self,
        text: Tensor,
        text_mask: Tensor,
        audio: Tensor,
        audio_mask: Tensor,
        vision: Tensor,
        vision_mask: Tensor,
    ) -> Tensor:
        """Return the sentiment [B]."""
        values = {"text": F.pad(text, (0, 0, 0, self.padding)), "audio": audio, "vision": vision}
        masks = {"text": F.pad(text_mask, (0, self.padding)), "audio": audio_mask, "vision": vision_mask}
        no_labels = text.new_zeros(0)
        sentiment_B: Tensor = self.network(_TracedBatch((), no_labels, no_labels, values, masks)).prediction
        return sentiment_B


def export_onnx(folder: Path, path: Path) -> Exported:
    """Write the network of a checkpoint as ONNX, after comparing its predictions with PyTorch's.

    Inputs, for each modality: `<modality>` [B, T, D] float32, features as the extractors return them, and
    `<modality>_mask` [B, T] bool, True at steps to attend to. T >= 1: a missing modality has a mask of False.
    Output: `sentiment` [B] float32, not clipped to the corpus's label range. Feature names, prediction intervals and
    whatever else a client needs are JSON in the file's metadata under `dashfusion`.

    Raises:
        FileNotFoundError: No checkpoint there.
        ImportError: A package of the extra `onnx` is not installed, or has an incompatible version.
        ValueError: The network reads transcripts instead of features, or the graph's predictions differ from PyTorch's
            by more than `TOLERANCE`. Nothing is written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter imports it only late)
    except (ImportError, AttributeError) as error:  # an older ml-dtypes lacks attributes that onnxscript uses
        raise ImportError(f"{_NEEDED} ({error})") from error
    network, info = load_checkpoint(folder)
    if network.text:
        raise ValueError(
            f"{folder}: reads transcripts with an encoder of its own (model.text.mode {info.model.text.mode}), which "
            "is not exported; train with model.text.mode frozen for a network that reads features"
        )
    clips = _random_clips(info, np.random.default_rng(0))
    program = _export(network, clips[:2], info)
    program.model.metadata_props["dashfusion"] = json.dumps(_description(info))
    with atomic_file(Path(path)) as temporary:
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        difference = _difference(session, network, clips)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: the exported graph's predictions differ from PyTorch's by up to {difference:.1e}, more than "
                f"{TOLERANCE:g}; nothing was written: try the versions of torch and onnxscript in constraints.txt"
            )
    return Exported(path, {i.name: tuple(i.shape) for i in session.get_inputs()}, difference, len(clips))


def _export(network: Network, clips: list[dict[str, Tensor]], info: CheckpointInfo) -> Any:
    from torch.export import Dim

    inputs = _padded(clips)
    count = Dim("clips", min=1, max=2**16)
    max_steps = dict.fromkeys(MODALITIES, info.model.max_positions)
    max_steps["text"] -= network.text_padding
    steps = {m: Dim(f"{m}_steps", min=1, max=max_steps[m]) for m in MODALITIES}
    shapes = {name: {0: count, 1: steps[name.removesuffix("_mask")]} for name in inputs}
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own code
        exporter_log.setLevel(logging.ERROR)
        # The exporter replaces the LSTM for a while, but torch remembers the one that an earlier export found
        torch.ops.aten.lstm.input._dispatch_cache.clear()
        try:
            return torch.onnx.export(
                _FromFeatures(network).eval(),
                (),
                kwargs=inputs,
                dynamic_shapes=shapes,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["sentiment"],
                verbose=False,
            )
        finally:
            exporter_log.setLevel(level)


def _description(info: CheckpointInfo) -> dict[str, Any]:
    """Return what a client needs to prepare the inputs and interpret the output."""
    dataset = info.dataset.to_dict()
    kept = ("corpus", "generated", "language", "label_range", "mode", "mask_invalid", "normalise_audio", "modalities")
    return {
        **{key: dataset[key] for key in kept if key in dataset},
        "calibration": dict(info.calibration),
        "seed": info.seed,
    }


def _random_clips(info: CheckpointInfo, rng: np.random.Generator) -> list[dict[str, Tensor]]:
    """Return clips of different lengths, in which each modality and each pair of modalities is missing once."""
    missing_sets = [
        (),
        (),
        ("text",),
        ("audio",),
        ("vision",),
        ("text", "audio"),
        ("audio", "vision"),
        ("text", "vision"),
    ]
    clips = []
    for missing in missing_sets:
        clip: dict[str, Tensor] = {}
        for m in MODALITIES:
            length = int(rng.integers(2, 60))
            dim = info.dataset.modalities[m].dim
            values: np.ndarray = rng.normal(size=(length, dim)).astype(np.float32)
            if m in info.dataset.statistics:
                statistics = info.dataset.statistics[m]
                values = values * np.asarray(statistics.std, np.float32) + np.asarray(statistics.mean, np.float32)
            mask = rng.random(length) > 0.1
            mask[0] = True
            clip |= {m: torch.from_numpy(values), f"{m}_mask": torch.from_numpy(mask & (m not in missing))}
        clips.append(clip)
    return clips


def _padded(clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return a batch of the clips, padded with zeros and False."""
    return {name: nn.utils.rnn.pad_sequence([clip[name] for clip in clips], batch_first=True) for name in clips[0]}


@torch.inference_mode()
def _difference(session: Any, network: Network, clips: list[dict[str, Tensor]]) -> float:
    """Return the maximum difference from the network's predictions, for each clip alone and for all in one batch."""
    expected = np.array([network(_batch(_padded([clip]))).prediction.item() for clip in clips])
    together = session.run(None, {name: x.numpy() for name, x in _padded(clips).items()})[0]
    alone = [session.run(None, {name: x.numpy() for name, x in _padded([clip]).items()})[0][0] for clip in clips]
    return float(max(np.abs(together - expected).max(), np.abs(np.array(alone) - expected).max()))


def _batch(inputs: Mapping[str, Tensor]) -> Batch:
    count = len(inputs["text"])
    labels = torch.full((count, 1 + len(MODALITIES)), torch.nan)
    values, masks = {m: inputs[m] for m in MODALITIES}, {m: inputs[f"{m}_mask"] for m in MODALITIES}
    return Batch(tuple(map(str, range(count))), labels[:, 0], labels[:, 1:], values, masks)
