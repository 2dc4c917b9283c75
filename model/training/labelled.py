"""The labelled clips of a split, checked before training starts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from model.data.clips import TRAIN_AND_VALID, ClipTable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.config import ModelConfig
    from model.data.tokens import TextBackbone
    from model.training.folds import Fold

log = logging.getLogger(__name__)


def read_training(
    dataset: Path,
    model: ModelConfig,
    modalities: Sequence[str],
    cache: Path | None,
    text: TextBackbone | None,
    fold: Fold | None = None,
) -> tuple[ClipTable, ClipTable, int]:
    """Read the labelled clips to train on and to validate on, and count the training clips without a label.

    Args:
        dataset: Folder of the dataset.
        model: Configuration of the network.
        modalities: Modalities to train with.
        cache: Folder for memory-mapped features; None: in memory.
        text: Tokenises the transcripts, see `ClipTable.read`.
        fold: Validate on this fold of both splits, and train on the others; None: on the splits.

    Raises:
        FileNotFoundError: No dataset there.
        ValueError: No labelled clip, or none with any of the modalities.
    """
    if fold:
        both, unlabelled = read_labelled(dataset, TRAIN_AND_VALID, model, modalities, cache, text)
        assert both.speakers is not None, "read from a dataset"
        inside_N = fold.contains(both.speakers)
        return both.select(~inside_N), both.select(inside_N), unlabelled
    clips, unlabelled = read_labelled(dataset, "train", model, modalities, cache, text)
    valid, _ = read_labelled(dataset, "valid", model, modalities, cache, text)
    return clips, valid, unlabelled


def read_labelled(
    dataset: Path,
    split: str,
    model: ModelConfig,
    modalities: Sequence[str],
    cache: Path | None = None,
    text: TextBackbone | None = None,
) -> tuple[ClipTable, int]:
    """Read the split's labelled clips, and count the others.

    Args:
        dataset: Folder of the dataset.
        split: Name of the split, or `TRAIN_AND_VALID`.
        model: Configuration of the network.
        modalities: Modalities to train with.
        cache: Folder for memory-mapped features; None: in memory.
        text: Tokenises the transcripts, see `ClipTable.read`.

    Raises:
        FileNotFoundError: No dataset there.
        ValueError: No labelled clip, or none with any of the modalities.
    """
    table = ClipTable.read(dataset, split, model.max_positions, cache, text)
    labelled = table.labelled
    if not labelled.any():
        found = f"{len(table)} clips, none with a label" if len(table) else "no clips"
        raise ValueError(
            f"{dataset}: the {split} split has {found}; training needs labelled clips in train and in valid: "
            "check the corpus's split column, then run the prepare, extract and align stages"
        )
    for modality, count in table.truncated.items():
        if count:
            limit = text.limit if text and modality == "text" else model.max_positions
            log.warning("%s: %s of %d clips cut to %d steps", split, modality, count, limit)
    if not labelled.all():
        log.warning("%s: %d clips without a label are ignored", split, (~labelled).sum())
    clips = table.select(labelled)
    _check_modalities(clips, modalities)
    return clips, int((~labelled).sum())


def _check_modalities(clips: ClipTable, modalities: Sequence[str]) -> None:
    """Raise if no clip has any of the modalities; warn of each that no clip has."""
    absent = [m for m in modalities if not clips.lengths((m,)).any()]
    if len(absent) == len(modalities):
        raise ValueError(
            f"no labelled clip of the {clips.split} split has {' or '.join(modalities)}: nothing can be learned or "
            "measured; see data/problems.parquet for why, or choose other train.modalities"
        )
    for m in absent:
        log.warning("%s: no clip has %s, so the network cannot learn from it or be measured by it", clips.split, m)


def check_unimodal_labels(clips: ClipTable, model: ModelConfig) -> None:
    """Raise ValueError if the network has unimodal heads, and no clip has a label for any of them."""
    if model.unimodal_heads and not np.isfinite(clips.unimodal_labels).any():
        raise ValueError(
            "model.unimodal_heads is true: the training clips have no labels of text, audio or vision alone; set it to "
            "false, or give the corpus's label.csv the columns label_T, label_A and label_V"
        )
