"""Masked attention and the layers built from it.

Shapes: B clips, T query steps, S source steps, d model width, h heads of width e, I = h * e, N = h * S. Masks are bool,
True where a step is real; masked-out steps never influence a result.

The projections W_q, W_k, W_v and W_o are linear, so attention between a long and a short sequence may apply them to
either side. Besides `attend`, which projects both sides, two orders multiply less and agree with it up to rounding:

- few queries (`attend_unprojected`): `q . (W_k x) = (W_k^T q) . x` and `sum_s a_s W_v x_s = W_v (sum_s a_s x_s)`, so
  the source is attended to without projecting any of its steps;
- few source steps (`attend_to_few`): `(W_q x) . k = x . (W_q^T k)` and `W_o (sum_s a_s v_s) = sum_s a_s (W_o v_s)`, so
  neither the queries nor the results are projected.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class MaskedSequence:
    """A batch of padded sequences.

    Attributes:
        values: [B, T, d].
        mask: [B, T] bool, True where a step is real.
    """

    values: Tensor
    mask: Tensor

    def head(self, steps: int | None) -> MaskedSequence:
        """Return the first `steps` steps; None: all of them."""
        return MaskedSequence(self.values[:, :steps], self.mask[:, :steps])


def attend(query_BTI: Tensor, key_BSI: Tensor, value_BSI: Tensor, mask_BS: Tensor, heads: int) -> Tensor:
    """Compute scaled dot-product attention over the real steps of the source.

    There is no dropout on the attention weights, so that the fused kernels serve training too.

    Returns:
        [B, T, I]; zeros for a clip whose source steps are all masked.
    """
    attended_BS, any_B = _attended_steps(mask_BS)
    return attend_visible(query_BTI, key_BSI, value_BSI, attended_BS[:, None], heads) * any_B[:, None, None]


def attend_visible(query_BTI: Tensor, key_BSI: Tensor, value_BSI: Tensor, visible_BTS: Tensor, heads: int) -> Tensor:
    """Compute `attend` [B, T, I] where each query may have a mask of its own.

    Args:
        query_BTI: queries.
        key_BSI: keys.
        value_BSI: values.
        visible_BTS: bool, True where a query attends to a step, at least one for each query; [B, 1, S] for all alike.
        heads: h.
    """
    query, key, value = (_split_heads(x, heads).transpose(1, 2) for x in (query_BTI, key_BSI, value_BSI))
    result_BhTe = F.scaled_dot_product_attention(query, key, value, attn_mask=visible_BTS[:, None])
    return result_BhTe.transpose(1, 2).flatten(2)


def attend_unprojected(query_BTI: Tensor, source_BSd: Tensor, key_value: Tensor, mask_BS: Tensor, heads: int) -> Tensor:
    """Compute `attend` to the projected source without projecting it, for few queries.

    Args:
        query_BTI: queries.
        source_BSd: the source.
        key_value: [2I, d], the weights of the keys, then those of the values.
        mask_BS: bool, True where a step is real.
        heads: h.
    """
    key_hed, value_hed = torch.unflatten(key_value, 0, (2, heads, -1))
    query_BThd = torch.einsum("bthe,hed->bthd", _split_heads(query_BTI, heads), key_hed)
    source = source_BSd.to(query_BThd.dtype)[:, None]
    attended_BS, any_B = _attended_steps(mask_BS)
    # All heads attend to the same source, so they become T * h queries of a single head.
    mean = F.scaled_dot_product_attention(
        query_BThd.flatten(1, 2)[:, None],
        source,
        source,
        attn_mask=attended_BS[:, None, None, :],
        scale=key_hed.shape[1] ** -0.5,
    )
    mean_BThd = torch.unflatten(mean[:, 0], 1, (-1, heads))
    return torch.einsum("bthd,hed->bthe", mean_BThd, value_hed).flatten(2) * any_B[:, None, None]


def attend_to_few(
    x_BTd: Tensor,
    source_BSd: Tensor,
    query: nn.Linear,
    key_value: nn.Linear,
    out: nn.Linear,
    mask_BS: Tensor,
    heads: int,
) -> Tensor:
    """Compute `out(attend(query(x), ...))` [B, T, d] for a source of few steps."""
    key_BShe, value_BShe = torch.unflatten(key_value(source_BSd), -1, (2, heads, -1)).unbind(2)
    query_hed = torch.unflatten(query.weight, 0, (heads, -1)) * key_BShe.shape[-1] ** -0.5
    key_BNd = torch.einsum("bshe,hed->bhsd", key_BShe, query_hed).flatten(1, 2)
    value_BNd = torch.einsum("bshe,dhe->bhsd", value_BShe, _split_heads(out.weight, heads)).flatten(1, 2)
    attended_BS, any_B = _attended_steps(mask_BS)
    hidden_BN = ~attended_BS.repeat(1, heads)
    scores_BTN = (x_BTd @ key_BNd.mT).masked_fill(hidden_BN[:, None, :], float("-inf"))
    weights_BTN = _split_heads(scores_BTN, heads).softmax(dim=-1).flatten(2)
    return (weights_BTN @ value_BNd) * any_B[:, None, None] + out.bias


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape [..., h * e] to [..., h, e]."""
    return torch.unflatten(x, -1, (heads, -1))


