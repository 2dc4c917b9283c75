"""Temporal alignment, by every anchor and by none, against loops over clips and steps."""

from __future__ import annotations

import pytest
import torch

from model.config import MODALITIES, ModelConfig
from model.network.alignment import build_alignment
from model.network.layers import MaskedSequence

STEPS = {"text": 4, "audio": 9, "vision": 6}
ANCHORS = ("text", "audio", "vision", "symmetric", "adaptive")


def make(steps=STEPS, clips=3, dim=8):
    torch.manual_seed(0)
    values = {m: torch.randn(clips, t, dim, dtype=torch.float64, requires_grad=True) for m, t in steps.items()}
    masks = {m: torch.rand(clips, t) > 0.3 for m, t in steps.items()}
    for mask in masks.values():
        mask[:, 0] = True
    return {m: MaskedSequence(values[m], masks[m]) for m in steps}


def build(anchor, dim=8, alignment=True):
    torch.manual_seed(1)
    config = ModelConfig(dim=dim, heads=4, anchor=anchor, alignment=alignment)
    return build_alignment(config).double().eval()


def align(module, *arguments):
    """H and its mask."""
    h = module(*arguments)
    return h.values, h.mask


def plain_anchor(module, step, clip, sequences):
    """One row of H as the equation has it: heads of 32, W_o of the sum over the other modalities."""
    x = sequences[module.anchor].values[clip, step]
    return x + module.out(attended(module, x, clip, sequences))


def attended(module, x, clip, sequences):
    """What a step x of the anchor sees in the other modalities."""
    total = torch.zeros(256, dtype=torch.float64)
    for name, linear in module.attention.key_value.items():
        assert name != module.anchor
        visible = sequences[name].values[clip][sequences[name].mask[clip]]
        key, value = (visible @ weight.T for weight in linear.weight.split(256))
        query = module.attention.query.weight @ x
        for head in range(8):
            part = slice(32 * head, 32 * head + 32)
            total[part] += (key[:, part] @ query[part] / 32**0.5).softmax(0) @ value[:, part]
    return total


@pytest.mark.parametrize("anchor", MODALITIES)
@torch.inference_mode()
def test_one_anchor_is_the_equation_row_by_row(anchor):
    sequences = make()
    module = build(anchor)
    aligned, mask = align(module, sequences, {})
    assert torch.equal(mask, sequences[anchor].mask)
    for clip in range(3):
        for step in range(STEPS[anchor]):
            expected = plain_anchor(module, step, clip, sequences)
            assert (aligned[clip, step] - expected).abs().max() < 1e-12


@torch.inference_mode()
def test_the_symmetric_anchor_is_the_mean_over_the_anchors_that_have_the_step():
    sequences = make()
    module = build("symmetric")
    aligned, mask = align(module, sequences, {})
    assert aligned.shape == (3, 9, 8)
    held = set()
    for clip in range(3):
        for step in range(9):
            having = [m for m in module.anchors if step < STEPS[m.anchor] and sequences[m.anchor].mask[clip, step]]
            held.add(len(having))
            assert mask[clip, step] == bool(having)
            if having:
                rows = [plain_anchor(m, step, clip, sequences) for m in having]
                assert (aligned[clip, step] - sum(rows) / len(rows)).abs().max() < 1e-12
    assert held >= {1, 2, 3} and mask[:, 0].all()
    assert torch.isfinite(aligned).all()


