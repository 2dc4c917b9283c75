"""MISA: modality-invariant and modality-specific representations of a clip, fused by a Transformer layer.

Hazarika, Zimmermann and Poria, "MISA: Modality-Invariant and -Specific Representations for Multimodal Sentiment
Analysis", ACM MM 2020, arXiv 2005.03545. What the paper leaves out follows the authors' code, as MMSA has it.

Shapes: B clips, T steps, M modalities, P pairs of them, K moments, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MODALITIES
from model.config_blocks import require_at_least
from model.data.info import NORMALISED
from model.network.auxiliary import AuxiliaryLoss
from model.network.base import Embedding, Network, Output
from model.network.inputs import FeatureInputs
from model.network.layers import MaskedSequence, at_least_float32, masked_mean
from model.network.recurrent import MaskedLSTM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.clips import ClipTable
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone

FUSION_DROPOUT = 0.1
"""Dropout probability of the fusion layer; `model.dropout` is that of the predictor."""

FIRST, SECOND = (list(side) for side in zip(*combinations(range(len(MODALITIES)), 2), strict=True))
"""Positions in `MODALITIES` of the pairs of modalities."""


@dataclass(frozen=True)
class Options:
    """Hyperparameters; the defaults are MMSA's for MOSI.

    Attributes:
        difference_weight: Weight of the difference loss.
        similarity_weight: Weight of the similarity loss.
        reconstruction_weight: Weight of the reconstruction loss.
        moments: K, moments that the similarity loss compares.
        feed_forward: Hidden width of the fusion layer.
        audio_width: Width of the LSTMs of audio; 0: the number of its features.
        vision_width: Width of the LSTMs of vision; 0: the number of its features.
    """

    difference_weight: float = 0.1
    similarity_weight: float = 0.3
    reconstruction_weight: float = 1.0
    moments: int = 5
    feed_forward: int = 2048
    audio_width: int = 0
    vision_width: int = 0

    def __post_init__(self) -> None:
        for name in ("difference_weight", "similarity_weight", "reconstruction_weight", "audio_width", "vision_width"):
            require_at_least(f"model.options.{name}", getattr(self, name), 0)
        for name in ("moments", "feed_forward"):
            require_at_least(f"model.options.{name}", getattr(self, name), 1)


class StackedLSTM(nn.Module):
    """Two bidirectional LSTMs with LayerNorm between them; the clip's vector is the final states of both, [B, 4w]."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.first = MaskedLSTM(dim, width, bidirectional=True)
        self.norm = nn.LayerNorm(2 * width)
        self.second = MaskedLSTM(2 * width, width, bidirectional=True)

    def forward(self, sequence: MaskedSequence) -> Tensor:
        """Return [B, 4w]."""
        first = self.first(sequence)
        second = self.second(MaskedSequence(self.norm(first.steps.values), first.steps.mask), is_compact=True)
        return torch.cat([first.last, second.last], dim=1)


