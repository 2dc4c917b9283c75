"""Contrastive losses: one masked NT-Xent, applied to DashFusion's semantic and supervised pairs.

Losses are computed in at least float32, also under autocast.

Shapes: B anchors, N candidates, C distinct clips of a step, P partners of an anchor, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import MODALITIES, MiningConfig, Reduction
from model.network.base import STREAMS, Embedding
from model.network.layers import at_least_float32


def nt_xent(
    anchors_Bd: Tensor, candidates_Nd: Tensor, positive_BN: Tensor, negative_BN: Tensor, temperature: float
) -> Tensor:
    """Compute the masked NT-Xent with cosine similarity.

    With s = cos(anchor, candidate) / temperature, each positive p of an anchor is contrasted with all the anchor's
    negatives n, and with no other positive:

        loss(anchor) = mean over p of  -log( exp(s_p) / (exp(s_p) + sum over n of exp(s_n)) )
                     = mean over p of  softplus( logsumexp over n of s_n  -  s_p )

    Args:
        anchors_Bd: embeddings of the anchors.
        candidates_Nd: embeddings of the candidates.
        positive_BN: bool, True where the candidate is a positive of the anchor.
        negative_BN: bool, True where the candidate is a negative of the anchor.
        temperature: tau.

    Returns:
        One loss for each anchor that has both a positive and a negative, [0 to B]. Average over concatenated results,
        so that an empty result has no weight.
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
    """Contrast the anchor modality with each other modality of the same clip.

    DashFusion, section "Dual-stream alignment", semantic part. With text as the anchor: a clip's text vector, with its
    own audio (vision) vector as the positive and the other clips' audio (vision) vectors as negatives. A clip that
    lacks one of the two modalities is left out of the pair, as an anchor and as a negative.

    Args:
        embedding: of B clips.
        temperature: tau.
        anchor: text, audio or vision; for symmetric and adaptive, each of the three is the anchor once.

    Returns:
        The mean over clips and pairs of modalities; 0 without any pair.
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


def semantic_loss_against_partners(
    embedding: Embedding,
    anchors: int,
    partners_BP: Tensor,
    valid_BP: Tensor,
    positives: int,
    temperature: float,
    anchor: str = "text",
) -> Tensor:
    """Compute the semantic loss as the authors' code does, with the negatives in the anchor modality.

    The pairs are those of `semantic_loss`. Their negatives are the anchor modality's vectors of the clip's negative
    partners. The other arguments are those of `supervised_loss`.

    Returns:
        The mean over clips and pairs of modalities; 0 without any pair.
    """
    firsts = (anchor,) if anchor in MODALITIES else MODALITIES
    negative_BC = _scatter(partners_BP[:, positives:], valid_BP[:, positives:], len(embedding.present["aligned"]))
    losses = []
    for first, second in ((a, m) for a in firsts for m in MODALITIES if m != a):
        both_B = embedding.present[first][:anchors] & embedding.present[second][:anchors]
        own_BB = both_B.diag()
        usable_BC = negative_BC & both_B[:, None] & embedding.present[first]
        losses.append(
            nt_xent(
                embedding.streams[first][:anchors],
                torch.cat([embedding.streams[second][:anchors], embedding.streams[first]]),
                torch.cat([own_BB, torch.zeros_like(usable_BC)], dim=1),
                torch.cat([torch.zeros_like(own_BB), usable_BC], dim=1),
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
    """Contrast the anchors with their mined partners, in each of the four streams.

    DashFusion, section "Supervised contrastive learning". In the stream of a modality, clips that lack it are neither
    anchors nor partners.

    Args:
        embedding: of the step's C distinct clips, the anchors first.
        anchors: B.
        partners_BP: position of each partner among the C clips; positives first, then negatives.
        valid_BP: bool, False where an anchor has fewer partners.
        positives: number of positives among the P.
        temperature: tau.

    Returns:
        The mean over anchors and streams; 0 without any pair.
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


def combine_contrastive(semantic: Tensor, supervised: Tensor, reduction: Reduction, mining: MiningConfig) -> Tensor:
    """Combine the two contrastive losses, each a mean over its pairs.

    `paper` adds the means, `L_semantic + L_supervised`. `published` is the authors' code: one mean over all pairs of an
    anchor and its P partners, which are 2 semantic pairs, 4 supervised pairs for each positive (one per stream), and
    each partner's own 2 semantic pairs, which are 0 because they have no negatives. With the paper's 2 positives and
    4 negatives that is `(2 semantic + 8 supervised) / 22`.
    """
    if reduction == "paper":
        return semantic + supervised
    partners = mining.positives + mining.hard_negatives + mining.easy_negatives
    supervised_pairs = len(STREAMS) * mining.positives
    return (2 * semantic + supervised_pairs * supervised) / (2 + supervised_pairs + 2 * partners)


def _scatter(positions_BP: Tensor, valid_BP: Tensor, clips: int) -> Tensor:
    """Return [B, clips] bool, True at the valid positions."""
    counts = torch.zeros(len(positions_BP), clips, dtype=torch.int32, device=positions_BP.device)
    return counts.scatter_add_(1, positions_BP, valid_BP.int()) > 0


def _mean(losses: list[Tensor]) -> Tensor:
    all_losses = torch.cat(losses)
    return all_losses.mean() if len(all_losses) else all_losses.sum()
