"""Mining finds the right clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import MiningConfig
from model.training.mining import label_classes, mine


def test_classes_of_both_label_ranges():
    wide = np.float32([-3, -2.5, -0.6, -0.5, 0.4, 0.5, 1.4, 2.9])
    assert label_classes(wide, (-3, 3)).tolist() == [-3, -3, -1, -1, 0, 1, 1, 3]
    steps = np.float32([-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1])
    assert label_classes(steps, (-1, 1)).tolist() == list(range(-5, 6))
    with pytest.raises(ValueError, match="label range"):
        label_classes(steps, (0, 1))


def test_partners_of_a_toy_set_with_a_known_answer():
    """Unit vectors at angles in degrees; classes A = 0, B = 1."""
    angles = np.radians([0, 10, 20, 90, 5, 45, 180])
    classes = np.array([0, 0, 0, 0, 1, 1, 1])
    vectors = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1)).float() * 3
    partners = mine(vectors, classes, MiningConfig(candidates=2, positives=2, hard_negatives=1, easy_negatives=1))
    assert partners.positives[0].tolist() == [1, 2]
    assert partners.hard[0].tolist() == [4, 5]
    assert partners.easy[0].tolist() == [6, 5]
    assert partners.positives[5].tolist() == [4, 6]
    assert partners.easy[6].tolist() == [0, 1]


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_blocks_equal_brute_force(block):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vectors, classes, config = torch.randn(150, 6), rng.integers(0, 5, 150), MiningConfig()
    partners = mine(vectors, classes, config, block=block)
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    for i in range(150):
        order = sorted(range(150), key=lambda j: -float(unit[i] @ unit[j]))
        other = [j for j in order if classes[j] != classes[i]]
        assert partners.positives[i].tolist() == [j for j in order if classes[j] == classes[i] and j != i][:10]
        assert partners.hard[i].tolist() == other[:10]
        assert partners.easy[i].tolist() == other[::-1][:10]


@pytest.mark.parametrize(("clips", "pool"), [(1500, 20_000), (1300, 1001)])
def test_of_many_clips_the_candidates_are_the_greatest_scores_too(clips, pool):
    """Beyond some hundred clips these are found by the maxima of groups; the last group is incomplete."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vectors, classes = torch.randn(clips, 16), rng.integers(0, 3, clips)
    partners = mine(vectors, classes, MiningConfig(pool_size=pool), np.random.default_rng(5))
    others = np.sort(np.random.default_rng(5).permutation(clips)[:pool]) if clips > pool else np.arange(clips)
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).double().numpy()
    similarity, same = unit @ unit[others].T, classes[:, None] == classes[others]
    itself = np.arange(clips)[:, None] == others
    for kind, sign, allowed in (
        ("positives", -1, same & ~itself),
        ("hard", -1, ~same),
        ("easy", 1, ~same),
    ):
        found = getattr(partners, kind)
        assert (found >= 0).all() and all(len(set(row)) == 10 for row in found)
        expected = np.sort(np.where(allowed, sign * similarity, np.inf), axis=1)[:, :10]
        np.testing.assert_allclose(sign * np.einsum("nd,nkd->nk", unit, unit[found]), expected, atol=1e-6)
        assert ((classes[found] == classes[:, None]) == (kind == "positives")).all()


def test_draws_come_from_the_candidates_without_repetition_and_by_seed():
    torch.manual_seed(0)
    classes = np.repeat(np.arange(4), 30)
    partners = mine(torch.randn(120, 5), classes, MiningConfig())
    anchors = np.arange(0, 120, 7)
    drawn, valid = partners.draw(np.random.default_rng(1), anchors)
    assert drawn.shape == (18, 6) and valid.all()
    for anchor, row in zip(anchors, drawn, strict=True):
        for kind, of_kind in zip((partners.positives, partners.hard, partners.easy), np.split(row, 3), strict=True):
            assert set(of_kind) <= set(kind[anchor]) and len(set(of_kind)) == 2
    again, _ = partners.draw(np.random.default_rng(1), anchors)
    other, _ = partners.draw(np.random.default_rng(2), anchors)
    assert (drawn == again).all() and (drawn != other).any()
    everything = {int(c) for s in range(60) for c in partners.draw(np.random.default_rng(s), np.array([0]))[0][0, :2]}
    assert everything == set(partners.positives[0].tolist())


