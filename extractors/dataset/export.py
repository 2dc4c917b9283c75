"""Export of the dataset for other tools: MMSA's pickle, and a folder that Hugging Face `datasets` loads.

N clips of a split, T steps of the longest clip of all splits, D features.
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpora.files import atomic_file, atomic_folder
from corpora.manifest import MODALITIES, SPLITS
from extractors.store import to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MMSA_LABELS = {
    "regression_labels": "label",
    "regression_labels_T": "label_text",
    "regression_labels_A": "label_audio",
    "regression_labels_V": "label_vision",
}
"""MMSA's name of each label -> the dataset's column."""

PROTOCOL = 4
"""Pickle protocol: the newest that all Python versions supported by MMSA read."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """Summary of an export for MMSA.

    Attributes:
        clips: split -> exported clips.
        unlabelled: clips that were left out.
        shapes: modality -> (T, D).
        tokens: whether token ids were written.
    """

    clips: Mapping[str, int]
    unlabelled: int
    shapes: Mapping[str, tuple[int, int]]
    tokens: bool


def export_mmsa(dataset: Path, out: Path) -> ExportSummary:
    """Write the dataset as one pickle in MMSA's format, for its option `featurePath`.

    Clips without a label are left out, as MMSA would train on them. A modality's labels are written if all labelled
    clips have them, `text_bert` if all token ids are known. Sequences are float32, padded with zeros to the longest of
    all splits; `<modality>_lengths` is written for aligned datasets as well. The whole export is held in memory.

    Args:
        dataset: the align stage's output folder.
        out: the pickle, created or replaced atomically.

    Raises:
        FileNotFoundError: no dataset.
        ValueError: no clip has a label.
    """
    info = read_dataset_json(dataset)
    # First pass: padded lengths, and which labels and token ids are complete
    lengths = dict.fromkeys(MODALITIES, 1)
    has_token_ids, label_names = True, list(MMSA_LABELS)
    columns = [*MMSA_LABELS.values(), "text_token_ids", *(f"{m}_mask" for m in MODALITIES)]
    for batch in (batch for split in SPLITS for batch in _batches(dataset, split, columns)):
        labelled = _labelled(batch)
        for m in MODALITIES:
            lengths[m] = max(lengths[m], int(_lengths(batch, m)[labelled].max(initial=0)))
        is_complete = {name: np.isfinite(_floats(batch, MMSA_LABELS[name])[labelled]).all() for name in label_names}
        label_names = [name for name in label_names if is_complete[name]]
        has_token_ids &= int(to_numpy(batch.column("text_token_ids"))[1].min(initial=0)) >= 0
    if info["mode"] == "aligned":
        lengths = dict.fromkeys(MODALITIES, max(lengths.values()))
    shapes = {m: (lengths[m], info["modalities"][m]["dim"]) for m in MODALITIES}
    # Second pass: the padded sequences
    content = {split: _mmsa_split(dataset, split, shapes, label_names, has_token_ids) for split in SPLITS}
    clips = {split: len(rows["id"]) for split, rows in content.items()}
    if not any(clips.values()):
        raise ValueError(f"{dataset}: no clip has a label, and MMSA trains on labels")
    with atomic_file(out) as temporary, temporary.open("wb") as file:
        pickle.dump(content, file, protocol=PROTOCOL)
    return ExportSummary(clips, sum(info["clips"].values()) - sum(clips.values()), shapes, has_token_ids)


def read_dataset_json(dataset: Path) -> dict[str, Any]:
    """Return the content of a dataset's dataset.json.

    Raises:
        FileNotFoundError: no dataset.
    """
    path = Path(dataset) / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no dataset here; `dashfusion align` (or `dvc repro align`) makes it")
    info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return info


def _parts(dataset: Path, split: str) -> list[Path]:
    return sorted((Path(dataset) / split).glob("part-*.parquet"))


def _batches(dataset: Path, split: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield a split's rows in order, a row group at a time."""
    for part in _parts(dataset, split):
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).combine_chunks().to_batches()


def _labelled(batch: pa.RecordBatch) -> np.ndarray:
    """Return [rows] bool: whether each clip has a label."""
    labelled: np.ndarray = np.isfinite(_floats(batch, "label"))
    return labelled


