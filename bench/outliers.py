"""Outlier test: false alarms on test clips, and detection of another corpus, of real videos and of noise.

Run:  python -m bench.outliers PROJECT OTHER --clips FOLDER
PROJECT and OTHER are two projects after `dashfusion train`: the demo in English and in Mandarin, with the same
extractors (`dashfusion use corpus=demo_zh text=minilm`). Each is measured against the other. FOLDER has videos of real
people. "noise_video" is white noise with random frames; "<modality>_noise" are independent values with each feature's
mean and deviation. The test is compared with the same test on the distance to the nearest training clip.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.results import write_result
from corpora.demo.face import SIZE
from corpora.demo.generate import write_mp4
from corpora.demo.plan import FPS
from flows.prediction.inputs import find_media
from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES
from model.data.clips import ClipTable
from model.evaluation import outliers
from model.evaluation.inference import infer
from model.prediction.protocol import Video, VideoFeatures, find_maker

if TYPE_CHECKING:
    from model.checkpoint.io import CheckpointInfo
    from model.network.base import Network

Vectors = Mapping[str, np.ndarray]


def dataset(project: Path, split: str, network: Network) -> ClipTable:
    """Read a split of a project."""
    return ClipTable.read(project / "data/dataset", split, network.config.max_positions, text=network.text)


def real_clips(folder: Path, network: Network, info: CheckpointInfo) -> ClipTable:
    """Extract the features of the videos as for the checkpoint's training."""
    maker = find_maker()(info.dataset.to_dict(), list(MODALITIES))
    videos = [Video(path) for path in find_media([str(folder)])]
    made = list(maker.make(videos, window=None, hop=None, longer_than=1e9, workers=0, timeout=300))
    clips = [features.whole for features in made if isinstance(features, VideoFeatures)]
    steps = [{m: (s.values, s.mask) for m, s in clip.steps.items()} for clip in clips]
    ids = [str(number) for number in range(len(clips))]
    return ClipTable.from_clips(info.dataset, ids, steps, [clip.text for clip in clips], network.config.max_positions)


def noise_videos(network: Network, info: CheckpointInfo, count: int = 8) -> ClipTable:
    """Extract the features of videos of white noise with random frames."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            samples = 0.1 * rng.normal(size=3 * 16_000).astype(np.float32)
            frames = rng.integers(0, 256, (3 * FPS, SIZE, SIZE, 3), np.uint8)
            write_mp4(Path(folder) / f"{number}.mp4", frames, samples, 16_000)
        return real_clips(Path(folder), network, info)


def permuted(table: ClipTable, modality: str, seed: int = 0) -> ClipTable:
    """Permute the columns of a modality's features: each value is in the range of some feature."""
    sequences = table.sequences[modality]
    order = np.random.default_rng(seed).permutation(sequences.values.shape[1])
    return replace(
        table, sequences={**table.sequences, modality: replace(sequences, values=sequences.values[:, order])}
    )


def noise(table: ClipTable, modality: str, train: ClipTable, seed: int = 0) -> ClipTable:
    """Replace a modality's steps by noise with each feature's mean and deviation over the training steps."""
    sequences, reference = table.sequences[modality], train.sequences[modality]
    steps = reference.values[reference.visible].astype(np.float32)
    values = np.random.default_rng(seed).normal(steps.mean(0), steps.std(0), sequences.values.shape).astype(np.float32)
    return replace(table, sequences={**table.sequences, modality: replace(sequences, values=values)})


def nearest(train: Vectors, modality: str, vectors: np.ndarray) -> np.ndarray:
    """Return the logarithm of the distances to the nearest training clip."""
    known = train[modality][np.isfinite(train[modality]).all(axis=1)]
    mean, std = known.mean(axis=0), known.std(axis=0) + 1e-6
    known = (known - mean) / std
    distances = [np.sqrt(((row - known) ** 2).sum(axis=1)).min() for row in (vectors - mean) / std]
    logarithms: np.ndarray = np.log(np.array(distances, np.float32) + 1e-6)
    return logarithms


def measure(project: Path, other: Path, clips: Path | None) -> dict[str, float]:
    """Return the fraction of clips that are taken for outliers, of each kind of clips."""
    network, info = load_checkpoint(project / "models/seed-0/best")
    train, valid, test = (dataset(project, split, network) for split in ("train", "valid", "test"))
    foreign = dataset(other, "test", network)
    tables = {"same_corpus": test, "other_corpus": foreign, "noise_video": noise_videos(network, info)}
    if clips:
        tables["real_people"] = real_clips(clips, network, info)
    for m in MODALITIES:
        tables |= {f"{m}_permuted": permuted(test, m), f"{m}_noise": noise(test, m, train)}
    vectors = {
        name: outliers.clip_vectors(table, infer(network, table, MODALITIES).pooled)
        for name, table in {"train": train, "valid": valid, **tables}.items()
    }
    count = min(len(test), len(foreign))
    for m in MODALITIES:  # of the other corpus only one modality
        mixed = {n: vectors["other_corpus" if n == m else "same_corpus"][n][:count] for n in MODALITIES}
        vectors[f"{m}_of_other_corpus"] = mixed
    figures: dict[str, float] = {"validation_clips": len(valid), "test_clips": len(test)}
    density = outliers.fit_density(vectors["train"], vectors["valid"])
    for name, by_modality in vectors.items():
        if name in ("train", "valid"):
            continue
        found = [test for test in outliers.detect_outliers(density, by_modality) if test]
        figures[f"{name}_detected"] = np.mean([bool(test.modalities) for test in found])
        if name.split("_")[0] in MODALITIES:
            named = [name.split("_")[0] in test.modalities for test in found if test.modalities]
            figures[f"{name}_named"] = np.mean(named) if named else 0.0

    # The same test with another distance
    original = outliers._log_distance
    outliers._log_distance = lambda _, modality, values: nearest(vectors["train"], modality, values)
    density = outliers.fit_density(vectors["train"], vectors["valid"])
    for name in tables:
        found = [test for test in outliers.detect_outliers(density, vectors[name]) if test]
        figures[f"{name}_detected_by_nearest_clip"] = np.mean([bool(test.modalities) for test in found])
    outliers._log_distance = original
    return {name: float(value) for name, value in figures.items()}


def main() -> None:
    """Run the benchmark, and write bench/results/outliers.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("projects", type=Path, nargs=2)
    parser.add_argument("--clips", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for project, other in (arguments.projects, arguments.projects[::-1]):
        corpus = load_checkpoint(project / "models/seed-0/best")[1].dataset.corpus
        figures |= {f"{corpus}_{name}": value for name, value in measure(project, other, arguments.clips).items()}
    for name, value in figures.items():
        print(f"{name:<52} {value:7.3f}")
    write_result("outliers", figures, "outliers DEMO_EN DEMO_ZH --clips FOLDER")


if __name__ == "__main__":
    main()
