"""The text encoder with a head: the bar that a fusion of modalities has to clear.

Shapes: B clips, d model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from model.network.alignment import NoAlignment
from model.network.composed import ComposedNetwork
from model.network.layers import MaskedSequence, masked_mean
from model.network.text_encoder import build_text_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone


class MeanOfText(nn.Module):
    """Return the mean [B, d] over the steps of the text."""

    def forward(self, aligned: MaskedSequence, sequences: Mapping[str, MaskedSequence]) -> Tensor:
        """Return [B, d]; `aligned` is not used."""
        text = sequences["text"]
        return masked_mean(text.values, text.mask)


class TextNetwork(ComposedNetwork):
    """Project the text's hidden states, average them over the clip, and predict by an MLP.

    Audio and vision are not read. A clip without text is predicted from a learned embedding.

    Raises:
        ValueError: The text encoder's weights cannot be loaded, or do not fit `config.text`.
    """

    reads = ("text",)
    fixed = ("normalise", "anchor", "alignment", "fusion", "unimodal_heads")
    source = "the text encoder with a head"
    paper = {"train.modalities": ("text",), "train.contrastive.weight": 0.0}
    search_space = {
        "train.learning_rate": (2e-4, 5e-4, 1e-3),
        "model.dropout": (0.1, 0.2, 0.3),
        "model.dim": (64, 128, 256),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        self.encoders = nn.ModuleDict({"text": build_text_encoder(config, info, text)})
        self.alignment = NoAlignment("text")
        self.fusion = MeanOfText()
        self.predictor = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, 1),
        )
        self.unimodal_heads = nn.ModuleDict()
