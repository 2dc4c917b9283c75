"""How fast the feature store is, and how much memory it takes: 10,000 clips of MOSI's unaligned lengths.

Run:  python -m bench.store [--clips N] [--folder FOLDER]
All on one disk in one run, each figure in a process of its own with its libraries loaded, every file read from the
disk and not from the page cache. Baselines: the same values in one plain file, written, synced and read back; and one
pickle of padded arrays, as MMSA's feature files are. Rates are megabytes of unpadded values a second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pickle
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from bench.results import write_result
from extractors.base import FeatureSequence
from extractors.store import FeatureMeta, FeatureReader, FeatureWriter

Clips = Iterator[tuple[str, FeatureSequence]]

SHAPES = {"text": (4, 22, 384), "audio": (20, 250, 33), "vision": (30, 300, 100)}
"""By modality: fewest and most steps of a clip, and features a step."""

RANDOM_CLIPS = 1000


def made_up(modality: str, count: int) -> Clips:
    """Features that move a little from step to step, as measured ones do; the same ones in every process."""
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
    """As extraction does."""
    names = tuple(f"feature_{i}" for i in range(SHAPES[modality][2]))
    with FeatureWriter(folder / modality, FeatureMeta(modality, "bench", {}, "bench-v1", names)) as writer:
        for clip_id, sequence in clips:
            writer.write(clip_id, sequence)


def write_plain(folder: Path, modality: str, clips: Clips) -> None:
    """The values alone, one after another."""
    with open(folder / f"{modality}.bin", "wb") as file:
        for _, sequence in clips:
            file.write(sequence.values.data)
        os.fsync(file.fileno())


def write_pickle(folder: Path, modality: str, clips: Clips) -> None:
    """One array, padded to the longest clip that there may be, and the clips' ids and lengths."""
    rows = list(clips)
    padded = np.zeros((len(rows), *SHAPES[modality][1:]), np.float32)
    for row, (_, sequence) in enumerate(rows):
        padded[row, : len(sequence)] = sequence.values
    content = {modality: padded, "id": [row[0] for row in rows], "lengths": [len(row[1]) for row in rows]}
    with open(folder / f"{modality}.pkl", "wb") as file:
        pickle.dump(content, file, protocol=4)
        os.fsync(file.fileno())


def read_store(folder: Path, modality: str) -> None:
    """Every clip, checked as the reader does."""
    for _ in FeatureReader(folder / modality, modality):
        pass


def read_plain(folder: Path, modality: str) -> None:
    """The whole file, a megabyte at a time."""
    with open(folder / f"{modality}.bin", "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def read_pickle(folder: Path, modality: str) -> None:
    """Whole, since there is no other way."""
    with open(folder / f"{modality}.pkl", "rb") as file:
        pickle.load(file)


def seconds_to_write(write: Callable[[Path, str, Clips], None], folder: Path, modality: str, count: int) -> float:
    """Seconds of `write`, without those that making up the clips takes."""
    making = 0.0

    def clips() -> Clips:
        nonlocal making
        source = made_up(modality, count)
        while True:
            began = time.perf_counter()
            clip = next(source, None)
            making += time.perf_counter() - began
            if clip is None:
                return
            yield clip

    began = time.perf_counter()
    write(folder, modality, clips())
    return time.perf_counter() - began - making


def seconds_to_read(read: Callable[[Path, str], None], folder: Path, modality: str) -> float:
    """Seconds of `read` from the disk."""
    forget(folder)
    began = time.perf_counter()
    read(folder, modality)
    return time.perf_counter() - began


def random_clips(folder: Path, modality: str, count: int) -> tuple[float, float, float]:
    """Milliseconds from the disk: opening the store and one clip; then a clip, the median and the 99th percentile."""
    forget(folder)
    order = np.random.default_rng(1).permutation(count)[: RANDOM_CLIPS + 1]
    wanted = [f"video_{index // 20}/{index}" for index in order]
    began = time.perf_counter()
    reader = FeatureReader(folder / modality, modality)
    reader[wanted[0]]
    first = time.perf_counter() - began
    seconds = []
    for clip_id in wanted[1:]:
        began = time.perf_counter()
        reader[clip_id]
        seconds.append(time.perf_counter() - began)
    return 1000 * first, 1000 * float(np.median(seconds)), 1000 * float(np.quantile(seconds, 0.99))


def forget(folder: Path) -> None:
    """Drop the files below from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _warm_up() -> None:
    """Have the libraries load what they load at their first use."""
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), "text", made_up("text", 1))
        read_store(Path(folder), "text")


def _with_peak(task: Callable[..., object], arguments: tuple[object, ...]) -> tuple[object, float]:
    _warm_up()
    outcome = task(*arguments)
    status = Path("/proc/self/status").read_text()  # getrusage would count the process that started this one as well
    return outcome, int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def in_new_process(task: Callable[..., object], *arguments: object) -> tuple[object, float]:
    """What the task gives, and its process's peak resident memory in MiB."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, task, arguments).result()


def measure(folder: Path, count: int) -> dict[str, float]:
    """All figures; rates are over the three modalities together, peaks those of the largest."""
    megabytes = sum(sequence.values.nbytes for name in SHAPES for _, sequence in made_up(name, count)) / 1e6
    figures = {"clips": count, "values_megabytes": megabytes}
    ways = {
        "plain": (write_plain, read_plain),
        "pickle": (write_pickle, read_pickle),
        "store": (write_store, read_store),
    }
    for way, (write, read) in ways.items():
        for verb, task, arguments in (
            ("write", seconds_to_write, lambda name, write=write: (write, folder, name, count)),
            ("read", seconds_to_read, lambda name, read=read: (read, folder, name)),
        ):
            runs = [in_new_process(task, *arguments(name)) for name in SHAPES]
            figures[f"{way}_{verb}_megabytes_per_second"] = megabytes / sum(seconds for seconds, _ in runs)
            figures[f"{way}_{verb}_peak_megabytes"] = max(peak for _, peak in runs)
    for verb in ("write", "read"):
        for other in ("plain", "pickle"):
            rates = [figures[f"{way}_{verb}_megabytes_per_second"] for way in ("store", other)]
            figures[f"store_over_{other}_{verb}"] = rates[0] / rates[1]
    stored = sum(path.stat().st_size for name in SHAPES for path in (folder / name).iterdir())
    figures["store_bytes_over_values"] = stored / 1e6 / megabytes
    runs = [in_new_process(random_clips, folder, name, count) for name in SHAPES]
    for place, what in enumerate(("open_and_first_clip", "random_clip_median", "random_clip_p99")):
        figures[f"{what}_milliseconds"] = max(times[place] for times, _ in runs)
    figures["random_clip_peak_megabytes"] = max(peak for _, peak in runs)
    figures["libraries_alone_peak_megabytes"] = in_new_process(float)[1]
    return figures


def main() -> None:
    """Measure, print, write bench/results/store.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="a folder on the disk in question; the system's temporary one else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options.clips)
    for name, value in figures.items():
        print(f"{name:<36} {value:10.3f}")
    write_result("store", figures)


if __name__ == "__main__":
    main()
