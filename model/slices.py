"""Parts of a split that are worth a look of their own."""

from __future__ import annotations

import numpy as np

from model.config import MODALITIES
from model.data import ClipTable

SLICES = tuple(f"{m} misleads" for m in MODALITIES)
"""The modality's own label (label_text and so on) and the clip's are of opposite sign."""


def slice_rows(clips: ClipTable, name: str) -> np.ndarray:
    """Which clips [N] belong to a slice, bool; none where the corpus has no labels to tell by.

    Args:
        name: of `SLICES`.
    """
    own_N = clips.unimodal_labels[:, SLICES.index(name)]
    return np.nan_to_num(own_N) * np.nan_to_num(clips.labels) < 0
