"""One process's share of a training step: which clips it encodes, and the loss of the whole batch.

The batch is the same for any number of processes. Each encodes every n-th clip of it, the embeddings are exchanged, and
every process computes the contrastive losses of all clips.

Shapes: B clips of the batch (the anchors), b of them in this process's share, C distinct clips of the step, anchors
first, P partners of an anchor, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from model.config import MODALITIES, TrainConfig
from model.data.augmentation import augment_batch
from model.data.batching import cheapest_chunks
from model.network.dashfusion import DashFusion, Embedding, Output
from model.training.losses import semantic_loss, supervised_loss
from model.training.mining import Partners, in_batch_partners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data.batch import Batch
    from model.data.clips import ClipTable

LOSS_TERMS = ("loss", "regression", "semantic", "supervised", "unimodal")
"""What `Objective` returns, in this order."""

CHUNK_OVERHEAD = {"cpu": 150, "cuda": 100_000}
"""What starting one more forward pass costs, in the unit of `batch_cost`: `python -m bench.batching` measures it."""


class RankBatch:
    """What one process computes of one batch. (No dataclass: Fabric would take it apart.)

    Attributes:
        clip_ids: of the whole batch.
        anchors: Batch of b clips; where the batch has fewer clips than there are processes, one stand-in.
        weight_b: 1 for a clip of the batch, 0 for the stand-in.
        others: partners that are not anchors, this process's share of them, in chunks of similar length.
        texts: of anchors and others where an encoder is trained, in chunks of their own: text is longest elsewhere
            than sound, and each pass through a large encoder costs a sweep over its gradients.
        text_places: where anchors and others lie among `texts`.
        exchange: with several processes, the rows that each gives to the exchange, and [C] where the step's clips
            then lie; None with one process.
        partners: position [B, P] of each partner among the C clips, and whether there is one [B, P]; None: none
            were drawn.
        classes_B: sentiment class of each anchor.
        steps: real (not padded) steps of the clips that all processes encode.
    """

    def __init__(
        self,
        clip_ids: Sequence[str],
        anchors: Batch,
        weight_b: Tensor,
        others: Sequence[Batch],
        texts: Sequence[Batch],
        text_places: Tensor,
        exchange: tuple[int, Tensor] | None,
        partners: tuple[Tensor, Tensor] | None,
        classes_B: Tensor,
        steps: int,
    ) -> None:
        self.clip_ids, self.anchors, self.weight_b, self.others = clip_ids, anchors, weight_b, others
        self.texts, self.text_places = texts, text_places
        self.exchange, self.partners, self.classes_B, self.steps = exchange, partners, classes_B, steps

    @property
    def clips(self) -> int:
        """B."""
        return len(self.clip_ids)

    def pin(self) -> RankBatch:
        """The same share with its sequences in page-locked memory."""
        self.anchors, self.others = self.anchors.pin(), [chunk.pin() for chunk in self.others]
        self.texts = [chunk.pin() for chunk in self.texts]
        return self

    def to(self, device: torch.device) -> RankBatch:
        """The same share on `device`."""
        self.anchors, self.others = self.anchors.to(device), [chunk.to(device) for chunk in self.others]
        self.texts, self.text_places = [chunk.to(device) for chunk in self.texts], self.text_places.to(device)
        self.weight_b, self.classes_B = self.weight_b.to(device), self.classes_B.to(device)
        if self.exchange:
            self.exchange = (self.exchange[0], self.exchange[1].to(device))
        if self.partners:
            self.partners = (self.partners[0].to(device), self.partners[1].to(device))
        return self


@dataclass(frozen=True)
class BatchPlanner:
    """Makes the shares of a training run's batches; everything it does depends on its arguments alone.

    Attributes:
        clips: the training clips.
        classes: [N] their sentiment classes.
        config: of the run.
        seed: of the run.
        rank, processes: which of how many processes this is.
        overhead: of a chunk, see `CHUNK_OVERHEAD`.
    """

    clips: ClipTable
    classes: np.ndarray
    config: TrainConfig
    seed: int
    rank: int = 0
    processes: int = 1
    overhead: int = CHUNK_OVERHEAD["cpu"]

    def plan(self, rows_B: np.ndarray, partners: Partners | None, epoch: int, number: int) -> RankBatch:
        """This process's share of the epoch's batch `number`, which holds the clips at `rows_B`."""
        lengths = self.clips.lengths(self.config.modalities)
        others = np.zeros(0, np.int64)
        if partners:
            drawn_BP, valid_BP = partners.draw(np.random.default_rng((self.seed, epoch, 1, number)), rows_B)
            others = np.setdiff1d(drawn_BP[valid_BP], rows_B)
            others = others[np.argsort(lengths[others].sum(axis=1), kind="stable")]
        distinct_C = np.concatenate([rows_B, others])
        own, own_others = rows_B[self.rank :: self.processes], others[self.rank :: self.processes]
        anchors = own if len(own) else rows_B[:1]
        modalities = self.config.modalities
        chunks = [own_others[chunk] for chunk in cheapest_chunks(lengths[own_others], self.overhead)]
        texts, text_places = self._texts(np.concatenate([anchors, *chunks]), len(anchors), epoch)
        return RankBatch(
            clip_ids=tuple(self.clips.clip_ids[rows_B]),
            anchors=self._augmented(self.clips.batch(anchors, modalities), anchors, epoch),
            weight_b=torch.full((len(anchors),), float(len(own) > 0)),
            others=[self.clips.batch(chunk, modalities) for chunk in chunks],
            texts=texts,
            text_places=text_places,
            exchange=self._exchange(len(rows_B), len(others)) if self.processes > 1 else None,
            partners=(_positions(distinct_C, drawn_BP), torch.from_numpy(valid_BP)) if partners else None,
            classes_B=torch.from_numpy(self.classes[rows_B]),
            steps=int(lengths[distinct_C].sum()),
        )

    def _augmented(self, batch: Batch, rows: np.ndarray, epoch: int) -> Batch:
        return augment_batch(batch, rows, self.config, self.clips.info, self.seed, epoch)

    def _texts(self, rows: np.ndarray, anchors: int, epoch: int) -> tuple[list[Batch], Tensor]:
        """Chunks of the clips' tokens, and where among these each of `rows`, anchors first, lies."""
        if self.clips.text is None or "text" not in self.config.modalities:
            return [], torch.zeros(0, dtype=torch.int64)
        chunks = cheapest_chunks(self.clips.lengths(("text",))[rows], self.overhead)
        places = torch.from_numpy(np.argsort(np.concatenate(chunks)))
        changed = np.where(np.arange(len(rows)) < anchors, rows, -1)
        texts = [self._augmented(self.clips.batch(rows[c], ("text",)), changed[c], epoch) for c in chunks]
        return texts, places

    def _exchange(self, anchors: int, others: int) -> tuple[int, Tensor]:
        """Rows of a process, that of the most; and where the anchors, then the others, lie among all rows."""
        anchors_R = np.maximum(1, [len(range(r, anchors, self.processes)) for r in range(self.processes)])
        others_R = np.array([len(range(r, others, self.processes)) for r in range(self.processes)])
        rows = int((anchors_R + others_R).max())
        rank_B, place_B = np.arange(anchors) % self.processes, np.arange(anchors) // self.processes
        rank_O, place_O = np.arange(others) % self.processes, np.arange(others) // self.processes
        where_C = np.concatenate([rank_B * rows + place_B, rank_O * rows + anchors_R[rank_O] + place_O])
        return rows, torch.from_numpy(where_C)


