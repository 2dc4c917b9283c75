"""Contrastive losses: one masked NT-Xent, and the two sets of pairs that DashFusion gives it.

Losses are computed in float32 at least, whatever autocast makes of the network around them.

Shapes: B anchors, N candidates, C distinct clips of a step, P partners of an anchor, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import MODALITIES
from model.network.dashfusion import STREAMS, Embedding
from model.network.layers import at_least_float32


def nt_xent(
    anchors_Bd: Tensor, candidates_Nd: Tensor, positive_BN: Tensor, negative_BN: Tensor, temperature: float
) -> Tensor:
    """Masked NT-Xent with cosine similarity.

    With s = cos(anchor, candidate) / temperature, each positive p of an anchor stands against all the
    anchor's negatives n, and against no other positive:

        loss(anchor) = mean over p of  -log( exp(s_p) / (exp(s_p) + sum over n of exp(s_n)) )
                     = mean over p of  softplus( logsumexp over n of s_n  -  s_p )

    Args:
        positive_BN, negative_BN: [B, N] bool, which candidates are an anchor's positives and negatives.

    Returns:
        One loss for each anchor that has both a positive and a negative, [0 to B]; the others contribute
        nothing. Concatenate and average, so that an empty result weighs nothing.
    """
    rows = positive_BN.any(dim=1) & negative_BN.any(dim=1)
    positive, negative = positive_BN[rows], negative_BN[rows]
    with torch.autocast(anchors_Bd.device.type, enabled=False):
        anchors = F.normalize(at_least_float32(anchors_Bd[rows]), dim=1)
        similarity = anchors @ F.normalize(at_least_float32(candidates_Nd), dim=1).T / temperature
        against = similarity.masked_fill(~negative, float("-inf")).logsumexp(dim=1, keepdim=True)
        losses = F.softplus(against - similarity) * positive
        return losses.sum(dim=1) / positive.sum(dim=1)


def semantic_loss(embedding: Embedding, temperature: float, anchor: str = "text") -> Tensor:
    """The anchor's modality against each other modality of the same clip (DashFusion, semantic alignment).

    With text as the anchor: a clip's text vector, its own audio (vision) vector as the positive, the other clips'
    audio (vision) vectors as the negatives. A clip that lacks one of the two takes no part in that pair of
    modalities, neither as an anchor nor as a negative.

    Args:
        anchor: text, audio, vision, or else (symmetric, adaptive) each of the three is the anchor once.

    Returns:
        The mean over clips and pairs of modalities; 0 where nothing can be compared.
    """
    anchors = (anchor,) if anchor in MODALITIES else MODALITIES
    losses = []
    for first, second in ((a, m) for a in anchors for m in MODALITIES if m != a):
        both_B = embedding.present[first] & embedding.present[second]
        same_BB = torch.eye(len(both_B), dtype=torch.bool, device=both_B.device)
        pair_BB = both_B[:, None] & both_B[None, :]
        losses.append(
            nt_xent(
                embedding.streams[first],
                embedding.streams[second],
                pair_BB & same_BB,
                pair_BB & ~same_BB,
                temperature,
            )
        )
    return _mean(losses)


def supervised_loss(
    embedding: Embedding,
    anchors: int,
    partners_BP: Tensor,
    valid_BP: Tensor,
    positives: int,
    temperature: float,
) -> Tensor:
    """Each stream's anchors against their mined partners (DashFusion, supervised contrastive learning).

    Args:
        embedding: of the step's C distinct clips, the anchors first.
        anchors: B.
        partners_BP: [B, P] position of each partner among the C clips; positives first, then negatives.
        valid_BP: [B, P] bool, False where an anchor has fewer partners.
        positives: how many of the P are positives.

    Returns:
        The mean over anchors and the four streams; 0 where nothing can be compared. In the stream of a
        modality, clips that lack it are neither anchors nor partners.
    """
    clips = len(embedding.present["aligned"])
    positive_BC = _scatter(partners_BP[:, :positives], valid_BP[:, :positives], clips)
    negative_BC = _scatter(partners_BP[:, positives:], valid_BP[:, positives:], clips)
    losses = []
    for stream in STREAMS:
        vectors_Cd, present_C = embedding.streams[stream], embedding.present[stream]
        usable_BC = present_C[:anchors, None] & present_C[None, :]
        losses.append(
            nt_xent(
                vectors_Cd[:anchors],
                vectors_Cd,
                positive_BC & usable_BC,
                negative_BC & usable_BC,
                temperature,
            )
        )
    return _mean(losses)


def _scatter(positions_BP: Tensor, valid_BP: Tensor, clips: int) -> Tensor:
    """[B, clips] bool, True at the valid positions."""
    counts = torch.zeros(len(positions_BP), clips, dtype=torch.int32, device=positions_BP.device)
    return counts.scatter_add_(1, positions_BP, valid_BP.int()) > 0


def _mean(losses: list[Tensor]) -> Tensor:
    together = torch.cat(losses)
    return together.mean() if len(together) else together.sum()
