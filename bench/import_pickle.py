"""Time and memory of importing MMSA's pickles, with CMU-MOSI's clips in the shapes of unaligned_50.

Run:  python -m bench.import_pickle [--folder FOLDER]
The pickle is synthetic: 1,284 + 229 + 686 clips, text 50 x 768, audio 375 x 5, vision 500 x 20, text_bert 3 x 50, no
padding; in float32, in float64, and with more clips to make 1.4 GB in float32. Each import runs in a new process,
hashes the file, and writes the manifest and compressed features. Baseline: `pickle.load` of the same file, which writes
nothing. Peak memory includes mapped pages of the file, which the system can reclaim.
"""

from __future__ import annotations

import argparse
import os
import pickle
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench.results import write_result
from bench.store import drop_page_cache, in_new_process

CLIPS = {"train": 1284, "valid": 229, "test": 686}
CASES = {"float32": (np.float32, 1.0), "float64": (np.float64, 1.0), "large": (np.float32, 3.16)}
"""By name: data type, and multiple of the number of clips."""
SHAPES = {"text": (50, 768), "audio": (375, 5), "vision": (500, 20)}


def synthetic_split(split: str, kind: type, times: float) -> dict[str, Any]:
    """Return a split in MMSA's format with clips of the maximum length."""
    count = round(CLIPS[split] * times)
    rng = np.random.default_rng(len(split))
    labels = rng.uniform(-3, 3, count).round(1)
    content: dict[str, Any] = {
        name: rng.standard_normal((count, *shape), dtype=np.float32).astype(kind) for name, shape in SHAPES.items()
    }
    content |= {f"{name}_lengths": [SHAPES[name][0]] * count for name in ("audio", "vision")}
    bert = np.ones((count, 3, SHAPES["text"][0]), np.float32)
    bert[:, 2] = 0
    content |= {"text_bert": bert, "regression_labels": labels}
    content["raw_text"] = np.array([f"a transcript of {split} {i}" for i in range(count)], object)
    content["id"] = [f"{split}{i // 20}$_${i % 20}" for i in range(count)]
    return content


def write_pickle(path: Path, kind: type, times: float) -> None:
    """Write a pickle like MMSA's."""
    with path.open("wb") as file:
        pickle.dump({split: synthetic_split(split, kind, times) for split in CLIPS}, file, protocol=4)
        os.fsync(file.fileno())


def import_file(path: Path, out: Path, clips: dict[str, int]) -> float:
    """Time the `prepare` stage's work on the file, and check the number of clips by split."""
    from corpora.manifest import write_manifest
    from corpora.readers.mmsa_pickle import read_mmsa
    from extractors.imported import write_imported

    drop_page_cache(path.parent)
    began = time.perf_counter()
    corpus = read_mmsa(path, corpus="bench", language="en", label_range=(-3.0, 3.0), root=str(out))
    write_imported(corpus, out, "mmsa_pickle")
    write_manifest(corpus.manifest, out / "manifest.parquet")
    seconds = time.perf_counter() - began
    if Counter(clip.split for clip in corpus.manifest.clips) != clips:
        raise RuntimeError(f"only some clips were imported: {len(corpus.manifest.clips)}")
    return seconds


def load_plain(path: Path) -> float:
    """Time `pickle.load`."""
    drop_page_cache(path.parent)
    began = time.perf_counter()
    with path.open("rb") as file:
        pickle.load(file)
    return time.perf_counter() - began


def main() -> None:
    """Run the benchmark, and write bench/results/import_pickle.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure; by default the temporary folder")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    for name, (kind, times) in CASES.items():
        clips = {split: round(count * times) for split, count in CLIPS.items()}
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "pickle" / "unaligned_50.pkl"
            path.parent.mkdir()
            in_new_process(write_pickle, path, kind, times)
            figures[f"{name}_clips"] = sum(clips.values())
            figures[f"{name}_megabytes"] = path.stat().st_size / 1e6
            runs = {
                "import": in_new_process(import_file, path, Path(folder) / "out", clips),
                "pickle_load": in_new_process(load_plain, path),
            }
            for task, (seconds, peak) in runs.items():
                figures[f"{name}_{task}_seconds"], figures[f"{name}_{task}_peak_megabytes"] = float(seconds), peak
    for name, value in figures.items():
        print(f"{name:<36} {value:10.3f}")
    write_result("import_pickle", figures)


if __name__ == "__main__":
    main()
