"""Length-bucketed batches."""

from __future__ import annotations

import numpy as np
import pytest

from model.data.batching import (
    ATTENTION_STEPS,
    batch_cost,
    cheapest_chunks,
    padding_fraction,
    sorted_batches,
    training_batches,
)

RNG = np.random.default_rng(0)
SECONDS = RNG.uniform(1, 12, (500, 1))
LENGTHS = (SECONDS * [4, 21, 12] * RNG.uniform(0.9, 1.1, (500, 3))).astype(int)
"""Lengths of clips of 1 to 12 seconds: as real ones do, the three modalities follow the duration."""
CLASSES = RNG.choice(7, 500, p=[0.03, 0.12, 0.2, 0.25, 0.2, 0.15, 0.05])


@pytest.mark.parametrize("epoch", [1, 2])
def test_every_clip_comes_once_an_epoch(epoch):
    batches = training_batches(LENGTHS, 16, seed=3, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert sorted(map(len, batches))[1:] == [16] * 31


@pytest.mark.parametrize("options", [{}, {"limit": 4000}, {"classes_N": CLASSES}])
def test_the_order_depends_on_seed_and_epoch_alone(options):
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(training_batches(LENGTHS, 16, seed, epoch, **options)).tolist()

    assert sorted(order(0, 1)) == list(range(500))
    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_buckets_pad_less_than_random_batches():
    shuffled = np.array_split(np.random.default_rng(1).permutation(500), 32)
    bucketed = padding_fraction(LENGTHS, training_batches(LENGTHS, 16, 0, 1))
    assert bucketed < 0.15
    assert bucketed < 0.5 * padding_fraction(LENGTHS, shuffled)


def test_the_same_clips_do_not_meet_in_every_epoch():
    """Of a corpus so small that it is one pool."""

    def neighbours(epoch: int) -> set[tuple[int, int]]:
        batches = training_batches(LENGTHS[:128], 8, 0, epoch)
        return {(i, j) for batch in batches for i in batch for j in batch if i < j}

    assert len(neighbours(1) & neighbours(2)) < 0.6 * len(neighbours(1))


def test_a_batch_stays_below_the_limit_and_takes_what_fits():
    limit = 6000
    batches = training_batches(LENGTHS, 16, 0, 1, limit)
    costs = [batch_cost(LENGTHS[batch]) for batch in batches]
    assert max(costs) <= limit
    assert {16} < set(map(len, batches))  # short clips fill a batch, long ones do not
    one_more = [batch_cost(LENGTHS[np.append(batch, batch[-1])]) for batch in batches if 1 < len(batch) < 16]
    assert np.mean(np.array(one_more) > limit) > 0.8
    assert {len(batch) for batch in training_batches(LENGTHS, 16, 0, 1, limit=1)} == {1}


def test_cost_counts_attention_squared():
    assert batch_cost(np.array([[10, 3], [2, 7]])) == pytest.approx(2 * (17 + (100 + 49) / ATTENTION_STEPS))
    assert batch_cost(np.full((1, 1), ATTENTION_STEPS)) == 2 * ATTENTION_STEPS
    assert batch_cost(np.zeros((0, 3), int)) == 0


def test_balanced_batches_hold_others_of_most_anchors_classes_and_pad_little():
    def with_positives(batches):
        counts = [(CLASSES[batch][:, None] == CLASSES[batch][None, :]).sum(axis=1) for batch in batches]
        return float(np.mean(np.concatenate(counts) > 2))

    plain = training_batches(LENGTHS, 16, 0, 1)
    balanced = training_batches(LENGTHS, 16, 0, 1, classes_N=CLASSES)
    assert with_positives(balanced) > 0.9 > 0.8 > with_positives(plain)
    assert all(len(np.unique(CLASSES[batch])) > 1 for batch in balanced)
    assert padding_fraction(LENGTHS, balanced) < 0.2


def test_groups_of_a_class_are_whole_where_the_class_has_enough():
    classes = np.repeat([0, 1, 2], 64)
    for batch in training_batches(np.full((192, 3), 9), 12, 0, 1, classes_N=classes):
        assert (np.unique(classes[batch], return_counts=True)[1] % 4 == 0).all()


@pytest.mark.parametrize("overhead", [0, 3000, 10**9])
def test_chunks_cost_least(overhead):
    chunks = cheapest_chunks(LENGTHS[:96], overhead)
    assert sorted(np.concatenate(chunks)) == list(range(96))
    found = sum(overhead + batch_cost(LENGTHS[chunk]) for chunk in chunks)
    order = np.argsort(LENGTHS[:96].sum(1), kind="stable")
    for count in range(1, 17):
        others = np.array_split(order, count)
        assert found <= sum(overhead + batch_cost(LENGTHS[chunk]) for chunk in others)
    assert overhead < 10**9 or len(chunks) == 1
    assert overhead > 0 or len(chunks) == 16
    assert cheapest_chunks(LENGTHS[:0], overhead) == []


def test_padding_fraction_of_a_worked_example():
    # Lengths 2 and 4 in one batch: 8 slots, 6 real.
    assert padding_fraction(np.array([[2], [4]]), [np.array([0, 1])]) == 0.25
    assert padding_fraction(np.zeros((2, 1), int), [np.array([0, 1])]) == 0


def test_sorted_batches_go_from_short_to_long():
    batches = sorted_batches(LENGTHS, 64)
    totals = LENGTHS.sum(1)[np.concatenate(batches)]
    assert (np.diff(totals) >= 0).all() and len(totals) == 500
