"""Tensor fusion: the outer product of the modalities' vectors, each with a 1 appended, through an MLP.

Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment Analysis", EMNLP 2017. The appended 1 keeps the vectors
themselves and their products by two among the entries. Sizes and what the paper leaves open are those of MMSA 2.2.1.

Shapes: B clips, d width of a modality's vector, F entries of the outer product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MODALITIES
from model.config_blocks import require_at_least, require_probability
from model.network.base import Network, Output
from model.network.baselines.subnetworks import Subnetworks
from model.network.layers import at_least_float32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone


@dataclass(frozen=True)
class Options:
    """Hyperparameters; the defaults are MMSA's for MOSI.

    Attributes:
        text_hidden: Width of the text's LSTM.
        text_dim: Width of the text's vector.
        audio_dim: Width of audio's vector.
        vision_dim: Width of vision's vector.
        fusion_dim: Width of the two layers after the outer product.
        input_dropout: Dropout probability, in [0, 1), of the means of audio and vision.
        fusion_dropout: Dropout probability, in [0, 1), of the outer product.
    """

    text_hidden: int = 128
    text_dim: int = 32
    audio_dim: int = 32
    vision_dim: int = 128
    fusion_dim: int = 64
    input_dropout: float = 0.3
    fusion_dropout: float = 0.5

    def __post_init__(self) -> None:
        for name in ("text_hidden", "text_dim", "audio_dim", "vision_dim", "fusion_dim"):
            require_at_least(f"model.options.{name}", getattr(self, name), 1)
        for name in ("input_dropout", "fusion_dropout"):
            require_probability(f"model.options.{name}", getattr(self, name))


class TensorFusion(nn.Module):
    """The outer product of the vectors, with dropout, through two layers with ReLU."""

    def __init__(self, dims: Mapping[str, int], dim: int, dropout: float) -> None:
        super().__init__()
        entries = 1
        for m in MODALITIES:
            entries *= dims[m] + 1
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(nn.Linear(entries, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return [B, dim]."""
        text_Bd, audio_Bd, vision_Bd = (F.pad(vectors[m], (1, 0), value=1.0) for m in MODALITIES)
        product_BF = (text_Bd[:, :, None] * audio_Bd[:, None, :]).flatten(1)
        product_BF = (product_BF[:, :, None] * vision_Bd[:, None, :]).flatten(1)
        fused: Tensor = self.layers(self.dropout(product_BF))
        return fused


class TFN(Network):
    """Subnetworks of the modalities, tensor fusion, and a prediction that a sigmoid keeps in the label range.

    A modality that a clip lacks becomes a learned embedding. With several processes, each normalises its own part of
    the batch.

    Raises:
        ValueError: The text encoder's weights cannot be loaded, or do not fit `config.text`; or an invalid option.
    """

    options_class = Options
    source = (
        'Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment Analysis", EMNLP 2017, '
        "https://aclanthology.org/D17-1115"
    )
    fixed = (*Network.fixed, "dropout")
    paper = {
        "train.learning_rate": 1e-3,
        "train.batch_size": 32,
        "train.weight_decay": 0.0,
        "train.patience": 8,
        "train.contrastive.weight": 0.0,
    }
    search_space = {
        "train.learning_rate": (5e-4, 1e-3, 2e-3, 5e-3),
        "train.batch_size": (16, 32, 64),
        "model.options.text_dim": (32, 64, 128),
        "model.options.audio_dim": (16, 32),
        "model.options.vision_dim": (32, 64, 128),
        "model.options.fusion_dim": (32, 64, 128),
        "model.options.fusion_dropout": (0.3, 0.5),
    }
    options: Options

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        options = self.options
        dims = {"text": options.text_dim, "audio": options.audio_dim, "vision": options.vision_dim}
        self.subnetworks = Subnetworks(config, info, text, options.text_hidden, dims, options.input_dropout)
        self.fusion = TensorFusion(dims, options.fusion_dim, options.fusion_dropout)
        self.predictor = nn.Linear(options.fusion_dim, 1)

    def forward(self, batch: Batch) -> Output:
        """Return predictions and the vectors of the modalities."""
        embedding = self.subnetworks(batch)
        logit_B = at_least_float32(self.predictor(self.fusion(embedding.streams))).squeeze(-1)
        low, high = self.info.label_range
        return Output(low + (high - low) * torch.sigmoid(logit_B), embedding)
