"""Attention and the layers built of it; every one respects masks.

Shapes: B clips, T steps of the query, S steps of the source, d model width, h heads of width e, I = h * e.
Masks are bool, True where the step is real.

Attention between a long and a short sequence is computed in the order that multiplies least. The products
W_q, W_k, W_v and W_o are linear, so each may be applied to the short side instead of to the long one:

- few queries (`attend_unprojected`): `q . (W_k x) = (W_k^T q) . x`, and the sum over s of
  `a_s W_v x_s = W_v (sum over s of a_s x_s)`: the source itself is attended to, no step of it is projected;
- few source steps (`attend_to_few`): `(W_q x) . k = x . (W_q^T k)` and
  `W_o (sum over s of a_s v_s) = sum over s of a_s (W_o v_s)`: no query is projected, and no result.

Both give what `attend` gives, but for rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def attend(query_BTI: Tensor, key_BSI: Tensor, value_BSI: Tensor, mask_BS: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention over the masked-in steps of the source.

    Weights are not dropped out, so that the fused kernels serve training too.

    Returns:
        [B, T, I]; zeros for a clip whose source steps are all masked.
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query_BTI, key_BSI, value_BSI))
    open_BS, some_B = _open(mask_BS)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=open_BS[:, None, None, :])
    return attended.transpose(1, 2).flatten(2) * some_B[:, None, None]


def attend_unprojected(
    query_BTI: Tensor, source_BSd: Tensor, key_value: nn.Linear, mask_BS: Tensor, heads: int
) -> Tensor:
    """`attend` to keys and values that `key_value` would make of the source, for few queries."""
    key_hed, value_hed = key_value.weight.unflatten(0, (2, heads, -1))
    query_BThd = torch.einsum("bthe,hed->bthd", query_BTI.unflatten(-1, (heads, -1)), key_hed)
    source = source_BSd.to(query_BThd.dtype)[:, None]
    open_BS, some_B = _open(mask_BS)
    # Every head of every query asks the same source: one head, T * h queries.
    mean = F.scaled_dot_product_attention(
        query_BThd.flatten(1, 2)[:, None],
        source,
        source,
        attn_mask=open_BS[:, None, None, :],
        scale=key_hed.shape[1] ** -0.5,
    )
    attended = torch.einsum("bthd,hed->bthe", mean[:, 0].unflatten(1, (-1, heads)), value_hed)
    return attended.flatten(2) * some_B[:, None, None]


def attend_to_few(
    x_BTd: Tensor,
    source_BSd: Tensor,
    query: nn.Linear,
    key_value: nn.Linear,
    out: nn.Linear,
    mask_BS: Tensor,
    heads: int,
) -> Tensor:
    """`out(attend(query(x), ...))` [B, T, d] for a source of few steps."""
    key_BShe, value_BShe = key_value(source_BSd).unflatten(-1, (2, heads, -1)).unbind(2)
    query_hed = query.weight.unflatten(0, (heads, -1)) * key_BShe.shape[-1] ** -0.5
    key = torch.einsum("bshe,hed->bhsd", key_BShe, query_hed).flatten(1, 2)
    value = torch.einsum("bshe,dhe->bhsd", value_BShe, out.weight.unflatten(1, (heads, -1))).flatten(1, 2)
    open_BS, some_B = _open(mask_BS)
    hidden_BN = ~open_BS.repeat(1, heads)  # N = h * S
    scores_BTN = (x_BTd @ key.mT).masked_fill(hidden_BN[:, None, :], float("-inf"))
    weights_BTN = scores_BTN.unflatten(-1, (heads, -1)).softmax(dim=-1).flatten(2)
    return (weights_BTN @ value) * some_B[:, None, None] + out.bias


def _open(mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Steps to attend to, and which clips have any [B].

    Softmax over nothing is NaN in some kernels: a clip without steps attends to all, and the result is dropped.
    """
    some_B = mask_BS.any(dim=1)
    return mask_BS | ~some_B[:, None], some_B


