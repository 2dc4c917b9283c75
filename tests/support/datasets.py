"""A small synthetic dataset in the on-disk format, with a signal that a network can find."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIMS = {"text": 12, "audio": 5, "vision": 7}
LENGTHS = {"text": (3, 9), "audio": (4, 20), "vision": (3, 14)}
CLIPS = {"train": 24, "valid": 8, "test": 8}


def list_column(arrays: list[np.ndarray], inner: pa.DataType) -> pa.ListArray:
    offsets = pa.array(np.cumsum([0, *map(len, arrays)]), pa.int32())
    flat = np.concatenate(arrays) if arrays else np.zeros(0)
    if pa.types.is_fixed_size_list(inner):
        kind = np.float16 if pa.types.is_float16(inner.value_type) else np.float32
        values = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1).astype(kind)), inner.list_size)
    else:
        values = pa.array(flat, inner)
    return pa.ListArray.from_arrays(offsets, values)


def make_split(
    rng: np.random.Generator,
    split: str,
    count: int,
    dims: dict,
    lengths: dict,
    label_range: tuple,
    missing: bool,
) -> tuple[pa.Table, dict[str, list[np.ndarray]]]:
    """One split's table, and its values by modality; `missing`: clip i lacks modality i % 7 (0, 1 or 2)."""
    labels = np.round(rng.uniform(*label_range, count), 1).astype(np.float32)
    direction = {m: np.random.default_rng(5).normal(size=d) for m, d in dims.items()}
    columns: dict[str, pa.Array] = {
        "clip_id": pa.array([f"{split}/{i:04d}" for i in range(count)]),
        "video_id": pa.array([split] * count),
        "text": pa.array(["words"] * count),
        "label": pa.array(labels, pa.float32()),
    }
    columns |= {f"label_{m}": pa.nulls(count, pa.float32()) for m in dims}
    values = {}
    for k, (m, dim) in enumerate(dims.items()):
        steps = [0 if missing and i % 7 == k else int(rng.integers(*lengths[m], endpoint=True)) for i in range(count)]
        values[m] = [rng.normal(size=(t, dim)) + label * direction[m] for t, label in zip(steps, labels, strict=True)]
        kind = pa.float16() if m == "text" else pa.float32()
        columns[f"{m}_values"] = list_column(values[m], pa.list_(kind, dim))
        columns[f"{m}_start"] = list_column([np.arange(t) * 0.1 for t in steps], pa.float32())
        columns[f"{m}_end"] = list_column([np.arange(1, t + 1) * 0.1 for t in steps], pa.float32())
        seen = [np.ones(t, bool) for t in steps]
        for mask in seen:
            mask[1:] = rng.random(max(0, len(mask) - 1)) > (0.2 if m == "vision" else 0)
        columns[f"{m}_mask"] = list_column(seen, pa.bool_())
    for name in ("text_token_ids", "text_word_index"):
        columns[name] = list_column([np.arange(len(v)) for v in values["text"]], pa.int32())
    return pa.table(columns), values


def drop_audio(split: str, table: pa.Table) -> pa.Table:
    """The table with no audio in any clip; a `change` of `write_dataset`."""
    for i, field in enumerate(table.schema):
        if field.name.startswith("audio_"):
            table = table.set_column(i, field.name, pa.array([[]] * len(table), field.type))
    return table


def write_dataset(
    root: Path,
    *,
    clips: dict[str, int] = CLIPS,
    dims: dict[str, int] = DIMS,
    lengths: dict[str, tuple[int, int]] = LENGTHS,
    label_range: tuple[float, float] = (-3, 3),
    missing: bool = True,
    seed: int = 0,
    change: Callable[[str, pa.Table], pa.Table] = lambda split, table: table,
) -> Path:
    """Write dataset.json and the splits; `change` may alter a split's table before it is written."""
    rng = np.random.default_rng(seed)
    statistics = {}
    for split, count in clips.items():
        table, values = make_split(rng, split, count, dims, lengths, label_range, missing)
        if split == "train":
            for m in ("audio", "vision"):
                flat = np.concatenate(values[m])
                statistics[m] = {
                    "mean": flat.mean(0).tolist(), "std": flat.std(0).tolist(), "steps": len(flat)
                }  # fmt: skip
        (root / split).mkdir(parents=True, exist_ok=True)
        pq.write_table(change(split, table), root / split / "part-00000.parquet", compression="zstd")
    description = {
        "schema_version": 2,
        "corpus": "synthetic",
        "language": "en",
        "label_range": list(label_range),
        "mode": "unaligned",
        "mask_invalid": ["vision"],
        "modalities": {
            m: {
                "dim": d,
                "extractor": f"{m}.synthetic",
                "options": {"width": d},
                "signature": f"{m}.synthetic-v1-000000000000",
                "feature_names": [f"{m}{i}" for i in range(d)],
            }
            for m, d in dims.items()
        },
        "statistics": statistics,
        "clips": clips,
        "word_times": {"methods": {}},
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 / 8 / 8 clips, some of which lack a modality, some vision steps masked."""
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def dataset_writer() -> Callable[..., Path]:
    """`write_dataset`, for a test that needs a dataset of its own."""
    return write_dataset
