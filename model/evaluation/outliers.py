"""Outlier test: whether a clip is like the training clips, and which of its modalities are not.

A clip's modality is one vector: the mean and standard deviation of its features over the visible steps, and the
network's pooled vector. Its Mahalanobis distance to the training clips' vectors is that of a normal distribution whose
covariance is shrunk (Ledoit and Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices", Journal
of Multivariate Analysis 88, 2004), with one variance for all but its leading components. The largest distance of the
clip's modalities, each standardised, gives a conformal p-value among the validation clips: of clips like those, at most
a fraction `SIGNIFICANCE` is taken for outliers (Vovk et al., "Algorithmic Learning in a Random World", 2005).

Shapes: N clips, V entries of a modality's vector, K components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.config import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.data.clips import ClipTable

SIGNIFICANCE = 0.05
"""p-value up to which a clip is an outlier."""

MIN_CLIPS = 19
"""Minimum validation clips of a test: the smallest p-value of n clips is 1 / (n + 1)."""

MAX_TRAINING_CLIPS = 2000
"""Training clips to fit to; of more, a sample."""

MAX_COMPONENTS = 64

Density = dict[str, np.ndarray]
"""Fitted distributions as the checkpoint stores them: `<modality>.mean` [V], `.std` [V], `.components` [K, V],
`.variances` [K + 1], the last of all other directions, and `.distances` [n] of the validation clips (log, NaN where a
clip lacks the modality). Empty: no test."""


@dataclass(frozen=True, slots=True)
class OutlierTest:
    """Result of the outlier test of a clip.

    Attributes:
        p_value: Fraction of clips like the validation clips that are at least as far from the training clips.
        clips: Validation clips that it is based on.
        modalities: Modalities that are unlike the training clips'; empty if the clip is no outlier.
    """

    p_value: float
    clips: int
    modalities: tuple[str, ...]


def sample_rows(clips: int) -> np.ndarray:
    """Return the rows of the training clips to fit to, in order."""
    rows = np.random.default_rng(0).permutation(clips)[:MAX_TRAINING_CLIPS]
    return np.sort(rows)


def clip_vectors(table: ClipTable, pooled: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return modality -> [N, V] vectors of the clips, NaN where a clip lacks the modality.

    Args:
        table: The clips.
        pooled: Their `Inference.pooled`.
    """
    return {m: np.concatenate([pooled_Nd, _statistics(table, m)], axis=1) for m, pooled_Nd in pooled.items()}


def _statistics(table: ClipTable, modality: str) -> np.ndarray:
    """Return the mean and standard deviation of each feature over a clip's visible steps; nothing of token ids."""
    sequences = table.sequences[modality]
    if sequences.values.ndim == 1:
        return np.zeros((len(table), 0), np.float32)
    statistics = np.full((len(table), 2 * sequences.values.shape[1]), np.nan, np.float32)
    for row, (start, length) in enumerate(zip(sequences.starts, sequences.lengths, strict=True)):
        steps = slice(start, start + length)
        values_TD = sequences.values[steps][sequences.visible[steps]].astype(np.float32)
        if len(values_TD):
            statistics[row] = np.concatenate([values_TD.mean(axis=0), values_TD.std(axis=0)])
    sequences.release()
    return statistics


def fit_density(train: Mapping[str, np.ndarray], valid: Mapping[str, np.ndarray]) -> Density:
    """Fit the modalities' distributions to training clips, and calibrate them on validation clips.

    Args:
        train: `clip_vectors` of training clips. A modality that fewer than two of them have is left out.
        valid: `clip_vectors` of validation clips.
    """
    density: Density = {}
    for m, vectors_NV in train.items():
        known_NV = vectors_NV[np.isfinite(vectors_NV).all(axis=1)]
        if len(known_NV) > 1:
            density |= {f"{m}.{name}": values.astype(np.float32) for name, values in _fit(known_NV).items()}
            density[f"{m}.distances"] = _log_distance(density, m, valid[m])
    return density


