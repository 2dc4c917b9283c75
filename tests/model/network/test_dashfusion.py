"""The network in all its variants: masks, order, missing modalities, gradients, precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.config import MODALITIES, ModelConfig
from model.data.batch import Batch
from model.data.clips import ClipTable
from model.network.base import STREAMS
from model.network.dashfusion import DashFusion
from model.training.losses import semantic_loss

SMALL = ModelConfig(dim=32, heads=4, encoder_layers=1, max_positions=64)
VARIANTS = {
    "paper": SMALL,
    "audio anchor": replace(SMALL, anchor="audio"),
    "vision anchor, more layers": replace(
        SMALL, anchor="vision", encoder_layers=2, fusion_layers=3, bottleneck_tokens=16
    ),
    "symmetric": replace(SMALL, anchor="symmetric"),
    "adaptive": replace(SMALL, anchor="adaptive"),
    "no alignment": replace(SMALL, alignment=False),
    "no alignment, audio anchor": replace(SMALL, alignment=False, anchor="audio"),
    "concat_attention": replace(SMALL, fusion="concat_attention"),
    "concat_attention, symmetric": replace(SMALL, fusion="concat_attention", anchor="symmetric"),
    "concat": replace(SMALL, fusion="concat"),
    "concat, no alignment": replace(SMALL, fusion="concat", alignment=False),
}


@pytest.fixture(scope="module")
def clips(dataset):
    return ClipTable.read(dataset, "train", SMALL.max_positions)


@pytest.fixture
def network(clips):
    torch.manual_seed(0)
    return DashFusion(SMALL, clips.info).eval()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request, clips):
    torch.manual_seed(0)
    return DashFusion(request.param, clips.info).eval()


def padded(batch, steps):
    """The same batch with `steps` more of padding in every modality, noise under the mask."""
    values = {m: torch.cat([v, torch.randn(len(v), steps, v.shape[2])], dim=1) for m, v in batch.values.items()}
    masks = {m: torch.cat([k, k.new_zeros(len(k), steps)], dim=1) for m, k in batch.masks.items()}
    return replace(batch, values=values, masks=masks)


def pick(batch, order):
    """The clips of a batch at `order`."""
    return Batch(
        tuple(batch.clip_ids[i] for i in order),
        batch.labels[order],
        batch.unimodal_labels[order],
        {m: v[order] for m, v in batch.values.items()},
        {m: k[order] for m, k in batch.masks.items()},
    )


def aligned_batch(dims, clips=6, steps=9):
    """Every modality at the text's tokens: one length a clip."""
    torch.manual_seed(0)
    mask = torch.arange(steps) < torch.randint(1, steps + 1, (clips, 1))
    values = {m: torch.randn(clips, steps, dims[m].dim) * mask[:, :, None] for m in MODALITIES}
    names = tuple(f"aligned/{i}" for i in range(clips))
    return Batch(names, torch.zeros(clips), torch.zeros(clips, 3), values, dict.fromkeys(MODALITIES, mask))


def every_vector(output):
    streams = torch.cat([output.embedding.streams[s] for s in STREAMS], dim=1)
    return torch.cat([output.prediction[:, None], streams], dim=1)


@torch.inference_mode()
def test_padding_and_neighbours_never_change_a_clip(clips, variant):
    lengths = clips.lengths()
    assert (lengths == 0).sum(0).min() >= 3, "the dataset must hold clips that lack each modality"
    together = every_vector(variant(clips.batch(np.arange(len(clips)))))
    alone = torch.cat([every_vector(variant(clips.batch(np.array([i])))) for i in range(len(clips))])
    assert (together - alone).abs().max() < 1e-5
    assert together[:, 0].std() > 1e-3, "clips must differ, or the comparison says nothing"


@torch.inference_mode()
def test_values_under_the_mask_never_reach_the_output(clips, variant):
    batch = clips.batch(np.arange(len(clips)))
    noise = {
        m: torch.where(batch.masks[m][:, :, None], value, torch.full_like(value, 1e4))
        for m, value in batch.values.items()
    }
    hidden = sum((~mask).sum() for mask in batch.masks.values())
    assert hidden > 100
    spoilt = every_vector(variant(replace(batch, values=noise)))
    assert torch.equal(every_vector(variant(batch)), spoilt)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hidden=st.lists(st.sets(st.sampled_from(MODALITIES)), min_size=5, max_size=5), seed=st.integers(0, 99))