class Objective(nn.Module):
    """The network with its loss: one forward pass a step, whatever it encodes on the way."""

    def __init__(self, network: DashFusion, config: TrainConfig, processes: int = 1) -> None:
        super().__init__()
        self.network, self.config, self.processes = network, config, processes

    def forward(self, share: RankBatch) -> Tensor:
        """[5] float32, see `LOSS_TERMS`: `L = MSE + weight * (semantic + supervised)` and its parts.

        With unimodal heads `L` has a further part, their mean squared error times its weight.
        With several processes the mean over them is the batch's loss, and so is that of the gradients.
        """
        anchors, *others = self._with_hidden_text(share)
        output = self.network(anchors)
        embeddings = [output.embedding, *(self.network.embed(chunk) for chunk in others)]
        error_b = output.prediction - share.anchors.labels
        regression = (error_b.square() * share.weight_b).sum() * (self.processes / share.clips)
        contrastive, unimodal = self.config.contrastive, self._unimodal(output, anchors, share)
        total = regression + self.config.unimodal_weight * unimodal
        if contrastive.weight == 0:
            none = torch.zeros_like(regression)
            return torch.stack([total, regression, none, none, unimodal])
        embedding = _exchange(_concatenate(embeddings), share.exchange)
        semantic, supervised = self._semantic(embedding, share), self._supervised(embedding, share)
        total = total + contrastive.weight * (semantic + supervised)
        return torch.stack([total, regression, semantic, supervised, unimodal])

    def _with_hidden_text(self, share: RankBatch) -> list[Batch]:
        """Anchors and others; what an encoder makes of their tokens in place of these."""
        batches = [share.anchors, *share.others]
        if not share.texts:
            return batches
        ids, masks = ([getattr(chunk, name)["text"] for chunk in share.texts] for name in ("values", "masks"))
        hidden = self.network.token_encoder.hidden(ids, masks)
        longest = max(part_BTD.shape[1] for part_BTD in hidden)
        hidden = [F.pad(part_BTD, (0, 0, 0, longest - part_BTD.shape[1])) for part_BTD in hidden]
        together = torch.cat(hidden)[share.text_places].split([len(batch) for batch in batches])
        return [
            batch.with_values("text", part_BTD[:, : max(1, batch.masks["text"].shape[1])])
            for batch, part_BTD in zip(batches, together, strict=True)
        ]

    def _unimodal(self, output: Output, anchors: Batch, share: RankBatch) -> Tensor:
        """Mean over the batch's clips and the modalities; without a label or the modality a clip counts as no error."""
        if output.unimodal is None:
            return share.weight_b.new_zeros(())
        present_bM = torch.stack([output.embedding.present[m] for m in MODALITIES], dim=1)
        counts_bM = present_bM & anchors.unimodal_labels.isfinite() & (share.weight_b > 0)[:, None]
        error_bM = torch.where(counts_bM, output.unimodal - anchors.unimodal_labels, 0.0)
        return error_bM.square().sum() * (self.processes / (share.clips * len(MODALITIES)))

    def _semantic(self, embedding: Embedding, share: RankBatch) -> Tensor:
        if not self.config.contrastive.semantic:
            return share.weight_b.new_zeros(())
        anchors = _first(embedding, share.clips)
        return semantic_loss(anchors, self.config.contrastive.temperature, self.network.config.anchor)

    def _supervised(self, embedding: Embedding, share: RankBatch) -> Tensor:
        contrastive, mining = self.config.contrastive, self.config.mining
        if not contrastive.supervised:
            return share.weight_b.new_zeros(())
        partners = share.partners
        if contrastive.scope == "in_batch":
            partners = in_batch_partners(mining_embeddings(embedding), share.classes_B, mining)
        positions_BP, valid_BP = partners
        return supervised_loss(
            embedding, share.clips, positions_BP, valid_BP, mining.positives, contrastive.temperature
        )


