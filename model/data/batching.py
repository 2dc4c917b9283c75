"""Which clips go together: those of similar length, so that little of a batch is padding.

Samplers see lengths and classes only. Everything depends on lengths, seed and epoch alone: an epoch's batches are the
same on every machine and for any number of processes, and those that are left of an epoch are a slice of its list.

Shapes: N clips, M modalities, B clips of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

POOL_BATCHES = 32
"""Batches that are cut from one sorted pool: larger pools pad less, smaller ones mix the clips more."""

LENGTH_NOISE = 0.1
"""Part of its length by which a clip's place in the order may be off, so that no two epochs, not even of a corpus that
is one pool, bring the same clips together."""

CLASS_GROUP = 4
"""Clips of one class that stand together in a class-balanced batch: an anchor and three to draw positives from."""

ATTENTION_STEPS = 512
"""Length at which attention costs as much as the rest of a Transformer layer. A step of a layer of width d takes
8 d^2 multiplications outside attention (Q, K, V, output: 4 d^2; feed-forward of width 2d: 4 d^2) and 2 T d inside it:
equal at T = 4 d, which is 512 for the width of 128."""

MOST_CHUNKS = 16


def training_batches(
    lengths_NM: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    limit: int = 0,
    classes_N: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Every clip once, in batches of clips of similar length.

    The clips are shuffled and cut into pools; each pool is sorted by length, roughly, and cut into batches, and the
    batches are shuffled. All but a pool's last hold `batch_size` clips, unless that would cost more than `limit`.

    Args:
        lengths_NM: [N, M] steps of each clip in each modality.
        limit: greatest `batch_cost` of a batch of more than one clip; 0 = any.
        classes_N: [N] classes, for batches in which each anchor finds others of its class: clips of one class then
            stand together in groups of `CLASS_GROUP`.

    Returns:
        Arrays of clip indices.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths_NM))
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
    """Every clip once, from the shortest to the longest: for passes whose order does not matter."""
    return _cut(np.argsort(lengths_NM.sum(axis=1), kind="stable"), lengths_NM, batch_size, limit)


def cheapest_chunks(lengths_NM: np.ndarray, overhead: int) -> list[np.ndarray]:
    """Cut N clips, sorted by length, into as many equal chunks as cost least to compute one after the other.

    Args:
        overhead: what starting a chunk costs, in the unit of `batch_cost`.

    Returns:
        Positions 0 to N - 1, short clips first; no chunks where there are no clips.
    """
    order = np.argsort(lengths_NM.sum(axis=1), kind="stable")
    ways = [np.array_split(order, count) for count in range(1, min(MOST_CHUNKS, len(order)) + 1)]
    return min(ways, key=lambda chunks: sum(overhead + batch_cost(lengths_NM[chunk]) for chunk in chunks), default=[])


def batch_cost(lengths_BM: np.ndarray) -> float:
    """What a padded batch takes to compute: its steps, each counted as more the longer attention reaches.

    `items x sum over modalities of longest x (1 + longest / ATTENTION_STEPS)`.
    """
    longest_M = lengths_BM.max(axis=0, initial=0)
    return float(len(lengths_BM) * (longest_M * (1 + longest_M / ATTENTION_STEPS)).sum())


def padding_fraction(lengths_NM: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Padded steps over all steps of the batches, modalities taken together; 0 where there are none."""
    slots = sum(len(batch) * int(lengths_NM[batch].max(axis=0).sum()) for batch in batches)
    real = sum(int(lengths_NM[batch].sum()) for batch in batches)
    return (slots - real) / slots if slots else 0.0


def _by_class(classes_P: np.ndarray) -> np.ndarray:
    """Positions of a pool sorted by length, so ordered that groups of neighbours within a class stand together.

    A group comes where the middle of its clips lies, so that lengths stay near each other and, since classes mix in
    length, so do the classes of neighbouring groups.
    """
    place_P = np.zeros(len(classes_P))
    for label in np.unique(classes_P):
        members = np.flatnonzero(classes_P == label)
        group = np.arange(len(members)) // CLASS_GROUP
        place_P[members] = (np.bincount(group, weights=members) / np.bincount(group))[group]
    return np.lexsort((np.arange(len(classes_P)), classes_P, place_P))


def _cut(order: np.ndarray, lengths_NM: np.ndarray, batch_size: int, limit: int) -> list[np.ndarray]:
    """Consecutive batches of `batch_size` clips, or of as many as cost no more than `limit`, one at least."""
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
