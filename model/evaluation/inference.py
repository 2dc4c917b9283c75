"""Inference over a split, with any subset of the modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.config import MODALITIES
from model.data.batching import sorted_batches
from model.device import prefetch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from model.data.clips import ClipTable
    from model.network.base import Network


@dataclass(frozen=True, slots=True)
class Inference:
    """The network's outputs of N clips.

    Attributes:
        prediction_N: Sentiment.
        unimodal_NM: Predictions from each modality alone [N, 3], NaN where the clip lacks it; None without them.
        pooled: Modality -> [N, d] vectors of those that the network was shown, NaN where the clip lacks it.
    """

    prediction_N: np.ndarray
    unimodal_NM: np.ndarray | None
    pooled: Mapping[str, np.ndarray]


def predict(
    network: Network,
    table: ClipTable,
    modalities: Sequence[str],
    batch_size: int = 64,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Predict the sentiment of the table's clips, [N] float32, in eval mode.

    Args:
        network: restored to its training mode afterwards.
        table: the clips.
        modalities: those that the network is shown; the others are fed as missing.
        batch_size: maximum clips of a batch.
        part: (k, n) predicts every n-th batch from the k-th on. Clips of other batches are 0, so that the n parts add
            up to the whole.
        progress: called with the number of clips after each batch.
    """
    return infer(network, table, modalities, batch_size, part, progress).prediction_N


@torch.inference_mode()
def infer(
    network: Network,
    table: ClipTable,
    modalities: Sequence[str],
    batch_size: int = 64,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] | None = None,
) -> Inference:
    """Run the network over the table's clips, see `predict`, and return all outputs."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    prediction_N = np.zeros(len(table), np.float32)
    unimodal_NM: np.ndarray | None = None
    pooled: dict[str, np.ndarray] = {}
    batches = sorted_batches(table.lengths(modalities), batch_size)[part[0] :: part[1]]
    for rows, batch in zip(batches, prefetch(lambda rows: table.batch(rows, modalities), batches), strict=True):
        output = network(batch.to(device))
        prediction_N[rows] = output.prediction.cpu().numpy()
        if output.unimodal is not None:
            if unimodal_NM is None:
                unimodal_NM = np.zeros((len(table), len(MODALITIES)), np.float32)
            present_BM = torch.stack([output.embedding.present[m] for m in MODALITIES], dim=1)
            unimodal_NM[rows] = output.unimodal.where(present_BM, torch.nan).cpu().numpy()
        for m in modalities:
            present_B1, vectors_Bd = output.embedding.present[m][:, None], output.embedding.streams[m]
            if m not in pooled:
                pooled[m] = np.full((len(table), vectors_Bd.shape[1]), np.nan, np.float32)
            pooled[m][rows] = vectors_Bd.where(present_B1, torch.nan).cpu().numpy()
        if progress is not None:
            progress(len(rows))
    network.train(training)
    return Inference(prediction_N, unimodal_NM, pooled)
