"""Hierarchical bottleneck fusion (HBF): few tokens carry what the modalities say to each other.

Shapes: B clips, K bottleneck tokens, T steps of a modality, d model width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.layers import AttentionLayer, FeedForward, SharedQueryAttention


class FusionLayer(nn.Module):
    """One layer: the bottleneck shortens, reads the modalities, and the modalities read the bottleneck.

    In the `last` layer only position 0 of each modality reads the bottleneck: nothing looks at the others.
    """

    def __init__(self, config: ModelConfig, keep: int, last: bool) -> None:
        super().__init__()
        self.keep = keep
        self.readers = 1 if last else None
        self.encode = AttentionLayer(config.dim, config.heads, config.dropout)
        self.read = SharedQueryAttention(config.dim, config.heads, config.dim // config.heads, MODALITIES)
        self.read_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.spread = nn.ModuleDict({m: AttentionLayer(config.dim, config.heads, config.dropout) for m in MODALITIES})

    def forward(
        self,
        bottleneck_BKd: Tensor,
        bottleneck_mask_BK: Tensor,
        sequences: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The bottleneck of at most `keep` tokens, its mask, and the new sequences."""
        # A token's row depends on no other query: those that would be dropped need not be asked.
        bottleneck = self.encode(bottleneck_BKd[:, : self.keep], bottleneck_BKd, bottleneck_mask_BK)
        mask = bottleneck_mask_BK[:, : self.keep]
        bottleneck = self.read_norm(bottleneck + self.dropout(self.read(bottleneck, sequences, masks)))
        bottleneck = self.feed_forward_norm(bottleneck + self.dropout(self.feed_forward(bottleneck)))
        sequences = {m: layer(sequences[m][:, : self.readers], bottleneck, mask) for m, layer in self.spread.items()}
        return bottleneck, mask, sequences


class HierarchicalBottleneckFusion(nn.Module):
    """L layers; layer l keeps `max(1, p / 2^(l-1))` bottleneck tokens (DashFusion, section "HBF")."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(config, max(1, config.bottleneck_tokens >> level), last=level == config.fusion_layers - 1)
            for level in range(config.fusion_layers)
        )

    def forward(self, aligned_BTd: Tensor, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """[B, 4d]: position 0 of the bottleneck, text, audio and vision.

        The bottleneck starts as the aligned text; a clip of fewer tokens than that keeps what it has.
        """
        bottleneck, mask = aligned_BTd, masks["text"]
        for layer in self.layers:
            bottleneck, mask, sequences = layer(bottleneck, mask, sequences, masks)
        return torch.cat([bottleneck[:, 0], *(sequences[m][:, 0] for m in MODALITIES)], dim=-1)
