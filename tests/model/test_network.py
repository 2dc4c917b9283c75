"""The network: masks, shapes, gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.alignment import TemporalAlignment
from model.config import ModelConfig
from model.data import ClipTable
from model.fusion import HierarchicalBottleneckFusion
from model.layers import AttentionLayer, attend, masked_mean
from model.network import STREAMS, DashFusion

SMALL = ModelConfig(dim=32, heads=4, max_positions=64)


@pytest.fixture
def clips(dataset):
    return ClipTable.read(dataset, "train", SMALL.max_positions)


@pytest.fixture
def network(clips):
    torch.manual_seed(0)
    return DashFusion(SMALL, clips.info).eval()


def every_vector(output):
    streams = torch.cat([output.embedding.streams[s] for s in STREAMS], dim=1)
    return torch.cat([output.prediction[:, None], streams], dim=1)


@torch.inference_mode()
def test_padding_and_neighbours_never_change_a_clip(clips, network):
    lengths = clips.lengths()
    assert (lengths == 0).sum(0).min() >= 3, "the dataset must hold clips that lack each modality"
    together = every_vector(network(clips.batch(np.arange(len(clips)))))
    alone = torch.cat([every_vector(network(clips.batch(np.array([i])))) for i in range(len(clips))])
    assert (together - alone).abs().max() < 1e-5
    assert together[:, 0].std() > 1e-3, "clips must differ, or the comparison says nothing"


@torch.inference_mode()
def test_values_under_the_mask_never_reach_the_output(clips, network):
    batch = clips.batch(np.arange(len(clips)))
    noise = {
        m: torch.where(batch.masks[m][:, :, None], value, torch.full_like(value, 1e4))
        for m, value in batch.values.items()
    }
    hidden = sum((~mask).sum() for mask in batch.masks.values())
    assert hidden > 100
    spoilt = every_vector(network(replace(batch, values=noise)))
    assert torch.equal(every_vector(network(batch)), spoilt)


@torch.inference_mode()
def test_a_hidden_first_token_never_reaches_the_output(clips, network):
    """Position 0 is what the prediction and the aligned stream read, so a mask over it needs a stand-in."""
    batch = clips.batch(np.arange(1, 5))
    mask, value = batch.masks["text"].clone(), batch.values["text"].clone()
    mask[:, 0] = False
    hidden = replace(batch, masks={**batch.masks, "text": mask})
    value[:, 0] = 100
    spoilt = replace(hidden, values={**batch.values, "text": value})
    assert torch.equal(every_vector(network(hidden)), every_vector(network(spoilt)))
    assert hidden.masks["text"].any(dim=1).all(), "the clips must have further tokens"


@torch.inference_mode()
def test_a_modality_left_out_equals_a_missing_one(clips, network):
    batch = clips.batch(np.arange(4))
    masked = replace(batch, masks={**batch.masks, "text": torch.zeros_like(batch.masks["text"])})
    left_out = network(clips.batch(np.arange(4), ("audio", "vision"))).prediction
    assert (network(masked).prediction - left_out).abs().max() < 1e-6
    assert (network(batch).prediction - left_out).abs().max() > 1e-4


@torch.inference_mode()
def test_embed_gives_the_embedding_of_the_whole_forward_pass(clips, network):
    batch = clips.batch(np.arange(8))
    whole, alone = network(batch).embedding, network.embed(batch)
    for stream in STREAMS:
        assert (whole.streams[stream] - alone.streams[stream]).abs().max() < 1e-6
        assert torch.equal(whole.present[stream], alone.present[stream])
    assert whole.present["audio"].tolist() == [True, False, True, True, True, True, True, True]


def test_gradient_reaches_every_parameter(clips):
    torch.manual_seed(0)
    network = DashFusion(SMALL, clips.info).train()
    batch = clips.batch(np.arange(8))
    assert not batch.masks["text"][0].any(), "clip 0 must lack its text, for the stand-in"
    network(batch).prediction.pow(2).sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.parametrize(("tokens", "layers", "kept"), [(8, 3, [8, 4, 2]), (4, 4, [4, 2, 1, 1]), (32, 2, [12, 12])])
def test_each_fusion_layer_keeps_half_the_bottleneck_tokens(tokens, layers, kept):
    config = replace(SMALL, bottleneck_tokens=tokens, fusion_layers=layers)
    fusion = HierarchicalBottleneckFusion(config).eval()
    seen = []
    for layer in fusion.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out[0].shape[1]))
    steps = {"text": 12, "audio": 20, "vision": 15}
    sequences = {m: torch.randn(2, t, 32) for m, t in steps.items()}
    masks = {m: torch.ones(2, t, dtype=torch.bool) for m, t in steps.items()}
    assert fusion(torch.randn(2, 12, 32), sequences, masks).shape == (2, 4 * 32)
    assert seen == kept


def plain_fusion(fusion, bottleneck, sequences, masks):
    """HBF as the paper writes it: every token asks in every layer, and then most are dropped."""
    mask = masks["text"]
    for layer in fusion.layers:
        bottleneck = layer.encode(bottleneck, bottleneck, mask)[:, : layer.keep]
        mask = mask[:, : layer.keep]
        bottleneck = layer.read_norm(bottleneck + layer.read(bottleneck, sequences, masks))
        bottleneck = layer.feed_forward_norm(bottleneck + layer.feed_forward(bottleneck))
        sequences = {m: layer.spread[m](x, bottleneck, mask) for m, x in sequences.items()}
    return torch.cat([bottleneck[:, 0], *(x[:, 0] for x in sequences.values())], dim=1)


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.inference_mode()
def test_fusion_equals_its_plain_twin(layers):
    torch.manual_seed(layers)
    fusion = HierarchicalBottleneckFusion(replace(SMALL, fusion_layers=layers)).eval()
    steps = {"text": 12, "audio": 20, "vision": 15}
    sequences = {m: torch.randn(6, t, 32) for m, t in steps.items()}
    masks = {m: torch.arange(t) < torch.randint(1, t + 1, (6, 1)) for m, t in steps.items()}
    aligned = torch.randn(6, 12, 32)
    fused, plain = fusion(aligned, sequences, masks), plain_fusion(fusion, aligned, sequences, masks)
    assert (fused - plain).abs().max() < 1e-5
    assert plain.std(dim=0).min() > 0.1, "clips must differ, or the comparison says nothing"


def multiply_adds(function, *args):
    # The counter knows matrix products, not every fused attention kernel.
    unfused = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with unfused, torch.inference_mode(), FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops() / 2


def test_the_cost_at_the_shapes_of_ch_sims():
    """The paper states 145 M multiply-adds for HBF; the published temporal alignment takes 41.6 M."""
    config = ModelConfig()
    steps = {"text": 39, "audio": 400 + 1, "vision": 55 + 1}  # [CLS] in front of audio and vision
    sequences = {m: torch.randn(1, t, 128) for m, t in steps.items()}
    masks = {m: torch.ones(1, t, dtype=torch.bool) for m, t in steps.items()}
    alignment, fusion = TemporalAlignment(config).eval(), HierarchicalBottleneckFusion(config).eval()
    inputs = (sequences["text"], sequences, masks)
    assert multiply_adds(alignment, *inputs) == pytest.approx(41.6e6, rel=0.01)
    assert multiply_adds(plain_fusion, fusion, *inputs) == pytest.approx(145e6, rel=0.03)
    assert multiply_adds(fusion, *inputs) == pytest.approx(89.1e6, rel=0.01)


def test_attention_to_nothing_gives_zeros_and_no_nan():
    query = torch.randn(2, 3, 8, requires_grad=True)
    source = torch.randn(2, 5, 8, requires_grad=True)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    attended = attend(query, source, source, mask, heads=2)
    attended.sum().backward()
    assert attended[1].abs().max() == 0 and attended[0].abs().min() > 0
    assert torch.isfinite(query.grad).all() and source.grad[0, 2:].abs().max() == 0


def test_attend_is_softmax_of_scaled_products():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 6), torch.randn(1, 4, 6), torch.randn(1, 4, 6)
    mask = torch.tensor([[True, False, True, True]])
    slow = []
    for head in range(2):
        q, k, v = (x[0, :, 3 * head : 3 * head + 3] for x in (query, key, value))
        weights = (q @ k[[0, 2, 3]].T / 3**0.5).softmax(1)
        slow.append(weights @ v[[0, 2, 3]])
    assert torch.allclose(attend(query, key, value, mask, 2)[0], torch.cat(slow, 1), atol=1e-6)


def test_masked_mean_of_a_worked_example():
    values = torch.tensor([[[1.0], [3.0], [100.0]], [[7.0], [7.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(values, mask).tolist() == [[2.0], [0.0]]


def test_audio_is_normalised_by_the_training_statistics(clips, network):
    encoder = network.encoders["audio"]
    seen = []
    encoder.project.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = clips.batch(np.arange(len(clips)))
    network.embed(batch)
    visible = seen[0][batch.masks["audio"]]
    assert visible.mean(0).abs().max() < 1e-4 and (visible.std(0, correction=0) - 1).abs().max() < 1e-3
    assert not seen[0][~batch.masks["audio"]].any()
    assert not any("mean" in name or "std" in name for name in network.state_dict())


@torch.inference_mode()
def test_a_clip_without_text_is_anchored_by_the_stand_in(clips, network):
    embedding = network.embed(clips.batch(np.arange(2)))  # clip 0 has no text
    stand_in = network.encoders["text"].stand_in
    assert torch.allclose(embedding.streams["text"][0], stand_in)
    assert not torch.allclose(embedding.streams["text"][1], stand_in)
    alone = network.embed(clips.batch(np.arange(1)))
    assert torch.allclose(alone.streams["text"][0], stand_in)


def test_a_sequence_longer_than_the_positions_is_refused(clips):
    network = DashFusion(replace(SMALL, max_positions=8), clips.info)
    with pytest.raises(ValueError, match="8 positions"):
        network(clips.batch(np.arange(len(clips))))


def test_a_layer_without_dropout_is_the_transformers_own():
    """Against torch's layer with the same weights (post-norm, GELU, no bias in Q, K and V)."""
    torch.manual_seed(0)
    ours = AttentionLayer(16, 4, 0.0)
    theirs = torch.nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.self_attn.in_proj_bias.zero_()
    theirs.self_attn.out_proj.load_state_dict(ours.out.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())
    x, mask = torch.randn(3, 7, 16), torch.rand(3, 7) > 0.3
    mask[:, 0] = True
    assert (ours(x, x, mask) - theirs(x, src_key_padding_mask=~mask))[mask].abs().max() < 1e-5
