"""Synthetic clips with the corpora's shapes: dimensions of published features and realistic lengths.

Durations are log-normal, like those of spoken sentences. The lengths of the three modalities are proportional to the
duration, each with 10 % independent noise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.config import MODALITIES
from model.data.clips import ClipTable
from model.data.info import DatasetInfo
from model.data.sequences import Sequences

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """Shape of a corpus.

    Attributes:
        clips: Number of training clips.
        dims: Feature dimensions by modality.
        min_steps, max_steps: Lengths of the shortest and longest clips.
        padded: Lengths to which published code pads every clip.
        label_range: Lowest and highest label.
        encoder_layers, fusion_layers: Size of the network for this corpus.
    """

    clips: int
    dims: Mapping[str, int]
    min_steps: Mapping[str, int]
    max_steps: Mapping[str, int]
    padded: Mapping[str, int]
    label_range: tuple[float, float]
    encoder_layers: int
    fusion_layers: int


SHAPES = {
    "mosi": Shape(
        1284, {"text": 384, "audio": 5, "vision": 20},
        {"text": 4, "audio": 20, "vision": 30}, {"text": 22, "audio": 250, "vision": 300},
        {"text": 50, "audio": 375, "vision": 500}, (-3, 3), 2, 2,
    ),
    "mosei": Shape(
        16326, {"text": 768, "audio": 74, "vision": 35},
        {"text": 5, "audio": 30, "vision": 30}, {"text": 50, "audio": 400, "vision": 400},
        {"text": 50, "audio": 500, "vision": 500}, (-3, 3), 4, 3,
    ),
    "sims": Shape(
        1368, {"text": 768, "audio": 33, "vision": 709},
        {"text": 5, "audio": 40, "vision": 10}, {"text": 39, "audio": 400, "vision": 55},
        {"text": 39, "audio": 400, "vision": 55}, (-1, 1), 2, 2,
    ),
}  # fmt: skip


def lengths(shape: Shape, clips: int, rng: np.random.Generator) -> np.ndarray:
    """Return the numbers of steps of text, audio and vision, as an array [clips, 3]."""
    max_seconds = 12.0  # the median is 4
    seconds = np.clip(rng.lognormal(np.log(4), 0.55, clips), 1, max_seconds)
    fraction = (seconds - 1)[:, None] / (max_seconds - 1) * rng.uniform(0.9, 1.1, (clips, 3))
    low, high = (np.array([steps[m] for m in MODALITIES]) for steps in (shape.min_steps, shape.max_steps))
    return np.round(low + (high - low) * np.clip(fraction, 0, 1)).astype(int)


def info(shape: Shape, clips: Mapping[str, int]) -> DatasetInfo:
    """Return the dataset description of such a corpus."""
    return DatasetInfo.from_dict(
        {
            "schema_version": 2, "corpus": "synthetic", "language": "en", "label_range": shape.label_range,
            "mode": "unaligned", "mask_invalid": [], "clips": dict(clips),
            "modalities": {
                m: {
                    "dim": dim, "extractor": "synthetic", "options": {}, "signature": f"{m}.synthetic",
                    "feature_names": [f"{m}{i}" for i in range(dim)],
                }
                for m, dim in shape.dims.items()
            },
            "statistics": {
                m: {"mean": [0.0] * shape.dims[m], "std": [1.0] * shape.dims[m], "steps": 1}
                for m in ("audio", "vision")
            },
        }
    )  # fmt: skip


def labels(shape: Shape, clips: int, rng: np.random.Generator) -> np.ndarray:
    """Draw normally distributed labels [clips], rounded to the corpus's label steps."""
    low, high = shape.label_range
    step = (high - low) / (30 if high > 1 else 10)
    values = np.clip(rng.normal(0, (high - low) / 4, clips), low, high)
    return (np.round(values / step) * step).astype(np.float32)


def table(shape: Shape, clips: int, seed: int = 0) -> ClipTable:
    """Return a training split with random features in memory."""
    rng = np.random.default_rng(seed)
    steps = lengths(shape, clips, rng)
    sequences = {}
    for column, m in enumerate(MODALITIES):
        ends = np.cumsum(steps[:, column])
        kind = np.float16 if m == "text" else np.float32
        values = rng.standard_normal((int(ends[-1]), shape.dims[m]), np.float32).astype(kind)
        sequences[m] = Sequences(values, np.ones(len(values), bool), ends - steps[:, column], steps[:, column])
    ids = np.array([f"clip/{i}" for i in range(clips)], object)
    unimodal = np.full((clips, len(MODALITIES)), np.nan, np.float32)
    description, targets = info(shape, {"train": clips}), labels(shape, clips, rng)
    return ClipTable(description, "train", ids, targets, unimodal, sequences, dict.fromkeys(MODALITIES, 0))


def write_split(root: Path, shape: Shape, clips: int, seed: int = 0, part: int = 5000) -> Path:
    """Write a training split in the align stage's format, with `part` clips per file, and return its folder."""
    rng = np.random.default_rng(seed)
    (root / "train").mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(info(shape, {"train": clips}).to_dict()), encoding="utf-8")
    for number, first in enumerate(range(0, clips, part)):
        count = min(part, clips - first)
        steps = lengths(shape, count, rng)
        columns = {
            "clip_id": pa.array([f"clip/{first + i}" for i in range(count)]),
            "label": pa.array(labels(shape, count, rng)),
            **{f"label_{m}": pa.nulls(count, pa.float32()) for m in MODALITIES},
        }
        for column, m in enumerate(MODALITIES):
            offsets = np.concatenate([[0], np.cumsum(steps[:, column])]).astype(np.int32)
            flat = rng.standard_normal((offsets[-1], shape.dims[m]), np.float32)
            flat = flat.astype(np.float16 if m == "text" else np.float32)
            inner = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), shape.dims[m])
            columns[f"{m}_values"] = pa.ListArray.from_arrays(offsets, inner)
            columns[f"{m}_mask"] = pa.ListArray.from_arrays(offsets, pa.array(np.ones(offsets[-1], bool)))
        pq.write_table(pa.table(columns), root / "train" / f"part-{number:05d}.parquet", row_group_size=500)
    return root
