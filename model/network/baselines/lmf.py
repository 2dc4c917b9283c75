"""Low-rank fusion: tensor fusion whose weights are a sum of outer products, so that the tensor is never built.

Liu et al., "Efficient Low-rank Multimodal Fusion With Modality-Specific Factors", ACL 2018. Of weights of rank r, the
inner product with the tensor is the sum over r of the products of the modalities' own projections. Sizes, and the
learned weights of that sum, are those of MMSA 2.2.1.

Shapes: B clips, d width of a modality's vector, r rank.
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
        rank: Rank of the fusion's weights.
        text_hidden: Width of the text's LSTM.
        text_dim: Width of the text's vector.
        audio_dim: Width of audio's vector.
        vision_dim: Width of vision's vector.
        input_dropout: Dropout probability, in [0, 1), of the means of audio and vision.
    """

    rank: int = 3
    text_hidden: int = 128
    text_dim: int = 64
    audio_dim: int = 16
    vision_dim: int = 128
    input_dropout: float = 0.3

    def __post_init__(self) -> None:
        for name in ("rank", "text_hidden", "text_dim", "audio_dim", "vision_dim"):
            require_at_least(f"model.options.{name}", getattr(self, name), 1)
        require_probability("model.options.input_dropout", self.input_dropout)


class LowRankFusion(nn.Module):
    """`sum over r of w_r * prod over m of (U_m [1; x_m])_r, + b`."""

    def __init__(self, dims: Mapping[str, int], rank: int) -> None:
        super().__init__()
        self.factors = nn.ParameterDict({m: nn.Parameter(torch.empty(rank, dims[m] + 1)) for m in MODALITIES})
        self.out = nn.Linear(rank, 1)
        for factor in self.factors.values():
            nn.init.xavier_normal_(factor)
        nn.init.xavier_normal_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return [B, 1]."""
        text_Br, audio_Br, vision_Br = (
            F.linear(F.pad(vectors[m], (1, 0), value=1.0), factor) for m, factor in self.factors.items()
        )
        fused: Tensor = self.out(text_Br * audio_Br * vision_Br)
        return fused


class LMF(Network):
    """Subnetworks of the modalities, as the tensor fusion network has them, and low-rank fusion.

    A modality that a clip lacks becomes a learned embedding. With several processes, each normalises its own part of
    the batch.

    Raises:
        ValueError: The text encoder's weights cannot be loaded, or do not fit `config.text`; or an invalid option.
    """

    options_class = Options
    source = (
        'Liu et al., "Efficient Low-rank Multimodal Fusion With Modality-Specific Factors", ACL 2018, '
        "https://aclanthology.org/P18-1209"
    )
    fixed = (*Network.fixed, "dropout")
    paper = {
        "train.learning_rate": 1e-3,
        "train.batch_size": 64,
        "train.weight_decay": 5e-3,
        "train.patience": 8,
        "train.contrastive.weight": 0.0,
    }
    search_space = {
        "train.learning_rate": (5e-4, 1e-3, 2e-3, 5e-3),
        "train.batch_size": (16, 32, 64),
        "train.weight_decay": (0.0, 1e-3, 5e-3),
        "model.options.rank": (3, 4, 8),
        "model.options.text_dim": (32, 64, 128),
        "model.options.audio_dim": (8, 16, 32),
        "model.options.vision_dim": (32, 64, 128),
        "model.options.input_dropout": (0.2, 0.3, 0.5),
    }
    options: Options

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        options = self.options
        dims = {"text": options.text_dim, "audio": options.audio_dim, "vision": options.vision_dim}
        self.subnetworks = Subnetworks(config, info, text, options.text_hidden, dims, options.input_dropout)
        self.fusion = LowRankFusion(dims, options.rank)

    def forward(self, batch: Batch) -> Output:
        """Return predictions and the vectors of the modalities."""
        embedding = self.subnetworks(batch)
        return Output(at_least_float32(self.fusion(embedding.streams)).squeeze(-1), embedding)