@torch.inference_mode()
def test_a_modality_that_is_masked_out_never_influences_the_prediction(clips, variant, hidden, seed):
    """Each clip of a batch without modalities of its own: whatever stands under the masks, the output is the same."""
    batch = clips.batch(np.arange(8, 13))
    masks = {m: mask.clone() for m, mask in batch.masks.items()}
    noise, rng = {m: value.clone() for m, value in batch.values.items()}, torch.Generator().manual_seed(seed)
    for clip, without in enumerate(hidden):
        for m in without:
            masks[m][clip] = False
            noise[m][clip] = 100 * torch.randn(noise[m][clip].shape, generator=rng)
    masked = replace(batch, masks=masks)
    result = variant(masked)
    assert torch.equal(every_vector(result), every_vector(variant(replace(masked, values=noise))))
    for clip, without in enumerate(hidden):
        shown = [m for m in MODALITIES if m not in without]
        alone = variant(clips.batch(np.array([8 + clip]), shown))
        assert (result.prediction[clip] - alone.prediction).abs() < 1e-5
        assert [bool(result.embedding.present[m][clip]) for m in shown] == [
            bool(batch.masks[m][clip].any()) for m in shown
        ]


@torch.inference_mode()
def test_a_hidden_first_token_never_reaches_the_output(clips, variant):
    """Position 0 is what the prediction and the aligned stream read, so a mask over it needs a stand-in."""
    batch = clips.batch(np.arange(1, 5))
    mask, value = batch.masks["text"].clone(), batch.values["text"].clone()
    mask[:, 0] = False
    hidden = replace(batch, masks={**batch.masks, "text": mask})
    value[:, 0] = 100
    spoilt = replace(hidden, values={**batch.values, "text": value})
    assert torch.equal(every_vector(variant(hidden)), every_vector(variant(spoilt)))
    assert hidden.masks["text"].any(dim=1).all(), "the clips must have further tokens"


@torch.inference_mode()
def test_a_modality_left_out_equals_a_missing_one(clips, variant):
    batch = clips.batch(np.arange(4))
    masked = replace(batch, masks={**batch.masks, "text": torch.zeros_like(batch.masks["text"])})
    left_out = variant(clips.batch(np.arange(4), ("audio", "vision"))).prediction
    assert (variant(masked).prediction - left_out).abs().max() < 1e-6
    assert (variant(batch).prediction - left_out).abs().max() > 1e-4


@torch.inference_mode()
def test_embed_gives_the_embedding_of_the_whole_forward_pass(clips, variant):
    batch = clips.batch(np.arange(8))
    whole, alone = variant(batch).embedding, variant.embed(batch)
    for stream in STREAMS:
        assert (whole.streams[stream] - alone.streams[stream]).abs().max() < 1e-6
        assert torch.equal(whole.present[stream], alone.present[stream])
    assert whole.present["audio"].tolist() == [True, False, True, True, True, True, True, True]


@torch.inference_mode()
def test_aligned_sequences_alone_and_together_are_the_same(clips, variant):
    batch = aligned_batch(clips.info.modalities)
    together = every_vector(variant(batch))
    alone = []
    for i in range(len(batch)):
        steps = int(batch.masks["text"][i].sum())
        clip = pick(batch, [i])
        values = {m: v[:, :steps] for m, v in clip.values.items()}
        masks = {m: k[:, :steps] for m, k in clip.masks.items()}
        alone.append(every_vector(variant(replace(clip, values=values, masks=masks))))
    assert (together - torch.cat(alone)).abs().max() < 1e-5
    assert together[:, 0].std() > 1e-3


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), count=st.integers(1, 8), more=st.integers(0, 40))
@torch.inference_mode()
def test_neither_order_nor_more_padding_changes_a_clip(clips, variant, order, count, more):
    batch = clips.batch(np.arange(8))
    order = order[:count]
    moved = every_vector(variant(padded(pick(batch, order), more)))
    assert (every_vector(variant(batch))[order] - moved).abs().max() < 1e-5


