"""Speed and memory of the feature store for 10,000 clips of CMU-MOSI's unaligned lengths.

Run:  python -m bench.store [--clips N] [--folder FOLDER]
Each figure is measured in a new process with its libraries loaded, on one disk, without the page cache. Baselines: the
same values in one plain file, written, synced and read back; and one pickle of padded arrays, like MMSA's feature
files. Rates are megabytes of unpadded values per second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from bench.results import own_peak_megabytes, write_result
from extractors.base import FeatureSequence
from extractors.store import FeatureMeta, FeatureReader, FeatureWriter

Clips = Iterator[tuple[str, FeatureSequence]]

SHAPES = {"text": (4, 22, 384), "audio": (20, 250, 33), "vision": (30, 300, 100)}
"""By modality: minimum and maximum steps of a clip, and features per step."""

RANDOM_CLIPS = 1000


def synthetic_clips(modality: str, count: int) -> Clips:
    """Yield features that change gradually over the steps, like real ones, and identically in every process."""
    rng = np.random.default_rng(0)
    low, high, dim = SHAPES[modality]
    noise = rng.standard_normal((64, high, dim), dtype=np.float32)
    drift = noise.cumsum(axis=1) / np.float32(8) + noise
    for index in range(count):
        steps = int(rng.integers(low, high + 1))
        values = drift[index % 64, :steps] * np.float32(rng.uniform(0.5, 2))
        start = np.arange(steps, dtype=np.float32)
        tokens = [np.arange(steps, dtype=np.int32)] * 2 if modality == "text" else []
        yield f"video_{index // 20}/{index}", FeatureSequence(values, start, start + 1, np.ones(steps, bool), *tokens)


def write_store(folder: Path, modality: str, clips: Clips) -> None:
    """Write a feature store, as extraction does."""
    names = tuple(f"feature_{i}" for i in range(SHAPES[modality][2]))
    with FeatureWriter(folder / modality, FeatureMeta(modality, "bench", {}, "bench-v1", names)) as writer:
        for clip_id, sequence in clips:
            writer.write(clip_id, sequence)


def write_plain(folder: Path, modality: str, clips: Clips) -> None:
    """Write only the values."""
    with (folder / f"{modality}.bin").open("wb") as file:
        for _, sequence in clips:
            file.write(sequence.values.data)
        os.fsync(file.fileno())


def write_pickle(folder: Path, modality: str, clips: Clips) -> None:
    """Write one array padded to the maximum length, with the clips' ids and lengths."""
    rows = list(clips)
    padded = np.zeros((len(rows), *SHAPES[modality][1:]), np.float32)
    for row, (_, sequence) in enumerate(rows):
        padded[row, : len(sequence)] = sequence.values
    content = {modality: padded, "id": [row[0] for row in rows], "lengths": [len(row[1]) for row in rows]}
    with (folder / f"{modality}.pkl").open("wb") as file:
        pickle.dump(content, file, protocol=4)
        os.fsync(file.fileno())


def read_store(folder: Path, modality: str) -> None:
    """Read and check every clip."""
    for _ in FeatureReader(folder / modality, modality):
        pass


def read_plain(folder: Path, modality: str) -> None:
    """Read the plain file, one megabyte at a time."""
    with (folder / f"{modality}.bin").open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def read_pickle(folder: Path, modality: str) -> None:
    """Load the pickle, which can only be read as a whole."""
    with (folder / f"{modality}.pkl").open("rb") as file:
        pickle.load(file)


def seconds_to_write(write: Callable[[Path, str, Clips], None], folder: Path, modality: str, count: int) -> float:
    """Time `write`, excluding the generation of the clips."""
    generating = 0.0

    def clips() -> Clips:
        nonlocal generating
        source = synthetic_clips(modality, count)
        while True:
            began = time.perf_counter()
            clip = next(source, None)
            generating += time.perf_counter() - began
            if clip is None:
                return
            yield clip

    began = time.perf_counter()
    write(folder, modality, clips())
    return time.perf_counter() - began - generating


