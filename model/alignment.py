"""Temporal alignment: each text token looks for its moment in audio and vision.

Shapes: B clips, T text tokens (or the first of them), S steps of a source, d model width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import SharedQueryAttention

HEADS = 8
HEAD_DIM = 32


class TemporalAlignment(nn.Module):
    """`H = X_t + W_o(CA_a(X_t, X_a) + CA_v(X_t, X_v))`, text's Q shared by both.

    DashFusion, section "Dual-stream alignment": 8 heads of 32 whatever the width, no bias in Q, K and V.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SharedQueryAttention(config.dim, HEADS, HEAD_DIM, ("audio", "vision"))
        self.out = nn.Linear(HEADS * HEAD_DIM, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, text_BTd: Tensor, sources: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """H [B, T, d]. A token's row depends on no other token's, so a part of the text may be given."""
        return text_BTd + self.dropout(self.out(self.attention(text_BTd, sources, masks)))
