"""The training objective: the loss of a whole batch, computed from one rank's part of it.

Shapes: B clips of the batch (the anchors), b of them encoded by this rank, C distinct clips of the step, anchors first,
P partners of an anchor, R rows of a rank, W ranks, M modalities, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from model.config import MODALITIES, TrainConfig
from model.network.base import Embedding, Network, Output
from model.network.layers import at_least_float32
from model.training.losses import (
    combine_contrastive,
    semantic_loss,
    semantic_loss_against_partners,
    supervised_loss,
)
from model.training.mining import in_batch_partners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data.batch import Batch
    from model.network.auxiliary import AuxiliaryLoss
    from model.training.batch_planner import RankBatch

_Partners = tuple[Tensor, Tensor]
"""Positions of the anchors' partners [B, P] among the step's clips, and their validity [B, P]."""

LOSS_TERMS = ("loss", "regression", "semantic", "supervised", "unimodal", "auxiliary")
"""What `Objective` returns, in this order."""


class Objective(nn.Module):
    """The network with its loss, as one forward pass per step.

    Args:
        network: to train.
        config: of the run.
        processes: number of ranks.
        auxiliary: the network's own loss; None: it has none.
    """

    def __init__(
        self, network: Network, config: TrainConfig, processes: int = 1, auxiliary: AuxiliaryLoss | None = None
    ) -> None:
        super().__init__()
        self.network, self.config, self.processes, self.auxiliary = network, config, processes, auxiliary

    def forward(self, rank_batch: RankBatch) -> Tensor:
        """Compute `L = regression + weight * contrastive` and its terms, [6] float32, see `LOSS_TERMS`.

        With unimodal heads, their weighted mean squared error is added, and so is the network's own loss. With several
        ranks, the mean of `L` over the ranks is the loss of the batch, and the mean of the gradients is its gradient.
        """
        # Encode
        anchors, *partner_chunks = self._with_hidden_text(rank_batch)
        output = self.network(anchors)
        embeddings = [output.embedding, *(self.network.embed(chunk) for chunk in partner_chunks)]

        # Regression
        error_b = output.prediction - rank_batch.anchors.labels
        penalty_b = error_b.square() if self.config.regression_loss == "mse" else error_b.abs()
        regression = (penalty_b * rank_batch.weight_b).sum() * (self.processes / rank_batch.clips)
        unimodal = self._unimodal(output, anchors, rank_batch)
        auxiliary = self._auxiliary(output, rank_batch)
        total = regression + self.config.unimodal_weight * unimodal + auxiliary

        # Contrastive learning
        weight = self.config.contrastive.weight
        if weight == 0:
            zero = torch.zeros_like(regression)
            return torch.stack([total, regression, zero, zero, unimodal, auxiliary])
        embedding = _exchange(_concatenate(embeddings), rank_batch.exchange)
        partners = self._partners(embedding, rank_batch)
        semantic = self._semantic(embedding, rank_batch, partners)
        supervised = self._supervised(embedding, rank_batch, partners)
        contrastive = combine_contrastive(semantic, supervised, self.config.contrastive.reduction, self.config.mining)
        total = total + weight * contrastive
        return torch.stack([total, regression, semantic, supervised, unimodal, auxiliary])

    def _with_hidden_text(self, rank_batch: RankBatch) -> list[Batch]:
        """Return anchors and partner chunks, with hidden states in place of tokens where an encoder is trained."""
        batches = [rank_batch.anchors, *rank_batch.partner_chunks]
        if not rank_batch.text_chunks:
            return batches
        ids = [chunk.values["text"] for chunk in rank_batch.text_chunks]
        masks = [chunk.masks["text"] for chunk in rank_batch.text_chunks]
        hidden = self.network.token_encoder.hidden(ids, masks)
        longest = max(chunk_RTD.shape[1] for chunk_RTD in hidden)
        hidden_RTD = torch.cat([F.pad(chunk_RTD, (0, 0, 0, longest - chunk_RTD.shape[1])) for chunk_RTD in hidden])
        parts = torch.split(hidden_RTD[rank_batch.text_positions], [len(batch) for batch in batches])
        return [
            batch.with_values("text", part_RTD[:, : max(1, batch.masks["text"].shape[1])])
            for batch, part_RTD in zip(batches, parts, strict=True)
        ]

    def _unimodal(self, output: Output, anchors: Batch, rank_batch: RankBatch) -> Tensor:
        """Average the squared error of the unimodal heads; without a label or the modality the error is 0."""
        if output.unimodal is None or not self.network.config.unimodal_heads:
            return rank_batch.weight_b.new_zeros(())
        present_bM = torch.stack([output.embedding.present[m] for m in MODALITIES], dim=1)
        counts_bM = present_bM & anchors.unimodal_labels.isfinite() & (rank_batch.weight_b > 0)[:, None]
        error_bM = torch.where(counts_bM, output.unimodal - anchors.unimodal_labels, 0.0)
        return error_bM.square().sum() * (self.processes / (rank_batch.clips * len(MODALITIES)))

    def _auxiliary(self, output: Output, rank_batch: RankBatch) -> Tensor:
        """Compute the network's own loss of the whole batch, as every rank does."""
        if self.auxiliary is None:
            return rank_batch.weight_b.new_zeros(())
        names, tensors = list(output.auxiliary), list(output.auxiliary.values())
        if rank_batch.exchange:
            rows, positions_C = rank_batch.exchange
            tensors = _gather(tensors, rows, positions_C[: rank_batch.clips])
        with torch.autocast(rank_batch.rows_B.device.type, enabled=False):
            tensors = [x if x.dtype == torch.bool else at_least_float32(x) for x in tensors]
            loss: Tensor = self.auxiliary(dict(zip(names, tensors, strict=True)), rank_batch.rows_B, rank_batch.epoch)
        return loss

    def _partners(self, embedding: Embedding, rank_batch: RankBatch) -> _Partners | None:
        """Return the anchors' partners, drawn by the planner or found in the batch; None without supervised loss."""
        contrastive = self.config.contrastive
        if contrastive.supervised and contrastive.scope == "in_batch":
            return in_batch_partners(mining_embeddings(embedding), rank_batch.classes_B, self.config.mining)
        return rank_batch.partners if contrastive.supervised else None

    def _semantic(self, embedding: Embedding, rank_batch: RankBatch, partners: _Partners | None) -> Tensor:
        contrastive, anchor = self.config.contrastive, self.network.config.anchor
        if not contrastive.semantic:
            return rank_batch.weight_b.new_zeros(())
        if contrastive.semantic_negatives == "anchor":
            assert partners is not None, "the configuration requires the supervised loss"
            positives = self.config.mining.positives
            return semantic_loss_against_partners(
                embedding, rank_batch.clips, *partners, positives, contrastive.temperature, anchor
            )
        anchors = Embedding(
            {stream: vectors[: rank_batch.clips] for stream, vectors in embedding.streams.items()},
            {stream: present[: rank_batch.clips] for stream, present in embedding.present.items()},
        )
        return semantic_loss(anchors, contrastive.temperature, anchor)

    def _supervised(self, embedding: Embedding, rank_batch: RankBatch, partners: _Partners | None) -> Tensor:
        if not self.config.contrastive.supervised:
            return rank_batch.weight_b.new_zeros(())
        assert partners is not None, "the planner draws partners for scope retrieved"
        positives, temperature = self.config.mining.positives, self.config.contrastive.temperature
        return supervised_loss(embedding, rank_batch.clips, *partners, positives, temperature)


