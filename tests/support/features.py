"""Small corpora of extracted features, as other projects store them."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODALITIES = ("text", "audio", "vision")
CLIPS = {"train": 6, "valid": 3, "test": 3}


def write_csd(path: Path, entries: Mapping[str, tuple[Any, Any]]) -> None:
    """Write a computational sequence: video -> features and intervals, one row a step."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_group("sequence/metadata")
        for key, (features, intervals) in entries.items():
            file[f"sequence/data/{key}/features"] = np.asarray(features)
            file[f"sequence/data/{key}/intervals"] = np.asarray(intervals, np.float64)


def write_csd_corpus(folder: Path) -> None:
    """Write a corpus of CMU-MultimodalSDK: a video a split, whose clips last two seconds each."""
    entries: dict[str, dict[str, tuple[Any, Any]]] = {"labels": {}, "audio": {}, "vision": {}, "text": {}, "words": {}}
    for split, clips in CLIPS.items():
        start = 2.0 * np.arange(clips)
        steps = np.arange(0, 2 * clips, 0.5)
        half = np.column_stack([steps, steps + 0.5])
        entries["labels"][split] = _labels(clips)[:, None], np.column_stack([start, start + 2])
        entries["words"][split] = np.array([["good"]] * len(steps), "S8"), half
        for modality in MODALITIES:
            entries[modality][split] = _values(modality, len(steps)), half
    for name, sequences in entries.items():
        write_csd(folder / f"{name}.csd", sequences)
    (folder / "splits.csv").write_text("video_id,split\n" + "".join(f"{split},{split}\n" for split in CLIPS))


def write_mmsa_pickle(path: Path) -> None:
    """Write a pickle of MMSA with text features, labels in [-3, 3] and transcripts."""
    content = {
        split: {
            "id": [f"{split}$_${clip}" for clip in range(clips)],
            "raw_text": ["It was a good film, and they liked it."] * clips,
            "regression_labels": _labels(clips),
            **{modality: _values(modality, 8 * clips).reshape(clips, 8, 4) for modality in MODALITIES},
        }
        for split, clips in CLIPS.items()
    }
    path.write_bytes(pickle.dumps(content))


def _labels(clips: int) -> np.ndarray:
    return np.linspace(-2.5, 2.5, clips, dtype=np.float32)


def _values(modality: str, steps: int) -> np.ndarray:
    return np.random.default_rng(MODALITIES.index(modality)).uniform(1, 2, (steps, 4)).astype(np.float32)
