"""Late fusion: each modality is encoded by itself, and an MLP predicts from their concatenated means.

The modality encoders are those of DashFusion, so that a comparison with it measures alignment and fusion alone. MMSA's
LF_DNN is another network: it averages audio and vision before any layer, reads text by an LSTM, and its vectors have a
width for each modality.

Shapes: B clips, d model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MODALITIES
from model.network.alignment import NoAlignment
from model.network.composed import ComposedNetwork, modality_encoders, unimodal_heads
from model.network.layers import MaskedSequence, masked_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone


class ConcatenatedMeans(nn.Module):
    """Concatenate the means of the modalities over their steps."""

    def forward(self, aligned: MaskedSequence, sequences: Mapping[str, MaskedSequence]) -> Tensor:
        """Return [B, 3d]; `aligned` is not used."""
        return torch.cat([masked_mean(sequences[m].values, sequences[m].mask) for m in MODALITIES], dim=1)


class LateFusion(ComposedNetwork):
    """Modality encoders, the mean of each, and an MLP.

    A modality that a clip lacks becomes a learned embedding.

    Raises:
        ValueError: The text encoder's weights cannot be loaded, or do not fit `config.text`.
    """

    fixed = ("anchor", "alignment", "fusion")
    source = "late fusion of the modalities' means, with DashFusion's modality encoders"
    paper = {"train.contrastive.weight": 0.0}
    search_space = {
        "train.learning_rate": (2e-4, 5e-4, 1e-3),
        "model.dropout": (0.1, 0.2, 0.3),
        "model.encoder_layers": (1, 2, 4),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        self.encoders = modality_encoders(config, info, text)
        self.alignment = NoAlignment("text")
        self.fusion = ConcatenatedMeans()
        self.predictor = nn.Sequential(
            nn.Linear(3 * config.dim, config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, 1),
        )
        self.unimodal_heads = unimodal_heads(config)
