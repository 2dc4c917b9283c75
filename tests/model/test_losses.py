"""The masked NT-Xent against a slow loop, and the pairs it is given."""

from __future__ import annotations

import math

import pytest
import torch

from model.losses import nt_xent, semantic_loss, supervised_loss
from model.network import STREAMS, Embedding


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def slow_nt_xent(anchors, candidates, positive, negative, temperature) -> list[float]:
    losses = []
    for i, anchor in enumerate(anchors):
        scores = [math.exp(cosine(anchor, c) / temperature) for c in candidates]
        against = sum(s for s, n in zip(scores, negative[i], strict=True) if n)
        own = [-math.log(s / (s + against)) for s, p in zip(scores, positive[i], strict=True) if p]
        if own and negative[i].any():
            losses.append(sum(own) / len(own))
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_nt_xent_equals_a_slow_loop(seed):
    torch.manual_seed(seed)
    anchors, candidates = torch.randn(6, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    kind = torch.randint(0, 3, (6, 9))
    kind[0] = 0  # neither positives nor negatives
    kind[1] = kind[1].clamp(max=1)  # no negatives
    losses = nt_xent(anchors, candidates, kind == 1, kind == 2, 0.5)
    slow = slow_nt_xent(anchors, candidates, kind == 1, kind == 2, 0.5)
    assert len(losses) == len(slow) <= 4
    assert losses.tolist() == pytest.approx(slow, abs=1e-12)


def test_nt_xent_has_the_right_gradient():
    torch.manual_seed(0)
    anchors = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    kind = torch.tensor([[1, 1, 2, 0, 2], [0, 0, 0, 0, 0], [2, 0, 1, 2, 0]])
    assert torch.autograd.gradcheck(lambda a, c: nt_xent(a, c, kind == 1, kind == 2, 0.5), (anchors, candidates))


def embedding(clips: int, **absent: list[int]) -> Embedding:
    present = {s: torch.tensor([i not in absent.get(s, []) for i in range(clips)]) for s in STREAMS}
    return Embedding({s: torch.randn(clips, 4, dtype=torch.float64, requires_grad=True) for s in STREAMS}, present)


def test_semantic_negatives_are_the_other_clips_audio_and_vision():
    torch.manual_seed(0)
    e = embedding(5, audio=[1], text=[3])
    same = torch.eye(5, dtype=torch.bool)
    slow = []
    for modality, clips in (("audio", [0, 2, 4]), ("vision", [0, 1, 2, 4])):
        text, other = e.streams["text"][clips], e.streams[modality][clips]
        n = len(clips)
        slow += slow_nt_xent(text, other, same[:n, :n], ~same[:n, :n], 0.5)
    assert semantic_loss(e, 0.5).item() == pytest.approx(sum(slow) / len(slow), abs=1e-12)


def test_supervised_pairs_follow_the_partners_and_skip_what_is_missing():
    torch.manual_seed(0)
    e = embedding(6, vision=[4], audio=[0])
    partners = torch.tensor([[1, 3, 2, 4], [0, 0, 5, 5]])
    valid = torch.tensor([[True, True, True, True], [True, False, True, True]])
    slow = []
    for stream in STREAMS:
        x, present = e.streams[stream], e.present[stream]
        for anchor, positives, negatives in ((0, {1, 3}, {2, 4}), (1, {0}, {5})):
            if present[anchor]:
                positive = torch.tensor([[i in positives and bool(present[i]) for i in range(6)]])
                negative = torch.tensor([[i in negatives and bool(present[i]) for i in range(6)]])
                slow += slow_nt_xent(x[anchor : anchor + 1], x, positive, negative, 0.5)
    loss = supervised_loss(e, 2, partners, valid, positives=2, temperature=0.5)
    assert loss.item() == pytest.approx(sum(slow) / len(slow), abs=1e-12)


def test_nothing_to_compare_gives_zero_that_can_be_differentiated():
    e = embedding(3, audio=[0, 1, 2], vision=[0, 1, 2])
    loss = semantic_loss(e, 0.5)
    loss.backward()
    assert loss.item() == 0
    none = torch.zeros(2, 4, dtype=torch.bool)
    assert supervised_loss(e, 2, torch.zeros(2, 4, dtype=torch.long), none, 2, 0.5).item() == 0
