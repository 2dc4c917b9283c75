"""What each process computes of a training batch.

A batch is the same for any number of processes (ranks). Each rank encodes every n-th clip of it, the ranks exchange the
embeddings, and every rank computes the contrastive losses of all clips (see `model.training.objective`).

Shapes: B clips of the batch (the anchors), b of them encoded by this rank, C distinct clips of the step, anchors first,
P partners of an anchor, R rows of a rank or of several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.data.augmentation import augment_batch
from model.data.batching import cheapest_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.config import TrainConfig
    from model.data.batch import Batch
    from model.data.clips import ClipTable
    from model.training.mining import Partners

CHUNK_OVERHEAD = {"cpu": 150, "cuda": 100_000}
"""Cost of one more forward pass, in the unit of `batch_cost`; measured by `python -m bench.batching`."""


class RankBatch:
    """The part of a training batch that one rank computes.

    Not a dataclass, because Fabric would take one apart.

    Attributes:
        clip_ids: of the whole batch.
        rows_B: position of the whole batch's clips among the training clips.
        epoch: counted from 1.
        anchors: the rank's b anchors; with fewer anchors than ranks, a placeholder clip.
        weight_b: 1 for an anchor, 0 for the placeholder.
        partner_chunks: the rank's partners that are not anchors themselves, in chunks of similar length.
        text_chunks: the tokens of anchors and partners where a text encoder is trained. They are chunked separately,
            because other clips are long in text than in audio, and each pass through a large encoder costs a sweep
            over its gradients.
        text_positions: position of each anchor and partner among the rows of `text_chunks`.
        exchange: with several ranks, the number of rows that each contributes, and [C] the position of the step's
            clips among all ranks' rows; None with one rank.
        partners: position [B, P] of each partner among the C clips, and its validity [B, P]; None if none were drawn.
        classes_B: sentiment class of each anchor.
        steps: real (not padded) steps of the clips that all ranks encode.
    """

    def __init__(
        self,
        clip_ids: Sequence[str],
        rows_B: Tensor,
        epoch: int,
        anchors: Batch,
        weight_b: Tensor,
        partner_chunks: Sequence[Batch],
        text_chunks: Sequence[Batch],
        text_positions: Tensor,
        exchange: tuple[int, Tensor] | None,
        partners: tuple[Tensor, Tensor] | None,
        classes_B: Tensor,
        steps: int,
    ) -> None:
        self.clip_ids, self.rows_B, self.epoch = clip_ids, rows_B, epoch
        self.anchors, self.weight_b, self.partner_chunks = anchors, weight_b, partner_chunks
        self.text_chunks, self.text_positions = text_chunks, text_positions
        self.exchange, self.partners, self.classes_B, self.steps = exchange, partners, classes_B, steps

    @property
    def clips(self) -> int:
        """B."""
        return len(self.clip_ids)

    def pin(self) -> RankBatch:
        """Move the sequences to page-locked memory, in place."""
        self.anchors, self.partner_chunks = self.anchors.pin(), [chunk.pin() for chunk in self.partner_chunks]
        self.text_chunks = [chunk.pin() for chunk in self.text_chunks]
        return self

    def to(self, device: torch.device) -> RankBatch:
        """Move the tensors to `device`, in place."""
        self.anchors = self.anchors.to(device)
        self.partner_chunks = [chunk.to(device) for chunk in self.partner_chunks]
        self.text_chunks = [chunk.to(device) for chunk in self.text_chunks]
        self.text_positions = self.text_positions.to(device)
        self.rows_B, self.classes_B = self.rows_B.to(device), self.classes_B.to(device)
        self.weight_b = self.weight_b.to(device)
        if self.exchange:
            self.exchange = (self.exchange[0], self.exchange[1].to(device))
        if self.partners:
            self.partners = (self.partners[0].to(device), self.partners[1].to(device))
        return self


@dataclass(frozen=True)
class BatchPlanner:
    """Builds the rank batches of a training run; the result depends on the arguments only.

    Attributes:
        clips: the training clips.
        classes: [N] their sentiment classes.
        config: of the run.
        seed: of the run.
        rank: of this process.
        processes: number of ranks.
        overhead: see `CHUNK_OVERHEAD`.
    """

    clips: ClipTable
    classes: np.ndarray
    config: TrainConfig
    seed: int
    rank: int = 0
    processes: int = 1
    overhead: int = CHUNK_OVERHEAD["cpu"]

    def plan(self, rows_B: np.ndarray, partners: Partners | None, epoch: int, number: int) -> RankBatch:
        """Build this rank's part of a batch.

        Args:
            rows_B: the batch's clips, as rows of `clips`.
            partners: candidates to draw from; None: no partners.
            epoch: counted from 1.
            number: of the batch in the epoch, counted from 0.
        """
        modalities = self.config.modalities
        lengths = self.clips.lengths(modalities)

        # Draw the partners, and sort those that are not anchors by length
        others, positions = np.zeros(0, np.int64), None
        if partners:
            drawn_BP, valid_BP = partners.draw(np.random.default_rng((self.seed, epoch, 1, number)), rows_B)
            others = np.setdiff1d(drawn_BP[valid_BP], rows_B)
            others = others[np.argsort(lengths[others].sum(axis=1), kind="stable")]
            positions = _positions(np.concatenate([rows_B, others]), drawn_BP), torch.from_numpy(valid_BP)

        # Take this rank's part of anchors and partners
        own, own_others = rows_B[self.rank :: self.processes], others[self.rank :: self.processes]
        anchors = own if len(own) else rows_B[:1]
        chunks = [own_others[chunk] for chunk in cheapest_chunks(lengths[own_others], self.overhead)]
        text_chunks, text_positions = self._plan_text(np.concatenate([anchors, *chunks]), len(anchors), epoch)
        return RankBatch(
            clip_ids=tuple(self.clips.clip_ids[rows_B]),
            rows_B=torch.from_numpy(rows_B),
            epoch=epoch,
            anchors=self._augment(self.clips.batch(anchors, modalities), anchors, epoch),
            weight_b=torch.full((len(anchors),), float(len(own) > 0)),
            partner_chunks=[self.clips.batch(chunk, modalities) for chunk in chunks],
            text_chunks=text_chunks,
            text_positions=text_positions,
            exchange=self._plan_exchange(len(rows_B), len(others)) if self.processes > 1 else None,
            partners=positions,
            classes_B=torch.from_numpy(self.classes[rows_B]),
            steps=int(lengths[np.concatenate([rows_B, others])].sum()),
        )

    def _augment(self, batch: Batch, rows: np.ndarray, epoch: int) -> Batch:
        return augment_batch(batch, rows, self.config, self.clips.info, self.seed, epoch)

    def _plan_text(self, rows_R: np.ndarray, anchors: int, epoch: int) -> tuple[list[Batch], Tensor]:
        """Return chunks of the clips' tokens, and the position of each of `rows_R` (anchors first) in the chunks."""
        if self.clips.text is None or "text" not in self.config.modalities:
            return [], torch.zeros(0, dtype=torch.int64)
        chunks = cheapest_chunks(self.clips.lengths(("text",))[rows_R], self.overhead)
        positions_R = torch.from_numpy(np.argsort(np.concatenate(chunks)))
        augmented_R = np.where(np.arange(len(rows_R)) < anchors, rows_R, -1)  # partners are not augmented
        batches = [self._augment(self.clips.batch(rows_R[c], ("text",)), augmented_R[c], epoch) for c in chunks]
        return batches, positions_R

    def _plan_exchange(self, anchors: int, others: int) -> tuple[int, Tensor]:
        """Return the maximum rows of a rank, and the positions of anchors, then others, among all ranks' rows."""
        anchors_R = np.maximum(1, [len(range(r, anchors, self.processes)) for r in range(self.processes)])
        others_R = np.array([len(range(r, others, self.processes)) for r in range(self.processes)])
        rows = int((anchors_R + others_R).max())
        rank_B, row_B = np.arange(anchors) % self.processes, np.arange(anchors) // self.processes
        rank_O, row_O = np.arange(others) % self.processes, np.arange(others) // self.processes
        positions_C = np.concatenate([rank_B * rows + row_B, rank_O * rows + anchors_R[rank_O] + row_O])
        return rows, torch.from_numpy(positions_C)


def _positions(distinct_C: np.ndarray, rows_BP: np.ndarray) -> Tensor:
    """Return the position of each row among the distinct ones; undefined for a row that is not among them."""
    sorter = np.argsort(distinct_C)
    found = np.searchsorted(distinct_C, rows_BP, sorter=sorter)
    return torch.from_numpy(sorter[np.minimum(found, len(sorter) - 1)])
