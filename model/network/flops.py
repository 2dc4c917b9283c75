"""The cost of a network: multiply-adds, counted on the real modules, and trained parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.data.clips import ClipTable
    from model.network.base import Network


def count_multiply_adds(forward: Callable[[], object]) -> float:
    """Count the multiply-adds of one call, those of attention included."""
    flops: int = _count(forward).get_total_flops()
    return flops / 2


def _count(forward: Callable[[], object]) -> FlopCounterMode:
    # The counter knows matrix products but not every fused attention kernel.
    unfused = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    counter = FlopCounterMode(display=False)
    with unfused, counter:
        forward()
    return counter


@torch.no_grad()
def network_costs(network: Network, clips: ClipTable, modalities: Sequence[str]) -> dict[str, float]:
    """Measure the network on a clip of median length.

    Args:
        network: restored to its training mode afterwards.
        clips: candidates; clips that have all of `modalities` are preferred.
        modalities: those that the network is shown.

    Returns:
        madds: millions of multiply-adds of the whole network, a trained text encoder included; fusion_madds: of the
        network's module `fusion` alone, 0 if it has none; parameters: the number of trained parameters.
    """
    lengths_NM = clips.lengths(modalities)
    complete = (lengths_NM > 0).all(axis=1)
    rows = np.flatnonzero(complete) if complete.any() else np.arange(len(clips))
    median = rows[np.argsort(lengths_NM[rows].sum(axis=1), kind="stable")[len(rows) // 2]]
    batch = clips.batch(np.array([median]), modalities).to(next(network.parameters()).device)
    training = network.training
    network.eval()
    counter = _count(lambda: network(batch))
    of_fusion = counter.get_flop_counts().get(f"{type(network).__name__}.fusion", {})
    costs = {
        "madds": counter.get_total_flops() / 2e6,
        "fusion_madds": sum(of_fusion.values()) / 2e6,
        "parameters": float(sum(p.numel() for p in network.parameters() if p.requires_grad)),
    }
    network.train(training)
    return costs
