"""Share of padding in batches, and cost of a batch.

Run:  python -m bench.batching
Padding: CMU-MOSI's lengths (audio 20-250, vision 30-300, text 4-22), batches of 16. Baselines: every clip padded to
50 / 375 / 500 steps, as in published code for these corpora; and random batches padded to their longest clip.
Cost: seconds of the encoders' forward and backward passes as a linear function of `batch_cost`, whose constant term is
the overhead of one more chunk (`CHUNK_OVERHEAD`).
"""

from __future__ import annotations

import time

import numpy as np
import torch

from bench.results import write_result
from bench.shapes import SHAPES, labels, lengths, table
from model.config import ModelConfig
from model.data.batching import batch_cost, padding_fraction, training_batches
from model.network.dashfusion import DashFusion
from model.training.mining import label_classes
from model.training.objective import mining_embeddings


def padding() -> dict[str, float]:
    """Return the fraction of padded steps for each way of batching, averaged over 3 seeds."""
    shape, runs = SHAPES["mosi"], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        steps = lengths(shape, shape.clips, rng)
        classes = label_classes(labels(shape, shape.clips, rng), shape.label_range)
        fixed_steps = sum(shape.padded.values()) * len(steps)
        shuffled = np.array_split(rng.permutation(len(steps)), len(steps) // 16)
        ours = training_batches(steps, 16, seed, 1)
        tokens = training_batches(steps, 64, seed, 1, limit=6000)
        balanced = training_batches(steps, 16, seed, 1, classes_N=classes)
        runs.append(
            {
                "padding_fixed_50_375_500": 1 - steps.sum() / fixed_steps,
                "padding_random_batches": padding_fraction(steps, shuffled),
                "padding_ours": padding_fraction(steps, ours),
                "padding_ours_by_token_budget": padding_fraction(steps, tokens),
                "padding_ours_class_balanced": padding_fraction(steps, balanced),
            }
        )
    return {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}


def overhead(device: torch.device) -> dict[str, float]:
    """Fit `seconds = a + b * cost` over batches of several sizes. The overhead in units of cost is a / b."""
    clips = table(SHAPES["mosi"], 256)
    order = np.argsort(clips.lengths().sum(1))
    torch.manual_seed(0)
    network = DashFusion(ModelConfig(), clips.info).to(device)
    rows, costs, seconds = [order[k : k + n] for n in (1, 2, 4, 8, 16, 64) for k in (0, 100, 150)], [], []
    for chosen in rows:
        batch, best = clips.batch(chosen).to(device), float("inf")
        for _ in range(4):
            _synchronize(device)
            began = time.perf_counter()
            mining_embeddings(network.embed(batch)).sum().backward()
            _synchronize(device)
            best = min(best, time.perf_counter() - began)
        costs.append(batch_cost(clips.lengths()[chosen]))
        seconds.append(best)
    slope, constant = np.polyfit(costs, seconds, 1, w=1 / np.array(seconds))  # least squares of relative errors
    return {
        f"chunk_milliseconds_{device.type}": 1000 * constant,
        f"chunk_overhead_{device.type}": constant / slope,
        f"cost_correlation_{device.type}": float(np.corrcoef(costs, seconds)[0, 1]),
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run the benchmark, and write bench/results/batching.json."""
    figures = padding() | overhead(torch.device("cpu"))
    if torch.cuda.is_available():
        figures |= overhead(torch.device("cuda"))
    for name, value in figures.items():
        print(f"{name:<32} {value:10.4g}")
    write_result("batching", figures)


if __name__ == "__main__":
    main()
