"""Hard-negative mining for supervised contrastive learning (DashFusion, section "Supervised contrastive learning").

Shapes: N training clips, R anchors of a block, K candidates kept; B anchors of a step. P is the clips of the pool in
`mine` and the partners of an anchor elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from model.config import ClassRounding, MiningConfig, TrainConfig

BLOCKS = {"cpu": 256, "cuda": 4096}
"""Anchors ranked at a time: a block of similarities fits the CPU's caches, or keeps a GPU busy."""

GROUP = 32
"""Candidates of which `_top` looks at the greatest first."""


def is_mined(config: TrainConfig) -> bool:
    """Return whether a training run draws partners from all training clips, ranked by `mine`."""
    contrastive = config.contrastive
    return contrastive.weight > 0 and contrastive.supervised and contrastive.scope == "retrieved"


def label_classes(
    labels_N: np.ndarray, label_range: tuple[float, float], rounding: ClassRounding = "away"
) -> np.ndarray:
    """Return the sentiment classes for supervised contrastive learning, [N] int64.

    [-3, 3]: the nearest integer (7 classes). [-1, 1]: the nearest multiple of 0.2, the grid of CH-SIMS's labels (11
    classes). Halves are rounded away from zero or, with `rounding` even, to the even neighbour as NumPy does.

    Raises:
        ValueError: another label range.
    """
    low, high = label_range
    step = {(-3.0, 3.0): 1.0, (-1.0, 1.0): 0.2}.get((low, high))
    if step is None:
        raise ValueError(f"label range {(low, high)}: classes are defined for [-3, 3] and [-1, 1] only")
    # Rounding to five decimals absorbs the float32 error of labels on a half step
    scaled = np.round(labels_N.astype(np.float64) / step, 5)
    rounded = np.round(scaled) if rounding == "even" else np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)
    classes_N: np.ndarray = rounded.astype(np.int64)
    return classes_N


