"""The dataset on disk (output of the align stage) and batches of it.

Shapes: N clips of a split, B clips of a batch, T steps of the longest of them, S steps of all clips together,
D features of a modality.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.config import MODALITIES

SCHEMA_VERSION = 1
NORMALISED = ("audio", "vision")
"""Modalities with training-split statistics; text values are hidden states, used as they are."""

_CHECK_BLOCK = 1 << 16
_MAKES_IT = "`dashfusion align` (or `dvc repro align`) makes it"


@dataclass(frozen=True, slots=True)
class ModalityInfo:
    """Which extractor made a modality's features, and what they are.

    Attributes:
        dim: D.
        extractor: its registered name.
        options: its options.
        signature: changes whenever its output could.
        feature_names: D names, in the order of the columns.
    """

    dim: int
    extractor: str
    options: Mapping[str, Any]
    signature: str
    feature_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation [D] of each feature over the training split's `steps` visible steps."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What holds for all clips of a dataset: the content of dataset.json.

    Attributes:
        corpus, language: as the manifest has them.
        label_range: least and greatest label, (-3, 3) or (-1, 1).
        mode: unaligned (each modality at its own rate) or aligned (pooled onto the text's tokens).
        modalities: text, audio and vision.
        statistics: of audio and vision.
        clips: clips in each split.
        word_times: how the words' times were had, as the align stage describes it.
    """

    corpus: str
    language: str
    label_range: tuple[float, float]
    mode: str
    modalities: Mapping[str, ModalityInfo]
    statistics: Mapping[str, Statistics]
    clips: Mapping[str, int] = field(default_factory=dict)
    word_times: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "dataset.json") -> DatasetInfo:
        """Build from the parsed JSON.

        Raises:
            ValueError: another schema version, a modality without an entry, statistics that do not fit its
                width or hold a standard deviation that is not positive. Messages begin with `where`.
        """
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{where}: dataset schema {version}, this version reads {SCHEMA_VERSION}; run the align stage again"
            )
        missing = [m for m in MODALITIES if m not in raw["modalities"]]
        missing += [f"statistics of {m}" for m in NORMALISED if m not in raw["statistics"]]
        if missing:
            raise ValueError(f"{where}: no entry for {', '.join(missing)}; run the align stage again")
        modalities = {
            m: ModalityInfo(
                dim=int(entry["dim"]),
                extractor=entry["extractor"],
                options=dict(entry["options"]),
                signature=entry["signature"],
                feature_names=tuple(entry["feature_names"]),
            )
            for m, entry in raw["modalities"].items()
        }
        statistics = {
            m: Statistics(tuple(entry["mean"]), tuple(entry["std"]), int(entry["steps"]))
            for m, entry in raw["statistics"].items()
            if m in NORMALISED
        }
        for m, entry in statistics.items():
            dim = modalities[m].dim
            if len(entry.mean) != dim or len(entry.std) != dim or not all(value > 0 for value in entry.std):
                raise ValueError(
                    f"{where}: the statistics of {m} must be {dim} means and {dim} positive standard "
                    f"deviations, found {len(entry.mean)} and {len(entry.std)}, "
                    f"the least {min(entry.std, default=0.0)}; "
                    "run the align stage again"
                )
        low, high = raw["label_range"]
        return cls(
            corpus=raw["corpus"],
            language=raw["language"],
            label_range=(float(low), float(high)),
            mode=raw["mode"],
            modalities=modalities,
            statistics=statistics,
            clips=dict(raw.get("clips", {})),
            word_times=dict(raw.get("word_times", {})),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON that `from_dict` reads."""
        return {
            "schema_version": SCHEMA_VERSION,
            "corpus": self.corpus,
            "language": self.language,
            "label_range": list(self.label_range),
            "mode": self.mode,
            "modalities": {
                m: {
                    "dim": info.dim,
                    "extractor": info.extractor,
                    "options": dict(info.options),
                    "signature": info.signature,
                    "feature_names": list(info.feature_names),
                }
                for m, info in self.modalities.items()
            },
            "statistics": {
                m: {"mean": list(entry.mean), "std": list(entry.std), "steps": entry.steps}
                for m, entry in self.statistics.items()
            },
            "clips": dict(self.clips),
            "word_times": dict(self.word_times),
        }


def read_info(dataset: Path) -> DatasetInfo:
    """Read `dataset`/dataset.json.

    Raises:
        FileNotFoundError: there is none; the message says which stage makes it.
        ValueError: see `DatasetInfo.from_dict`.
    """
    path = Path(dataset) / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no dataset here; {_MAKES_IT}")
    return DatasetInfo.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))


@dataclass(frozen=True)
class Batch:
    """Clips padded to the longest among them.

    Attributes:
        clip_ids: B ids.
        labels: [B] float32, NaN where unlabelled.
        values: modality -> [B, T, D] float32, raw (not normalised), zeros where padded.
        masks: modality -> [B, T] bool, True where the network may look. T = 0: no clip has the modality.
    """

    clip_ids: tuple[str, ...]
    labels: Tensor
    values: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.clip_ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return replace(
            self,
            labels=self.labels.to(device),
            values={m: value.to(device) for m, value in self.values.items()},
            masks={m: mask.to(device) for m, mask in self.masks.items()},
        )


@dataclass(frozen=True, slots=True)
class Sequences:
    """One modality of N clips, laid end to end.

    Attributes:
        values: [S, D] float16 or float32.
        visible: [S] bool, True where the network may look.
        starts: [N] first row of each clip.
        lengths: [N] steps of each clip; 0 = the modality is missing.
    """

    values: np.ndarray
    visible: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class ClipTable:
    """The clips of one split, ready to be batched.

    Attributes:
        info: of the dataset.
        split: train, valid or test.
        clip_ids: [N] object array of str.
        labels: [N] float32, NaN where unlabelled.
        sequences: by modality.
        truncated: by modality, clips that were cut to the longest length allowed.
    """

    info: DatasetInfo
    split: str
    clip_ids: np.ndarray
    labels: np.ndarray
    sequences: Mapping[str, Sequences]
    truncated: Mapping[str, int]

    @classmethod
    def read(cls, dataset: Path, split: str, max_positions: int) -> ClipTable:
        """Read a split, one column at a time. A split of 0 clips may have no files.

        Raises:
            FileNotFoundError: no dataset, or no file of a split that should hold clips.
            ValueError: features that are NaN or infinite (the message names clip and modality), or of another
                width than dataset.json says.
        """
        info = read_info(dataset)
        parts = sorted((Path(dataset) / split).glob("part-*.parquet"))
        if not parts and info.clips.get(split, 0):
            raise FileNotFoundError(
                f"{Path(dataset) / split}: dataset.json counts {info.clips[split]} clips here, but there is "
                f"no part-*.parquet; {_MAKES_IT}"
            )
        if not parts:
            return cls._empty(info, split)
        clip_ids = _read_column(parts, "clip_id").to_numpy(zero_copy_only=False)
        labels = _read_column(parts, "label").to_numpy(zero_copy_only=False).astype(np.float32)
        sequences, truncated = {}, {}
        for modality in MODALITIES:
            whole = _read_sequences(parts, modality, info.modalities[modality].dim)
            _check_finite(whole, clip_ids, modality)
            truncated[modality] = int((whole.lengths > max_positions).sum())
            sequences[modality] = replace(whole, lengths=np.minimum(whole.lengths, max_positions))
        return cls(info, split, clip_ids, labels, sequences, truncated)

    @classmethod
    def _empty(cls, info: DatasetInfo, split: str) -> ClipTable:
        none = np.zeros(0, np.int64)
        sequences = {
            m: Sequences(np.zeros((0, info.modalities[m].dim), np.float32), np.zeros(0, bool), none, none)
            for m in MODALITIES
        }
        truncated = dict.fromkeys(MODALITIES, 0)
        return cls(info, split, np.zeros(0, object), np.zeros(0, np.float32), sequences, truncated)

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def labelled(self) -> np.ndarray:
        """[N] bool, True where the clip has a label."""
        return np.isfinite(self.labels)

    def lengths(self, modalities: Sequence[str] = MODALITIES) -> np.ndarray:
        """[N, len(modalities)] steps of each clip."""
        return np.stack([self.sequences[m].lengths for m in modalities], axis=1)

    def select(self, rows: np.ndarray) -> ClipTable:
        """The clips at `rows` (indices or a bool mask [N]); the values are shared, not copied."""
        sequences = {m: replace(s, starts=s.starts[rows], lengths=s.lengths[rows]) for m, s in self.sequences.items()}
        return replace(self, clip_ids=self.clip_ids[rows], labels=self.labels[rows], sequences=sequences)

    def batch(self, indices: np.ndarray, modalities: Sequence[str] = MODALITIES) -> Batch:
        """Pad the clips at `indices` to the longest among them.

        Modalities that are not named come out as missing in every clip, exactly as a clip lacks one. Two
        clips of 2 and 1 audio steps, D = 1, give values [[[.5], [.1]], [[.3], [0.]]] and
        mask [[1, 1], [1, 0]].
        """
        values, masks = {}, {}
        for modality in MODALITIES:
            sequences = self.sequences[modality]
            starts = sequences.starts[indices]
            lengths = sequences.lengths[indices] if modality in modalities else np.zeros(len(starts), np.int64)
            longest = int(lengths.max(initial=0))
            real_BT = np.arange(longest) < lengths[:, None]
            rows = (starts[:, None] + np.arange(longest))[real_BT]
            values_BTD = np.zeros((*real_BT.shape, sequences.values.shape[1]), np.float32)
            values_BTD[real_BT] = sequences.values[rows]
            mask_BT = np.zeros_like(real_BT)
            mask_BT[real_BT] = sequences.visible[rows]
            values[modality] = torch.from_numpy(values_BTD)
            masks[modality] = torch.from_numpy(mask_BT)
        return Batch(tuple(self.clip_ids[indices]), torch.from_numpy(self.labels[indices]), values, masks)


def _read_column(parts: Sequence[Path], name: str) -> pa.Array:
    """One column of all parts as one array; a single column at a time keeps the peak of memory low."""
    tables = [pq.read_table(path, columns=[name], memory_map=True) for path in parts]
    return pa.concat_tables(tables)[name].combine_chunks()


def _read_sequences(parts: Sequence[Path], modality: str, dim: int) -> Sequences:
    """[S, D] values and the clips' offsets, straight from the columns' buffers."""
    column = _read_column(parts, f"{modality}_values")
    found = column.type.value_type.list_size
    if found != dim:
        raise ValueError(
            f"{parts[0].parent}: {modality} is {found} wide, dataset.json says {dim}; run the align stage again"
        )
    offsets = column.offsets.to_numpy().astype(np.int64)
    values_SD = column.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    mask_column = _read_column(parts, f"{modality}_mask")
    visible_S = mask_column.values.to_numpy(zero_copy_only=False).astype(bool)
    if not np.array_equal(mask_column.offsets.to_numpy(), offsets):
        raise ValueError(
            f"{parts[0].parent}: {modality}_mask and {modality}_values differ in length; run the align stage again"
        )
    return Sequences(values_SD, visible_S, offsets[:-1], np.diff(offsets))


def _check_finite(sequences: Sequences, clip_ids: np.ndarray, modality: str) -> None:
    """Raise ValueError naming the first clip with a NaN or infinite value; in blocks, to spare memory."""
    for first in range(0, len(sequences.values), _CHECK_BLOCK):
        finite = np.isfinite(sequences.values[first : first + _CHECK_BLOCK])
        if finite.all():
            continue
        step, feature = np.argwhere(~finite)[0]
        row = first + int(step)
        clip = int(np.searchsorted(sequences.starts, row, side="right")) - 1
        raise ValueError(
            f"clip {clip_ids[clip]}: {modality} holds {sequences.values[row, feature]} at step "
            f"{row - sequences.starts[clip]}, feature {feature}; features must be finite: "
            f"extract {modality} again and run the align stage"
        )