def test_small_classes_draw_what_there_is_and_are_counted():
    classes = np.array([0, 1, 1, 2, 2, 2])
    partners = mine(torch.randn(6, 3), classes, MiningConfig())
    assert partners.short_count == 3  # the single 0 and both 1s lack a second positive
    drawn, valid = partners.draw(np.random.default_rng(0), np.arange(6))
    assert valid[:, :2].sum(1).tolist() == [0, 1, 1, 2, 2, 2]
    assert drawn[1, 0] == 2 and valid[:, 2:].all()


def test_one_class_and_one_clip_leave_no_negatives():
    drawn, valid = mine(torch.randn(3, 2), np.zeros(3, int), MiningConfig()).draw(
        np.random.default_rng(0), np.arange(3)
    )
    assert valid.tolist() == [[True, True, False, False, False, False]] * 3
    assert ((drawn >= 0) & (drawn < 3)).all()
    _, valid = mine(torch.randn(1, 2), np.zeros(1, int), MiningConfig()).draw(
        np.random.default_rng(0), np.zeros(1, int)
    )
    assert valid.shape == (1, 6) and not valid.any()


def test_a_pool_gives_what_ranking_its_clips_alone_gives():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vectors, classes = torch.randn(200, 6), rng.integers(0, 4, 200)
    partners = mine(vectors, classes, MiningConfig(pool_size=60), np.random.default_rng(5), block=33)
    pool = np.sort(np.random.default_rng(5).permutation(200)[:60])
    whole = mine(vectors[pool], classes[pool], MiningConfig())
    for kind in ("positives", "hard", "easy"):
        assert set(np.unique(getattr(partners, kind))) <= {-1, *pool}
        of_pool = getattr(whole, kind)
        expected = np.where(of_pool >= 0, pool[of_pool], -1)
        np.testing.assert_array_equal(getattr(partners, kind)[pool], expected)
    outside = np.setdiff1d(np.arange(200), pool)
    assert (classes[partners.positives[outside]] == classes[outside, None]).all()
    other = mine(vectors, classes, MiningConfig(pool_size=60), np.random.default_rng(6))
    assert not np.array_equal(other.hard, partners.hard)


def test_random_negatives_are_of_another_class_and_follow_no_similarity():
    torch.manual_seed(0)
    vectors, classes = torch.randn(300, 4), np.repeat(np.arange(3), 100)
    hard, random = (mine(vectors, classes, MiningConfig(negatives=kind)) for kind in ("hard", "random"))
    np.testing.assert_array_equal(random.positives, hard.positives)
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()

    def similarity(found):
        return float(np.mean([unit[i] @ unit[j] for i, row in enumerate(found) for j in row]))

    assert similarity(hard.hard) > 0.7 and similarity(hard.easy) < -0.7
    for found in (random.hard, random.easy):
        assert (classes[found] != classes[:, None]).all()
        assert abs(similarity(found)) < 0.1
    assert not set(map(tuple, random.hard)) & set(map(tuple, random.easy))


@pytest.mark.gpu
def test_a_gpu_finds_the_partners_that_the_cpu_finds():
    torch.manual_seed(0)
    vectors, classes = torch.randn(3000, 16), np.random.default_rng(0).integers(0, 7, 3000)
    there, here = mine(vectors.cuda(), classes, MiningConfig()), mine(vectors, classes, MiningConfig())
    assert np.mean(there.positives == here.positives) > 0.999
    assert np.mean(there.hard == here.hard) > 0.999
