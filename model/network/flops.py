"""What a network costs: multiply-adds, counted on the real modules, and parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.data.clips import ClipTable
    from model.network.dashfusion import DashFusion


def count_multiply_adds(forward: Callable[[], object]) -> float:
    """Multiply-adds of one call, attention's products included."""
    # The counter knows matrix products, not every fused attention kernel.
    unfused = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with unfused, FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() / 2


@torch.no_grad()
def network_costs(network: DashFusion, clips: ClipTable, modalities: Sequence[str]) -> dict[str, float]:
    """Costs of the network on a clip of middling length.

    Args:
        clips: of which the one of median length is taken, among those that have all of `modalities` if any do.

    Returns:
        madds: millions of multiply-adds of the whole network, a trained text encoder included; fusion_madds: of the
        fusion alone; parameters: how many are trained.
    """
    lengths_NM = clips.lengths(modalities)
    whole = (lengths_NM > 0).all(axis=1)
    rows = np.flatnonzero(whole) if whole.any() else np.arange(len(clips))
    middle = rows[np.argsort(lengths_NM[rows].sum(axis=1), kind="stable")[len(rows) // 2]]
    batch = clips.batch(np.array([middle]), modalities).to(next(network.parameters()).device)
    training = network.training
    network.eval()
    sequences, masks = network.encode(batch)
    aligned = network.alignment(sequences, masks, batch.missing())
    costs = {
        "madds": count_multiply_adds(lambda: network(batch)) / 1e6,
        "fusion_madds": count_multiply_adds(lambda: network.fusion(*aligned, sequences, masks)) / 1e6,
        "parameters": float(sum(p.numel() for p in network.parameters() if p.requires_grad)),
    }
    network.train(training)
    return costs