def _attended_steps(mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Return the steps to attend to [B, S] and which clips have a real step [B].

    Softmax over no steps is NaN in some kernels, so a clip without real steps attends to all; callers zero its result.
    """
    any_B = mask_BS.any(dim=1)
    return mask_BS | ~any_B[:, None], any_B


def are_few_queries(steps: int, source_steps: int, dim: int, inner: int, heads: int) -> bool:
    """Return whether `attend_unprojected` multiplies less than key and value projections plus `attend`.

    Args:
        steps: T.
        source_steps: S.
        dim: d.
        inner: I.
        heads: h.

    Returns:
        False during export: an exported graph has dynamic lengths but one order of products.
    """
    return not torch.compiler.is_exporting() and steps * dim * (inner + heads * source_steps) < source_steps * inner * (
        dim + steps
    )


def are_few_sources(steps: int, source_steps: int, dim: int, heads: int) -> bool:
    """Return whether `attend_to_few` multiplies less than query and output projections plus `attend`.

    Args:
        steps: T.
        source_steps: S.
        dim: d, which equals I here.
        heads: h.

    Returns:
        False during export, as `are_few_queries` does.
    """
    return not torch.compiler.is_exporting() and source_steps * (dim + steps * heads) < steps * (dim + source_steps)


def project_and_attend(query_BTI: Tensor, source: MaskedSequence, key_value: Tensor, heads: int) -> Tensor:
    """Attend [B, T, I] to the source projected by `key_value` [2I, d], in the order that multiplies less."""
    (_, steps, inner), (_, source_steps, dim) = query_BTI.shape, source.values.shape
    if are_few_queries(steps, source_steps, dim, inner, heads):
        return attend_unprojected(query_BTI, source.values, key_value, source.mask, heads)
    key_BSI, value_BSI = F.linear(source.values, key_value).chunk(2, dim=-1)
    return attend(query_BTI, key_BSI, value_BSI, source.mask, heads)


def masked_mean(values_BTd: Tensor, mask_BT: Tensor) -> Tensor:
    """Average over the real steps, [B, d] in at least float32; zeros for a clip without any."""
    values_BTd = at_least_float32(values_BTd)
    weight_BT1 = mask_BT[:, :, None].to(values_BTd.dtype)
    return (values_BTd * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class FeedForward(nn.Sequential):
    """Linear(dim -> hidden), GELU, Linear(hidden -> out); by default hidden = 2 * dim and out = dim."""

    def __init__(self, dim: int, hidden: int | None = None, out: int | None = None) -> None:
        super().__init__(nn.Linear(dim, hidden or 2 * dim), nn.GELU(), nn.Linear(hidden or 2 * dim, out or dim))


class AttentionLayer(nn.Module):
    """Post-norm Transformer layer: self-attention, or cross-attention to a source.

    `x = LN(x + W_o Attention(x, source)); x = LN(x + FFN(x))`, without biases in Q, K and V, and with dropout on the
    output of each sub-layer ("Attention Is All You Need", section 5.4).
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

    def forward(self, x_BTd: Tensor, source: MaskedSequence) -> Tensor:
        """Return [B, T, d]."""
        x_BTd = self.attention_norm(x_BTd + self.dropout(self.attend(x_BTd, source)))
        result_BTd: Tensor = self.feed_forward_norm(x_BTd + self.dropout(self.feed_forward(x_BTd)))
        return result_BTd

    def attend(self, x_BTd: Tensor, source: MaskedSequence) -> Tensor:
        """Compute `W_o Attention(x, source)` [B, T, d]."""
        if are_few_sources(x_BTd.shape[1], source.values.shape[1], x_BTd.shape[2], self.heads):
            return attend_to_few(x_BTd, source.values, self.query, self.key_value, self.out, source.mask, self.heads)
        attended_BTd: Tensor = self.out(
            project_and_attend(self.query(x_BTd), source, self.key_value.weight, self.heads)
        )
        return attended_BTd


class SharedQueryAttention(nn.Module):
    """Attention of one query to several sources with their own keys and values, summed; no biases.

    Used by temporal alignment and by the bottleneck's reading of the modalities.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, sources: Iterable[str]) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key_value = nn.ModuleDict({s: nn.Linear(dim, 2 * heads * head_dim, bias=False) for s in sources})

    def forward(self, query_BTd: Tensor, sources: Mapping[str, MaskedSequence]) -> Tensor:
        """Return the sum over the sources [B, T, heads * head_dim]."""
        query_BTI = self.query(query_BTd)
        results = []
        for name, project in self.key_value.items():
            assert isinstance(project, nn.Linear)
            results.append(project_and_attend(query_BTI, sources[name], project.weight, self.heads))
        return functools.reduce(torch.add, results)

    def weights(self, query_BTd: Tensor, sources: Mapping[str, MaskedSequence]) -> dict[str, Tensor]:
        """Return source -> attention weights [B, T, S], averaged over the heads; for inspection only."""
        query_BhTe = _split_heads(self.query(query_BTd), self.heads).transpose(1, 2)
        weights = {}
        for name, project in self.key_value.items():
            key_BhSe = _split_heads(project(sources[name].values).chunk(2, dim=-1)[0], self.heads).transpose(1, 2)
            attended_BS, any_B = _attended_steps(sources[name].mask)
            scores_BhTS = query_BhTe @ key_BhSe.mT * key_BhSe.shape[-1] ** -0.5
            weights_BhTS = scores_BhTS.masked_fill(~attended_BS[:, None, None, :], float("-inf")).softmax(dim=-1)
            weights[name] = weights_BhTS.mean(dim=1) * any_B[:, None, None]
        return weights
