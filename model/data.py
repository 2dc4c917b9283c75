"""The dataset on disk (output of the align stage) and batches of it.

Shapes: N clips of a split, B clips of a batch, T steps of the longest of them, D features of a modality.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model.arrays import Sequences, read_column, read_sequences
from model.config import MODALITIES

if TYPE_CHECKING:
    from model.text import TokenText

SCHEMA_VERSION = 2
NORMALISED = ("audio", "vision")
"""Modalities with training-split statistics; text values are hidden states, used as they are."""

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
        mask_invalid: modalities whose invalid steps are hidden.
        modalities: text, audio and vision.
        statistics: of audio and vision.
        clips: clips in each split.
        word_times: how the words' times were had, as the align stage describes it.
        training: of the training clips, `seconds` (median and longest) and `missing`, clips without each modality;
            empty where that is not known.
        recogniser: what recognised the speech of clips without a transcript; empty: nothing did.
    """

    corpus: str
    language: str
    label_range: tuple[float, float]
    mode: str
    mask_invalid: tuple[str, ...]
    modalities: Mapping[str, ModalityInfo]
    statistics: Mapping[str, Statistics]
    clips: Mapping[str, int] = field(default_factory=dict)
    word_times: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    recogniser: str = ""

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
            mask_invalid=tuple(raw["mask_invalid"]),
            modalities=modalities,
            statistics=statistics,
            clips=dict(raw.get("clips", {})),
            word_times=dict(raw.get("word_times", {})),
            training=dict(raw.get("training", {})),
            recogniser=raw.get("recogniser", ""),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON that `from_dict` reads."""
        return {
            "schema_version": SCHEMA_VERSION,
            "corpus": self.corpus,
            "language": self.language,
            "label_range": list(self.label_range),
            "mode": self.mode,
            "mask_invalid": list(self.mask_invalid),
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
            "training": dict(self.training),
            "recogniser": self.recogniser,
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
        unimodal_labels: [B, 3] float32, of text, audio and vision alone, NaN where there is none.
        values: modality -> [B, T, D] float32, raw (not normalised), zeros where padded; text as tokens: [B, T]
            int64, or their hidden states.
        masks: modality -> [B, T] bool, True where the network may look. T = 0: no clip has the modality.
        lacking: modalities that a clip of the batch lacks. Known before the tensors go to a GPU, so that nothing waits
            there for it; of tensors that are there already, all may be lacking.
    """

    clip_ids: tuple[str, ...]
    labels: Tensor
    unimodal_labels: Tensor
    values: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    lacking: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        unsure = {m for m, mask_BT in self.masks.items() if mask_BT.device.type != "cpu" or not _all_have(mask_BT)}
        object.__setattr__(self, "lacking", frozenset(unsure))

    def __len__(self) -> int:
        return len(self.clip_ids)

    def absent(self) -> dict[str, Tensor]:
        """Each of `lacking` -> [B] bool, True where the clip lacks it."""
        return {m: ~self.masks[m].any(dim=1) for m in MODALITIES if m in self.lacking}

    def with_values(self, modality: str, values: Tensor) -> Batch:
        """The same clips with other values of a modality, such as what an encoder makes of their tokens."""
        return self._known(replace(self, values={**self.values, modality: values}))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; from pinned memory without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return self._known(
            replace(
                self,
                labels=change(self.labels),
                unimodal_labels=change(self.unimodal_labels),
                values={m: change(value) for m, value in self.values.items()},
                masks={m: change(mask) for m, mask in self.masks.items()},
            )
        )

    def _known(self, same_masks: Batch) -> Batch:
        object.__setattr__(same_masks, "lacking", self.lacking)
        return same_masks


def _all_have(mask_BT: Tensor) -> bool:
    return bool(mask_BT.any(dim=1).all())


