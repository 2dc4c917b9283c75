"""Multiply-adds and time of the alignment and of each fusion.

Run:  python -m bench.flops
Multiply-adds are counted on the actual modules for one clip. Time is that of a forward and backward pass over a padded
batch of 16 on one thread.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from torch import Tensor

from bench.results import write_result
from model.config import ModelConfig
from model.network.alignment import build_alignment
from model.network.flops import count_multiply_adds
from model.network.fusion import build_fusion
from model.network.layers import MaskedSequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHAPES = {
    "sims": {"text": 39, "audio": 400 + 1, "vision": 55 + 1},
    "mosi": {"text": 50, "audio": 375 + 1, "vision": 500 + 1},
}
"""Published sequence lengths, plus the [CLS] step of audio and vision."""
PUBLISHED = {"sims_hbf": 124.8, "sims_alignment": 41.6}
"""Millions of multiply-adds of the authors' code. Their paper states 145 for HBF and 324 for concat_attention."""
CLIPS = 16
REPEATS = 5


@contextmanager
def project_everything() -> Iterator[None]:
    """Disable the shortcuts by which attention avoids projecting every query, key and value."""
    with ExitStack() as stack:
        for name in ("are_few_queries", "are_few_sources"):
            stack.enter_context(patch(f"model.network.layers.{name}", lambda *shapes: False))
        yield


def forward_passes(config: ModelConfig, steps: dict[str, int], clips: int) -> dict[str, Callable[[], Tensor]]:
    """Return the forward passes over random sequences by module name; fusions start from the aligned sequence."""
    torch.manual_seed(0)
    sequences = {
        m: MaskedSequence(torch.randn(clips, t, config.dim, requires_grad=True), torch.ones(clips, t, dtype=torch.bool))
        for m, t in steps.items()
    }
    alignment = build_alignment(config).eval()
    h = alignment(sequences, {})
    aligned = MaskedSequence(h.values.detach().requires_grad_(), h.mask)
    passes: dict[str, Callable[[], Tensor]] = {
        "alignment": lambda: alignment(sequences, {}).values,
        "alignment_first": lambda: alignment(sequences, {}, steps=1).values,
    }
    for name in ("hbf", "concat_attention", "concat"):
        fusion = build_fusion(replace(config, fusion=name)).eval()
        passes[name] = lambda fusion=fusion: fusion(aligned, sequences)
    return passes


def measure_milliseconds(forward: Callable[[], Tensor]) -> float:
    """Return the CPU time of a forward and backward pass, the minimum over several runs."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        forward().sum().backward()
        best = min(best, time.process_time() - began)
    return best * 1e3


def main() -> None:
    """Run the benchmark, and write bench/results/flops.json."""
    torch.set_num_threads(1)
    config = ModelConfig()
    figures: dict[str, float] = {}
    print("millions of multiply-adds per clip, and milliseconds of a training pass over 16 clips;")
    print("projecting = the same with every query, key and value projected\n")
    print(
        f"{'shapes':<7} {'module':<17} {'MAdds':>8} {'projecting':>11} {'published':>10} {'ms':>7} {'projecting':>11}"
    )
    for corpus, steps in SHAPES.items():
        one, many = forward_passes(config, steps, 1), forward_passes(config, steps, CLIPS)
        for name in one:
            key = f"{corpus}_{name}"
            figures[f"{key}_mmadds"] = count_multiply_adds(one[name]) / 1e6
            figures[f"{key}_ms"] = measure_milliseconds(many[name])
            with project_everything():
                figures[f"{key}_projecting_mmadds"] = count_multiply_adds(one[name]) / 1e6
                figures[f"{key}_projecting_ms"] = measure_milliseconds(many[name])
            print(
                f"{corpus:<7} {name:<17} {figures[f'{key}_mmadds']:>8.2f} "
                f"{figures[f'{key}_projecting_mmadds']:>11.2f} {PUBLISHED.get(key, ''):>10} "
                f"{figures[f'{key}_ms']:>7.1f} {figures[f'{key}_projecting_ms']:>11.1f}",
                flush=True,
            )
    ratio = figures["sims_hbf_mmadds"] / PUBLISHED["sims_hbf"]
    figures["sims_hbf_of_published"] = ratio
    print(f"\nHBF at the shapes of CH-SIMS: {ratio:.2f} of the published code's multiply-adds")
    write_result("flops", figures)


if __name__ == "__main__":
    main()
