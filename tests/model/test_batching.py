"""Length-bucketed batches."""

from __future__ import annotations

import numpy as np
import pytest

from model.batching import padding_fraction, sorted_batches, training_batches

RNG = np.random.default_rng(0)
SECONDS = RNG.uniform(1, 12, (500, 1))
LENGTHS = (SECONDS * [4, 21, 12] * RNG.uniform(0.8, 1.2, (500, 3))).astype(int)
"""Lengths of clips of 1 to 12 seconds: as real ones do, the three modalities follow the duration."""


@pytest.mark.parametrize("epoch", [1, 2])
def test_every_clip_comes_once_an_epoch(epoch):
    batches = training_batches(LENGTHS, 16, seed=3, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert sorted(map(len, batches))[1:] == [16] * 31


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(training_batches(LENGTHS, 16, seed, epoch)).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_buckets_pad_less_than_random_batches():
    shuffled = np.array_split(np.random.default_rng(1).permutation(500), 32)
    bucketed = padding_fraction(LENGTHS, training_batches(LENGTHS, 16, 0, 1))
    assert bucketed < 0.6 * padding_fraction(LENGTHS, shuffled)


def test_padding_fraction_of_a_worked_example():
    # Lengths 2 and 4 in one batch: 8 slots, 6 real.
    assert padding_fraction(np.array([[2], [4]]), [np.array([0, 1])]) == 0.25
    assert padding_fraction(np.zeros((2, 1), int), [np.array([0, 1])]) == 0


def test_sorted_batches_go_from_short_to_long():
    batches = sorted_batches(LENGTHS, 64)
    totals = LENGTHS.sum(1)[np.concatenate(batches)]
    assert (np.diff(totals) >= 0).all() and len(totals) == 500
