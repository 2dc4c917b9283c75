"""Temporal alignment: each step of the anchor looks for its moment in the other modalities.

All alignments are called alike: `sequences` [B, T_m, d] and `masks` [B, T_m] by modality; `absent`: of the modalities
that a clip of the batch lacks, [B] bool, True where it does; `steps`: how many first steps of H are wanted, None for
all, since a step's row needs no other's.

Shapes: B clips, T steps of the anchor (or the first of them), S steps of another modality, M modalities, d model width.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.network.layers import FeedForward, SharedQueryAttention, masked_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADS = 8
HEAD_DIM = 32


class TemporalAlignment(nn.Module):
    """`H = X_t + W_o(CA_a(X_t, X_a) + CA_v(X_t, X_v))`, text's Q shared by both; so for any other anchor.

    DashFusion, section "Dual-stream alignment": 8 heads of 32 whatever the width, no bias in Q, K and V. Of a clip
    that lacks the anchor, the first modality that it has takes its place.
    """

    def __init__(self, config: ModelConfig, anchor: str) -> None:
        super().__init__()
        self.anchor = anchor
        others = [m for m in MODALITIES if m != anchor]
        self.attention = SharedQueryAttention(config.dim, HEADS, HEAD_DIM, others)
        self.out = nn.Linear(HEADS * HEAD_DIM, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        sequences: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        absent: Mapping[str, Tensor],
        steps: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """H [B, T, d] and its mask [B, T]."""
        anchor_BTd, mask_BT = _anchor(self.anchor, sequences, masks, absent, steps)
        aligned_BTd = anchor_BTd + self.dropout(self.out(self.attention(anchor_BTd, sequences, masks)))
        return aligned_BTd, mask_BT

    def weights(
        self, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor], absent: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What each step of H looks at: other modality -> [B, T, S] attention, mean over the heads."""
        anchor_BTd, _ = _anchor(self.anchor, sequences, masks, absent, None)
        return self.attention.weights(anchor_BTd, sequences, masks)


class SymmetricAlignment(nn.Module):
    """Every modality is the anchor once: `H[i] = mean over m of H_m[i]`, over those m that have a step i.

    Each H_m is a TemporalAlignment with weights of its own. H is as long as the longest modality. Modalities that a
    clip lacks have no part in its mean; of a clip without any, all have.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.anchors = nn.ModuleList(TemporalAlignment(config, m) for m in MODALITIES)

    def forward(
        self,
        sequences: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        absent: Mapping[str, Tensor],
        steps: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """H [B, T, d] and its mask [B, T]."""
        results = [align(sequences, masks, {}, steps) for align in self.anchors]
        longest = functools.reduce(torch.sym_max, (mask.shape[1] for _, mask in results))  # which export can follow
        share_BM = self.shares(sequences, masks, absent)
        total_BTd, sum_BT = 0, 0
        for (aligned_BSd, mask_BS), share_B in zip(results, share_BM.unbind(dim=1), strict=True):
            missing = longest - mask_BS.shape[1]
            share_BS = mask_BS * share_B[:, None]
            total_BTd = total_BTd + F.pad(aligned_BSd * share_BS[:, :, None], (0, 0, 0, missing))
            sum_BT = sum_BT + F.pad(share_BS, (0, missing))
        seen_BT = sum_BT > 0
        return total_BTd / sum_BT.where(seen_BT, 1)[:, :, None], seen_BT

    def shares(
        self, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor], absent: Mapping[str, Tensor]
    ) -> Tensor:
        """Weight [B, M] of each modality as the anchor, in the order of `MODALITIES`; of a step, relative to those
        that have it."""
        return _present(sequences["text"], absent).to(sequences["text"].dtype)


class AdaptiveAlignment(SymmetricAlignment):
    """The symmetric one with the shares of the anchors learned: by the clip, from what its modalities hold.

    `share = softmax(FFN(concat of the masked means of X_t, X_a, X_v))`, over the modalities that the clip has: where
    the text is of little use, another can be the anchor.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate = FeedForward(len(MODALITIES) * config.dim, config.dim, len(MODALITIES))

    def shares(
        self, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor], absent: Mapping[str, Tensor]
    ) -> Tensor:
        """Weight [B, M] of each modality as the anchor, summing to 1; see `SymmetricAlignment.shares`."""
        present_BM = _present(sequences["text"], absent)
        pooled = [masked_mean(sequences[m], masks[m]) * present_BM[:, i, None] for i, m in enumerate(MODALITIES)]
        scores_BM = self.gate(torch.cat(pooled, dim=1).to(self.gate[0].weight.dtype))
        return scores_BM.masked_fill(~present_BM, float("-inf")).softmax(dim=1).to(sequences["text"].dtype)


class NoAlignment(nn.Module):
    """`H = X_anchor`, or what takes its place: what is left when temporal alignment is off."""

    def __init__(self, anchor: str) -> None:
        super().__init__()
        self.anchor = anchor

    def forward(
        self,
        sequences: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        absent: Mapping[str, Tensor],
        steps: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The anchor's sequence [B, T, d] and its mask [B, T]."""
        return _anchor(self.anchor, sequences, masks, absent, steps)


def build_alignment(config: ModelConfig) -> nn.Module:
    """The alignment that `config` asks for; all of them are called alike."""
    if not config.alignment:
        return NoAlignment(config.anchor)
    several = {"symmetric": SymmetricAlignment, "adaptive": AdaptiveAlignment}
    if config.anchor in several:
        return several[config.anchor](config)
    return TemporalAlignment(config, config.anchor)


def _anchor(
    anchor: str,
    sequences: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    absent: Mapping[str, Tensor],
    steps: int | None,
) -> tuple[Tensor, Tensor]:
    """The anchor's sequence [B, T, d] and mask [B, T]; of clips that lack it, those of the first modality they have."""
    x_BTd, mask_BT = sequences[anchor][:, :steps], masks[anchor][:, :steps]
    if anchor not in absent:
        return x_BTd, mask_BT
    open_B = absent[anchor]
    for m in MODALITIES:
        if m == anchor:
            continue
        takes_B = open_B & ~absent[m] if m in absent else open_B
        other_BTd, other_mask_BT = sequences[m][:, :steps], masks[m][:, :steps]
        longest = torch.sym_max(mask_BT.shape[1], other_mask_BT.shape[1])
        x_BTd = torch.where(takes_B[:, None, None], _longer(other_BTd, longest), _longer(x_BTd, longest))
        # as `where` chooses, which ONNX's runtime does not have for bool
        taken_BT = takes_B[:, None] & _longer(other_mask_BT, longest)
        mask_BT = taken_BT | (~takes_B[:, None] & _longer(mask_BT, longest))
        open_B = open_B & ~takes_B
    return x_BTd, mask_BT


def _longer(x: Tensor, steps: int) -> Tensor:
    """[B, T, ...] with zeros up to `steps`."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, steps - x.shape[1]))


def _present(like_BTd: Tensor, absent: Mapping[str, Tensor]) -> Tensor:
    """[B, M] bool, True where the clip has the modality; of a clip without any, all True."""
    all_B = torch.ones(like_BTd.shape[0], dtype=torch.bool, device=like_BTd.device)
    present_BM = torch.stack([~absent[m] if m in absent else all_B for m in MODALITIES], dim=1)
    return present_BM | ~present_BM.any(dim=1, keepdim=True)
