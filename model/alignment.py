"""Temporal alignment: each step of the anchor looks for its moment in the other modalities.

Shapes: B clips, T steps of the anchor (or the first of them), d model width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.layers import SharedQueryAttention

HEADS = 8
HEAD_DIM = 32


class TemporalAlignment(nn.Module):
    """`H = X_t + W_o(CA_a(X_t, X_a) + CA_v(X_t, X_v))`, text's Q shared by both; so for any other anchor.

    DashFusion, section "Dual-stream alignment": 8 heads of 32 whatever the width, no bias in Q, K and V.
    """

    def __init__(self, config: ModelConfig, anchor: str) -> None:
        super().__init__()
        self.anchor = anchor
        others = [m for m in MODALITIES if m != anchor]
        self.attention = SharedQueryAttention(config.dim, HEADS, HEAD_DIM, others)
        self.out = nn.Linear(HEADS * HEAD_DIM, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor], steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """H [B, T, d] and its mask [B, T]: of the anchor's first `steps`, for a step's row needs no other's."""
        anchor_BTd = sequences[self.anchor][:, :steps]
        aligned_BTd = anchor_BTd + self.dropout(self.out(self.attention(anchor_BTd, sequences, masks)))
        return aligned_BTd, masks[self.anchor][:, :steps]


class SymmetricAlignment(nn.Module):
    """Every modality is the anchor once: `H[i] = mean over m of H_m[i]`, over those m that have a step i.

    Each H_m is a TemporalAlignment with weights of its own. H is as long as the longest modality; its first
    position is the mean of three first positions, which always exist.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.anchors = nn.ModuleList(TemporalAlignment(config, m) for m in MODALITIES)

    def forward(
        self, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor], steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """H [B, T, d] and its mask [B, T], of the first `steps`."""
        results = [align(sequences, masks, steps) for align in self.anchors]
        longest = max(mask.shape[1] for _, mask in results)
        total_BTd, count_BT = 0, 0
        for aligned_BSd, mask_BS in results:
            missing = longest - mask_BS.shape[1]
            visible_BSd = aligned_BSd.masked_fill(~mask_BS[:, :, None], 0)
            total_BTd = total_BTd + nn.functional.pad(visible_BSd, (0, 0, 0, missing))
            count_BT = count_BT + nn.functional.pad(mask_BS.to(aligned_BSd.dtype), (0, missing))
        return total_BTd / count_BT.clamp(min=1)[:, :, None], count_BT > 0


class NoAlignment(nn.Module):
    """`H = X_anchor`: what is left when temporal alignment is off."""

    def __init__(self, anchor: str) -> None:
        super().__init__()
        self.anchor = anchor

    def forward(
        self, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor], steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The anchor's sequence [B, T, d] and its mask [B, T], of the first `steps`."""
        return sequences[self.anchor][:, :steps], masks[self.anchor][:, :steps]


def build_alignment(config: ModelConfig) -> nn.Module:
    """The alignment that `config` asks for; all of them are called alike."""
    if not config.alignment:
        return NoAlignment(config.anchor)
    if config.anchor == "symmetric":
        return SymmetricAlignment(config)
    return TemporalAlignment(config, config.anchor)
