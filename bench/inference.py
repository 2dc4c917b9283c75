"""Speed of prediction.

Run:  python -m bench.inference [--what network videos text] [--shapes mosi sims]

network: from features, one clip at a time (latency) and a whole split (`model.evaluation.inference.predict`), on the
default device and number of threads, with clips of realistic lengths. `padded`, the baseline, pads the same clips to
the corpus's fixed lengths, in their given order, like published code.

videos: the demo's videos (run `make demo` first) with its checkpoint. The command on one clip of about 3 s, including
its start; warm calls of a `Predictor`, as a real-time factor; and the command on a folder of 100 clips, compared with
the extraction stages on the same files, both including the start of their processes.

text: the text encoder in int8 compared with float32 on the demo's test clips: scores, errors, time and size.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from bench.results import write_result
from bench.shapes import SHAPES, Shape, table
from corpora.manifest import Clip, Manifest, read_manifest
from extractors.base import Source
from extractors.execution.units import work_units
from extractors.execution.workers import WorkerPool
from extractors.text.transformer import TransformerText
from flows.config.params import load_params
from flows.prediction.inputs import default_model
from model.config import MODALITIES, ModelConfig
from model.device import resolve_device
from model.evaluation.inference import predict
from model.network.dashfusion import DashFusion
from model.predict import Predictor
from model.prediction.protocol import Video
from model.prediction.quantisation import quantise_linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data.clips import ClipTable
    from model.network.base import Network

CLIPS, SINGLE, BATCH = 640, 100, 64

PARTS = ("network", "videos", "text")
FOLDER_CLIPS, WARM_CLIPS, COLD_RUNS = 100, 30, 3


def padded(network: Network, clips: ClipTable, shape: Shape, device: torch.device) -> np.ndarray:
    """Return predictions [N] with every clip padded to the corpus's fixed lengths."""
    predictions = []
    for first in range(0, len(clips), BATCH):
        batch = clips.batch(np.arange(first, min(first + BATCH, len(clips))))
        for m in MODALITIES:
            missing = shape.padded[m] - batch.masks[m].shape[1]
            batch.values[m] = F.pad(batch.values[m], (0, 0, 0, missing))
            batch.masks[m] = F.pad(batch.masks[m], (0, missing))
        predictions.append(network(batch.to(device)).prediction.cpu().numpy())
    return np.concatenate(predictions)


@torch.inference_mode()
def measure(shape: Shape, device: torch.device) -> dict[str, float]:
    """Measure latency of one clip, and throughput of a split, with and without fixed padding."""
    torch.manual_seed(0)
    clips = table(shape, CLIPS)
    config = ModelConfig(encoder_layers=shape.encoder_layers, fusion_layers=shape.fusion_layers)
    network = DashFusion(config, clips.info).to(device).eval()
    alone = []
    for row in range(SINGLE + 5):
        began = time.perf_counter()
        network(clips.batch(np.array([row])).to(device)).prediction.item()
        alone.append(1000 * (time.perf_counter() - began))
    seconds, results = {}, {}
    methods = {
        "split": lambda: predict(network, clips, MODALITIES),
        "padded": lambda: padded(network, clips, shape, device),
    }
    for name, method in methods.items():
        method()  # warm-up
        began = time.perf_counter()
        results[name] = method()
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