class Misa(Network):
    """The mean of the text's hidden states and the final LSTM states of audio and vision, mapped to one width d.

    One encoder that the modalities share and one of each modality's own give six vectors of a clip. A Transformer layer
    attends between them, and an MLP predicts from all six. A clip's missing modality is a learned embedding.

    Three losses are added to that of the prediction: the shared vectors of the modalities are to be distributed alike,
    the private ones to differ from them and from each other, and both together to reconstruct the modality. A clip
    counts in them with the modalities that it has. MMSA reads no more steps of audio and vision than the text has
    tokens; here all are read.
    """

    options_class = Options
    options: Options
    source = (
        'Hazarika et al., "MISA: Modality-Invariant and -Specific Representations for Multimodal Sentiment Analysis", '
        "ACM MM 2020, https://arxiv.org/abs/2005.03545"
    )
    paper = {
        "model.dim": 128,
        "model.heads": 2,
        "model.dropout": 0.2,
        "train.batch_size": 16,
        "train.accumulate": 2,
        "train.learning_rate": 1e-4,
        "train.weight_decay": 0.0,
        "train.patience": 8,
        "train.contrastive.weight": 0.0,
    }
    search_space = {
        "train.learning_rate": (1e-4, 3e-4, 1e-3),
        "train.batch_size": (16, 32, 64),
        "model.dim": (64, 128, 256),
        "model.dropout": (0.0, 0.2, 0.5),
        "model.options.difference_weight": (0.1, 0.3, 0.5),
        "model.options.similarity_weight": (0.3, 0.8, 1.0),
        "model.options.reconstruction_weight": (0.8, 1.0),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        dim, options = config.dim, self.options
        self.inputs = FeatureInputs(config, info, text)
        widths = {m: getattr(options, f"{m}_width") or self.inputs.dims[m] for m in NORMALISED}
        self.recurrent = nn.ModuleDict({m: StackedLSTM(self.inputs.dims[m], width) for m, width in widths.items()})
        vectors = {"text": self.inputs.dims["text"]} | {m: 4 * width for m, width in widths.items()}
        self.project = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.LayerNorm(dim)) for m, width in vectors.items()}
        )
        self.private = nn.ModuleList(nn.Linear(dim, dim) for _ in MODALITIES)
        self.shared = nn.Linear(dim, dim)
        self.reconstruct = nn.ModuleList(nn.Linear(dim, dim) for _ in MODALITIES)
        self.fusion = nn.TransformerEncoderLayer(
            dim, config.heads, options.feed_forward, FUSION_DROPOUT, batch_first=True
        )
        self.predictor = nn.Sequential(
            nn.Linear(6 * dim, 3 * dim), nn.Dropout(config.dropout), nn.ReLU(), nn.Linear(3 * dim, 1)
        )

    def forward(self, batch: Batch) -> Output:
        """Return predictions, the modalities' vectors, and what the auxiliary loss reads."""
        sequences = self.inputs(batch)
        vectors = {m: self.project[m](self._vector(m, sequences[m])) for m in MODALITIES}
        hidden_BMd = torch.stack([vectors[m] for m in MODALITIES], dim=1)
        private_BMd = _each(self.private, hidden_BMd).sigmoid()
        shared_BMd = self.shared(hidden_BMd).sigmoid()
        fused = self.fusion(torch.cat([private_BMd, shared_BMd], dim=1))
        prediction_B = at_least_float32(self.predictor(fused.flatten(1))).squeeze(-1)
        present = {m: batch.masks[m].any(dim=1) for m in MODALITIES}
        auxiliary = {
            "hidden": hidden_BMd,
            "private": private_BMd,
            "shared": shared_BMd,
            "reconstructed": _each(self.reconstruct, private_BMd + shared_BMd),
            "present": torch.stack([present[m] for m in MODALITIES], dim=1),
        }
        streams = {m: at_least_float32(vector) for m, vector in vectors.items()}
        return Output(prediction_B, Embedding(streams, present), auxiliary=auxiliary)

    def auxiliary_loss(self, clips: ClipTable) -> MisaLoss:
        """Create the sum of difference, similarity and reconstruction loss."""
        return MisaLoss(self.options)

    def _vector(self, modality: str, sequence: MaskedSequence) -> Tensor:
        if modality == "text":
            return masked_mean(sequence.values, sequence.mask)
        vector: Tensor = self.recurrent[modality](sequence)
        return vector


def _each(layers: nn.ModuleList, x_BMd: Tensor) -> Tensor:
    """Apply the m-th layer to the m-th modality."""
    return torch.stack([layer(x_Bd) for layer, x_Bd in zip(layers, x_BMd.unbind(dim=1), strict=True)], dim=1)


