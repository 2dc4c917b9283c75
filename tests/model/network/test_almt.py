"""ALMT against a plain twin in float64, which computes one clip without padding step by step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.config import MODALITIES, ModelConfig
from model.data.clips import ClipTable
from model.network.baselines.almt import ALMT
from model.network.registry import build_network

OPTIONS = {"tokens": 3, "embedding_layers": 2, "hyper_layers": 3, "head_dim": 5, "hidden": 7}
CONFIG = ModelConfig(name="almt", dim=12, heads=3, fusion_layers=2, max_positions=64, options=OPTIONS)


@pytest.fixture(scope="module")
def clips(dataset) -> ClipTable:
    return ClipTable.read(dataset, "train", CONFIG.max_positions)


@pytest.fixture(scope="module")
def network(clips) -> ALMT:
    torch.manual_seed(0)
    network = build_network(CONFIG, clips.info)
    assert isinstance(network, ALMT)
    for parameter in network.parameters():  # initial values such as zeros would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.double().eval()


def some(clips: ClipTable, *rows: int):
    batch = clips.batch(np.array(rows))
    return replace(batch, values={m: value.double() for m, value in batch.values.items()})


def attention(query, key, value, heads):
    """[T, I], [S, I], [S, I] -> [T, I], each query of each head by itself."""
    width, result = query.shape[1] // heads, torch.zeros_like(query)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for step in range(len(query)):
            weights = (key[:, part] @ query[step, part] / math.sqrt(width)).softmax(0)
            result[step, part] = weights @ value[:, part]
    return result


def plain_layer(layer, x, source):
    query = layer.query(layer.query_norm(x))
    key, value = layer.key(layer.key_norm(source)), layer.value(layer.value_norm(source))
    x = x + layer.out(attention(query, key, value, layer.heads))
    return x + layer.feed_forward[2](F.gelu(layer.feed_forward[0](layer.feed_forward_norm(x))))


def plain_tokens(network, m, values, mask):
    """The learned tokens in front of the clip's real steps, through all layers."""
    features, embedding = network.inputs.of[m], network.embeddings[m]
    x = (values[mask] - features.mean) / features.std if mask.any() else features.missing_embedding[None]
    x = torch.cat([embedding.positions[:3], embedding.project(x) + embedding.positions[3 : 3 + len(x)]])
    for layer in embedding.stack.layers:
        x = plain_layer(layer, x, x)
    return x[:3]


def plain_prediction(network, values, masks):
    tokens = {m: plain_tokens(network, m, values[m], masks[m]) for m in MODALITIES}
    text, hyper = tokens["text"] + network.text_positions, network.hyper
    for number, layer in enumerate(network.hyper_layers):
        if number:
            text = plain_layer(network.text_layers[number - 1], text, text)
        query, read = layer.attention.query(layer.norms["text"](text)), 0
        for m in ("audio", "vision"):
            key, value = layer.attention.key_value[m](layer.norms[m](tokens[m])).chunk(2, dim=1)
            read = read + attention(query, key, value, 3)
        hyper = layer.norms["hyper"](hyper) + layer.out(read)
    source = torch.cat([torch.zeros(1, 12), hyper]) + network.source_positions
    target = torch.cat([torch.zeros(1, 12), text]) + network.target_positions
    for layer in network.fusion.layers:
        target = plain_layer(layer, target, source)
    return network.predictor(target[0])[0]


@torch.no_grad()
def test_each_clip_equals_the_plain_computation(clips, network):
    rows = [0, 1, 5, 8, 11, 12]
    batch = some(clips, *rows)
    assert not batch.masks["vision"].all(), "a frame without a face"
    assert len(batch.missing()) > 0, "a clip that lacks a modality"
    found = network(batch).prediction
    for row in range(len(rows)):
        values, masks = ({m: x[m][row] for m in MODALITIES} for x in (batch.values, batch.masks))
        assert (found[row] - plain_prediction(network, values, masks)).abs() < 1e-10


@torch.no_grad()
def test_hidden_steps_never_change_a_clip_wherever_they_stand(clips, network):
    batch = some(clips, 0)
    expected = network(batch)
    for front, back in ((0, 9), (7, 0), (3, 4)):
        values = {m: F.pad(x, (0, 0, front, back), value=5.0) for m, x in batch.values.items()}
        masks = {m: F.pad(x, (front, back)) for m, x in batch.masks.items()}
        padded = network(replace(batch, values=values, masks=masks))
        assert (padded.prediction - expected.prediction).abs() < 1e-10
        for m in MODALITIES:
            assert (padded.embedding.streams[m] - expected.embedding.streams[m]).abs().max() < 1e-10


def test_a_sequence_beyond_the_positions_is_refused(clips, network):
    batch = some(clips, 0)
    values = {m: F.pad(x, (0, 0, 0, 65)) for m, x in batch.values.items()}
    masks = {m: F.pad(x, (0, 65)) for m, x in batch.masks.items()}
    with pytest.raises(ValueError, match=r"64 positions; read the clips with its model\.max_positions"):
        network(replace(batch, values=values, masks=masks))
