"""The server under load: python -m bench.serve [--requests 500] [--clients 8] [--workers 0 ...]

`make demo` first: clips of about three seconds with their transcripts, by the demo's checkpoint, sent to a
`dashfusion serve` of its own process over loopback. First one client (what somebody who waits alone waits for), then
`--clients` at a time. Latency is that of an answer, upload and waiting in line included. Memory is that of the server
and all its processes (`rss`, shared pages counted more than once), after the first tenth of the requests and after the
last. Of several `--workers` each is measured; figures of all but the first carry their number.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
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

ALONE = 50
TYPICAL = (2.5, 3.5)  # seconds


@contextmanager
def serving(model: Path, workers: int, waiting: int) -> Iterator[tuple[str, psutil.Process, float]]:
    """Address and process of a server, and the seconds that it took to be ready."""
    port = free_port()
    began = time.perf_counter()
    options = ["--workers", str(workers), "--queue", str(waiting)]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", "--port", str(port), "--model", str(model), *options],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        if not any("DashFusion is at" in line for line in process.stdout):
            raise RuntimeError("the server has ended before it was ready")
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid), time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def ask(client: httpx.Client, manifest: Manifest, clip: Clip) -> float:
    """Seconds until the score of a clip is there."""
    began = time.perf_counter()
    with open(manifest.media_path(clip), "rb") as file:
        answer = client.post("/predict", files={"file": file}, data={"text": clip.text})
    if answer.status_code != 200:
        raise RuntimeError(f"{clip.clip_id}: HTTP {answer.status_code}: {answer.text}")
    return time.perf_counter() - began


def memory(server: psutil.Process) -> float:
    """MiB of the server and all that it started."""
    return sum(process.memory_info().rss for process in [server, *server.children(recursive=True)]) / 2**20


def measure(
    manifest: Manifest, clips: Sequence[Clip], model: Path, workers: int, requests: int, clients: int
) -> dict[str, float]:
    """Figures of one server."""
    with (
        serving(model, workers, clients) as (address, server, ready),
        httpx.Client(base_url=address, timeout=600, limits=httpx.Limits(max_connections=clients)) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        turns = itertools.cycle(clips)
        alone = [ask(client, manifest, next(turns)) for _ in range(min(ALONE, requests))]
        sent = [next(turns) for _ in range(requests)]
        first = sent[: max(requests // 10, clients)]
        list(pool.map(lambda clip: ask(client, manifest, clip), first))
        before = memory(server)
        began = time.perf_counter()
        taken = list(pool.map(lambda clip: ask(client, manifest, clip), sent))
        seconds = time.perf_counter() - began
        after = memory(server)
    return {
        "workers": workers,
        "ready_seconds": ready,
        "alone_milliseconds_median": 1000 * float(np.median(alone)),
        "alone_milliseconds_p95": 1000 * float(np.percentile(alone, 95)),
        "milliseconds_median": 1000 * float(np.median(taken)),
        "milliseconds_p95": 1000 * float(np.percentile(taken, 95)),
        "milliseconds_p99": 1000 * float(np.percentile(taken, 99)),
        "clips_per_second": requests / seconds,
        "memory_mebibytes": after,
        "memory_growth_mebibytes": after - before,
    }


def main() -> None:
    """Measure, print, and write bench/results/serve.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="0: as many as the command takes by itself")
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    manifest = read_manifest(load_params().paths.manifest)
    low, high = TYPICAL
    clips = [clip for clip in manifest.clips if clip.duration and low <= clip.duration <= high]
    figures: dict[str, float] = {"requests": chosen.requests, "clients": chosen.clients, "cores": os.cpu_count() or 1}
    figures["clip_seconds_mean"] = float(np.mean([clip.duration for clip in clips]))
    for number, workers in enumerate(chosen.workers):
        count = workers or default_worker_count()
        found = measure(manifest, clips, default_model(), count, chosen.requests, chosen.clients)
        figures |= {f"{name}_{count}_workers" if number else name: value for name, value in found.items()}
        print("\n".join(f"{name}: {value:.4g}" for name, value in found.items()), "\n")
    if not chosen.dry:
        write_result("serve", figures, " ".join(["serve", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
