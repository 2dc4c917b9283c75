"""What training does to its clips, anew in each epoch: modalities are left out, features disturbed, steps hidden.

All of it follows from seed, epoch and clip: a clip is changed in one way whatever batch, process or machine it is on.

Shapes: B clips, T steps, D features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.config import MODALITIES, TrainConfig
from model.data.info import NORMALISED, DatasetInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data.batch import Batch

KEY = 4
"""Of these draws, beside those of batches, partners and dropout that hang on the same seed and epoch."""


def augment_batch(
    batch: Batch, rows_B: Sequence[int], config: TrainConfig, info: DatasetInfo, seed: int, epoch: int
) -> Batch:
    """The batch as `config.modality_dropout` and `config.augment` change it; a step that is hidden is so by the mask.

    Args:
        batch: on the CPU; it stays as it is.
        rows_B: of its clips among the training clips; -1: one that stays as it is.
        info: of the dataset, for the features' standard deviations.
    """
    augment = config.augment
    if not (config.modality_dropout or augment.noise or augment.spans or augment.words):
        return batch
    values = {m: value.clone() if augment.noise and m in NORMALISED else value for m, value in batch.values.items()}
    masks = {m: mask.clone() for m, mask in batch.masks.items()}
    for i, row in enumerate(rows_B):
        if row < 0:
            continue
        dropped = _dropped(np.random.default_rng((seed, epoch, KEY, row)), config.modality_dropout, batch, i)
        for k, m in enumerate(MODALITIES):
            rng = np.random.default_rng((seed, epoch, KEY, row, k))
            mask_T = masks[m][i].numpy()
            if m in dropped:
                mask_T[:] = False
            elif m in NORMALISED:
                _hide_span(mask_T, rng, augment.spans)
                if augment.noise:
                    std_D = np.array(info.statistics[m].std, np.float32)
                    noise_TD = rng.standard_normal(values[m][i].shape, np.float32)
                    values[m][i] += torch.from_numpy(augment.noise * std_D * noise_TD)
            else:
                # the first step is the encoder's [CLS]: the anchor of the alignment and of the prediction
                mask_T[1:] &= rng.random(len(mask_T))[1:] >= augment.words
    return replace(batch, values=values, masks=masks)


def _dropped(rng: np.random.Generator, rate: float, batch: Batch, clip: int) -> set[str]:
    """Modalities that the clip loses: each by itself at this rate, but never all that it has."""
    has = [m for m in MODALITIES if batch.masks[m][clip].any()]
    loses = dict(zip(MODALITIES, rng.random(len(MODALITIES)) < rate, strict=True))
    kept = rng.random()
    dropped = {m for m in has if loses[m]}
    return dropped - {has[int(kept * len(has))]} if dropped == set(has) and has else dropped


def _hide_span(mask_T: np.ndarray, rng: np.random.Generator, most: float) -> None:
    """Hide up to this part of the visible steps, one after another; one at least stays."""
    visible = np.flatnonzero(mask_T)
    length = min(int(rng.uniform(0, most) * len(visible)), len(visible) - 1)
    if length > 0:
        first = int(rng.integers(len(visible) - length + 1))
        mask_T[visible[first : first + length]] = False