@dataclass(frozen=True)
class Partners:
    """Candidate partners of every training clip, best first, padded with -1.

    Attributes:
        positives: [N, K] most similar clips of the same class.
        hard: [N, K] most similar clips of another class; with `negatives: random`, random ones.
        easy: [N, K] least similar clips of another class; with `negatives: random`, random ones.
        config: how many of each kind an anchor draws.
    """

    positives: np.ndarray
    hard: np.ndarray
    easy: np.ndarray
    config: MiningConfig

    @property
    def short_count(self) -> int:
        """Number of clips with fewer candidates than partners to draw, in at least one kind."""
        short_N = np.zeros(len(self.positives), bool)
        for candidates_NK, count in self._kinds():
            short_N |= (candidates_NK >= 0).sum(axis=1) < count
        return int(short_N.sum())

    def draw(self, generator: np.random.Generator, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw partners of `anchors`, without repetition within a kind.

        Returns:
            Clip indices [B, P] int64: positives, then hard, then easy negatives; and their validity [B, P] bool. The
            index of an invalid partner is 0.
        """
        drawn = []
        for candidates_NK, count in self._kinds():
            candidates_BK = candidates_NK[anchors]
            keys_BK = np.where(candidates_BK >= 0, generator.random(candidates_BK.shape), 2.0)
            chosen = np.take_along_axis(candidates_BK, np.argsort(keys_BK, axis=1)[:, :count], axis=1)
            drawn.append(np.pad(chosen, ((0, 0), (0, count - chosen.shape[1])), constant_values=-1))
        partners_BP = np.concatenate(drawn, axis=1)
        return np.maximum(partners_BP, 0), partners_BP >= 0

    def _kinds(self) -> tuple[tuple[np.ndarray, int], ...]:
        c = self.config
        return (self.positives, c.positives), (self.hard, c.hard_negatives), (self.easy, c.easy_negatives)


@torch.no_grad()
def mine(
    embeddings_Nd: Tensor,
    classes_N: np.ndarray,
    config: MiningConfig,
    generator: np.random.Generator | None = None,
    block: int | None = None,
) -> Partners:
    """Rank the other clips by cosine similarity and keep each anchor's candidates of the three kinds.

    With more than `config.pool_size` clips, all candidates come from one random pool of that size.

    Args:
        embeddings_Nd: vectors to compare, see `mining_embeddings`.
        classes_N: see `label_classes`.
        config: of the mining.
        generator: draws the pool and random negatives; None: seeded with 0.
        block: anchors ranked at a time; memory is proportional to `block` x min(N, pool_size). None: the device's
            default.
    """
    rng = generator or np.random.default_rng(0)
    device, count = embeddings_Nd.device, len(embeddings_Nd)
    pool = np.sort(rng.permutation(count)[: config.pool_size]) if count > config.pool_size else np.arange(count)
    noise = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    pool_P = torch.from_numpy(pool).to(device)
    unit_Pd = F.normalize(embeddings_Nd[pool_P].float(), dim=1)
    classes = torch.as_tensor(classes_N, device=device)
    column_N = torch.full((count,), -1, device=device)
    column_N[pool_P] = torch.arange(len(pool), device=device)
    kept, block_size = min(config.candidates, len(pool)), block or BLOCKS.get(device.type, BLOCKS["cpu"])
    positives: list[Tensor] = []
    hard: list[Tensor] = []
    easy: list[Tensor] = []
    _, class_N = torch.unique(classes, return_inverse=True)
    other_CP = torch.where(class_N[pool_P] == class_N.unique()[:, None], 0.0, float("-inf"))  # added: not of class C
    same_CP = torch.where(other_CP == 0, float("-inf"), 0.0)
    shape = min(block_size, count), len(pool)  # allocated once: fresh pages cost more than what is written there
    buffers = [torch.empty(shape, device=device) for _ in range(3)]
    for first in range(0, count, block_size):
        anchors_R = torch.arange(first, min(first + block_size, count), device=device)
        similarity_RP, penalty_RP, scores_RP = (buffer[: len(anchors_R)] for buffer in buffers)
        unit_Rd = F.normalize(embeddings_Nd[anchors_R].float(), dim=1)
        torch.matmul(unit_Rd, unit_Pd.T, out=similarity_RP)
        if config.index == "rank":
            same_RP = classes[anchors_R, None] == classes[None, pool_P]
            for kind, top in zip(
                (positives, hard, easy), _by_rank(similarity_RP, same_RP, anchors_R, kept), strict=True
            ):
                kind.append(top)
            continue
        torch.index_select(other_CP, 0, class_N[anchors_R], out=penalty_RP)
        torch.add(similarity_RP, penalty_RP, out=scores_RP)
        rows_R, columns_R = column_N[anchors_R].ge(0).nonzero().flatten(), column_N[anchors_R]
        scores_RP[rows_R, columns_R[rows_R]] = float("-inf")  # no clip is its own partner
        positives.append(_top(scores_RP, kept, pool_P))
        if config.negatives == "random":
            similarity_RP.copy_(torch.rand(similarity_RP.shape, generator=noise, device=device))
        torch.index_select(same_CP, 0, class_N[anchors_R], out=penalty_RP)
        hard.append(_top(torch.add(similarity_RP, penalty_RP, out=scores_RP), kept, pool_P))
        easy.append(_top(torch.sub(penalty_RP, similarity_RP, out=scores_RP), kept, pool_P))
    none_0K = torch.zeros((0, kept), dtype=torch.int64, device=device)
    candidates = [torch.cat([none_0K, *kind]).cpu().numpy() for kind in (positives, hard, easy)]
    return Partners(candidates[0], candidates[1], candidates[2], config)


def _by_rank(similarity_RP: Tensor, same_RP: Tensor, anchors_R: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions in each anchor's ranking, where the authors' code expects the ranked clips: three [R, kept].

    The first positions with a clip of the same class, the first with one of another class, and the last such. The first
    two kinds leave out the position that equals the anchor's own index, instead of the anchor.
    """
    order_RP = similarity_RP.argsort(dim=1, descending=True, stable=True)
    same_RP = same_RP.gather(1, order_RP)
    position_P = torch.arange(similarity_RP.shape[1], device=similarity_RP.device)
    score_RP = position_P.to(similarity_RP.dtype).expand_as(similarity_RP)
    skipped_RP = position_P == anchors_R[:, None]
    return (
        _top((-score_RP).masked_fill(~same_RP | skipped_RP, float("-inf")), kept, position_P),
        _top((-score_RP).masked_fill(same_RP | skipped_RP, float("-inf")), kept, position_P),
        _top(score_RP.masked_fill(same_RP, float("-inf")), kept, position_P),
    )


def in_batch_partners(embeddings_Bd: Tensor, classes_B: Tensor, config: MiningConfig) -> tuple[Tensor, Tensor]:
    """Find the partners of every clip of a batch within the batch.

    Similarity and kinds are those of `mine`. As a batch is small, the very nearest (farthest) clips are taken instead
    of a random choice among `config.candidates`, and one clip may be both a hard and an easy negative. Random
    negatives depend on the positions in the batch only, which is shuffled: every process draws the same.

    Args:
        embeddings_Bd: see `mining_embeddings`; detached.
        classes_B: int64, see `label_classes`.
        config: of the mining.

    Returns:
        Positions in the batch [B, P] int64: positives, then hard, then easy negatives; and their validity [B, P] bool.
        The position of an invalid partner is 0.
    """
    unit_Bd = F.normalize(embeddings_Bd.detach().float(), dim=1)
    with torch.autocast(unit_Bd.device.type, enabled=False):
        similarity_BB = unit_Bd @ unit_Bd.T
    same_BB = classes_B[:, None] == classes_B[None, :]
    itself_BB = torch.eye(len(classes_B), dtype=torch.bool, device=classes_B.device)
    ranked_by = similarity_BB
    if config.negatives == "random":
        noise = torch.Generator(unit_Bd.device).manual_seed(0)
        ranked_by = torch.rand(similarity_BB.shape, generator=noise, device=unit_Bd.device)
    positions_B = torch.arange(len(classes_B), device=classes_B.device)
    kinds = []
    for scores_BB, excluded_BB, count in (
        (similarity_BB, ~same_BB | itself_BB, config.positives),
        (ranked_by, same_BB, config.hard_negatives),
        (-ranked_by, same_BB, config.easy_negatives),
    ):
        top = _top(scores_BB.masked_fill(excluded_BB, float("-inf")), min(count, len(classes_B)), positions_B)
        kinds.append(F.pad(top, (0, count - top.shape[1]), value=-1))
    partners_BP = torch.cat(kinds, dim=1)
    return partners_BP.clamp(min=0), partners_BP >= 0


def _top(scores_RP: Tensor, count: int, pool_P: Tensor) -> Tensor:
    """Return the clips of the greatest scores [R, count], -1 where the score is -inf.

    Of many scores, the `count` greatest are within the `count` groups with the greatest maxima, which are found by one
    vectorised pass; a row's `topk` on a CPU goes through the scores one by one.
    """
    groups = scores_RP.shape[1] // GROUP
    if groups <= 2 * count:
        scores, indices = scores_RP.topk(count, dim=1)
        return pool_P[indices].masked_fill(scores == float("-inf"), -1)
    grouped = groups * GROUP  # group g is the columns g, g + groups, g + 2 groups, ...
    greatest_RK = torch.unflatten(scores_RP[:, :grouped], 1, (GROUP, groups)).amax(1).topk(count, dim=1).indices
    offset_G = torch.arange(0, grouped, groups, device=scores_RP.device)
    rest = torch.arange(grouped, scores_RP.shape[1], device=scores_RP.device).expand(len(scores_RP), -1)
    columns = torch.cat([(greatest_RK[:, :, None] + offset_G).flatten(1), rest], dim=1)
    scores, positions = scores_RP.gather(1, columns).topk(count, dim=1)
    return pool_P[columns.gather(1, positions)].masked_fill(scores == float("-inf"), -1)
