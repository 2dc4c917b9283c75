"""Attention in every order of its products against slow loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.network.layers import (
    AttentionLayer,
    MaskedSequence,
    SharedQueryAttention,
    are_few_queries,
    are_few_sources,
    at_least_float32,
    attend,
    attend_to_few,
    attend_unprojected,
    masked_mean,
)

FEW_QUERIES, FEW_SOURCES, ALIKE = (2, 40), (40, 2), (9, 9)


def plain_attention(query, key, value, mask, heads):
    """[T, I] of one clip: a loop over heads and queries, over the visible steps alone."""
    width = query.shape[1] // heads
    rows = []
    for q in query:
        row = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weights = (key[mask][:, part] @ q[part] / width**0.5).softmax(0)
            row.append(weights @ value[mask][:, part])
        rows.append(torch.cat(row))
    return torch.stack(rows)


def make(steps, sources, dim=8, clips=3):
    """Queries, sources, and masks with holes; the last clip's source is hidden."""
    torch.manual_seed(steps * 100 + sources)
    x = torch.randn(clips, steps, dim, dtype=torch.float64, requires_grad=True)
    source = torch.randn(clips, sources, dim, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(clips, sources) > 0.3
    mask[:, -1] = True
    mask[-1] = False
    return x, source, mask


def linear(inputs, outputs, bias=False):
    return nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_every_order_of_the_products_is_the_plain_loop(steps, sources, heads, seed):
    x, source, mask = make(steps, sources)
    torch.manual_seed(seed)
    query, key_value, out = linear(8, 8), linear(8, 16), linear(8, 8, bias=True)
    q, (key, value) = query(x), key_value(source).chunk(2, dim=-1)
    plain = torch.stack([plain_attention(*clip, heads) for clip in zip(q[:-1], key, value, mask, strict=False)])
    direct = attend(q, key, value, mask, heads)
    unprojected = attend_unprojected(q, source, key_value.weight, mask, heads)
    to_few = attend_to_few(x, source, query, key_value, out, mask, heads)
    for result in (direct, unprojected):
        assert (result[:-1] - plain).abs().max() < 1e-12
        assert not result[-1].any(), "attention to nothing is zeros"
    assert (to_few[:-1] - out(plain)).abs().max() < 1e-12
    assert (to_few[-1] - out.bias).abs().max() < 1e-12


@pytest.mark.parametrize(("shape", "queries", "sources"), [(FEW_QUERIES, 1, 0), (FEW_SOURCES, 0, 1), (ALIKE, 0, 0)])
def test_the_cheap_orders_are_taken_where_one_side_is_short(shape, queries, sources):
    assert are_few_queries(*shape, dim=32, inner=32, heads=4) == bool(queries)
    assert are_few_sources(*shape, dim=32, heads=4) == bool(sources)


@pytest.mark.parametrize("steps", range(1, 60, 6))
@pytest.mark.parametrize("sources", range(1, 60, 6))
def test_what_is_taken_multiplies_least(steps, sources):
    """The rules against the products written out one by one."""
    dim, inner, heads = 16, 32, 4
    keys_and_values, both_products = 2 * sources * dim * inner, 2 * steps * sources * inner
    queries_unprojected = 2 * steps * inner * dim + 2 * steps * heads * sources * dim
    assert are_few_queries(steps, sources, dim, inner, heads) == (queries_unprojected < keys_and_values + both_products)
    query_and_out, both_products = 2 * steps * dim * dim, 2 * steps * sources * dim
    sources_projected = 2 * sources * dim * dim + 2 * steps * heads * sources * dim
    assert are_few_sources(steps, sources, dim, heads) == (sources_projected < query_and_out + both_products)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (4, 4)])
def test_attention_layers_have_the_right_gradient(shape):
    x, source, mask = make(*shape, dim=4, clips=2)
    layer = AttentionLayer(4, 2, 0.0).double()
    assert torch.autograd.gradcheck(lambda x, s: layer(x, MaskedSequence(s, mask)), (x, source))


@pytest.mark.parametrize("steps", [1, 6])
def test_attention_to_several_sources_has_the_right_gradient(steps):
    x, first, mask = make(steps, 5, dim=4, clips=2)
    _, second, other_mask = make(steps, 3, dim=4, clips=2)
    attention = SharedQueryAttention(4, 2, 3, ("a", "b")).double()

    def forward(x, a, b):
        return attention(x, {"a": MaskedSequence(a, mask), "b": MaskedSequence(b, other_mask)})

    assert torch.autograd.gradcheck(forward, (x, first, second))


@pytest.mark.parametrize("shape", [FEW_QUERIES, FEW_SOURCES, ALIKE])
def test_attention_to_nothing_has_finite_gradients(shape):
    x, source, mask = make(*shape)
    layer = AttentionLayer(8, 2, 0.0).double()
    layer(x, MaskedSequence(source, mask)).pow(2).sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(source.grad).all()
    assert not source.grad[~mask].any(), "a hidden step must not be learned from"
    assert source.grad[mask].abs().min() > 0


@pytest.mark.parametrize("shape", [FEW_QUERIES, FEW_SOURCES, ALIKE])
def test_a_layer_without_dropout_is_the_transformers_own(shape):
    """Against torch's modules with the same weights (post-norm, GELU, no bias in Q, K and V)."""
    torch.manual_seed(0)
    ours = AttentionLayer(16, 4, 0.0)
    theirs = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.self_attn.in_proj_bias.zero_()
    theirs.self_attn.out_proj.load_state_dict(ours.out.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())
    steps, sources = shape
    x, source, mask = torch.randn(3, steps, 16), torch.randn(3, sources, 16), torch.rand(3, sources) > 0.3
    mask[:, 0] = True
    attended, _ = theirs.self_attn(x, source, source, key_padding_mask=~mask)
    middle = theirs.norm1(x + attended)
    expected = theirs.norm2(middle + theirs.linear2(nn.functional.gelu(theirs.linear1(middle))))
    assert (ours(x, MaskedSequence(source, mask)) - expected).abs().max() < 1e-5


def test_masked_mean_of_a_worked_example():
    values = torch.tensor([[[1.0], [3.0], [100.0]], [[7.0], [7.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(values, mask).tolist() == [[2.0], [0.0]]


def test_a_long_mean_of_half_precision_is_not_summed_in_half_precision():
    values = torch.linspace(0, 1, 3001, dtype=torch.bfloat16)[None, :, None]
    mean = masked_mean(values, torch.ones(1, 3001, dtype=torch.bool))
    assert mean.item() == pytest.approx(values.double().mean().item(), abs=1e-6)
    assert [at_least_float32(torch.zeros(1, dtype=d)).dtype for d in (torch.bfloat16, torch.float64)] == [
        torch.float32,
        torch.float64,
    ]