@dataclass(frozen=True)
class ClipTable:
    """The clips of one split, ready to be batched.

    Attributes:
        info: of the dataset.
        split: train, valid or test.
        clip_ids: [N] object array of str.
        labels: [N] float32, NaN where unlabelled.
        unimodal_labels: [N, 3] float32, of text, audio and vision alone, NaN where there is none.
        sequences: by modality.
        truncated: by modality, clips that were cut to the longest length allowed.
        text: what cut the transcripts into tokens; None: text is the dataset's features.
    """

    info: DatasetInfo
    split: str
    clip_ids: np.ndarray
    labels: np.ndarray
    unimodal_labels: np.ndarray
    sequences: Mapping[str, Sequences]
    truncated: Mapping[str, int]
    text: TokenText | None = None

    @classmethod
    def read(
        cls,
        dataset: Path,
        split: str,
        max_positions: int,
        cache: Path | None = None,
        text: TokenText | None = None,
    ) -> ClipTable:
        """Read a split. A split of 0 clips may have no files.

        Args:
            text: cuts the transcripts into tokens, which take the place of the dataset's text features.
            cache: folder for files from which the values are memory-mapped, see `model.arrays.read_sequences`;
                None reads them into memory.

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
            return cls._empty(info, split, text)
        clip_ids = read_column(parts, "clip_id").to_numpy(zero_copy_only=False)
        labels, *of_modalities = (_read_labels(parts, name) for name in ("label", *(f"label_{m}" for m in MODALITIES)))
        features = NORMALISED if text else MODALITIES
        whole = read_sequences(parts, {m: info.modalities[m].dim for m in features}, clip_ids, cache)
        truncated = {m: int((s.lengths > max_positions).sum()) for m, s in whole.items()}
        sequences = {m: replace(s, lengths=np.minimum(s.lengths, max_positions)) for m, s in whole.items()}
        if text:
            sequences["text"], truncated["text"] = text.sequences(read_column(parts, "text").to_pylist())
        return cls(info, split, clip_ids, labels, np.stack(of_modalities, axis=1), sequences, truncated, text)

    @classmethod
    def from_clips(
        cls,
        info: DatasetInfo,
        clip_ids: Sequence[str],
        clips: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
        texts: Sequence[str],
        max_positions: int,
        text: TokenText | None = None,
    ) -> ClipTable:
        """Clips of no dataset, without labels: what `read` makes of the same values on disk.

        Args:
            clips: modality -> values [T, D] and mask [T], True where the network may look. A modality that a clip lacks
                is left out, or has T = 0.
            texts: what `text` cuts into tokens; else nobody looks at them.

        Raises:
            ValueError: values of another shape than the dataset's, that are NaN or infinite, or a mask of another
                length; the message names clip and modality.
        """
        sequences, truncated = {}, {}
        for m in NORMALISED if text else MODALITIES:
            nothing = np.zeros((0, info.modalities[m].dim), np.float32), np.zeros(0, bool)
            found = [clip.get(m, nothing) for clip in clips]
            for clip_id, (values, mask) in zip(clip_ids, found, strict=True):
                _check_clip(clip_id, m, values, mask, info.modalities[m].dim)
            lengths = np.array([len(values) for values, _ in found], np.int64)
            truncated[m] = int((lengths > max_positions).sum())
            values_SD = np.concatenate([nothing[0], *(values for values, _ in found)])
            visible_S = np.concatenate([nothing[1], *(mask for _, mask in found)])
            starts, kept = np.cumsum(lengths) - lengths, np.minimum(lengths, max_positions)
            sequences[m] = Sequences(values_SD, visible_S, starts, kept)
        if text:
            sequences["text"], truncated["text"] = text.sequences(texts)
        none = np.full((len(clips), 1 + len(MODALITIES)), np.nan, np.float32)
        ids = np.array(clip_ids, object)
        return cls(info, "", ids, none[:, 0], none[:, 1:], sequences, truncated, text)

    @classmethod
    def _empty(cls, info: DatasetInfo, split: str, text: TokenText | None) -> ClipTable:
        none = np.zeros(0, np.int64)
        sequences = {
            m: Sequences(np.zeros((0, info.modalities[m].dim), np.float32), np.zeros(0, bool), none, none)
            for m in MODALITIES
        }
        if text:
            sequences["text"], _ = text.sequences([])
        truncated = dict.fromkeys(MODALITIES, 0)
        labels, of_modalities = np.zeros(0, np.float32), np.zeros((0, len(MODALITIES)), np.float32)
        return cls(info, split, np.zeros(0, object), labels, of_modalities, sequences, truncated, text)

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
        return replace(
            self,
            clip_ids=self.clip_ids[rows],
            labels=self.labels[rows],
            unimodal_labels=self.unimodal_labels[rows],
            sequences=sequences,
        )

    def without(self, modality: str, rows_N: np.ndarray) -> ClipTable:
        """The same clips, of which those at `rows_N` (a bool mask [N]) lack the modality."""
        sequences = self.sequences[modality]
        lengths = np.where(rows_N, 0, sequences.lengths)
        return replace(self, sequences={**self.sequences, modality: replace(sequences, lengths=lengths)})

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
            kind = np.int64 if sequences.values.ndim == 1 else np.float32
            values_BTD = np.zeros((*real_BT.shape, *sequences.values.shape[1:]), kind)
            values_BTD[real_BT] = sequences.values[rows]
            mask_BT = np.zeros_like(real_BT)
            mask_BT[real_BT] = sequences.visible[rows]
            sequences.release()
            values[modality] = torch.from_numpy(values_BTD)
            masks[modality] = torch.from_numpy(mask_BT)
        labels, of_modalities = (torch.from_numpy(x[indices]) for x in (self.labels, self.unimodal_labels))
        return Batch(tuple(self.clip_ids[indices]), labels, of_modalities, values, masks)


def _check_clip(clip_id: str, modality: str, values: np.ndarray, mask: np.ndarray, dim: int) -> None:
    if values.ndim != 2 or values.shape[1] != dim:
        raise ValueError(f"clip {clip_id}: {modality} must be [T, {dim}] as in training, found shape {values.shape}")
    if mask.shape != values.shape[:1] or mask.dtype != bool:
        raise ValueError(
            f"clip {clip_id}: the mask of {modality} must be [{len(values)}] bool, found {mask.shape} {mask.dtype}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"clip {clip_id}: {modality} holds values that are NaN or infinite; replace or hide them")


def _read_labels(parts: Sequence[Path], column: str) -> np.ndarray:
    return read_column(parts, column).to_numpy(zero_copy_only=False).astype(np.float32)
