"""Temporal alignment: each step of the anchor modality attends to the other modalities.

DashFusion, section "Dual-stream alignment". All alignments share one call signature:

- `sequences`: modality -> its sequence;
- `missing`: modality -> [B] bool, True where the clip lacks it; only modalities that some clip of the batch lacks;
- `steps`: how many leading steps of H to compute, None for all. A row of H depends on no other row.

Shapes: B clips, T steps of the anchor (or of its head), S steps of another modality, M modalities, d model width.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.network.layers import FeedForward, MaskedSequence, SharedQueryAttention, masked_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADS = 8
HEAD_DIM = 32


class TemporalAlignment(nn.Module):
    """`H = X_t + W_o(CA_a(X_t, X_a) + CA_v(X_t, X_v))` with one Q for both; analogously for the other anchors.

    8 heads of 32 at any model width, without biases in Q, K and V. In a clip that lacks the anchor, the first modality
    that it has is the anchor.
    """

    def __init__(self, config: ModelConfig, anchor: str) -> None:
        super().__init__()
        self.anchor = anchor
        others = [m for m in MODALITIES if m != anchor]
        self.attention = SharedQueryAttention(config.dim, HEADS, HEAD_DIM, others)
        self.out = nn.Linear(HEADS * HEAD_DIM, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, sequences: Mapping[str, MaskedSequence], missing: Mapping[str, Tensor], steps: int | None = None
    ) -> MaskedSequence:
        """Return H."""
        anchor = _anchor_sequence(self.anchor, sequences, missing, steps)
        aligned_BTd = anchor.values + self.dropout(self.out(self.attention(anchor.values, sequences)))
        return MaskedSequence(aligned_BTd, anchor.mask)

    def weights(self, sequences: Mapping[str, MaskedSequence], missing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return other modality -> attention weights [B, T, S] of the steps of H, averaged over the heads."""
        return self.attention.weights(_anchor_sequence(self.anchor, sequences, missing, None).values, sequences)


class SymmetricAlignment(nn.Module):
    """Every modality is the anchor once: `H[i] = mean over m of H_m[i]`, over the modalities that have a step i.

    Each H_m is a `TemporalAlignment` with its own weights; H is as long as the longest modality. Modalities that a clip
    lacks are left out of its mean, unless it lacks all of them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.anchors = nn.ModuleList(TemporalAlignment(config, m) for m in MODALITIES)

    def forward(
        self, sequences: Mapping[str, MaskedSequence], missing: Mapping[str, Tensor], steps: int | None = None
    ) -> MaskedSequence:
        """Return H."""
        aligned: list[MaskedSequence] = [align(sequences, {}, steps) for align in self.anchors]
        longest = functools.reduce(max_length, (h.mask.shape[1] for h in aligned))
        weights, terms = [], []
        for h, weight_B in zip(aligned, self.anchor_weights(sequences, missing).unbind(dim=1), strict=True):
            weight_BS = h.mask * weight_B[:, None]
            weights.append(pad_steps(weight_BS, longest))
            terms.append(pad_steps(h.values * weight_BS[:, :, None], longest))
        weight_BT = functools.reduce(torch.add, weights)
        mask_BT = weight_BT > 0
        return MaskedSequence(functools.reduce(torch.add, terms) / weight_BT.where(mask_BT, 1)[:, :, None], mask_BT)

    def anchor_weights(self, sequences: Mapping[str, MaskedSequence], missing: Mapping[str, Tensor]) -> Tensor:
        """Return the weight [B, M] of each modality as the anchor, in the order of `MODALITIES`.

        At each step the weights are normalised over the modalities that have the step.
        """
        text_BTd = sequences["text"].values
        return _present(text_BTd, missing).to(text_BTd.dtype)


class AdaptiveAlignment(SymmetricAlignment):
    """`SymmetricAlignment` with anchor weights predicted from the clip.

    `weights = softmax(FFN(concat of the masked means of X_t, X_a, X_v))` over the modalities that the clip has: where
    the text says little, another modality can be the anchor.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate = FeedForward(len(MODALITIES) * config.dim, config.dim, len(MODALITIES))

    def anchor_weights(self, sequences: Mapping[str, MaskedSequence], missing: Mapping[str, Tensor]) -> Tensor:
        """Return the weight [B, M] of each modality as the anchor; each row sums to 1."""
        text_BTd = sequences["text"].values
        present_BM = _present(text_BTd, missing)
        means = [
            masked_mean(sequences[m].values, sequences[m].mask) * present_BM[:, i, None]
            for i, m in enumerate(MODALITIES)
        ]
        scores_BM: Tensor = self.gate(torch.cat(means, dim=1).to(next(self.gate.parameters()).dtype))
        return scores_BM.masked_fill(~present_BM, float("-inf")).softmax(dim=1).to(text_BTd.dtype)


class NoAlignment(nn.Module):
    """`H = X_anchor`: temporal alignment switched off."""

    def __init__(self, anchor: str) -> None:
        super().__init__()
        self.anchor = anchor

    def forward(
        self, sequences: Mapping[str, MaskedSequence], missing: Mapping[str, Tensor], steps: int | None = None
    ) -> MaskedSequence:
        """Return the anchor's sequence."""
        return _anchor_sequence(self.anchor, sequences, missing, steps)


def build_alignment(config: ModelConfig) -> nn.Module:
    """Build the alignment that `config` asks for."""
    if not config.alignment:
        return NoAlignment(config.anchor)
    several = {"symmetric": SymmetricAlignment, "adaptive": AdaptiveAlignment}
    if config.anchor in several:
        return several[config.anchor](config)
    return TemporalAlignment(config, config.anchor)


def _anchor_sequence(
    anchor: str, sequences: Mapping[str, MaskedSequence], missing: Mapping[str, Tensor], steps: int | None
) -> MaskedSequence:
    """Return the anchor's sequence; in clips that lack it, that of the first modality that they have."""
    result = sequences[anchor].head(steps)
    if anchor not in missing:
        return result
    unfilled_B = missing[anchor]
    for m in MODALITIES:
        if m == anchor or m not in sequences:
            continue
        fill_B = unfilled_B & ~missing[m] if m in missing else unfilled_B
        other = sequences[m].head(steps)
        longest = max_length(result.mask.shape[1], other.mask.shape[1])
        values_BTd = torch.where(
            fill_B[:, None, None], pad_steps(other.values, longest), pad_steps(result.values, longest)
        )
        # Logic in place of `where`, which ONNX Runtime does not implement for bool
        filled_BT = fill_B[:, None] & pad_steps(other.mask, longest)
        mask_BT = filled_BT | (~fill_B[:, None] & pad_steps(result.mask, longest))
        result = MaskedSequence(values_BTd, mask_BT)
        unfilled_B = unfilled_B & ~fill_B
    return result


def max_length(a: int, b: int) -> int:
    """Return the greater length; unlike `max`, torch.export can trace it."""
    longest: int = torch.sym_max(a, b)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return longest


def pad_steps(x: Tensor, steps: int) -> Tensor:
    """Pad [B, T, ...] with zeros to [B, steps, ...]."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, steps - x.shape[1]))


def _present(like_BTd: Tensor, missing: Mapping[str, Tensor]) -> Tensor:
    """Return [B, M] bool, True where the clip has the modality; all True for a clip without any."""
    all_B = torch.ones(like_BTd.shape[0], dtype=torch.bool, device=like_BTd.device)
    present_BM = torch.stack([~missing[m] if m in missing else all_B for m in MODALITIES], dim=1)
    return present_BM | ~present_BM.any(dim=1, keepdim=True)
