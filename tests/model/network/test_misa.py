"""MISA against plain implementations in float64, and its losses where modalities are missing."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from model.config import MODALITIES, ModelConfig
from model.data.clips import ClipTable
from model.network.baselines.misa import MisaLoss, Options, difference_loss, reconstruction_loss, similarity_loss
from model.network.layers import MaskedSequence
from model.network.registry import build_network

SMALL = {"dim": 16, "heads": 4, "max_positions": 64}


def plain_difference(private, shared, present):
    """Over the pairs that MISA separates, on the rows of the clips that have both sides."""
    pairs = [(private[:, m], shared[:, m], present[:, m]) for m in range(3)]
    pairs += [(private[:, i], private[:, j], present[:, i] & present[:, j]) for i, j in combinations(range(3), 2)]
    total = torch.zeros(())
    for first, second, both in pairs:
        sides = []
        for x in (first[both], second[both]):
            x = x - x.mean(dim=0)
            sides.append(x / (x.norm(dim=1, keepdim=True).detach() + 1e-6))
        total = total + (sides[0].T @ sides[1]).square().mean()
    return total


def plain_similarity(shared, present, moments):
    distances = []
    for i, j in combinations(range(3), 2):
        x, y = shared[present[:, i], i], shared[present[:, j], j]
        if not len(x) or not len(y):
            continue
        distance = (x.mean(dim=0) - y.mean(dim=0)).norm()
        for k in range(2, moments + 1):
            central = [((z - z.mean(dim=0)) ** k).mean(dim=0) for z in (x, y)]
            distance = distance + (central[0] - central[1]).norm()
        distances.append(distance)
    return torch.stack(distances).mean() if distances else torch.zeros(())


def random_vectors(clips, present, seed=0):
    """Private, shared, hidden and reconstructed vectors [B, 3, 6]; those of a missing modality are far off."""
    torch.manual_seed(seed)
    x = torch.rand(4, clips, 3, 6, dtype=torch.float64)
    return (x + 100 * ~present[:, :, None]).requires_grad_()


PRESENT = {
    "all": torch.ones(7, 3, dtype=torch.bool),
    "some": torch.tensor(np.random.default_rng(1).random((7, 3)) > 0.3),
    "no vision": torch.tensor([[True, True, False]] * 5),
    "text alone": torch.tensor([[True, False, False]] * 5),
}


@pytest.mark.parametrize("case", PRESENT)
def test_the_losses_are_those_of_the_paper_over_the_modalities_that_clips_have(case):
    present = PRESENT[case]
    vectors = random_vectors(len(present), present)
    private, shared, hidden, reconstructed = vectors
    has_pairs = case in ("all", "some")
    expected = {
        "similarity": plain_similarity(shared, present, 5),
        "reconstruction": torch.stack(
            [(reconstructed[b, m] - hidden[b, m]).square().mean() for b, m in present.nonzero().tolist()]
        ).mean(),
    }
    found = {
        "similarity": similarity_loss(shared, present, 5),
        "reconstruction": reconstruction_loss(reconstructed, hidden, present),
    }
    if has_pairs:  # a mean over no clips is NaN in the plain version
        expected["difference"], found["difference"] = (
            plain_difference(private, shared, present),
            difference_loss(private, shared, present),
        )
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-9), name
        if value.requires_grad:
            gradients = [torch.autograd.grad(v, vectors, retain_graph=True)[0] for v in (found[name], value)]
            torch.testing.assert_close(*gradients, msg=name)
    weights = Options(difference_weight=0.2, similarity_weight=0.5, reconstruction_weight=0.25)
    names = ("private", "shared", "hidden", "reconstructed")
    loss = MisaLoss(weights)({**dict(zip(names, vectors, strict=True)), "present": present}, torch.arange(0), 1)
    parts = 0.5 * found["similarity"] + 0.25 * found["reconstruction"]
    assert loss.item() == pytest.approx((parts + 0.2 * difference_loss(private, shared, present)).item())
    gradient = torch.autograd.grad(loss, vectors)[0]
    assert gradient.isfinite().all() and not gradient[:, ~present].any() and gradient[:, present].any()


def test_one_clip_has_a_finite_loss_and_gradient():
    """Without other clips all central moments are zero, and the distances between them have no derivative."""
    vectors = random_vectors(1, torch.ones(1, 3, dtype=torch.bool))
    for present in (torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)):
        names = ("private", "shared", "hidden", "reconstructed")
        loss = MisaLoss(Options())({**dict(zip(names, vectors, strict=True)), "present": present}, torch.arange(1), 1)
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert loss.isfinite() and gradient.isfinite().all() and bool(loss > 0) == bool(present.any())


@torch.inference_mode()
def test_a_clip_is_predicted_from_its_six_vectors(dataset):
    """Clip by clip, on the visible steps alone, with attention written out."""
    clips = ClipTable.read(dataset, "train", 64)
    torch.manual_seed(0)
    network = build_network(ModelConfig(name="misa", **SMALL), clips.info).eval().double()
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    together = network(clips.batch(np.arange(len(clips))))
    for row in range(len(clips)):
        batch = clips.batch(np.array([row]))
        hidden = {}
        for m in MODALITIES:
            inputs, seen = network.inputs.of[m], batch.masks[m]
            x = ((batch.values[m][seen].double() - inputs.mean) / inputs.std)[None]
            if not seen.any():
                x = inputs.missing_embedding[None, None]
            steps = torch.ones(x.shape[:2], dtype=torch.bool)
            if m == "text":
                vector = x.mean(dim=1)
            else:
                stack = network.recurrent[m]
                first = stack.first(MaskedSequence(x, steps))
                second = stack.second(MaskedSequence(stack.norm(first.steps.values), steps))
                vector = torch.cat([first.last, second.last], dim=1)
            linear, _, norm = network.project[m]
            hidden[m] = norm(linear(vector).relu())
        private = [network.private[k](hidden[m]).sigmoid() for k, m in enumerate(MODALITIES)]
        shared = [network.shared(hidden[m]).sigmoid() for m in MODALITIES]
        six = torch.cat([*private, *shared])
        fused = transformer_layer(network.fusion, six, SMALL["heads"]).flatten()
        torch.testing.assert_close(together.prediction[row], network.predictor(fused)[0])
        for k, m in enumerate(MODALITIES):
            own = network.reconstruct[k](private[k] + shared[k])[0]
            torch.testing.assert_close(together.auxiliary["reconstructed"][row, k], own)
            torch.testing.assert_close(together.auxiliary["hidden"][row, k], hidden[m][0])
        assert together.auxiliary["present"][row].tolist() == [bool(batch.masks[m].any()) for m in MODALITIES]


def transformer_layer(layer, x, heads):
    """A post-norm Transformer layer over the rows of x, head by head."""
    query, key, value = (x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, dim=1)
    width = query.shape[1] // heads
    columns = [slice(h * width, (h + 1) * width) for h in range(heads)]
    attended = [(query[:, c] @ key[:, c].T / width**0.5).softmax(dim=1) @ value[:, c] for c in columns]
    x = layer.norm1(x + layer.self_attn.out_proj(torch.cat(attended, dim=1)))
    return layer.norm2(x + layer.linear2(layer.linear1(x).relu()))


def test_weights_below_zero_are_refused():
    with pytest.raises(ValueError, match=r"model\.options\.similarity_weight is -1: it must be at least 0"):
        Options(similarity_weight=-1)