def mining_embeddings(embedding: Embedding) -> Tensor:
    """Return the vectors that mining compares, [C, 3d]: those of the modalities concatenated."""
    return torch.cat([embedding.streams[m] for m in MODALITIES], dim=1)


def _concatenate(embeddings: Sequence[Embedding]) -> Embedding:
    first = embeddings[0]
    return Embedding(
        {s: torch.cat([e.streams[s] for e in embeddings]) for s in first.streams},
        {s: torch.cat([e.present[s] for e in embeddings]) for s in first.present},
    )


class _AllGather(torch.autograd.Function):
    """Gather the rows of all ranks; the backward pass sums the gradients of all ranks for the rank's own rows."""

    @staticmethod
    def forward(ctx: Any, own_Rd: Tensor) -> Tensor:
        gathered = [torch.empty_like(own_Rd) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, own_Rd.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, gradient_WRd: Tensor) -> Tensor:
        gradient_WRd = gradient_WRd.contiguous()
        distributed.all_reduce(gradient_WRd)
        return gradient_WRd[distributed.get_rank()]


def _all_gather(own_Rd: Tensor) -> Tensor:
    """Gather the rows of all ranks, [W, R, d]."""
    gathered_WRd: Tensor = _AllGather.apply(own_Rd)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return gathered_WRd


def _gather(tensors: Sequence[Tensor], rows: int, positions_C: Tensor) -> list[Tensor]:
    """Return the tensors [C, ...] of the clips at `positions_C` among all ranks' rows, with gradients.

    All ranks compute the same loss from them, and each receives the sum over the ranks of the gradients of its own
    rows. The mean over the ranks, which data parallelism takes, is therefore the gradient of that loss.

    Args:
        tensors: this rank's tensors, float or bool, of up to `rows` rows each.
        rows: number of rows that each rank contributes.
        positions_C: positions among the ranks' rows, one rank after the other.
    """
    flat = [x.reshape(len(x), -1) for x in tensors]
    own_Rd = torch.cat([x.float() if x.dtype == torch.bool else x for x in flat], dim=1)
    gathered_Cd = _all_gather(F.pad(own_Rd, (0, 0, 0, rows - len(own_Rd)))).flatten(0, 1)[positions_C]
    parts = torch.split(gathered_Cd, [x.shape[1] for x in flat], dim=1)
    return [
        (part > 0.5 if x.dtype == torch.bool else part).reshape(-1, *x.shape[1:])
        for x, part in zip(tensors, parts, strict=True)
    ]


def _exchange(embedding: Embedding, exchange: tuple[int, Tensor] | None) -> Embedding:
    """Assemble the embedding of the step's C clips from those of all ranks, see `_gather`."""
    if exchange is None:
        return embedding
    gathered = iter(_gather([*embedding.streams.values(), *embedding.present.values()], *exchange))
    return Embedding(
        {name: next(gathered) for name in embedding.streams}, {name: next(gathered) for name in embedding.present}
    )
