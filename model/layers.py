"""Attention and the layers built of it; every one respects masks.

Shapes: B clips, T steps of the query, S steps of the source, d model width, I = heads * head width.
Masks are bool, True where the step is real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def attend(query_BTI: Tensor, key_BSI: Tensor, value_BSI: Tensor, mask_BS: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention over the masked-in steps of the source.

    Weights are not dropped out, so that the fused kernels serve training too.

    Returns:
        [B, T, I]; zeros for a clip whose source steps are all masked.
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query_BTI, key_BSI, value_BSI))
    # Softmax over nothing is NaN in some kernels: such a clip attends to all, and the result is dropped.
    some_B = mask_BS.any(dim=1)
    open_BS = mask_BS | ~some_B[:, None]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=open_BS[:, None, None, :])
    return attended.transpose(1, 2).flatten(2) * some_B[:, None, None]


def masked_mean(values_BTd: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean [B, d] over the masked-in steps; zeros for a clip that has none."""
    weight_BT1 = mask_BT[:, :, None].to(values_BTd.dtype)
    return (values_BTd * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1)


class FeedForward(nn.Sequential):
    """Linear(d -> 2d), GELU, Linear(2d -> d)."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class AttentionLayer(nn.Module):
    """Transformer layer, normalised after each residual: self-attention, or cross-attention to a source.

    `x = LN(x + W_o Attention(x, source)); x = LN(x + FFN(x))`, no bias in Q, K and V; dropout on each
    sub-layer's output, as in "Attention Is All You Need", section 5.4.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = FeedForward(dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTd: Tensor, source_BSd: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, T, d]; `mask_BS` is the source's."""
        key, value = self.key_value(source_BSd).chunk(2, dim=-1)
        attended = self.out(attend(self.query(x_BTd), key, value, mask_BS, self.heads))
        x_BTd = self.attention_norm(x_BTd + self.dropout(attended))
        return self.feed_forward_norm(x_BTd + self.dropout(self.feed_forward(x_BTd)))


class SharedQueryAttention(nn.Module):
    """One query, several sources with their own keys and values; the results are added. No biases.

    The form of both the temporal alignment and the bottleneck's reading of the modalities.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, sources: Sequence[str]) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key_value = nn.ModuleDict({s: nn.Linear(dim, 2 * heads * head_dim, bias=False) for s in sources})

    def forward(self, query_BTd: Tensor, sources: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Sum over the sources [B, T, heads * head_dim]; `sources` [B, S, d] and `masks` [B, S] by name."""
        query_BTI = self.query(query_BTd)
        total = None
        for name, project in self.key_value.items():
            key, value = project(sources[name]).chunk(2, dim=-1)
            attended = attend(query_BTI, key, value, masks[name], self.heads)
            total = attended if total is None else total + attended
        return total
