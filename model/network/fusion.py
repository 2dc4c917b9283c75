"""Hierarchical bottleneck fusion (HBF), and the two simpler fusions that the paper compares it with.

DashFusion, section "Hierarchical bottleneck fusion": a few bottleneck tokens exchange information between the
modalities. Every fusion takes the aligned sequence H and the modalities' sequences and returns position 0 of each of
the four, so that only the fusion itself differs.

Shapes: B clips, K bottleneck tokens, T steps of a modality or of H, N steps of all four together, d model width.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.network.layers import AttentionLayer, FeedForward, MaskedSequence, SharedQueryAttention

if TYPE_CHECKING:
    from collections.abc import Mapping


class FusionLayer(nn.Module):
    """One HBF layer: shorten the bottleneck, let it read the modalities, let the modalities read it.

    In the `last` layer only position 0 of each modality reads the bottleneck, since no other is used.
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
        self, bottleneck: MaskedSequence, sequences: Mapping[str, MaskedSequence]
    ) -> tuple[MaskedSequence, dict[str, MaskedSequence]]:
        """Return the bottleneck, of at most `keep` tokens, and the modalities after reading it."""
        # A token's result depends on no other query, so dropped tokens are not computed.
        kept = bottleneck.head(self.keep)
        x_BKd = self.encode(kept.values, bottleneck)
        x_BKd = self.read_norm(x_BKd + self.dropout(self.read(x_BKd, sequences)))
        x_BKd = self.feed_forward_norm(x_BKd + self.dropout(self.feed_forward(x_BKd)))
        bottleneck = MaskedSequence(x_BKd, kept.mask)
        readers = {m: sequences[m].head(self.readers) for m in self.spread}
        return bottleneck, {
            m: MaskedSequence(layer(readers[m].values, bottleneck), readers[m].mask) for m, layer in self.spread.items()
        }


class HierarchicalBottleneckFusion(nn.Module):
    """`fusion_layers` HBF layers; layer l keeps `max(1, p / 2^(l-1))` bottleneck tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(config, max(1, config.bottleneck_tokens >> level), last=level == config.fusion_layers - 1)
            for level in range(config.fusion_layers)
        )

    def forward(self, aligned: MaskedSequence, sequences: Mapping[str, MaskedSequence]) -> Tensor:
        """Return position 0 of the bottleneck, text, audio and vision, [B, 4d].

        The bottleneck starts as the aligned sequence; a clip with fewer steps than a layer keeps retains all of them.
        """
        bottleneck = aligned
        for layer in self.layers:
            bottleneck, sequences = layer(bottleneck, sequences)
        return first_positions(bottleneck, sequences)


class ConcatAttentionFusion(nn.Module):
    """H and the modalities concatenated in time, through `fusion_layers` self-attention layers.

    In the last layer only the four positions that are used are queries.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            AttentionLayer(config.dim, config.heads, config.dropout) for _ in range(config.fusion_layers)
        )

    def forward(self, aligned: MaskedSequence, sequences: Mapping[str, MaskedSequence]) -> Tensor:
        """Return the transformed position 0 of H, text, audio and vision, [B, 4d]."""
        parts = [aligned, *(sequences[m] for m in MODALITIES)]
        x_BNd = torch.cat([part.values for part in parts], dim=1)
        mask_BN = torch.cat([part.mask for part in parts], dim=1)
        starts = itertools.accumulate((part.values.shape[1] for part in parts[:-1]), initial=0)
        for layer in self.layers[:-1]:
            x_BNd = layer(x_BNd, MaskedSequence(x_BNd, mask_BN))
        first_B4d = torch.stack([x_BNd[:, start] for start in starts], dim=1)
        fused_B4d: Tensor = self.layers[-1](first_B4d, MaskedSequence(x_BNd, mask_BN))
        return fused_B4d.flatten(1)


class ConcatFusion(nn.Module):
    """The four first positions unchanged, without layers or parameters."""

    def forward(self, aligned: MaskedSequence, sequences: Mapping[str, MaskedSequence]) -> Tensor:
        """Return position 0 of H, text, audio and vision, [B, 4d]."""
        return first_positions(aligned, sequences)


def build_fusion(config: ModelConfig) -> nn.Module:
    """Build the fusion that `config` asks for."""
    if config.fusion == "hbf":
        return HierarchicalBottleneckFusion(config)
    return ConcatAttentionFusion(config) if config.fusion == "concat_attention" else ConcatFusion()


def first_positions(aligned: MaskedSequence, sequences: Mapping[str, MaskedSequence]) -> Tensor:
    """Return position 0 of H, text, audio and vision, [B, 4d]."""
    return torch.cat([x.values[:, 0] for x in (aligned, *(sequences[m] for m in MODALITIES))], dim=-1)
