"""Which clips go together: those of similar length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POOL_BATCHES = 8
"""Batches that are cut from one sorted pool: larger pools pad less, smaller ones mix the clips more."""


def training_batches(lengths_NM: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Every clip once, in batches of clips of similar length; the last batch of the last pool may be smaller.

    The clips are shuffled and cut into pools; each pool is sorted by the clips' total length and cut into
    batches, and the batches are shuffled. The order depends on `seed` and `epoch` alone.

    Args:
        lengths_NM: [N, M] steps of each clip in each modality.

    Returns:
        Arrays of clip indices.
    """
    rng = np.random.default_rng((seed, epoch))
    total_N = lengths_NM.sum(axis=1)
    order = rng.permutation(len(total_N))
    batches = []
    for first in range(0, len(order), batch_size * POOL_BATCHES):
        pool = order[first : first + batch_size * POOL_BATCHES]
        batches += _cut(pool[np.argsort(total_N[pool], kind="stable")], batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths_NM: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Every clip once, from the shortest to the longest: for passes whose order does not matter."""
    return _cut(np.argsort(lengths_NM.sum(axis=1), kind="stable"), batch_size)


def padding_fraction(lengths_NM: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Padded steps over all steps of the batches, modalities taken together; 0 where there are none."""
    slots = sum(len(batch) * int(lengths_NM[batch].max(axis=0).sum()) for batch in batches)
    real = sum(int(lengths_NM[batch].sum()) for batch in batches)
    return (slots - real) / slots if slots else 0.0


def _cut(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
