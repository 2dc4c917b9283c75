"""Hard-negative mining: which training clips each anchor is compared with.

Shapes: N training clips, P of a pool, R rows of a block, K candidates kept; B anchors of a step, P partners of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from model.config import MiningConfig

BLOCKS = {"cpu": 256, "cuda": 4096}
"""Anchors that are ranked at a time: a block of similarities that the caches hold, or that keeps a GPU busy."""


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
        hard: [N, K] most similar clips of another class; with `negatives: random` any of another class.
        easy: [N, K] least similar clips of another class; likewise. An index of -1 means that there are no more.
        config: the counts to draw.
    """

    positives: np.ndarray
    hard: np.ndarray
    easy: np.ndarray
    config: MiningConfig

    @property
    def short_count(self) -> int:
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


def mine(
    embeddings_Nd: Tensor,
    classes_N: np.ndarray,
    config: MiningConfig,
    generator: np.random.Generator | None = None,
    block: int | None = None,
) -> Partners:
    """Rank the other clips by cosine similarity and keep each anchor's candidates of the three kinds.

    Above `config.pool_size` clips, candidates come from a random pool of that size, whatever the anchor.

    Args:
        generator: of the pool and of random negatives; None = one of a fixed seed.
        block: anchors that are ranked at a time. Memory grows with `block` x min(N, pool_size), and with nothing
            squared. None = as suits the device.
    """
    rng = generator or np.random.default_rng(0)
    device, count = embeddings_Nd.device, len(embeddings_Nd)
    pool = np.sort(rng.permutation(count)[: config.pool_size]) if count > config.pool_size else np.arange(count)
    noise = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    pool_P = torch.from_numpy(pool).to(device)
    unit_Nd = F.normalize(embeddings_Nd.float(), dim=1)
    unit_Pd = unit_Nd[pool_P]
    classes = torch.as_tensor(classes_N, device=device)
    kept, rows = min(config.candidates, len(pool)), block or BLOCKS.get(device.type, BLOCKS["cpu"])
    kinds: tuple[list[Tensor], ...] = ([], [], [])
    for first in range(0, count, rows):
        anchors_R = torch.arange(first, min(first + rows, count), device=device)
        similarity_RP = unit_Nd[anchors_R] @ unit_Pd.T
        same_RP = classes[anchors_R, None] == classes[None, pool_P]
        ranked_by = similarity_RP
        if config.negatives == "random":
            ranked_by = torch.rand(similarity_RP.shape, generator=noise, device=device)
        kinds[1].append(_top(ranked_by.masked_fill(same_RP, float("-inf")), kept, pool_P))
        kinds[2].append(_top((-ranked_by).masked_fill_(same_RP, float("-inf")), kept, pool_P))
        itself_RP = anchors_R[:, None] == pool_P[None, :]
        alike_RP = similarity_RP.masked_fill_(~same_RP | itself_RP, float("-inf"))
        kinds[0].append(_top(alike_RP, kept, pool_P))
    positives, hard, easy = (
        torch.cat(found).cpu().numpy() if found else np.zeros((0, kept), np.int64) for found in kinds
    )
    return Partners(positives, hard, easy, config)


def in_batch_partners(embeddings_Bd: Tensor, classes_B: Tensor, config: MiningConfig) -> tuple[Tensor, Tensor]:
    """Partners of every clip of a batch among the batch's own clips, by the network as it is at this step.

    The similarity is that of `mine`, and so are the kinds and how many there are of each. As a batch is small, the
    very nearest (farthest) are taken, where `mine` leaves a choice among `config.candidates`. A clip that has
    fewer than it should has the rest invalid; where other classes are few, one clip may be hard and easy at once.
    Random negatives follow from the places in the batch alone, which is shuffled: every process draws the same.

    Args:
        embeddings_Bd: the three modalities' vectors of each clip, side by side; nothing flows back into them.
        classes_B: [B] int64, see `label_classes`.

    Returns:
        Positions in the batch [B, P] int64, positives first, then hard, then easy negatives, and their validity
        [B, P] bool; an invalid one has position 0.
    """
    unit_Bd = F.normalize(embeddings_Bd.detach().float(), dim=1)
    with torch.autocast(unit_Bd.device.type, enabled=False):
        similarity_BB = unit_Bd @ unit_Bd.T
    same_BB = classes_B[:, None] == classes_B[None, :]
    itself_BB = torch.eye(len(classes_B), dtype=torch.bool, device=classes_B.device)
    among_BB = similarity_BB
    if config.negatives == "random":
        fixed = torch.Generator(unit_Bd.device).manual_seed(0)
        among_BB = torch.rand(similarity_BB.shape, generator=fixed, device=unit_Bd.device)
    everywhere_B = torch.arange(len(classes_B), device=classes_B.device)
    found = []
    for scores_BB, excluded_BB, wanted in (
        (similarity_BB, ~same_BB | itself_BB, config.positives),
        (among_BB, same_BB, config.hard_negatives),
        (-among_BB, same_BB, config.easy_negatives),
    ):
        top = _top(scores_BB.masked_fill(excluded_BB, float("-inf")), min(wanted, len(classes_B)), everywhere_B)
        found.append(F.pad(top, (0, wanted - top.shape[1]), value=-1))
    partners_BP = torch.cat(found, dim=1)
    return partners_BP.clamp(min=0), partners_BP >= 0


def _top(scores_RP: Tensor, count: int, pool_P: Tensor) -> Tensor:
    """Clips [R, count] of the greatest scores, -1 where the score is -inf."""
    scores, indices = scores_RP.topk(count, dim=1)
    return pool_P[indices].masked_fill(scores == float("-inf"), -1)
