"""Time and memory of reading 1,000 clips from a corpus of 100,000.

Run:  python -m bench.data_loading [--clips 100000]
Clips have CMU-MOSI's lengths and dimensions. Memory is the process's resident memory, which includes memory-mapped
pages. Baseline: the same split decoded into memory, which `ClipTable.read` does if there is no cache folder.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from bench.results import write_result
from bench.shapes import SHAPES, write_split
from model.data.batching import training_batches
from model.data.clips import ClipTable

CLIPS_READ = 1000


def resident_megabytes() -> float:
    """Return this process's resident memory."""
    return psutil.Process().memory_info().rss / 2**20


def main() -> None:
    """Run the benchmark, and write bench/results/data_loading.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--baseline", action="store_true", help="also decode into memory")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="data-loading-", dir="."))
    try:
        root = write_split(scratch / "dataset", SHAPES["mosi"], options.clips)
        figures = {"clips": float(options.clips)}
        began = time.perf_counter()
        ClipTable.read(root, "train", 2048, scratch / "cache")
        figures["mapping_seconds_once"] = time.perf_counter() - began
        figures["mapped_megabytes"] = sum(f.stat().st_size for f in scratch.glob("cache/*/*")) / 2**20

        before, began = resident_megabytes(), time.perf_counter()
        table = ClipTable.read(root, "train", 2048, scratch / "cache")
        figures["opening_seconds"] = time.perf_counter() - began
        figures["opening_megabytes"] = resident_megabytes() - before
        batches = training_batches(table.lengths(), 16, seed=0, epoch=1)[: CLIPS_READ // 16]
        before, began = resident_megabytes(), time.perf_counter()
        for rows in batches:
            table.batch(rows)
        figures["milliseconds_a_batch_of_16"] = 1000 * (time.perf_counter() - began) / len(batches)
        figures[f"megabytes_over_{CLIPS_READ}_clips"] = resident_megabytes() - before
        if options.baseline:
            before = resident_megabytes()
            whole = ClipTable.read(root, "train", 2048)
            figures["baseline_in_memory_megabytes"] = resident_megabytes() - before
            rows = np.arange(16)
            assert (whole.batch(rows).values["text"] == table.batch(rows).values["text"]).all()
        for name, value in figures.items():
            print(f"{name:<32} {value:10.4g}")
        write_result("data_loading", figures)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