def _fit(vectors_NV: np.ndarray) -> Density:
    count, size = vectors_NV.shape
    std_V = vectors_NV.std(axis=0)
    std_V[std_V <= 1e-5 * np.abs(vectors_NV).max(axis=0)] = 1  # constant up to rounding
    mean_V = vectors_NV.mean(axis=0)
    z_NV = (vectors_NV - mean_V) / std_V

    # Eigenvalues of the covariance, from the smaller matrix of inner products
    eigenvalue_N, vector_NN = np.linalg.eigh(z_NV @ z_NV.T / count)
    leading = np.argsort(-eigenvalue_N)[: min(MAX_COMPONENTS, count - 1, size)]
    leading = leading[eigenvalue_N[leading] > 1e-6]
    components_KV = vector_NN[:, leading].T @ z_NV / np.sqrt(count * eigenvalue_N[leading])[:, None]

    # Shrinkage towards the mean variance (Ledoit and Wolf, section 3.2)
    squared_N = (z_NV**2).sum(axis=1)
    mean_variance, norm = float(squared_N.mean()) / size, float((eigenvalue_N**2).sum())
    spread = norm - size * mean_variance**2
    error = (float((squared_N**2).mean()) - norm) / count
    shrinkage = min(error / spread, 1.0) if spread > 0 else 1.0
    rest = (size * mean_variance - eigenvalue_N[leading].sum()) / max(size - len(leading), 1)
    variances = (1 - shrinkage) * np.append(eigenvalue_N[leading], rest) + shrinkage * mean_variance
    return {
        "mean": mean_V,
        "std": std_V,
        "components": components_KV,
        "variances": np.maximum(variances, 1e-6),
    }


def _log_distance(density: Mapping[str, np.ndarray], modality: str, vectors_NV: np.ndarray) -> np.ndarray:
    """Return the logarithm of the squared Mahalanobis distances [N]; NaN where a clip lacks the modality."""
    names = ("mean", "std", "components", "variances")
    mean_V, std_V, components_KV, variances = (density[f"{modality}.{name}"] for name in names)
    z_NV = (vectors_NV - mean_V) / std_V
    squared_NK = (z_NV @ components_KV.T) ** 2
    rest_N = np.maximum((z_NV**2).sum(axis=1) - squared_NK.sum(axis=1), 0)
    distance_N: np.ndarray = np.log((squared_NK / variances[:-1]).sum(axis=1) + rest_N / variances[-1] + 1e-6)
    return distance_N.astype(np.float32)


def detect_outliers(density: Mapping[str, np.ndarray], vectors: Mapping[str, np.ndarray]) -> list[OutlierTest | None]:
    """Test clips by the modalities that they have.

    Args:
        density: Result of `fit_density`.
        vectors: `clip_vectors` of the clips.

    Returns:
        One result a clip; None without a density, or if fewer than `MIN_CLIPS` validation clips have its modalities.
    """
    tested = [m for m in MODALITIES if m in vectors and f"{m}.distances" in density]
    count = len(next(iter(vectors.values()), ()))
    if not tested:
        return [None] * count
    calibration_nM = np.stack([density[f"{m}.distances"] for m in tested], axis=1)
    distance_NM = np.stack([_log_distance(density, m, vectors[m]) for m in tested], axis=1)
    known_nM = np.isfinite(calibration_nM)
    counts_M = np.maximum(known_nM.sum(axis=0), 1)
    mean_M = np.where(known_nM, calibration_nM, 0).sum(axis=0) / counts_M
    std_M = np.sqrt(np.where(known_nM, (calibration_nM - mean_M) ** 2, 0).sum(axis=0) / counts_M) + 1e-6
    calibration_nM, distance_NM = (calibration_nM - mean_M) / std_M, (distance_NM - mean_M) / std_M
    return [_test(distance_M, calibration_nM, tested) for distance_M in distance_NM]


def _test(distance_M: np.ndarray, calibration_nM: np.ndarray, modalities: list[str]) -> OutlierTest | None:
    has_M = np.isfinite(distance_M)
    shown_nM = calibration_nM[:, has_M]
    largest_n = shown_nM[np.isfinite(shown_nM).all(axis=1)].max(axis=1, initial=-np.inf)
    if not has_M.any() or len(largest_n) < MIN_CLIPS:
        return None
    p_values = {
        m: float((1 + (largest_n >= distance).sum()) / (len(largest_n) + 1))
        for m, distance, has in zip(modalities, distance_M, has_M, strict=True)
        if has
    }
    unlike = tuple(m for m, p_value in p_values.items() if p_value <= SIGNIFICANCE)
    return OutlierTest(min(p_values.values()), len(largest_n), unlike)