def are_few_queries(steps: int, source_steps: int, dim: int, inner: int, heads: int) -> bool:
    """Whether `attend_unprojected` multiplies less than keys, values and `attend` do: T, S, d, I and h.

    A graph that is exported for any lengths has one order for all of them.
    """
    return not torch.compiler.is_exporting() and steps * dim * (inner + heads * source_steps) < source_steps * inner * (
        dim + steps
    )


def are_few_sources(steps: int, source_steps: int, dim: int, heads: int) -> bool:
    """Whether `attend_to_few` multiplies less than queries, `attend` and output do: T, S, d = I and h.

    Never in a graph that is exported, as above.
    """
    return not torch.compiler.is_exporting() and source_steps * (dim + steps * heads) < steps * (dim + source_steps)


def _read(query_BTI: Tensor, source_BSd: Tensor, key_value: nn.Linear, mask_BS: Tensor, heads: int) -> Tensor:
    """Attention [B, T, I] to keys and values of the source, in the order that multiplies less."""
    (_, steps, inner), (_, source_steps, dim) = query_BTI.shape, source_BSd.shape
    if are_few_queries(steps, source_steps, dim, inner, heads):
        return attend_unprojected(query_BTI, source_BSd, key_value, mask_BS, heads)
    key, value = key_value(source_BSd).chunk(2, dim=-1)
    return attend(query_BTI, key, value, mask_BS, heads)


def masked_mean(values_BTd: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean [B, d] over the masked-in steps, in float32 at least; zeros for a clip that has none."""
    values_BTd = at_least_float32(values_BTd)
    weight_BT1 = mask_BT[:, :, None].to(values_BTd.dtype)
    return (values_BTd * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class FeedForward(nn.Sequential):
    """Linear(d -> hidden), GELU, Linear(hidden -> out); 2d and d where nothing else is said."""

    def __init__(self, dim: int, hidden: int | None = None, out: int | None = None) -> None:
        super().__init__(nn.Linear(dim, hidden or 2 * dim), nn.GELU(), nn.Linear(hidden or 2 * dim, out or dim))


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
        attended = self.attend(x_BTd, source_BSd, mask_BS)
        x_BTd = self.attention_norm(x_BTd + self.dropout(attended))
        return self.feed_forward_norm(x_BTd + self.dropout(self.feed_forward(x_BTd)))

    def attend(self, x_BTd: Tensor, source_BSd: Tensor, mask_BS: Tensor) -> Tensor:
        """`W_o Attention(x, source)` [B, T, d]."""
        if are_few_sources(x_BTd.shape[1], source_BSd.shape[1], x_BTd.shape[2], self.heads):
            return attend_to_few(x_BTd, source_BSd, self.query, self.key_value, self.out, mask_BS, self.heads)
        return self.out(_read(self.query(x_BTd), source_BSd, self.key_value, mask_BS, self.heads))


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
            attended = _read(query_BTI, sources[name], project, masks[name], self.heads)
            total = attended if total is None else total + attended
        return total

    def weights(
        self, query_BTd: Tensor, sources: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Source -> its attention [B, T, S], mean over the heads, for looking at: `forward` never has it whole."""
        query_BhTe = self.query(query_BTd).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        found = {}
        for name, project in self.key_value.items():
            key_BhSe = project(sources[name]).chunk(2, dim=-1)[0].unflatten(-1, (self.heads, -1)).transpose(1, 2)
            open_BS, some_B = _open(masks[name])
            scores_BhTS = query_BhTe @ key_BhSe.mT * key_BhSe.shape[-1] ** -0.5
            weights_BhTS = scores_BhTS.masked_fill(~open_BS[:, None, None, :], float("-inf")).softmax(dim=-1)
            found[name] = weights_BhTS.mean(dim=1) * some_B[:, None, None]
        return found
