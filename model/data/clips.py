"""The dataset on disk (output of the align stage) and batches of it.

Shapes: N clips of a split, B clips of a batch, T steps of the longest of them, D features of a modality.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import torch

from model.config import MODALITIES
from model.data.batch import Batch
from model.data.info import CREATE_HINT, NORMALISED, DatasetInfo, read_info
from model.data.sequences import Sequences, read_column, read_sequences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.data.tokens import TextBackbone


TRAIN_AND_VALID = "train+valid"
"""Both splits, one after the other."""


@dataclass(frozen=True)
class ClipTable:
    """The clips of one split, ready to be batched.

    Attributes:
        info: of the dataset.
        split: train, valid, test or `TRAIN_AND_VALID`; empty for `from_clips`.
        clip_ids: [N] object array of str.
        labels: [N] float32, NaN where unlabelled.
        unimodal_labels: [N, 3] float32, labels of text, audio and vision alone, NaN where unlabelled.
        sequences: modality -> its sequences.
        truncated: modality -> number of clips that were cut to the maximum length.
        text: tokenised the transcripts; None: text is the dataset's features.
        speakers: [N] object array of str, the speaker of each clip or, where unknown, its video; None for `from_clips`.
    """

    info: DatasetInfo
    split: str
    clip_ids: np.ndarray
    labels: np.ndarray
    unimodal_labels: np.ndarray
    sequences: Mapping[str, Sequences]
    truncated: Mapping[str, int]
    text: TextBackbone | None = None
    speakers: np.ndarray | None = None

    @classmethod
    def read(
        cls,
        dataset: Path,
        split: str,
        max_positions: int,
        cache: Path | None = None,
        text: TextBackbone | None = None,
    ) -> ClipTable:
        """Read a split; a split of 0 clips may have no files.

        Args:
            dataset: folder with dataset.json and the splits.
            split: train, valid, test or `TRAIN_AND_VALID`.
            max_positions: maximum steps of an audio, vision or text feature sequence; longer ones are cut.
            cache: folder for memory-mapped copies of the values, see `model.data.sequences.read_sequences`; None reads
                them into memory.
            text: tokenises the transcripts; the tokens replace the dataset's text features.

        Raises:
            FileNotFoundError: no dataset, or no file of a split that should hold clips.
            ValueError: features that are NaN or infinite (the message names clip and modality), or whose width is not
                that of dataset.json.
        """
        info = read_info(dataset)
        parts = [part for name in split.split("+") for part in _parts(Path(dataset), name, info)]
        if not parts:
            return replace(cls.from_clips(info, [], [], [], max_positions, text), split=split)
        clip_ids = read_column(parts, "clip_id").to_numpy(zero_copy_only=False)
        labels = _read_labels(parts, "label")
        unimodal_labels = np.stack([_read_labels(parts, f"label_{m}") for m in MODALITIES], axis=1)
        features = NORMALISED if text else MODALITIES
        full = read_sequences(parts, {m: info.modalities[m].dim for m in features}, clip_ids, cache)
        truncated = {m: int((s.lengths > max_positions).sum()) for m, s in full.items()}
        sequences = {m: replace(s, lengths=np.minimum(s.lengths, max_positions)) for m, s in full.items()}
        if text:
            texts = [] if text.stored else read_column(parts, "text").to_pylist()
            sequences["text"], truncated["text"] = (
                text.stored_sequences(parts) if text.stored else text.sequences(texts)
            )
        speakers = _read_speakers(parts)
        return cls(info, split, clip_ids, labels, unimodal_labels, sequences, truncated, text, speakers)

    @classmethod
    def from_clips(
        cls,
        info: DatasetInfo,
        clip_ids: Sequence[str],
        clips: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
        texts: Sequence[str],
        max_positions: int,
        text: TextBackbone | None = None,
    ) -> ClipTable:
        """Build the table of unlabelled clips in memory, equal to what `read` returns for the same values on disk.

        Args:
            info: of the dataset that the features must match.
            clip_ids: N ids.
            clips: of each clip, modality -> values [T, D] and mask [T], True where a step is visible. A modality that a
                clip lacks is left out, or has T = 0.
            texts: transcripts, used only with `text`.
            max_positions: maximum steps of a feature sequence; longer ones are cut.
            text: tokenises the transcripts; the tokens replace the text features.

        Raises:
            ValueError: values whose width is not the dataset's, or that are NaN or infinite, or a mask of another
                length; the message names clip and modality.
        """
        sequences, truncated = {}, {}
        for m in NORMALISED if text else MODALITIES:
            empty = np.zeros((0, info.modalities[m].dim), np.float32), np.zeros(0, bool)
            arrays = [clip.get(m, empty) for clip in clips]
            for clip_id, (values, mask) in zip(clip_ids, arrays, strict=True):
                _check_clip(clip_id, m, values, mask, info.modalities[m].dim)
            lengths = np.array([len(values) for values, _ in arrays], np.int64)
            truncated[m] = int((lengths > max_positions).sum())
            values_SD = np.concatenate([empty[0], *(values for values, _ in arrays)])
            visible_S = np.concatenate([empty[1], *(mask for _, mask in arrays)])
            starts, kept = np.cumsum(lengths) - lengths, np.minimum(lengths, max_positions)
            sequences[m] = Sequences(values_SD, visible_S, starts, kept)
        if text:
            sequences["text"], truncated["text"] = text.sequences(texts)
        labels = np.full(len(clips), np.nan, np.float32)
        unimodal_labels = np.full((len(clips), len(MODALITIES)), np.nan, np.float32)
        ids = np.array(clip_ids, object)
        return cls(info, "", ids, labels, unimodal_labels, sequences, truncated, text)

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def labelled(self) -> np.ndarray:
        """[N] bool, True where the clip has a label."""
        labelled_N: np.ndarray = np.isfinite(self.labels)
        return labelled_N

    def lengths(self, modalities: Sequence[str] = MODALITIES) -> np.ndarray:
        """Return the steps of each clip, [N, len(modalities)]."""
        return np.stack([self.sequences[m].lengths for m in modalities], axis=1)

    def select(self, rows: np.ndarray) -> ClipTable:
        """Return the clips at `rows`, indices or a bool mask [N], without copying values."""
        sequences = {m: replace(s, starts=s.starts[rows], lengths=s.lengths[rows]) for m, s in self.sequences.items()}
        return replace(
            self,
            clip_ids=self.clip_ids[rows],
            labels=self.labels[rows],
            unimodal_labels=self.unimodal_labels[rows],
            sequences=sequences,
            speakers=None if self.speakers is None else self.speakers[rows],
        )

    def drop_modality(self, modality: str, rows_N: np.ndarray) -> ClipTable:
        """Return the table with the modality missing in the clips at `rows_N`, a bool mask [N]."""
        sequences = self.sequences[modality]
        lengths = np.where(rows_N, 0, sequences.lengths)
        return replace(self, sequences={**self.sequences, modality: replace(sequences, lengths=lengths)})

    def batch(self, indices: np.ndarray, modalities: Sequence[str] = MODALITIES) -> Batch:
        """Pad the clips at `indices` to the longest among them.

        Modalities that are not named are missing in every clip. Two clips of 2 and 1 audio steps, D = 1, give values
        [[[.5], [.1]], [[.3], [0.]]] and mask [[1, 1], [1, 0]].
        """
        values, masks = {}, {}
        for modality in MODALITIES:
            sequences = self.sequences[modality]
            starts = sequences.starts[indices]
            lengths = sequences.lengths[indices] if modality in modalities else np.zeros(len(starts), np.int64)
            longest = int(lengths.max(initial=0))
            real_BT = np.arange(longest) < lengths[:, None]
            rows = (starts[:, None] + np.arange(longest))[real_BT]
            dtype = np.int64 if sequences.values.ndim == 1 else np.float32  # token ids or features
            values_BTD = np.zeros((*real_BT.shape, *sequences.values.shape[1:]), dtype)
            values_BTD[real_BT] = sequences.values[rows]
            mask_BT = np.zeros_like(real_BT)
            mask_BT[real_BT] = sequences.visible[rows]
            sequences.release()
            values[modality] = torch.from_numpy(values_BTD)
            masks[modality] = torch.from_numpy(mask_BT)
        labels, unimodal_labels = (torch.from_numpy(x[indices]) for x in (self.labels, self.unimodal_labels))
        return Batch(tuple(self.clip_ids[indices]), labels, unimodal_labels, values, masks)


def _check_clip(clip_id: str, modality: str, values: np.ndarray, mask: np.ndarray, dim: int) -> None:
    if values.ndim != 2 or values.shape[1] != dim:
        raise ValueError(f"clip {clip_id}: {modality} must be [T, {dim}] as in training, found shape {values.shape}")
    if mask.shape != values.shape[:1] or mask.dtype != bool:
        raise ValueError(
            f"clip {clip_id}: the mask of {modality} must be [{len(values)}] bool, found {mask.shape} {mask.dtype}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"clip {clip_id}: {modality} holds values that are NaN or infinite; replace or hide them")


def _parts(dataset: Path, split: str, info: DatasetInfo) -> list[Path]:
    parts = sorted((dataset / split).glob("part-*.parquet"))
    if not parts and info.clips.get(split, 0):
        raise FileNotFoundError(
            f"{dataset / split}: dataset.json counts {info.clips[split]} clips here, but there is "
            f"no part-*.parquet; {CREATE_HINT}"
        )
    return parts


def _read_speakers(parts: Sequence[Path]) -> np.ndarray:
    """Read the clips' speakers; datasets of earlier versions have videos only."""
    known = all("speaker" in pq.read_schema(part).names for part in parts)
    speakers_N: np.ndarray = read_column(parts, "speaker" if known else "video_id").to_numpy(zero_copy_only=False)
    return speakers_N


def _read_labels(parts: Sequence[Path], column: str) -> np.ndarray:
    labels_N: np.ndarray = read_column(parts, column).to_numpy(zero_copy_only=False).astype(np.float32)
    return labels_N