def measure_videos(manifest: Manifest, checkpoint: Path) -> dict[str, float]:
    """Time the command and warm calls on the demo's videos."""
    clips = [clip for clip in manifest.clips if clip.duration]
    short = min(clips, key=lambda clip: abs(clip.duration - 3))
    command = [sys.executable, "-m", "flows.cli", "predict", "--model", str(checkpoint.resolve())]
    one = [str(manifest.media_path(short)), "--text", short.text]
    cold = [_seconds_of([*command, *one]) for _ in range(COLD_RUNS)]
    figures = {
        "command_seconds_one_clip": float(np.median(cold)),
        "warm_real_time_factor": warm_real_time_factor(manifest, clips[:WARM_CLIPS], checkpoint),
    }
    folder_clips = clips[:FOLDER_CLIPS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, clip in enumerate(folder_clips):
            (folder / f"{number:03}.mp4").symlink_to(manifest.media_path(clip).resolve())
            (folder / f"{number:03}.txt").write_text(clip.text, encoding="utf-8")
        figures["command_seconds_folder"] = _seconds_of([*command, name, "--transcript", name])
        figures["extraction_seconds_folder"] = extraction_seconds(manifest, folder_clips, folder / "scratch")
    figures["folder_clips"] = len(folder_clips)
    figures["folder_over_extraction"] = figures["command_seconds_folder"] / figures["extraction_seconds_folder"]
    return figures


def _seconds_of(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def warm_real_time_factor(manifest: Manifest, clips: Sequence[Clip], checkpoint: Path) -> float:
    """Return seconds of processing per second of video, one video at a time, with everything loaded."""
    predictor = Predictor.load(checkpoint)
    predictor(manifest.media_path(clips[0]), clips[0].text)
    began = time.perf_counter()
    for clip in clips:
        predictor(manifest.media_path(clip), clip.text)
    return (time.perf_counter() - began) / sum(clip.duration for clip in clips)


def extraction_seconds(manifest: Manifest, clips: Sequence[Clip], scratch: Path) -> float:
    """Return the time of the three extract stages, one after the other, each with its own worker processes."""
    params, workers = load_params().extract, os.cpu_count() or 1
    began = time.perf_counter()
    for m in MODALITIES:
        chosen = getattr(params, m)
        job = (Path(manifest.root), chosen.extractor, chosen.options, scratch)
        units = work_units(clips, -(-len(clips) // (2 * workers)))
        with WorkerPool(workers, 600.0) as pool, ThreadPoolExecutor(workers) as threads:
            list(threads.map(lambda unit, pool=pool, job=job: pool.run(unit, *job), units))
    return time.perf_counter() - began


def measure_text(manifest: Manifest, checkpoint: Path) -> dict[str, float]:
    """Measure how int8 changes the test clips' scores, and what it saves."""
    clips = [clip for clip in manifest.clips if clip.split == "test" and clip.label is not None]
    videos = [Video(manifest.media_path(clip), clip.text) for clip in clips]
    labels = np.array([clip.label for clip in clips])
    float32, int8 = (
        np.array([r.score.raw for r in Predictor(checkpoint, quantise_text=on).predict(videos, workers=2)])
        for on in (False, True)
    )
    figures = {
        "score_difference_mean": float(np.abs(float32 - int8).mean()),
        "score_difference_max": float(np.abs(float32 - int8).max()),
        "mae_float32": float(np.abs(float32 - labels).mean()),
        "mae_int8": float(np.abs(int8 - labels).mean()),
    }
    encoder = TransformerText()
    sources = [Source(clip.clip_id, None, clip.text, clip.language, clip.duration) for clip in clips]
    for name in ("float32", "int8"):
        if name == "int8":
            encoder.change_model(quantise_linear)
        list(encoder.extract(sources))  # warm-up
        began = time.perf_counter()
        list(encoder.extract(sources))
        figures[f"milliseconds_a_transcript_{name}"] = 1000 * (time.perf_counter() - began) / len(sources)
        file = io.BytesIO()
        torch.save(encoder.model.state_dict(), file)
        figures[f"megabytes_{name}"] = file.tell() / 2**20
    return figures


def main() -> None:
    """Run the benchmark; if all of it is run, write bench/results/inference.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    chosen = parser.parse_args()
    figures: dict[str, float] = {}

    def add(prefix: str, measured: dict[str, float]) -> None:
        for key, value in measured.items():
            figures[f"{prefix}_{key}"] = value
            print(f"{prefix:<8}{key:<36}{value:>10.3f}", flush=True)

    if "network" in chosen.what:
        for name in chosen.shapes:
            add(name, measure(SHAPES[name], resolve_device("auto")))
    if {"videos", "text"} & set(chosen.what):
        manifest, checkpoint = read_manifest(load_params().paths.manifest), default_model()
        for part, measure_part in (("videos", measure_videos), ("text", measure_text)):
            if part in chosen.what:
                add(part, measure_part(manifest, checkpoint))
    if len(chosen.what) == len(PARTS):
        write_result("inference", figures)


if __name__ == "__main__":
    main()