def seconds_to_read(read: Callable[[Path, str], None], folder: Path, modality: str) -> float:
    """Time `read` from the disk."""
    drop_page_cache(folder)
    began = time.perf_counter()
    read(folder, modality)
    return time.perf_counter() - began


def random_clips(folder: Path, modality: str, count: int) -> tuple[float, float, float]:
    """Time random access from the disk.

    Returns:
        Milliseconds to open the store and read a first clip, then the median and 99th percentile of reading a clip.
    """
    drop_page_cache(folder)
    order = np.random.default_rng(1).permutation(count)[: RANDOM_CLIPS + 1]
    clip_ids = [f"video_{index // 20}/{index}" for index in order]
    began = time.perf_counter()
    reader = FeatureReader(folder / modality, modality)
    reader[clip_ids[0]]
    first = time.perf_counter() - began
    seconds = []
    for clip_id in clip_ids[1:]:
        began = time.perf_counter()
        reader[clip_id]
        seconds.append(time.perf_counter() - began)
    return 1000 * first, 1000 * float(np.median(seconds)), 1000 * float(np.quantile(seconds, 0.99))


def drop_page_cache(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _warm_up() -> None:
    """Trigger the libraries' lazy imports."""
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), "text", synthetic_clips("text", 1))
        read_store(Path(folder), "text")


def _with_peak(task: Callable[..., object], arguments: tuple[object, ...]) -> tuple[object, float]:
    _warm_up()
    return task(*arguments), own_peak_megabytes()


def in_new_process(task: Callable[..., object], *arguments: object) -> tuple[object, float]:
    """Run a task in a new process, and return its result and the process's peak resident memory in MiB."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, task, arguments).result()


def measure(folder: Path, count: int) -> dict[str, float]:
    """Return all figures: rates over the three modalities together, peak memory of the largest."""
    megabytes = sum(sequence.values.nbytes for name in SHAPES for _, sequence in synthetic_clips(name, count)) / 1e6
    figures = {"clips": count, "values_megabytes": megabytes}
    formats = {
        "plain": (write_plain, read_plain),
        "pickle": (write_pickle, read_pickle),
        "store": (write_store, read_store),
    }
    for name, (write, read) in formats.items():
        for verb, task, arguments in (
            ("write", seconds_to_write, lambda m, write=write: (write, folder, m, count)),
            ("read", seconds_to_read, lambda m, read=read: (read, folder, m)),
        ):
            runs = [in_new_process(task, *arguments(m)) for m in SHAPES]
            figures[f"{name}_{verb}_megabytes_per_second"] = megabytes / sum(seconds for seconds, _ in runs)
            figures[f"{name}_{verb}_peak_megabytes"] = max(peak for _, peak in runs)
    for verb in ("write", "read"):
        for other in ("plain", "pickle"):
            rates = [figures[f"{name}_{verb}_megabytes_per_second"] for name in ("store", other)]
            figures[f"store_over_{other}_{verb}"] = rates[0] / rates[1]
    stored = sum(path.stat().st_size for name in SHAPES for path in (folder / name).iterdir())
    figures["store_bytes_over_values"] = stored / 1e6 / megabytes
    runs = [in_new_process(random_clips, folder, name, count) for name in SHAPES]
    for index, name in enumerate(("open_and_first_clip", "random_clip_median", "random_clip_p99")):
        figures[f"{name}_milliseconds"] = max(times[index] for times, _ in runs)
    figures["random_clip_peak_megabytes"] = max(peak for _, peak in runs)
    figures["libraries_alone_peak_megabytes"] = in_new_process(float)[1]
    return figures


def main() -> None:
    """Run the benchmark, and write bench/results/store.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure; by default the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options.clips)
    for name, value in figures.items():
        print(f"{name:<36} {value:10.3f}")
    write_result("store", figures)


if __name__ == "__main__":
    main()
