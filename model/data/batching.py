"""Batches of an epoch: uniformly shuffled, or clips of similar length together, so that little is padding.

Batches depend on lengths, classes, seed and epoch only: they are the same on every machine and for any number of
processes, and the rest of an interrupted epoch is a slice of its list.

Shapes: N clips, M modalities, B clips of a batch, P clips of a pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

POOL_BATCHES = 32
"""Batches cut from one sorted pool: larger pools pad less, smaller pools mix the clips more."""

LENGTH_NOISE = 0.1
"""Relative noise on the lengths that clips are sorted by, so that even a corpus of a single pool has different batches
in each epoch."""

CLASS_GROUP = 4
"""Clips of one class that stay together in a class-balanced batch: an anchor and three candidate positives."""

ATTENTION_STEPS = 512
"""Sequence length at which attention costs as much as the rest of a Transformer layer.

Per step, a layer of width d takes 8 d^2 multiplications outside attention (Q, K, V and output 4 d^2, feed-forward of
width 2d 4 d^2) and 2 T d inside it: equal at T = 4 d, which is 512 for the default width of 128."""

MAX_CHUNKS = 16


def training_batches(
    lengths_NM: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    limit: int = 0,
    classes_N: np.ndarray | None = None,
    shuffled: bool = False,
) -> list[np.ndarray]:
    """Return one epoch's batches, which hold every clip once.

    Unless `shuffled`, the clips are shuffled and cut into pools; each pool is sorted by approximate length and cut into
    batches, and the batches are shuffled. All but the last of a pool hold `batch_size` clips, unless that would cost
    more than `limit`.

    Args:
        lengths_NM: steps of each clip in each modality.
        batch_size: maximum clips of a batch.
        seed: of the run.
        epoch: counted from 1.
        limit: maximum `batch_cost` of a batch of more than one clip; 0 = unlimited.
        classes_N: for class-balanced batches, in which each anchor finds others of its class: clips of one class then
            stay together in groups of `CLASS_GROUP`.
        shuffled: cut the batches from the shuffled clips, whatever their lengths and classes.

    Returns:
        Arrays of clip indices.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths_NM))
    if shuffled:
        return _cut(order, lengths_NM, batch_size, limit)
    length_N = lengths_NM.sum(axis=1) * rng.uniform(1 - LENGTH_NOISE, 1 + LENGTH_NOISE, len(lengths_NM))
    batches = []
    for first in range(0, len(order), batch_size * POOL_BATCHES):
        pool = order[first : first + batch_size * POOL_BATCHES]
        pool = pool[np.argsort(length_N[pool], kind="stable")]
        if classes_N is not None:
            pool = pool[_by_class(classes_N[pool])]
        batches += _cut(pool, lengths_NM, batch_size, limit)
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths_NM: np.ndarray, batch_size: int, limit: int = 0) -> list[np.ndarray]:
    """Return batches of every clip once, shortest first: for passes whose order does not matter."""
    return _cut(np.argsort(lengths_NM.sum(axis=1), kind="stable"), lengths_NM, batch_size, limit)


def cheapest_chunks(lengths_NM: np.ndarray, overhead: int) -> list[np.ndarray]:
    """Sort N clips by length and split them into the number of equal chunks that is cheapest to compute in sequence.

    Args:
        lengths_NM: steps of each clip in each modality.
        overhead: cost of starting a chunk, in the unit of `batch_cost`.

    Returns:
        Positions 0 to N - 1, short clips first; no chunks if there are no clips.
    """
    order = np.argsort(lengths_NM.sum(axis=1), kind="stable")
    splits = [np.array_split(order, count) for count in range(1, min(MAX_CHUNKS, len(order)) + 1)]
    return min(splits, key=lambda chunks: sum(overhead + batch_cost(lengths_NM[chunk]) for chunk in chunks), default=[])


def batch_cost(lengths_BM: np.ndarray) -> float:
    """Estimate the cost of a padded batch: `clips x sum over modalities of longest x (1 + longest / ATTENTION_STEPS)`.

    The unit is one step outside attention; the second factor adds attention's quadratic part.
    """
    longest_M = lengths_BM.max(axis=0, initial=0)
    return float(len(lengths_BM) * (longest_M * (1 + longest_M / ATTENTION_STEPS)).sum())


def padding_fraction(lengths_NM: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Return the fraction of steps that are padding, over all modalities; 0 without steps."""
    slots = sum(len(batch) * int(lengths_NM[batch].max(axis=0).sum()) for batch in batches)
    real = sum(int(lengths_NM[batch].sum()) for batch in batches)
    return (slots - real) / slots if slots else 0.0


def _by_class(classes_P: np.ndarray) -> np.ndarray:
    """Reorder a pool sorted by length so that groups of `CLASS_GROUP` neighbours within a class stay together.

    A group is placed at the mean position of its clips, so that lengths stay similar and, since classes mix in length,
    neighbouring groups differ in class.

    Returns:
        Positions in the pool [P].
    """
    place_P = np.zeros(len(classes_P))
    for label in np.unique(classes_P):
        members = np.flatnonzero(classes_P == label)
        group = np.arange(len(members)) // CLASS_GROUP
        place_P[members] = (np.bincount(group, weights=members) / np.bincount(group))[group]
    order_P: np.ndarray = np.lexsort((np.arange(len(classes_P)), classes_P, place_P))
    return order_P


def _cut(order: np.ndarray, lengths_NM: np.ndarray, batch_size: int, limit: int) -> list[np.ndarray]:
    """Cut consecutive batches of `batch_size` clips, or of as many as `limit` allows, but at least one."""
    batches, first = [], 0
    while first < len(order):
        batch = order[first : first + batch_size]
        if limit:
            longest_BM = np.maximum.accumulate(lengths_NM[batch], axis=0)
            steps_B = (longest_BM * (1 + longest_BM / ATTENTION_STEPS)).sum(axis=1)
            within = np.arange(1, len(batch) + 1) * steps_B <= limit
            batch = batch[: max(1, int(within.sum()))]
        batches.append(batch)
        first += len(batch)
    return batches
