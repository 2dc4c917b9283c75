"""Augmentation of training clips: modality dropout, feature noise and masked steps.

Every change follows from seed, epoch and clip, so it is the same in any batch, in any process and on any machine.

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
    from collections.abc import Iterable

    from model.data.batch import Batch

RNG_KEY = 4
"""Separates these draws from those of batches, partners and dropout, which use the same seed and epoch."""


def augment_batch(
    batch: Batch, rows_B: Iterable[int], config: TrainConfig, info: DatasetInfo, seed: int, epoch: int
) -> Batch:
    """Return the batch changed as `config.modality_dropout` and `config.augment` say; steps are hidden by the mask.

    Args:
        batch: on the CPU; not modified.
        rows_B: index of each clip among the training clips; -1 for a clip that stays unchanged.
        config: of the run.
        info: of the dataset; noise is in units of its standard deviations.
        seed: of the run.
        epoch: counted from 1.
    """
    augment = config.augment
    if not (config.modality_dropout or augment.noise or augment.spans or augment.words):
        return batch
    values = {m: value.clone() if augment.noise and m in NORMALISED else value for m, value in batch.values.items()}
    masks = {m: mask.clone() for m, mask in batch.masks.items()}
    for i, row in enumerate(rows_B):
        if row < 0:
            continue
        dropped = _draw_dropped(np.random.default_rng((seed, epoch, RNG_KEY, row)), config.modality_dropout, batch, i)
        for k, m in enumerate(MODALITIES):
            rng = np.random.default_rng((seed, epoch, RNG_KEY, row, k))
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
                # The first step is the text encoder's [CLS], which alignment and prediction read.
                mask_T[1:] &= rng.random(len(mask_T))[1:] >= augment.words
    return replace(batch, values=values, masks=masks)


def _draw_dropped(rng: np.random.Generator, rate: float, batch: Batch, clip: int) -> set[str]:
    """Draw the modalities that the clip loses: each independently at this rate, but never all that it has."""
    present = [m for m in MODALITIES if batch.masks[m][clip].any()]
    drops = dict(zip(MODALITIES, rng.random(len(MODALITIES)) < rate, strict=True))
    kept = rng.random()
    dropped = {m for m in present if drops[m]}
    return dropped - {present[int(kept * len(present))]} if dropped == set(present) and present else dropped


def _hide_span(mask_T: np.ndarray, rng: np.random.Generator, max_fraction: float) -> None:
    """Mask out, in place, a span of up to this fraction of the visible steps; at least one step stays visible."""
    visible = np.flatnonzero(mask_T)
    length = min(int(rng.uniform(0, max_fraction) * len(visible)), len(visible) - 1)
    if length > 0:
        first = int(rng.integers(len(visible) - length + 1))
        mask_T[visible[first : first + length]] = False
