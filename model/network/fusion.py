"""Hierarchical bottleneck fusion (HBF), in which few tokens carry what the modalities say to each other, and
the two simpler fusions that the paper compares it with.

Every fusion takes the aligned sequence H with its mask and the modalities' sequences with theirs, and gives
position 0 of each of the four: what is compared is the way that they are brought together.

Shapes: B clips, K bottleneck tokens, T steps of a modality or of H, N steps of the four together, d model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.network.layers import AttentionLayer, FeedForward, SharedQueryAttention

if TYPE_CHECKING:
    from collections.abc import Mapping


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

    def forward(
        self,
        aligned_BTd: Tensor,
        aligned_mask_BT: Tensor,
        sequences: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        """[B, 4d]: position 0 of the bottleneck, text, audio and vision.

        The bottleneck starts as the aligned sequence; a clip of fewer steps than that keeps what it has.
        """
        bottleneck, mask = aligned_BTd, aligned_mask_BT
        for layer in self.layers:
            bottleneck, mask, sequences = layer(bottleneck, mask, sequences, masks)
        return _first_positions([bottleneck, *(sequences[m] for m in MODALITIES)])


class ConcatAttentionFusion(nn.Module):
    """H and the modalities' sequences one after another, through `fusion_layers` self-attention layers.

    In the last layer only the four positions that are read ask.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            AttentionLayer(config.dim, config.heads, config.dropout) for _ in range(config.fusion_layers)
        )

    def forward(
        self,
        aligned_BTd: Tensor,
        aligned_mask_BT: Tensor,
        sequences: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        """[B, 4d]: what the first positions of H, text, audio and vision have become."""
        parts = [aligned_BTd, *(sequences[m] for m in MODALITIES)]
        x_BNd = torch.cat(parts, dim=1)
        mask_BN = torch.cat([aligned_mask_BT, *(masks[m] for m in MODALITIES)], dim=1)
        firsts = [sum(part.shape[1] for part in parts[:i]) for i in range(len(parts))]
        for layer in self.layers[:-1]:
            x_BNd = layer(x_BNd, x_BNd, mask_BN)
        asking_B4d = torch.stack([x_BNd[:, first] for first in firsts], dim=1)
        return self.layers[-1](asking_B4d, x_BNd, mask_BN).flatten(1)


class ConcatFusion(nn.Module):
    """The four first positions as they are: no layers and no parameters."""

    def forward(
        self,
        aligned_BTd: Tensor,
        aligned_mask_BT: Tensor,
        sequences: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        """[B, 4d]: position 0 of H, text, audio and vision."""
        return _first_positions([aligned_BTd, *(sequences[m] for m in MODALITIES)])


def build_fusion(config: ModelConfig) -> nn.Module:
    """The fusion that `config` asks for; all of them are called alike."""
    if config.fusion == "hbf":
        return HierarchicalBottleneckFusion(config)
    return ConcatAttentionFusion(config) if config.fusion == "concat_attention" else ConcatFusion()


def _first_positions(sequences: list[Tensor]) -> Tensor:
    return torch.cat([x_BTd[:, 0] for x_BTd in sequences], dim=-1)
