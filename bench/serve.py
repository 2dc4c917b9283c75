"""Latency, throughput and memory of the server under load.

Run after `make demo`:  python -m bench.serve [--requests 500] [--clients 8] [--workers 0 ...]
Sends the demo's clips of about three seconds with their transcripts over loopback to `dashfusion serve`, first from one
client, then from `--clients` at a time. Latency includes upload and queueing. Memory is that of the server and all its
processes (resident, so shared pages count repeatedly), after the first tenth of the requests and after the last. With
several values of `--workers`, figures of all but the first carry the number as a suffix.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import numpy as np
import psutil

from bench.results import write_result
from corpora.manifest import Clip, Manifest, read_manifest
from flows.config.params import load_params
from flows.orchestration.prefect_server import free_port
from flows.prediction.inputs import default_model
from flows.serving.worker_pool import default_worker_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SINGLE_REQUESTS = 50  # from one client alone
CLIP_SECONDS = (2.5, 3.5)


@contextmanager
def serving(model: Path, workers: int, waiting: int) -> Iterator[tuple[str, psutil.Process, float]]:
    """Run a server, and yield its address, its process and the seconds until it was ready."""
    port = free_port()
    began = time.perf_counter()
    options = ["--workers", str(workers), "--queue", str(waiting)]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", "--port", str(port), "--model", str(model), *options],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        if not any("DashFusion is at" in line for line in process.stdout):
            raise RuntimeError("the server ended before it was ready")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop the server
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid), time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def post(client: httpx.Client, manifest: Manifest, clip: Clip) -> float:
    """Post a clip, and return the seconds until the response."""
    began = time.perf_counter()
    with manifest.media_path(clip).open("rb") as file:
        response = client.post("/predict", files={"file": file}, data={"text": clip.text})
    if response.status_code != 200:
        raise RuntimeError(f"{clip.clip_id}: HTTP {response.status_code}: {response.text}")
    return time.perf_counter() - began


def memory(server: psutil.Process) -> float:
    """Return the resident memory of the server and its child processes in MiB."""
    return sum(process.memory_info().rss for process in [server, *server.children(recursive=True)]) / 2**20


def measure(
    manifest: Manifest, clips: Sequence[Clip], model: Path, workers: int, requests: int, clients: int
) -> dict[str, float]:
    """Measure one server."""
    with (
        serving(model, workers, clients) as (address, server, ready),
        httpx.Client(base_url=address, timeout=600, limits=httpx.Limits(max_connections=clients)) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        cycle = itertools.cycle(clips)
        alone = [post(client, manifest, next(cycle)) for _ in range(min(SINGLE_REQUESTS, requests))]
        queue = [next(cycle) for _ in range(requests)]
        warm_up = queue[: max(requests // 10, clients)]
        list(pool.map(lambda clip: post(client, manifest, clip), warm_up))
        before = memory(server)
        began = time.perf_counter()
        latencies = list(pool.map(lambda clip: post(client, manifest, clip), queue))
        seconds = time.perf_counter() - began
        after = memory(server)
    return {
        "workers": workers,
        "ready_seconds": ready,
        "alone_milliseconds_median": 1000 * float(np.median(alone)),
        "alone_milliseconds_p95": 1000 * float(np.percentile(alone, 95)),
        "milliseconds_median": 1000 * float(np.median(latencies)),
        "milliseconds_p95": 1000 * float(np.percentile(latencies, 95)),
        "milliseconds_p99": 1000 * float(np.percentile(latencies, 99)),
        "clips_per_second": requests / seconds,
        "memory_mebibytes": after,
        "memory_growth_mebibytes": after - before,
    }


def main() -> None:
    """Run the benchmark, and write bench/results/serve.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="0: the command's default")
    parser.add_argument("--dry", action="store_true", help="do not write the results")
    chosen = parser.parse_args()
    manifest = read_manifest(load_params().paths.manifest)
    low, high = CLIP_SECONDS
    clips = [clip for clip in manifest.clips if clip.duration and low <= clip.duration <= high]
    figures: dict[str, float] = {"requests": chosen.requests, "clients": chosen.clients, "cores": os.cpu_count() or 1}
    figures["clip_seconds_mean"] = float(np.mean([clip.duration for clip in clips]))
    for number, workers in enumerate(chosen.workers):
        count = workers or default_worker_count()
        measured = measure(manifest, clips, default_model(), count, chosen.requests, chosen.clients)
        figures |= {f"{name}_{count}_workers" if number else name: value for name, value in measured.items()}
        print("\n".join(f"{name}: {value:.4g}" for name, value in measured.items()), "\n")
    if not chosen.dry:
        write_result("serve", figures, " ".join(["serve", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
