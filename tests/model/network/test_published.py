"""The network of the authors' code against plain twins, layer by layer in float64, clip by clip with its padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.config import MODALITIES, ModelConfig, PaddingConfig, TrainConfig
from model.data.clips import ClipTable
from model.network.base import STREAMS
from model.network.baselines.published import DashFusionPublished, EncoderLayer
from model.network.layers import MaskedSequence
from model.network.registry import build_network, check_network

PADDING = {"audio": 24, "vision": 17}  # more than the clips have
CONFIG = ModelConfig(
    name="dashfusion_published", dim=32, heads=4, bottleneck_tokens=4, normalise=False, padding=PaddingConfig(**PADDING)
)


@pytest.fixture(scope="module")
def clips(dataset) -> ClipTable:
    return ClipTable.read(dataset, "train", CONFIG.max_positions)


def build(clips: ClipTable, config: ModelConfig = CONFIG) -> DashFusionPublished:
    torch.manual_seed(0)
    network = build_network(config, clips.info)
    assert isinstance(network, DashFusionPublished)
    for parameter in network.parameters():  # initial values such as zeros would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.double().eval()


def complete(clips: ClipTable) -> list[int]:
    """The clips that have all modalities: the authors' code has no missing ones."""
    return [row for row in range(len(clips)) if clips.lengths()[row].all()]


def one(clips: ClipTable, *rows: int):
    batch = clips.batch(np.array(rows))
    return replace(batch, values={m: value.double() for m, value in batch.values.items()})


def torch_layer(layer: EncoderLayer, dim: int, heads: int) -> nn.TransformerEncoderLayer:
    """torch's layer, as the authors' code builds it, with the weights of ours."""
    twin = nn.TransformerEncoderLayer(dim, heads, 2 * dim, 0.5, activation="gelu", batch_first=True).double()
    names = {
        "self_attn.in_proj_": "query_key_value.", "self_attn.out_proj.": "out.", "linear1.": "feed_forward.0.",
        "linear2.": "feed_forward.3.", "norm1.": "attention_norm.", "norm2.": "feed_forward_norm.",
    }  # fmt: skip
    ours = layer.state_dict()
    twin.load_state_dict({a + kind: ours[b + kind] for a, b in names.items() for kind in ("weight", "bias")})
    return twin.train(layer.training)


def attention(query, key, value, heads, scale):
    """Plain attention to every step: [T, d], [S, d] -> [T, d]."""
    results = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        results.append((q @ k.T * scale).softmax(dim=-1) @ v)
    return torch.cat(results, dim=-1)


def plain_encoder(network, modality, values, visible):
    """Raw features of one clip [T, D] -> sequence [padding + 1, d] with zeros where nothing was measured, and mean."""
    encoder, padding = network.encoders[modality], PADDING[modality]
    seen = torch.cat([torch.ones(1, dtype=torch.bool), visible, torch.zeros(padding - len(visible), dtype=torch.bool)])
    padded = F.pad(values * visible[:, None], (0, 0, 0, padding - len(values)))
    x = torch.cat([encoder.cls[None], encoder.project(padded)]) + encoder.positions[: padding + 1]
    for layer in encoder.layers:
        x = torch_layer(layer, 32, 4)(x[None], src_key_padding_mask=~seen[None])[0]
    x = encoder.norm(x) * seen[:, None]
    return x, x.sum(dim=0) / seen.sum()


def plain_alignment(network, x):
    """`H = X_t + W_o(CA_a(X_t, X_a) + CA_v(X_t, X_v))` over all steps, padding included."""
    read, query = network.alignment.attention, network.alignment.attention.query(x["text"])
    total = torch.zeros_like(query)
    for m in ("audio", "vision"):
        key, value = read.key_value[m](x[m]).chunk(2, dim=-1)
        total = total + attention(query, key, value, 8, 32**-0.5)
    return x["text"] + network.alignment.out(total)


def plain_layer(layer, x, source):
    """`x + LN(f(x))` twice; logits over the root of the model width; biases; no output projection."""
    key, value = layer.key_value(source).chunk(2, dim=-1)
    x = x + layer.attention_norm(attention(layer.query(x), key, value, 4, 32**-0.5))
    return x + layer.feed_forward_norm(layer.feed_forward(x))


def plain_read(layer, bottleneck, x):
    query, total = layer.read.query(bottleneck), torch.zeros_like(bottleneck)
    for m in MODALITIES:
        key, value = layer.read.key_value[m](x[m]).chunk(2, dim=-1)
        total = total + attention(query, key, value, 4, 8**-0.5)
    bottleneck = layer.read_norm(bottleneck + total)
    return layer.feed_forward_norm(bottleneck + layer.feed_forward(bottleneck))


def plain_fusion_layer(layer, keep, bottleneck, x):
    bottleneck = plain_read(layer, plain_layer(layer.encode, bottleneck, bottleneck)[:keep], x)
    return bottleneck, {m: plain_layer(layer.spread[m], x[m], bottleneck) for m in MODALITIES}


def close(a, b):
    assert a.shape == b.shape and (a - b).abs().max() < 1e-10


