"""The dataset for other tools: MMSA's pickle, and a folder of Parquet files that Hugging Face `datasets` reads.

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
"""MMSA's name of each label, and the dataset's."""

PROTOCOL = 4
"""Of pickle: the newest that every Python which MMSA runs on reads."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written.

    Attributes:
        clips: by split.
        unlabelled: clips that were left out.
        shapes: T and D by modality.
        tokens: whether the text's token ids came along.
    """

    clips: Mapping[str, int]
    unlabelled: int
    shapes: Mapping[str, tuple[int, int]]
    tokens: bool


def export_mmsa(dataset: Path, out: Path) -> ExportSummary:
    """Write the dataset as one pickle in MMSA's format, which MMSA takes as its `featurePath`.

    Clips without a label are left out: MMSA would train on them. Labels of a modality are written where all the
    others have them, and `text_bert` where all token ids are known. Sequences are padded with zeros to the longest
    of all splits, in float32, and their lengths stand beside them, also where they are aligned. All of it is in
    memory at once, as it is for who reads it.

    Args:
        dataset: folder of the align stage.
        out: the file; it appears, or is replaced, whole.

    Raises:
        FileNotFoundError: no dataset there.
        ValueError: no clip of it has a label.
    """
    info = read_dataset_json(dataset)
    lengths, tokens, names = dict.fromkeys(MODALITIES, 1), True, list(MMSA_LABELS)
    columns = [*MMSA_LABELS.values(), "text_token_ids", *(f"{m}_mask" for m in MODALITIES)]
    for batch in (batch for split in SPLITS for batch in _batches(dataset, split, columns)):
        labelled = _labelled(batch)
        for m in MODALITIES:
            lengths[m] = max(lengths[m], int(_lengths(batch, m)[labelled].max(initial=0)))
        names = [name for name in names if np.isfinite(_floats(batch, MMSA_LABELS[name])[labelled]).all()]
        tokens &= int(to_numpy(batch.column("text_token_ids"))[1].min(initial=0)) >= 0
    if info["mode"] == "aligned":
        lengths = dict.fromkeys(MODALITIES, max(lengths.values()))
    shapes = {m: (lengths[m], info["modalities"][m]["dim"]) for m in MODALITIES}
    content = {split: _mmsa_split(dataset, split, shapes, names, tokens) for split in SPLITS}
    clips = {split: len(rows["id"]) for split, rows in content.items()}
    if not any(clips.values()):
        raise ValueError(f"{dataset}: no clip has a label, and MMSA trains on labels")
    with atomic_file(out) as temporary, open(temporary, "wb") as file:
        pickle.dump(content, file, protocol=PROTOCOL)
    return ExportSummary(clips, sum(info["clips"].values()) - sum(clips.values()), shapes, tokens)


def read_dataset_json(dataset: Path) -> dict[str, Any]:
    """What the align stage says of its dataset.

    Raises:
        FileNotFoundError: no dataset there.
    """
    path = Path(dataset) / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no dataset here; `dashfusion align` (or `dvc repro align`) makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def _parts(dataset: Path, split: str) -> list[Path]:
    return sorted((Path(dataset) / split).glob("part-*.parquet"))


def _batches(dataset: Path, split: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A split's rows, in order, a row group at a time; all columns, or those that are named."""
    for part in _parts(dataset, split):
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).combine_chunks().to_batches()


def _labelled(batch: pa.RecordBatch) -> np.ndarray:
    """[rows] bool."""
    return np.isfinite(_floats(batch, "label"))


def _floats(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column of numbers, NaN where there is none."""
    return batch.column(name).to_numpy(zero_copy_only=False).astype(np.float32)


def _lengths(batch: pa.RecordBatch, modality: str) -> np.ndarray:
    return np.diff(batch.column(f"{modality}_mask").offsets.to_numpy())


def _mmsa_split(
    dataset: Path, split: str, shapes: Mapping[str, tuple[int, int]], names: Sequence[str], tokens: bool
) -> dict[str, Any]:
    """One split in MMSA's format, with the labels of these names, and token ids or not."""
    count = sum(int(_labelled(batch).sum()) for batch in _batches(dataset, split, ["label"]))
    made: dict[str, Any] = {m: np.zeros((count, *shape), np.float32) for m, shape in shapes.items()}
    bert = np.zeros((count, 3, shapes["text"][0]), np.float32)
    made |= {"id": [], "raw_text": []} | {f"{m}_lengths": [] for m in MODALITIES}
    labels: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.float32)] for name in names}
    for batch in _batches(dataset, split):
        kept = np.flatnonzero(_labelled(batch))
        first, row = len(made["id"]), range(len(kept))
        for m in MODALITIES:
            offsets, values = to_numpy(batch.column(f"{m}_values"))
            for i, at in zip(row, kept, strict=True):
                made[m][first + i, : offsets[at + 1] - offsets[at]] = values[offsets[at] : offsets[at + 1]]
            made[f"{m}_lengths"] += _lengths(batch, m)[kept].tolist()
        offsets, ids = to_numpy(batch.column("text_token_ids"))
        for i, at in zip(row, kept, strict=True):
            bert[first + i, 0, : offsets[at + 1] - offsets[at]] = ids[offsets[at] : offsets[at + 1]]
            bert[first + i, 1, : offsets[at + 1] - offsets[at]] = 1
        videos, clip_ids, texts = (batch.column(name).to_pylist() for name in ("video_id", "clip_id", "text"))
        made["id"] += [f"{videos[at]}$_${clip_ids[at].removeprefix(f'{videos[at]}/')}" for at in kept]
        made["raw_text"] += [texts[at] for at in kept]
        for name in names:
            labels[name].append(_floats(batch, MMSA_LABELS[name])[kept])
    made |= {name: np.concatenate(parts) for name, parts in labels.items()}
    signs = np.sign(made["regression_labels"]).astype(int)
    made["annotations"] = [("Neutral", "Positive", "Negative")[sign] for sign in signs]
    return made | ({"text_bert": bert} if tokens else {})


def export_datasets(dataset: Path, out: Path) -> dict[str, int]:
    """Write the dataset as `out`/data/<split>-*.parquet and a dataset card, which `datasets.load_dataset` reads.

    Args:
        dataset: folder of the align stage.
        out: folder, which appears, or is replaced, whole; one that holds anything else than such an export is not.

    Returns:
        Clips by split; a split without any gets no file.

    Raises:
        FileNotFoundError: no dataset there.
        ValueError: `out` is something else.
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
    """The dataset card: what `datasets` reads in its head, what people read below."""
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
Made from the corpus by DashFusion: the corpus's licence and terms hold for what is shared of it.

| modality | features | extractor | signature |
|---|---|---|---|
{rows}
One row a clip: `clip_id`, `video_id`, `text`, `label` and, where the corpus has them, `label_text`, `label_audio`,
`label_vision`; for each modality `<modality>_values` [steps, features] as they were extracted, `_start` and `_end`
(seconds in the clip), and `_mask` (false: not to be looked at). `dataset.json` has the features' names and, over the
training split, their means and standard deviations.
"""