def _floats(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Return a column of numbers, NaN for null."""
    column: np.ndarray = batch.column(name).to_numpy(zero_copy_only=False)
    return column.astype(np.float32)


def _lengths(batch: pa.RecordBatch, modality: str) -> np.ndarray:
    return np.diff(batch.column(f"{modality}_mask").offsets.to_numpy())


def _mmsa_split(
    dataset: Path, split: str, shapes: Mapping[str, tuple[int, int]], label_names: Sequence[str], has_token_ids: bool
) -> dict[str, Any]:
    """Return one split in MMSA's format.

    Args:
        dataset: the align stage's output folder.
        split: train, valid or test.
        shapes: modality -> padded (T, D).
        label_names: labels to write, see `MMSA_LABELS`.
        has_token_ids: whether to write `text_bert`.
    """
    count = sum(int(_labelled(batch).sum()) for batch in _batches(dataset, split, ["label"]))
    content: dict[str, Any] = {m: np.zeros((count, *shape), np.float32) for m, shape in shapes.items()}
    bert = np.zeros((count, 3, shapes["text"][0]), np.float32)
    content |= {"id": [], "raw_text": []} | {f"{m}_lengths": [] for m in MODALITIES}
    labels: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.float32)] for name in label_names}
    for batch in _batches(dataset, split):
        kept = np.flatnonzero(_labelled(batch))
        first = len(content["id"])
        for m in MODALITIES:
            offsets, values = to_numpy(batch.column(f"{m}_values"))
            for i, row in enumerate(kept, first):
                content[m][i, : offsets[row + 1] - offsets[row]] = values[offsets[row] : offsets[row + 1]]
            content[f"{m}_lengths"] += _lengths(batch, m)[kept].tolist()
        offsets, ids = to_numpy(batch.column("text_token_ids"))
        for i, row in enumerate(kept, first):
            bert[i, 0, : offsets[row + 1] - offsets[row]] = ids[offsets[row] : offsets[row + 1]]
            bert[i, 1, : offsets[row + 1] - offsets[row]] = 1
        videos, clip_ids, texts = (batch.column(name).to_pylist() for name in ("video_id", "clip_id", "text"))
        content["id"] += [f"{videos[row]}$_${clip_ids[row].removeprefix(f'{videos[row]}/')}" for row in kept]
        content["raw_text"] += [texts[row] for row in kept]
        for name in label_names:
            labels[name].append(_floats(batch, MMSA_LABELS[name])[kept])
    content |= {name: np.concatenate(parts) for name, parts in labels.items()}
    signs = np.sign(content["regression_labels"]).astype(int)
    content["annotations"] = [("Neutral", "Positive", "Negative")[sign] for sign in signs]  # -1 is the last
    return content | ({"text_bert": bert} if has_token_ids else {})


def export_datasets(dataset: Path, out: Path) -> dict[str, int]:
    """Write the dataset as `out`/data/<split>-*.parquet and a dataset card, for `datasets.load_dataset`.

    Args:
        dataset: the align stage's output folder.
        out: folder, created or replaced atomically if it holds nothing but such an export.

    Returns:
        Clips of each split; an empty split has no file.

    Raises:
        FileNotFoundError: no dataset.
        ValueError: `out` holds other files.
    """
    info = read_dataset_json(dataset)
    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= {"README.md", "data", "dataset.json"}):
        raise ValueError(f"{out}: holds something else than an export; give a new folder")
    clips = {split: count for split, count in info["clips"].items() if count}
    with atomic_folder(out) as folder:
        (folder / "data").mkdir()
        for split in clips:
            parts = _parts(dataset, split)
            for index, part in enumerate(parts):
                name = f"{split}-{index:05d}-of-{len(parts):05d}.parquet"
                shutil.copyfile(part, folder / "data" / name)
        shutil.copyfile(dataset / "dataset.json", folder / "dataset.json")
        (folder / "README.md").write_text(_card(info, clips), encoding="utf-8")
    return clips


def _card(info: Mapping[str, Any], clips: Mapping[str, int]) -> str:
    """Return the dataset card: a YAML header for `datasets`, and a description."""
    low, high = info["label_range"]
    files = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in clips)
    rows = "".join(
        f"| {m} | {entry['dim']} | `{entry['extractor']}` | `{entry['signature']}` |\n"
        for m, entry in ((m, info["modalities"][m]) for m in MODALITIES)
    )
    language = "" if info["language"] == "mul" else f"language: [{info['language']}]\n"
    return f"""---
{language}task_categories: [text-classification, audio-classification, video-classification]
tags: [multimodal-sentiment-analysis]
configs:
- config_name: default
  data_files:
{files}---
# {info["corpus"]}: features of text, audio and vision

{", ".join(f"{count} {split}" for split, count in clips.items())} clips; labels in [{low:g}, {high:g}], {info["mode"]}.
Made from the corpus by DashFusion: the corpus's licence and terms apply.

| modality | features | extractor | signature |
|---|---|---|---|
{rows}
One row a clip: `clip_id`, `video_id`, `text`, `label` and, where the corpus has them, `label_text`, `label_audio`,
`label_vision`; for each modality `<modality>_values` [steps, features] as extracted, `_start` and `_end`
(seconds from the clip's start), and `_mask` (false: ignored by the model). `dataset.json` has the features' names and
their means and standard deviations over the training split.
"""
