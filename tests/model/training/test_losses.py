"""The masked NT-Xent against a slow loop, and the pairs it is given."""

from __future__ import annotations

import math

import pytest
import torch

from model.config import MODALITIES, MiningConfig
from model.network.base import STREAMS, Embedding
from model.training.losses import combine_contrastive, nt_xent, semantic_loss, supervised_loss
from model.training.mining import in_batch_partners


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


@pytest.mark.parametrize("anchor", [*MODALITIES, "symmetric"])
def test_semantic_negatives_are_the_other_clips_other_modalities(anchor):
    torch.manual_seed(0)
    e = embedding(5, audio=[1], text=[3])
    same = torch.eye(5, dtype=torch.bool)
    slow = []
    for first in MODALITIES if anchor == "symmetric" else [anchor]:
        for second in MODALITIES:
            if second != first:
                clips = [i for i in range(5) if e.present[first][i] and e.present[second][i]]
                n = len(clips)
                pair = e.streams[first][clips], e.streams[second][clips]
                slow += slow_nt_xent(*pair, same[:n, :n], ~same[:n, :n], 0.5)
    assert semantic_loss(e, 0.5, anchor).item() == pytest.approx(sum(slow) / len(slow), abs=1e-12)


def test_the_semantic_anchor_is_text_unless_named():
    e = embedding(5)
    assert semantic_loss(e, 0.5) == semantic_loss(e, 0.5, "text") != semantic_loss(e, 0.5, "audio")


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


@pytest.mark.parametrize("anchor", ["text", "symmetric"])
def test_both_losses_have_the_right_gradient(anchor):
    torch.manual_seed(0)
    e = embedding(4, audio=[2])
    partners, valid = torch.tensor([[1, 2, 3], [0, 3, 3]]), torch.tensor([[True, True, True], [True, True, False]])

    def total(*vectors):
        moved = Embedding(dict(zip(STREAMS, vectors, strict=True)), e.present)
        return semantic_loss(moved, 0.5, anchor) + supervised_loss(moved, 2, partners, valid, 1, 0.5)

    assert torch.autograd.gradcheck(total, tuple(e.streams.values()))


def test_half_precision_and_autocast_leave_the_loss_in_float32():
    torch.manual_seed(0)
    anchors, candidates = torch.randn(8, 64).bfloat16(), torch.randn(40, 64).bfloat16()
    positive = torch.rand(8, 40) < 0.2
    exact = nt_xent(anchors.double(), candidates.double(), positive, ~positive, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        rough = nt_xent(anchors, candidates, positive, ~positive, 0.05)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 1e-4


def slow_partners(vectors, classes, config):
    """For each clip: positives, hard and easy negatives, by a sort of its similarities."""
    found = []
    for i, own in enumerate(classes):
        order = sorted((j for j in range(len(classes)) if j != i), key=lambda j: -cosine(vectors[i], vectors[j]))
        alike, other = [j for j in order if classes[j] == own], [j for j in order if classes[j] != own]
        found.append((alike[: config.positives], other[: config.hard_negatives], other[::-1][: config.easy_negatives]))
    return found


@pytest.mark.parametrize("classes", [[0, 0, 0, 1, 1, 2, 2, 2, 2], [0] * 4, [0, 1, 2], [0], [0, 0, 0, 0, 1]])
@pytest.mark.parametrize("counts", [(2, 2, 2), (1, 0, 3), (2, 9, 0)])
def test_partners_within_a_batch_are_those_of_a_slow_sort(classes, counts):
    torch.manual_seed(0)
    config = MiningConfig(positives=counts[0], hard_negatives=counts[1], easy_negatives=counts[2])
    vectors = torch.randn(len(classes), 6)
    partners, valid = in_batch_partners(vectors, torch.tensor(classes), config)
    assert partners.shape == valid.shape == (len(classes), sum(counts))
    for i, kinds in enumerate(slow_partners(vectors, classes, config)):
        rows = zip(partners[i].split(counts), valid[i].split(counts), strict=True)
        assert [p[v].tolist() for p, v in rows] == list(kinds)
        assert not partners[i][~valid[i]].any()


def test_random_negatives_within_a_batch_are_of_other_classes_and_not_the_most_similar():
    torch.manual_seed(0)
    classes, vectors = torch.arange(40) % 4, torch.randn(40, 6)
    mined, _ = in_batch_partners(vectors, classes, MiningConfig())
    drawn, valid = in_batch_partners(vectors, classes, MiningConfig(negatives="random"))
    assert valid.all() and torch.equal(mined[:, :2], drawn[:, :2])
    assert (classes[drawn[:, 2:]] != classes[:, None]).all()
    assert (mined[:, 2:] == drawn[:, 2:]).float().mean() < 0.2
    assert all(len(set(row.tolist())) == 4 for row in drawn[:, 2:])
    assert len(set(drawn[:, 2:].flatten().tolist())) > 20, "drawn from all over the batch"


def test_partners_within_a_batch_follow_their_clips_and_give_the_supervised_loss():
    torch.manual_seed(0)
    e, classes, config = embedding(12), torch.arange(12) % 3, MiningConfig()
    joint = torch.cat([e.streams[m] for m in MODALITIES], dim=1)
    partners, valid = in_batch_partners(joint, classes, config)
    loss = supervised_loss(e, 12, partners, valid, config.positives, 0.5)
    order = torch.randperm(12)
    moved = Embedding({s: x[order] for s, x in e.streams.items()}, e.present)
    again, also = in_batch_partners(joint[order], classes[order], config)
    assert supervised_loss(moved, 12, again, also, config.positives, 0.5).item() == pytest.approx(loss.item())
    assert not partners.requires_grad and loss.item() > 0


def slow_pair(anchor: torch.Tensor, positive: torch.Tensor, negatives: list[torch.Tensor]) -> float:
    """NT-Xent of one pair; without negatives it is 0."""
    own = math.exp(cosine(anchor, positive) / 0.5)
    return -math.log(own / (own + sum(math.exp(cosine(anchor, n) / 0.5) for n in negatives)))


@pytest.mark.parametrize(("positives", "hard", "easy"), [(2, 2, 2), (1, 3, 0)])
def test_the_published_reduction_is_one_mean_over_all_pairs_of_an_anchor_and_its_partners(positives, hard, easy):
    torch.manual_seed(0)
    anchors, partners = 5, positives + hard + easy
    e = embedding(12)
    places = torch.stack([torch.randperm(12)[:partners] for _ in range(anchors)])
    of = {s: v.detach() for s, v in e.streams.items()}
    pairs: list[float] = []
    for i in range(anchors):
        mine, others = [], [j for j in range(anchors) if j != i]
        mine += [slow_pair(of["text"][i], of[m][i], [of[m][j] for j in others]) for m in ("audio", "vision")]
        for stream in of.values():
            negatives = [stream[k] for k in places[i, positives:]]
            mine += [slow_pair(stream[i], stream[k], negatives) for k in places[i, :positives]]
        mine += [slow_pair(of["text"][k], of[m][k], []) for k in places[i] for m in ("audio", "vision")]
        assert len(mine) == (22 if positives == 2 else 14)
        pairs += mine
    first = Embedding({s: v[:anchors] for s, v in e.streams.items()}, {s: p[:anchors] for s, p in e.present.items()})
    means = semantic_loss(first, 0.5), supervised_loss(e, anchors, places, places >= 0, positives, 0.5)
    mining = MiningConfig(positives=positives, hard_negatives=hard, easy_negatives=easy)
    assert combine_contrastive(*means, "published", mining).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert combine_contrastive(*means, "paper", mining).item() == sum(means).item()