class MisaLoss(AuxiliaryLoss):
    """`difference_weight L_diff + similarity_weight L_sim + reconstruction_weight L_recon`."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def forward(self, tensors: Mapping[str, Tensor], rows_B: Tensor, epoch: int) -> Tensor:
        """Return the loss of a batch; clips count only in the terms of modalities that they have."""
        private, shared, present = tensors["private"], tensors["shared"], tensors["present"]
        return (
            self.options.difference_weight * difference_loss(private, shared, present)
            + self.options.similarity_weight * similarity_loss(shared, present, self.options.moments)
            + self.options.reconstruction_weight
            * reconstruction_loss(tensors["reconstructed"], tensors["hidden"], present)
        )


def difference_loss(private_BMd: Tensor, shared_BMd: Tensor, present_BM: Tensor) -> Tensor:
    """Sum the soft orthogonality `mean((X^T Y)^2)` of private and shared vectors, and of the private ones' pairs.

    The rows of X and Y [B, d] are the clips' vectors, centred over the batch and divided by their norm, which is
    treated as a constant. A clip that lacks a modality is no row of its terms.
    """
    first_BPd = torch.cat([private_BMd, private_BMd[:, FIRST]], dim=1)
    second_BPd = torch.cat([shared_BMd, private_BMd[:, SECOND]], dim=1)
    both_BP = torch.cat([present_BM, present_BM[:, FIRST] & present_BM[:, SECOND]], dim=1)
    # sum((X^T Y)^2) = sum(X X^T * Y Y^T): B x B products in place of d x d ones
    first_PBB, second_PBB = (
        torch.einsum("bpd,cpd->pbc", x, x) for x in (_unit_rows(first_BPd, both_BP), _unit_rows(second_BPd, both_BP))
    )
    return (first_PBB * second_PBB).sum() / first_BPd.shape[2] ** 2


def _unit_rows(x_BPd: Tensor, real_BP: Tensor) -> Tensor:
    """Centre x over the real clips and divide by the norms; other rows are zeros."""
    real_BP1 = real_BP[:, :, None].to(x_BPd.dtype)
    mean_Pd = (x_BPd * real_BP1).sum(dim=0) / real_BP1.sum(dim=0).clamp(min=1)
    centred_BPd = (x_BPd - mean_Pd) * real_BP1
    norm_BP1: Tensor = torch.linalg.vector_norm(centred_BPd.detach(), dim=2, keepdim=True)
    return centred_BPd / (norm_BP1 + 1e-6)


def similarity_loss(shared_BMd: Tensor, present_BM: Tensor, moments: int) -> Tensor:
    """Average the central moment discrepancy of the shared vectors over the pairs of modalities.

    It is the sum of the distances between the means and between the central moments of order 2 to K (Zellinger et al.,
    ICLR 2017, for values in [0, 1]). A pair counts if each of its modalities has a clip in the batch; without such a
    pair the loss is 0.
    """
    real_BM1 = present_BM[:, :, None].to(shared_BMd.dtype)
    count_M1 = real_BM1.sum(dim=0).clamp(min=1)
    mean_Md = (shared_BMd * real_BM1).sum(dim=0) / count_M1
    centred_BMd = (shared_BMd - mean_Md) * real_BM1
    powers = [mean_Md, *(centred_BMd.pow(k).sum(dim=0) / count_M1 for k in range(2, moments + 1))]
    moments_KMd = torch.stack(powers)
    distance_P: Tensor = torch.linalg.vector_norm(moments_KMd[:, FIRST] - moments_KMd[:, SECOND], dim=2).sum(dim=0)
    found_M = present_BM.any(dim=0)
    pairs_P = found_M[FIRST] & found_M[SECOND]
    return (distance_P * pairs_P).sum() / pairs_P.sum().clamp(min=1)


def reconstruction_loss(reconstructed_BMd: Tensor, hidden_BMd: Tensor, present_BM: Tensor) -> Tensor:
    """Average the squared error over the modalities that the clips have; 0 without any."""
    error_BM = (reconstructed_BMd - hidden_BMd).square().mean(dim=2) * present_BM
    return error_BM.sum() / present_BM.sum().clamp(min=1)