def mining_embeddings(embedding: Embedding) -> Tensor:
    """[C, 3 d]: what mining compares, the modalities' vectors side by side."""
    return torch.cat([embedding.streams[m] for m in MODALITIES], dim=1)


def _positions(distinct_C: np.ndarray, rows_BP: np.ndarray) -> Tensor:
    """Where each row lies among the distinct ones; anything for a row that is not among them."""
    sorter = np.argsort(distinct_C)
    found = np.searchsorted(distinct_C, rows_BP, sorter=sorter)
    return torch.from_numpy(sorter[np.minimum(found, len(sorter) - 1)])


def _concatenate(embeddings: Sequence[Embedding]) -> Embedding:
    first = embeddings[0]
    return Embedding(
        {s: torch.cat([e.streams[s] for e in embeddings]) for s in first.streams},
        {s: torch.cat([e.present[s] for e in embeddings]) for s in first.present},
    )


def _first(embedding: Embedding, count: int) -> Embedding:
    return Embedding(
        {s: vectors[:count] for s, vectors in embedding.streams.items()},
        {s: present[:count] for s, present in embedding.present.items()},
    )


class _AllGather(torch.autograd.Function):
    """Rows of all processes; back flows the sum of all processes' gradients of one's own rows."""

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
    """[processes, R, d]."""
    return _AllGather.apply(own_Rd)


def _exchange(embedding: Embedding, exchange: tuple[int, Tensor] | None) -> Embedding:
    """The embedding of the step's C clips from those of all processes; gradients find their way back.

    Each process's gradient is the sum over all processes, which all compute one and the same loss from it: their
    mean, which is what data parallelism takes, is the gradient of that loss.
    """
    if exchange is None:
        return embedding
    rows, where_C = exchange
    widths = [vectors.shape[1] for vectors in embedding.streams.values()]
    own = torch.cat([*embedding.streams.values(), *(p[:, None].float() for p in embedding.present.values())], dim=1)
    together = _all_gather(F.pad(own, (0, 0, 0, rows - len(own)))).flatten(0, 1)[where_C]
    *vectors, flags = together.split([*widths, len(embedding.present)], dim=1)
    return Embedding(
        dict(zip(embedding.streams, vectors, strict=True)),
        {name: flag > 0.5 for name, flag in zip(embedding.present, flags.unbind(dim=1), strict=True)},
    )
