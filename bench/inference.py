"""Prediction from features: python -m bench.inference [--shapes mosi sims]

One clip at a time (what an answer waits for) and a whole split (`model.evaluate.predict`), on this machine's default
device and number of threads, with clips of the lengths that real ones have. `padded`, the baseline, gives the network
the same clips padded to the corpus's fixed lengths in the order they come in, as published code does.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F

from bench.results import write_result
from bench.shapes import SHAPES, Shape, table
from model.config import MODALITIES, ModelConfig
from model.data import ClipTable
from model.device import resolve_device
from model.evaluate import predict
from model.network import DashFusion

CLIPS, SINGLE, BATCH = 640, 100, 64


def padded(network: DashFusion, clips: ClipTable, shape: Shape, device: torch.device) -> np.ndarray:
    """Predictions [N] with every clip at the corpus's fixed lengths."""
    found = []
    for first in range(0, len(clips), BATCH):
        batch = clips.batch(np.arange(first, min(first + BATCH, len(clips))))
        for m in MODALITIES:
            missing = shape.padded[m] - batch.masks[m].shape[1]
            batch.values[m] = F.pad(batch.values[m], (0, 0, 0, missing))
            batch.masks[m] = F.pad(batch.masks[m], (0, missing))
        found.append(network(batch.to(device)).prediction.cpu().numpy())
    return np.concatenate(found)


@torch.inference_mode()
def measure(shape: Shape, device: torch.device) -> dict[str, float]:
    """Milliseconds of one clip, and clips a second of a split, ours and padded."""
    torch.manual_seed(0)
    clips = table(shape, CLIPS)
    config = ModelConfig(encoder_layers=shape.encoder_layers, fusion_layers=shape.fusion_layers)
    network = DashFusion(config, clips.info).to(device).eval()
    alone = []
    for row in range(SINGLE + 5):
        began = time.perf_counter()
        network(clips.batch(np.array([row])).to(device)).prediction.item()
        alone.append(1000 * (time.perf_counter() - began))
    seconds = {}
    ways = {
        "split": lambda: predict(network, clips, MODALITIES),
        "padded": lambda: padded(network, clips, shape, device),
    }
    results = {}
    for name, way in ways.items():
        way()  # to warm up
        began = time.perf_counter()
        results[name] = way()
        seconds[name] = time.perf_counter() - began
    difference = float(np.abs(results["split"] - results["padded"]).max())
    if difference > 1e-4:
        raise AssertionError(f"padding changed a prediction by {difference}")
    return {
        "one_clip_milliseconds_median": float(np.median(alone[5:])),
        "one_clip_milliseconds_p99": float(np.percentile(alone[5:], 99)),
        "clips_per_second": CLIPS / seconds["split"],
        "clips_per_second_padded": CLIPS / seconds["padded"],
        "times_faster_than_padded": seconds["padded"] / seconds["split"],
    }


def main() -> None:
    """Measure, print and write bench/results/inference.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    figures = {}
    for name in parser.parse_args().shapes:
        for key, value in measure(SHAPES[name], resolve_device("auto")).items():
            figures[f"{name}_{key}"] = value
            print(f"{name:<8}{key:<32}{value:>10.2f}", flush=True)
    write_result("inference", figures)


if __name__ == "__main__":
    main()
