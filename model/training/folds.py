"""Folds of the training and validation clips, grouped by speaker, for cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Fold:
    """One of the parts into which the clips are divided: a network is trained without it and makes errors on it.

    Attributes:
        number: from 0.
        count: number of folds that are wanted; few speakers or clips give fewer, see `fold_count`.
        seed: of the assignment.
    """

    number: int
    count: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the fold's folder."""
        return f"fold-{self.number}-of-{self.count}-seed-{self.seed}"

    def contains(self, speaker_N: np.ndarray) -> np.ndarray:
        """Return which clips belong to this fold, [N] bool."""
        inside_N: np.ndarray = assign_folds(speaker_N, self.count, self.seed) == self.number
        return inside_N


def fold_count(speaker_N: np.ndarray, count: int) -> int:
    """Return how many of `count` folds have clips; 0 for fewer than two clips, which cannot be divided."""
    groups = _groups(speaker_N)
    return min(count, int(groups.max(initial=-1)) + 1) if len(groups) > 1 else 0


def assign_folds(speaker_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the fold [N] of each clip, from 0.

    All clips of a speaker are in one fold, so that errors are those on new speakers. Speakers are taken at random,
    those with many clips first, each into the fold that has the fewest clips. Clips of a single speaker are divided
    themselves: nothing is known of other speakers.
    """
    group_N = _groups(speaker_N)
    size_G = np.bincount(group_N)
    shuffled = np.random.default_rng((seed, count)).permutation(len(size_G))
    fold_G, clips = np.zeros(len(size_G), np.int64), np.zeros(count, np.int64)
    for group in shuffled[np.argsort(-size_G[shuffled], kind="stable")]:
        fold_G[group] = np.argmin(clips)
        clips[fold_G[group]] += size_G[group]
    fold_N: np.ndarray = fold_G[group_N]
    return fold_N


def _groups(speaker_N: np.ndarray) -> np.ndarray:
    """Return the number [N] of each clip's speaker, or of each clip if there is only one speaker."""
    names, group_N = np.unique(speaker_N, return_inverse=True)
    return group_N if len(names) > 1 else np.arange(len(speaker_N))
