"""Time of ranking the training clips by similarity.

Run:  python -m bench.mining [--whole]
Baseline `pairwise_loop`, which is what published code does in principle: for every clip, a Python loop over all others
computes the cosine similarity of two vectors and sorts the list. It is timed on 300 clips and extrapolated
quadratically to CMU-MOSI's size, or run in full with --whole.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F

from bench.results import write_result
from model.config import MiningConfig
from model.training.mining import mine

WIDTH = 3 * 128
SIZES = {"mosi": 1284, "mosei": 16326}


def pairwise_loop(vectors_Nd: torch.Tensor, classes_N: np.ndarray) -> list[tuple[list[int], list[int], list[int]]]:
    """Return each clip's nearest of its class, nearest of other classes and farthest of other classes."""
    partners = []
    for i, anchor in enumerate(vectors_Nd):
        ranked = []
        for j, other in enumerate(vectors_Nd):
            if i != j:
                ranked.append((F.cosine_similarity(anchor, other, dim=0).item(), j))
        ranked.sort(reverse=True)
        same = [j for _, j in ranked if classes_N[j] == classes_N[i]]
        others = [j for _, j in ranked if classes_N[j] != classes_N[i]]
        partners.append((same[:10], others[:10], others[::-1][:10]))
    return partners


def seconds_of(vectors_Nd: torch.Tensor, classes_N: np.ndarray, config: MiningConfig, runs: int = 3) -> float:
    """Return the minimum time of several runs of `mine`."""
    best = float("inf")
    for _ in range(runs):
        began = time.perf_counter()
        mine(vectors_Nd, classes_N, config)  # returns numpy arrays, so a GPU has finished
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    """Run the benchmark, and write bench/results/mining.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="run the loop on all 1,284 clips")
    sample = SIZES["mosi"] if parser.parse_args().whole else 300
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    vectors = {name: torch.randn(size, WIDTH, generator=generator) for name, size in SIZES.items()}
    classes = {name: rng.integers(0, 7, size) for name, size in SIZES.items()}
    config = MiningConfig()

    began = time.perf_counter()
    looped = pairwise_loop(vectors["mosi"][:sample], classes["mosi"][:sample])
    loop_seconds = (time.perf_counter() - began) * (SIZES["mosi"] / sample) ** 2
    ours = mine(vectors["mosi"][:sample], classes["mosi"][:sample], config)
    same = np.mean([looped[i][0] == ours.positives[i].tolist() for i in range(sample)])
    figures = {"loop_seconds_1284_clips": loop_seconds, "clips_with_the_loops_positives": float(same)}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for name, size in SIZES.items():
            on_device = vectors[name].to(device)
            figures[f"{device}_seconds_{size}_clips"] = seconds_of(on_device, classes[name], config)
        pooled = MiningConfig(pool_size=4000)
        figures[f"{device}_seconds_16326_clips_pool_4000"] = seconds_of(on_device, classes["mosei"], pooled)
        figures[f"{device}_times_faster_than_the_loop"] = loop_seconds / figures[f"{device}_seconds_1284_clips"]
    for name, value in figures.items():
        print(f"{name:<40} {value:10.4g}")
    write_result("mining", figures)


if __name__ == "__main__":
    main()