@torch.inference_mode()
def test_the_adaptive_anchor_weighs_the_anchors_by_the_clip():
    sequences = make()
    module = build("adaptive")
    missing = {"vision": torch.tensor([False, True, False])}
    shares = module.anchor_weights(sequences, missing)
    assert torch.allclose(shares.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert shares[1, 2] == 0 and shares[0].min() > 0 and (shares[0] - shares[2]).abs().max() > 1e-4
    aligned, mask = align(module, sequences, missing)
    for clip in range(3):
        for step in range(9):
            rows, weights = [], []
            for share, one in zip(shares[clip], module.anchors, strict=True):
                if share > 0 and step < STEPS[one.anchor] and sequences[one.anchor].mask[clip, step]:
                    rows.append(plain_anchor(one, step, clip, sequences))
                    weights.append(share)
            assert mask[clip, step] == bool(rows)
            if rows:
                expected = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
                assert (aligned[clip, step] - expected).abs().max() < 1e-12


def first_present(anchor, clip, missing):
    order = [anchor, *(m for m in MODALITIES if m != anchor)]
    return next((m for m in order if m not in missing or not missing[m][clip]), anchor)


@pytest.mark.parametrize("alignment", [True, False], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("anchor", MODALITIES)
@torch.inference_mode()
def test_a_clip_without_the_anchor_is_aligned_to_the_first_modality_that_it_has(anchor, alignment):
    sequences = make(clips=8)
    missing = {m: torch.tensor([bool(clip >> i & 1) for clip in range(8)]) for i, m in enumerate(MODALITIES)}
    module = build(anchor, alignment=alignment)
    aligned, mask = align(module, sequences, missing)
    for clip in range(8):
        taken = first_present(anchor, clip, missing)
        steps = STEPS[taken]
        assert torch.equal(mask[clip, :steps], sequences[taken].mask[clip]) and not mask[clip, steps:].any()
        for step in range(steps):
            row = sequences[taken].values[clip, step]
            if alignment:
                row = row + module.out(attended(module, row, clip, sequences))
            assert (aligned[clip, step] - row).abs().max() < 1e-12


@torch.inference_mode()
def test_missing_modalities_have_no_part_in_the_symmetric_anchor():
    sequences = make()
    module = build("symmetric")
    missing = {"text": torch.tensor([True, False, True]), "audio": torch.tensor([False, False, True]),
              "vision": torch.tensor([True, False, True])}  # fmt: skip
    aligned, mask = align(module, sequences, missing)
    alone, alone_mask = align(module.anchors[1], sequences, {})
    assert torch.equal(mask[0], alone_mask[0]) and (aligned[0] - alone[0])[mask[0]].abs().max() < 1e-12
    complete, complete_mask = align(module, sequences, {})
    for clip in (1, 2):  # with all of them, or none at all, each has its part
        assert torch.equal(mask[clip], complete_mask[clip])
        assert (aligned[clip] - complete[clip]).abs().max() < 1e-12


@pytest.mark.parametrize("anchor", MODALITIES)
@torch.inference_mode()
def test_the_weights_are_those_of_the_attention(anchor):
    sequences = make()
    module = build(anchor)
    weights = module.weights(sequences, {})
    assert set(weights) == set(MODALITIES) - {anchor}
    for name, weights_BTS in weights.items():
        assert weights_BTS.shape == (3, STEPS[anchor], STEPS[name])
        assert torch.allclose(weights_BTS.sum(dim=-1), torch.ones(3, STEPS[anchor], dtype=torch.float64))
        assert not weights_BTS[~sequences[name].mask[:, None, :].expand_as(weights_BTS)].any()
        key, query = module.attention.key_value[name].weight[:256], module.attention.query.weight
        seen = sequences[name].mask[1]
        x, visible = sequences[anchor].values[1, 2], sequences[name].values[1][seen]
        scores = ((visible @ key.T).unflatten(1, (8, 32)) * (query @ x).unflatten(0, (8, 32))).sum(-1) / 32**0.5
        assert torch.allclose(weights_BTS[1, 2][seen], scores.softmax(dim=0).mean(dim=1))


@pytest.mark.parametrize("anchor", MODALITIES)
def test_without_alignment_the_anchor_is_as_it_was(anchor):
    sequences = make()
    module = build(anchor, alignment=False)
    aligned, mask = align(module, sequences, {})
    assert torch.equal(aligned, sequences[anchor].values) and torch.equal(mask, sequences[anchor].mask)
    assert not list(module.parameters())


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("steps", [1, 3])
@torch.inference_mode()
def test_the_first_steps_alone_are_those_of_the_whole(anchor, steps):
    sequences = make()
    module = build(anchor)
    (whole, mask), (part, part_mask) = align(module, sequences, {}), align(module, sequences, {}, steps)
    assert (whole[:, :steps] - part).abs().max() < 1e-12
    assert torch.equal(mask[:, :steps], part_mask)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_the_gradient_is_right(anchor):
    sequences = make({"text": 2, "audio": 4, "vision": 3}, clips=2, dim=4)
    module = build(anchor, dim=4)

    def forward(*values):
        changed = {m: MaskedSequence(x, sequences[m].mask) for m, x in zip(MODALITIES, values, strict=True)}
        return module(changed, {}).values

    assert torch.autograd.gradcheck(forward, tuple(sequences[m].values for m in MODALITIES))
