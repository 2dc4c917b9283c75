"""MulT against a plain twin in float64, which computes one clip without padding step by step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import MODALITIES, ModelConfig
from model.data.clips import ClipTable
from model.network.baselines.mult import MulT, Options, PreNormLayer, visible_steps
from model.network.registry import build_network

OPTIONS = {"layers": 2, "text_kernel": 3, "audio_kernel": 4, "vision_kernel": 1}
CONFIG = ModelConfig(name="mult", dim=12, heads=3, max_positions=64, options=OPTIONS)


@pytest.fixture(scope="module")
def clips(dataset) -> ClipTable:
    return ClipTable.read(dataset, "train", CONFIG.max_positions)


def build(clips: ClipTable, **options) -> MulT:
    torch.manual_seed(0)
    network = build_network(replace(CONFIG, options=OPTIONS | options), clips.info)
    assert isinstance(network, MulT)
    for parameter in network.parameters():  # initial values such as zeros would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.double().eval()


def some(clips: ClipTable, *rows: int):
    batch = clips.batch(np.array(rows))
    return replace(batch, values={m: value.double() for m, value in batch.values.items()})


def plain_attention(layer, x, source, later):
    """Each query of each head by itself, to the steps up to `later` after it."""
    dim, heads = x.shape[1], layer.heads
    query, key, value = (
        part @ layer.query_key_value.weight[i * dim : (i + 1) * dim].T
        + layer.query_key_value.bias[i * dim : (i + 1) * dim]
        for i, part in enumerate((layer.attention_norm(x), *2 * [layer.attention_norm(source)]))
    )
    result = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        for step in range(len(x)):
            seen = slice(0, step + later + 1)
            weights = (key[seen, part] @ query[step, part] / math.sqrt(dim // heads)).softmax(0)
            result[step, part] = weights @ value[seen, part]
    return layer.out(result)


def plain_stack(transformer, x, source, later):
    """Cross-attention to the source, or without one self-attention."""
    x, source = (steps if steps is None else plain_embedding(transformer, steps) for steps in (x, source))
    for layer in transformer.layers:
        x = x + plain_attention(layer, x, x if source is None else source, later)
        hidden = torch.relu(layer.feed_forward[0](layer.feed_forward_norm(x)))
        x = x + layer.feed_forward[3](hidden)
    return transformer.norm(x)


def plain_embedding(transformer, x):
    """`sqrt(d) x`, with `sin(t / 10000^(2j/d))` and the cosine beside each other; t from 1."""
    embedded = x * math.sqrt(x.shape[1])
    for step in range(len(x) if transformer.positions else 0):
        for column in range(x.shape[1]):
            angle = (step + 1) / 10000 ** (2 * (column // 2) / x.shape[1])
            embedded[step, column] += math.cos(angle) if column % 2 else math.sin(angle)
    return embedded


def plain_convolution(network, m, values, mask):
    """One step for each window within the clip's real steps; a shorter clip is padded to one window."""
    features, convolution = network.inputs.of[m], network.convolutions[m]
    x = (values[mask] - features.mean) / features.std if mask.any() else features.missing_embedding[None]
    width = convolution.kernel_size[0]
    x = torch.cat([x, x.new_zeros(max(0, width - len(x)), x.shape[1])])
    windows = [x[start : start + width] for start in range(len(x) - width + 1)]
    return torch.stack([torch.einsum("kD,dDk->d", window, convolution.weight) for window in windows])


def plain_prediction(network, values, masks):
    causal = network.options.causal
    x = {m: plain_convolution(network, m, values[m], masks[m]) for m in MODALITIES}
    last = []
    for m in MODALITIES:
        found = []
        for other in MODALITIES:
            if other != m:
                later = abs(len(x[m]) - len(x[other])) if causal else len(x[other])
                found.append(plain_stack(network.crossmodal[f"{m}_{other}"], x[m], x[other], later))
        both = torch.cat(found, dim=1)
        last.append(plain_stack(network.memory[m], both, None, 0 if causal else len(both))[-1])
    last = torch.cat(last)
    hidden = network.hidden[3](torch.relu(network.hidden[0](last)))
    return network.predictor(last + hidden)[0]


@pytest.mark.parametrize("options", [{}, {"causal": False, "positions": False, "layers": 4}])
@torch.no_grad()
def test_each_clip_equals_the_plain_computation(clips, options):
    network, rows = build(clips, **options), [0, 1, 5, 8, 11]
    batch = some(clips, *rows)
    assert not batch.masks["vision"].all(), "a frame without a face"
    assert len(batch.missing()) > 0, "a clip that lacks a modality"
    found = network(batch).prediction
    for row in range(len(rows)):
        values, masks = ({m: x[m][row] for m in MODALITIES} for x in (batch.values, batch.masks))
        assert (found[row] - plain_prediction(network, values, masks)).abs() < 1e-10


@torch.no_grad()
def test_hidden_steps_never_change_a_clip_wherever_they_stand(clips):
    network, batch = build(clips), some(clips, 0)
    expected = network(batch).prediction
    for front, back in ((0, 9), (7, 0), (3, 4)):
        values = {m: torch.nn.functional.pad(x, (0, 0, front, back), value=5.0) for m, x in batch.values.items()}
        masks = {m: torch.nn.functional.pad(x, (front, back)) for m, x in batch.masks.items()}
        assert (network(replace(batch, values=values, masks=masks)).prediction - expected).abs() < 1e-10


def test_a_clip_shorter_than_the_convolution_is_one_step(clips):
    network, batch = build(clips, audio_kernel=9), some(clips, 0)
    few = replace(batch, masks=batch.masks | {"audio": torch.arange(batch.masks["audio"].shape[1])[None] < 5})
    with torch.no_grad():
        sequence = network._convolve("audio", network.inputs(few)["audio"])
    assert sequence.mask.sum() == 1 and sequence.mask[0, 0]


def test_future_steps_are_hidden_by_the_lengths_of_the_clip_alone():
    target, source = torch.tensor([[True] * 3 + [False]]), torch.tensor([[True] * 5 + [False] * 2])
    seen = visible_steps(target, source, causal=True)[0]
    assert seen.sum(dim=1).tolist() == [3, 4, 5, 5]
    assert visible_steps(source, target, causal=True)[0].sum(dim=1).tolist() == [3] * 7
    assert visible_steps(target, target, causal=True)[0].sum(dim=1).tolist() == [1, 2, 3, 3]
    assert visible_steps(target, source, causal=False)[0].sum(dim=1).tolist() == [5] * 4


def test_dropout_of_attention_hides_whole_steps_of_a_head_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = PreNormLayer(8, 2, 0.5, Options()).train()
    values = torch.ones(200, 30, 8)
    dropped = layer._drop(values)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped[..., :4] == dropped[..., :1]).all() and (dropped[..., 4:] == dropped[..., 4:5]).all()
    assert (dropped[..., 0] != dropped[..., 4]).any(), "each head has a mask of its own"
    assert abs(dropped.mean().item() - 1) < 0.05
    assert layer.eval()._drop(values) is values
