"""Temporal alignment, by every anchor and by none, against loops over clips and steps."""

from __future__ import annotations

import pytest
import torch

from model.alignment import build_alignment
from model.config import MODALITIES, ModelConfig

STEPS = {"text": 4, "audio": 9, "vision": 6}
ANCHORS = ("text", "audio", "vision", "symmetric")


def make(steps=STEPS, clips=3, dim=8):
    torch.manual_seed(0)
    sequences = {m: torch.randn(clips, t, dim, dtype=torch.float64, requires_grad=True) for m, t in steps.items()}
    masks = {m: torch.rand(clips, t) > 0.3 for m, t in steps.items()}
    for mask in masks.values():
        mask[:, 0] = True
    return sequences, masks


def build(anchor, dim=8, alignment=True):
    torch.manual_seed(1)
    config = ModelConfig(dim=dim, heads=4, anchor=anchor, alignment=alignment)
    return build_alignment(config).double().eval()


def plain_anchor(module, step, clip, sequences, masks):
    """One row of H as the equation has it: heads of 32, W_o of the sum over the other modalities."""
    x = sequences[module.anchor][clip, step]
    total = torch.zeros(256, dtype=torch.float64)
    for name, linear in module.attention.key_value.items():
        assert name != module.anchor
        visible = sequences[name][clip][masks[name][clip]]
        key, value = (visible @ weight.T for weight in linear.weight.split(256))
        query = module.attention.query.weight @ x
        for head in range(8):
            part = slice(32 * head, 32 * head + 32)
            total[part] += (key[:, part] @ query[part] / 32**0.5).softmax(0) @ value[:, part]
    return x + module.out(total)


@pytest.mark.parametrize("anchor", MODALITIES)
@torch.inference_mode()
def test_one_anchor_is_the_equation_row_by_row(anchor):
    sequences, masks = make()
    module = build(anchor)
    aligned, mask = module(sequences, masks)
    assert torch.equal(mask, masks[anchor])
    for clip in range(3):
        for step in range(STEPS[anchor]):
            expected = plain_anchor(module, step, clip, sequences, masks)
            assert (aligned[clip, step] - expected).abs().max() < 1e-12


@torch.inference_mode()
def test_the_symmetric_anchor_is_the_mean_over_the_anchors_that_have_the_step():
    sequences, masks = make()
    module = build("symmetric")
    aligned, mask = module(sequences, masks)
    assert aligned.shape == (3, 9, 8)
    held = set()
    for clip in range(3):
        for step in range(9):
            having = [m for m in module.anchors if step < STEPS[m.anchor] and masks[m.anchor][clip, step]]
            held.add(len(having))
            assert mask[clip, step] == bool(having)
            if having:
                rows = [plain_anchor(m, step, clip, sequences, masks) for m in having]
                assert (aligned[clip, step] - sum(rows) / len(rows)).abs().max() < 1e-12
    assert held >= {1, 2, 3} and mask[:, 0].all()
    assert torch.isfinite(aligned).all()


@pytest.mark.parametrize("anchor", MODALITIES)
def test_without_alignment_the_anchor_is_as_it_was(anchor):
    sequences, masks = make()
    module = build(anchor, alignment=False)
    aligned, mask = module(sequences, masks)
    assert torch.equal(aligned, sequences[anchor]) and torch.equal(mask, masks[anchor])
    assert not list(module.parameters())


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("steps", [1, 3])
@torch.inference_mode()
def test_the_first_steps_alone_are_those_of_the_whole(anchor, steps):
    sequences, masks = make()
    module = build(anchor)
    (whole, mask), (part, part_mask) = module(sequences, masks), module(sequences, masks, steps)
    assert (whole[:, :steps] - part).abs().max() < 1e-12
    assert torch.equal(mask[:, :steps], part_mask)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_the_gradient_is_right(anchor):
    sequences, masks = make({"text": 2, "audio": 4, "vision": 3}, clips=2, dim=4)
    module = build(anchor, dim=4)

    def forward(*values):
        return module(dict(zip(MODALITIES, values, strict=True)), masks)[0]

    assert torch.autograd.gradcheck(forward, tuple(sequences[m] for m in MODALITIES))