@pytest.mark.parametrize("shown", [(), ("text",), ("audio",), ("vision",), ("text", "vision")])
def test_any_modalities_may_be_missing(clips, variant, shown):
    """In the forward pass and in training: the result is finite, and nothing is learned from what is not there."""
    output = variant(clips.batch(np.arange(7, 14), shown))
    assert torch.isfinite(every_vector(output)).all()
    assert output.embedding.present["aligned"].all()
    assert all(not output.embedding.present[m].any() for m in MODALITIES if m not in shown)
    loss = output.prediction.square().mean() + semantic_loss(output.embedding, 0.5, variant.config.anchor)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in variant.parameters())
    for m in ("audio", "vision"):
        assert variant.encoders[m].project.weight.grad.any() == (m in shown)


@torch.inference_mode()
def test_the_aligned_stream_is_the_anchors_first_position(clips, network):
    batch = clips.batch(np.arange(3, 6))
    for anchor in MODALITIES:
        off = DashFusion(replace(SMALL, anchor=anchor, alignment=False), clips.info).eval()
        off.encoders.load_state_dict(network.encoders.state_dict())
        sequences = off.encode(batch)
        assert torch.equal(off(batch).embedding.streams["aligned"], sequences[anchor].values[:, 0])


def test_the_variants_give_different_predictions(clips):
    batch = clips.batch(np.arange(3, 9))
    seen = []
    for config in VARIANTS.values():
        torch.manual_seed(0)
        with torch.inference_mode():
            seen.append(DashFusion(config, clips.info).eval()(batch).prediction)
    assert torch.pdist(torch.stack(seen)).min() > 1e-3


def test_gradient_reaches_every_parameter(clips, variant):
    batch = clips.batch(np.arange(8))
    assert not batch.masks["text"][0].any(), "clip 0 must lack its text, for the stand-in"
    variant.train()(batch).prediction.pow(2).sum().backward()
    dead = [name for name, p in variant.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@torch.inference_mode()
def test_bfloat16_stays_close_to_float32(clips, variant):
    batch = clips.batch(np.arange(16))
    exact = every_vector(variant(batch))
    with torch.autocast("cpu", torch.bfloat16):
        output = variant(batch)
        semantic = semantic_loss(output.embedding, 0.5)
    rough = every_vector(output)
    assert output.prediction.dtype == semantic.dtype == torch.float32
    assert {vectors.dtype for vectors in output.embedding.streams.values()} == {torch.float32}
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()
    assert (rough - exact).abs().mean() < 0.01 * exact.abs().mean()


def test_compilation_takes_the_network_in_one_graph(clips):
    config = replace(VARIANTS["symmetric"], fusion_layers=1)  # a second layer is the same code, and takes seconds
    network, batch = DashFusion(config, clips.info), clips.batch(np.arange(6))
    found = torch._dynamo.explain(network)(batch)
    torch._dynamo.reset()
    assert found.graph_break_count == 0, [r.reason for r in found.break_reasons]


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


@pytest.mark.parametrize("modality", ["audio", "vision"])
@torch.inference_mode()
def test_an_absent_modality_is_its_stand_in_and_no_cls(clips, network, modality):
    batch = clips.batch(np.arange(3), [m for m in MODALITIES if m != modality])
    before, encoder = network(batch).prediction, network.encoders[modality]
    encoder.cls.mul_(-5)
    assert torch.equal(network(batch).prediction, before)
    encoder.stand_in.mul_(-5)
    assert (network(batch).prediction - before).abs().min() > 1e-6


def test_what_a_batch_lacks_is_known_before_it_goes_to_a_gpu(clips):
    whole, some = clips.batch(np.arange(3, 7)), clips.batch(np.arange(7))
    assert whole.incomplete == frozenset() and whole.missing() == {}
    assert some.incomplete == set(MODALITIES)
    assert [some.missing()[m].tolist().index(True) for m in MODALITIES] == [0, 1, 2]
    there = some.to("meta")  # where nothing can be looked at
    assert there.incomplete == some.incomplete and whole.to("meta").incomplete == frozenset()
    assert whole.to("meta").with_values("text", torch.empty(4, 2, 3, device="meta")).incomplete == frozenset()
    hidden = replace(whole, masks={**whole.masks, "audio": torch.zeros_like(whole.masks["audio"])})
    assert hidden.incomplete == {"audio"}


@torch.inference_mode()
def test_a_clip_without_text_has_a_stand_in_for_its_vector(clips, network):
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
