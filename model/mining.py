"""Hard-negative mining: which training clips each anchor is compared with.

Shapes: N training clips, R rows of a block, K candidates kept, B anchors of a step, P partners of an anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import MiningConfig

BLOCK = 256


def label_classes(labels_N: np.ndarray, label_range: tuple[float, float]) -> np.ndarray:
    """Sentiment classes for supervised contrastive learning, [N] int64.

    [-3, 3]: the nearest integer (7 classes). [-1, 1]: the nearest step of 0.2, on which CH-SIMS's labels lie
    (11 classes). Halves go away from zero, so that the classes are symmetric.

    Raises:
        ValueError: another label range.
    """
    steps = {(-3.0, 3.0): 1.0, (-1.0, 1.0): 0.2}
    if tuple(label_range) not in steps:
        raise ValueError(f"label range {tuple(label_range)}: classes are defined for [-3, 3] and [-1, 1] only")
    # Five decimals absorb float32, in which 0.2 * 0.5 is not exactly a half step.
    scaled = np.round(labels_N.astype(np.float64) / steps[tuple(label_range)], 5)
    return (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64)


@dataclass(frozen=True)
class Partners:
    """Candidates of every training clip, best first, and how many of each kind an anchor draws.

    Attributes:
        positives: [N, K] most similar clips of the same class.
        hard: [N, K] most similar clips of another class.
        easy: [N, K] least similar clips of another class. An index of -1 means that there are no more.
        config: the counts to draw.
    """

    positives: np.ndarray
    hard: np.ndarray
    easy: np.ndarray
    config: MiningConfig

    @property
    def short(self) -> int:
        """Clips that cannot draw as many partners as the configuration asks for, in one kind or more."""
        lacking = np.zeros(len(self.positives), bool)
        for candidates, wanted in self._kinds():
            lacking |= (candidates >= 0).sum(axis=1) < wanted
        return int(lacking.sum())

    def draw(self, generator: np.random.Generator, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Partners of `anchors`, without repetition within a kind: positives, then hard, then easy negatives.

        Returns:
            Clip indices [B, P] int64 and their validity [B, P] bool; an invalid one has index 0.
        """
        drawn = []
        for candidates, wanted in self._kinds():
            of_anchor = candidates[anchors]
            keys = np.where(of_anchor >= 0, generator.random(of_anchor.shape), 2.0)
            chosen = np.take_along_axis(of_anchor, np.argsort(keys, axis=1)[:, :wanted], axis=1)
            missing = wanted - chosen.shape[1]
            drawn.append(np.pad(chosen, ((0, 0), (0, missing)), constant_values=-1))
        partners_BP = np.concatenate(drawn, axis=1)
        return np.maximum(partners_BP, 0), partners_BP >= 0

    def _kinds(self) -> tuple[tuple[np.ndarray, int], ...]:
        c = self.config
        return (self.positives, c.positives), (self.hard, c.hard_negatives), (self.easy, c.easy_negatives)


def mine(embeddings_Nd: Tensor, classes_N: np.ndarray, config: MiningConfig, block: int = BLOCK) -> Partners:
    """Rank all other clips by cosine similarity and keep each anchor's candidates of the three kinds.

    Blocks of rows keep memory at `block` x N; nothing else grows with N squared.
    """
    unit_Nd = F.normalize(embeddings_Nd.float(), dim=1)
    classes = torch.as_tensor(classes_N, device=unit_Nd.device)
    count = min(config.candidates, len(unit_Nd))
    kinds: tuple[list[Tensor], ...] = ([], [], [])
    for first in range(0, len(unit_Nd), block):
        similarity_RN = unit_Nd[first : first + block] @ unit_Nd.T
        same_RN = classes[first : first + block, None] == classes[None, :]
        other_RN = similarity_RN.masked_fill(same_RN, float("-inf"))
        kinds[1].append(_top(other_RN, count))
        kinds[2].append(_top((-similarity_RN).masked_fill_(same_RN, float("-inf")), count))
        alike_RN = similarity_RN.masked_fill_(~same_RN, float("-inf"))
        alike_RN.diagonal(first).fill_(float("-inf"))
        kinds[0].append(_top(alike_RN, count))
    positives, hard, easy = (
        torch.cat(rows).cpu().numpy() if rows else np.zeros((0, count), np.int64) for rows in kinds
    )
    return Partners(positives, hard, easy, config)


def _top(scores_RN: Tensor, count: int) -> Tensor:
    """Indices [R, count] of the greatest scores, -1 where the score is -inf."""
    scores, indices = scores_RN.topk(count, dim=1)
    return indices.masked_fill(scores == float("-inf"), -1)