@torch.no_grad()
def test_each_layer_equals_the_plain_computation_of_a_clip_by_itself(clips):
    network, rows = build(clips, replace(CONFIG, fusion_layers=3)), complete(clips)[:6]
    assert any(not clips.batch(np.array([row])).masks["vision"].all() for row in rows), "a frame without a face"
    for row in rows:
        batch = one(clips, row)
        sequences, output = network.encode(batch), network(batch)
        x = {"text": network.encoders["text"].project(batch.values["text"][0])}
        pooled = {"text": x["text"].mean(dim=0)}
        for m in PADDING:
            x[m], pooled[m] = plain_encoder(network, m, batch.values[m][0], batch.masks[m][0])
        for m in MODALITIES:
            close(sequences[m].values[0], x[m])
            close(output.embedding.streams[m][0], pooled[m])
        aligned = network.alignment(sequences, {})
        bottleneck = plain_alignment(network, x)
        close(aligned.values[0], bottleneck)
        close(output.embedding.streams["aligned"][0], bottleneck[0])
        for layer, keep in zip(network.fusion.layers, (4, 2, 1), strict=True):
            aligned, sequences = layer(aligned, sequences)
            bottleneck, x = plain_fusion_layer(layer, keep, bottleneck, x)
            close(aligned.values[0], bottleneck)
            for m in MODALITIES:
                close(sequences[m].values[0], x[m])
        first = torch.cat([bottleneck[0], *(x[m][0] for m in MODALITIES)])
        close(output.prediction[0], network.predictor(first)[0])


@torch.no_grad()
def test_a_clip_is_the_same_alone_in_a_batch_and_without_a_modality(clips):
    network = build(clips)
    rows = np.arange(len(clips))
    together = network(one(clips, *rows))
    alone = [network(one(clips, row)) for row in rows]
    close(together.prediction, torch.cat([output.prediction for output in alone]))
    for s in STREAMS:
        close(together.embedding.streams[s], torch.cat([output.embedding.streams[s] for output in alone]))
        assert torch.equal(together.embedding.present[s], torch.cat([o.embedding.present[s] for o in alone]))
    assert not clips.lengths().all(axis=0).any(), "each modality is missing from a clip"


@torch.no_grad()
def test_attention_can_be_shown_and_includes_the_padding(clips):
    network, batch = build(clips), one(clips, complete(clips)[0])
    weights = network.alignment.weights(network.encode(batch), {})
    for m, steps in PADDING.items():
        assert weights[m].shape[2] == steps + 1
        close(weights[m].sum(dim=2), torch.ones(weights[m].shape[:2], dtype=torch.float64))


@torch.no_grad()
def test_padding_counts_and_can_be_masked(clips):
    batch, network = one(clips, complete(clips)[0]), build(clips)
    padded, masked = network(batch).prediction, build(clips, replace(CONFIG, padding=PaddingConfig()))(batch).prediction
    assert (padded - masked).abs() > 1e-4


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_of_the_encoders_is_that_of_torch_with_dropout_of_a_half(training):
    torch.manual_seed(0)
    layer = EncoderLayer(32, 4).double().train(training)
    twin = torch_layer(layer, 32, 4)
    for length in (9, 5, 1):
        x, mask = torch.randn(1, 9, 32, dtype=torch.float64), torch.arange(9)[None] < length
        torch.manual_seed(1)
        expected = twin(x, src_key_padding_mask=~mask)
        torch.manual_seed(1)
        found = layer(x, MaskedSequence(x, mask))
        assert (found - expected)[mask].abs().max() < 1e-12


def test_dropout_and_initial_values_are_those_of_the_authors(clips):
    torch.manual_seed(0)
    network = build_network(CONFIG, clips.info)
    rates = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    expected = {"encoders.audio.dropout": 0.1, "encoders.vision.dropout": 0.1, "alignment.dropout": 0.0}
    expected |= {
        f"encoders.{m}.layers.{i}.{place}": 0.5
        for m in PADDING
        for i in range(2)
        for place in ("dropout", "feed_forward.2")
    }
    assert rates == expected
    for m in PADDING:
        encoder = network.encoders[m]
        assert (encoder.cls == 1).all() and (encoder.positions == 0).all()
        first, second = (layer.state_dict() for layer in encoder.layers)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not encoder.layers[0].query_key_value.bias.any()


@pytest.mark.parametrize("normalise", [False, True])
def test_inputs_are_raw_or_normalised(clips, normalise):
    encoder = build_network(replace(CONFIG, normalise=normalise), clips.info).encoders["audio"]
    statistics = clips.info.statistics["audio"]
    expected = (statistics.mean, statistics.std) if normalise else ((0.0,) * 5, (1.0,) * 5)
    assert torch.allclose(torch.stack([encoder.mean, encoder.std]), torch.tensor(expected))


@pytest.mark.parametrize("option", [{"anchor": "audio"}, {"fusion": "concat"}, {"dropout": 0.2}, {"alignment": False}])
def test_options_that_the_network_does_not_have_are_refused(option):
    with pytest.raises(
        ValueError, match=rf"model\.{next(iter(option))} .*leave it at .*or set model.name to dashfusion"
    ):
        check_network(ModelConfig(name="dashfusion_published", **option), TrainConfig())
