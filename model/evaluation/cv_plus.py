"""CV+ intervals: the networks of cross-validation predict the clip too, and their errors lie around their predictions.

A clip's interval reaches from a quantile of `prediction - error` to one of `prediction + error` over the n clips of
cross-validation. `error` is that of such a clip and `prediction` that of the clip to be scored, both by the network
that was trained without the former. Barber et al., "Predictive Inference with the Jackknife+", Annals of Statistics 49,
2021, section 3.1: the coverage is at least 2 level - 1 for any network, and usually above the level. Speakers are
weighted as for `grouped_cv`. A checkpoint holds the networks in its folder `folds`; each of them predicts each clip.

Shapes: N clips to be scored, n clips of cross-validation that have all modalities of a subset, K folds.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from model.checkpoint.io import add_folder, load_checkpoint, read_weights
from model.data.clips import ClipTable
from model.device import resolve_device
from model.evaluation.inference import predict
from model.evaluation.intervals import LEVELS, Errors, first_to_reach, fold_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.network.base import Network

FOLDS = "folds"
"""Folder of a checkpoint: `<fold>.safetensors` with the weights of the network that was trained without the fold, and
`errors.safetensors` with `<subset>.error`, `<subset>.speaker` and `<subset>.fold`, [n] each."""

ERRORS = "errors.safetensors"

MAX_VALUES = 1 << 22
"""Values that are sorted at once."""


@dataclass(frozen=True)
class FoldNetworks:
    """The networks of cross-validation.

    Attributes:
        networks: One per fold, in eval mode.
        errors: `subset_name` -> errors, with `fold_n`.
    """

    networks: Sequence[Network]
    errors: Mapping[str, Errors]

    def bounds(
        self, table: ClipTable, shown: Sequence[str], subset_N: Sequence[str], levels: Sequence[float]
    ) -> dict[float, tuple[np.ndarray, np.ndarray]]:
        """Return the lower and upper ends of the intervals by level, [N] each, NaN where there are too few errors.

        Args:
            table: The clips.
            shown: Modalities that the networks are shown.
            subset_N: `subset_name` of the modalities that each clip has.
            levels: Coverages.
        """
        prediction_KN = np.array([predict(network, table, shown) for network in self.networks], np.float64)
        ends = {level: np.full((2, len(table)), np.nan) for level in levels}
        for subset in set(subset_N) & set(self.errors):
            rows = np.flatnonzero(np.array(subset_N) == subset)
            for level in levels:
                ends[level][:, rows] = cv_plus_bounds(prediction_KN[:, rows], self.errors[subset], level)
        return {level: (low_N, high_N) for level, (low_N, high_N) in ends.items()}


def cv_plus_bounds(prediction_KN: np.ndarray, errors: Errors, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper ends of the intervals, [N] each, NaN if there are too few errors.

    Args:
        prediction_KN: Predictions by the network of each fold.
        errors: Errors of cross-validation, with `fold_n`.
        level: Coverage.
    """
    assert errors.fold_n is not None, "of cross-validation"
    count = prediction_KN.shape[1]
    low_N, high_N = np.full((2, count), np.nan)
    weight_n = fold_weights(errors.speaker_n, level)
    if weight_n is None:
        return low_N, high_N
    step = max(1, MAX_VALUES // len(weight_n))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        centre_Nn = prediction_KN[errors.fold_n, rows].T
        low_N[rows] = -first_to_reach(errors.error_n - centre_Nn, weight_n, level)
        high_N[rows] = first_to_reach(errors.error_n + centre_Nn, weight_n, level)
    return low_N, high_N


def cv_plus_intervals(
    checkpoint: Path, dataset: Path, split: str, clip_ids: Sequence[str], subset_N: Sequence[str], device: str = "auto"
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Return the lower and upper ends of the intervals of a split's clips, [N] each, for each of `LEVELS`.

    Args:
        checkpoint: Folder of a checkpoint with fold networks.
        dataset: Folder of the dataset.
        split: Name of the split.
        clip_ids: Ids of the clips.
        subset_N: `subset_name` of the modalities that each clip has.
        device: Device, see `resolve_device`.
    """
    network, info = load_checkpoint(checkpoint, resolve_device(device))
    table = ClipTable.read(dataset, split, info.model.max_positions, text=network.text)
    row_of = {clip_id: row for row, clip_id in enumerate(table.clip_ids)}
    chosen = table.select(np.array([row_of[clip_id] for clip_id in clip_ids], np.int64))
    folds = read_fold_networks(checkpoint, network)
    return folds.bounds(chosen, info.train.modalities, subset_N, LEVELS)


def add_fold_networks(checkpoint: Path, weights: Sequence[Path], errors: Mapping[str, Errors]) -> None:
    """Add the networks of cross-validation and their errors to a checkpoint.

    Args:
        checkpoint: Folder of the checkpoint.
        weights: File with the weights of each fold's network.
        errors: `subset_name` -> errors, with `fold_n`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for fold, path in enumerate(weights):
            (folder / f"{fold}.safetensors").symlink_to(path.resolve())
        arrays: dict[str, np.ndarray] = {}
        for subset, found in errors.items():
            assert found.fold_n is not None, "of cross-validation"
            _, speaker_n = np.unique(found.speaker_n, return_inverse=True)
            columns = {"error": found.error_n.astype(np.float64), "speaker": speaker_n, "fold": found.fold_n}
            arrays |= {f"{subset}.{column}": values for column, values in columns.items()}
        safetensors.numpy.save_file(arrays, folder / ERRORS)
        add_folder(checkpoint, FOLDS, folder)


def read_fold_networks(checkpoint: Path, network: Network) -> FoldNetworks:
    """Read what `add_fold_networks` wrote; the networks are on the device of `network`, the checkpoint's own.

    Raises:
        ValueError: Weights of another network.
    """
    folder = Path(checkpoint) / FOLDS
    arrays = safetensors.numpy.load_file(folder / ERRORS)
    networks = []
    for path in sorted(folder.glob("[0-9]*.safetensors"), key=lambda path: int(path.stem)):
        twin = copy.deepcopy(network)
        twin.load_state_dict(read_weights(path, network.state_dict()))
        networks.append(twin.eval())
    subsets = [name.removesuffix(".error") for name in arrays if name.endswith(".error")]
    columns = "error", "speaker", "fold"
    return FoldNetworks(networks, {s: Errors(*(arrays[f"{s}.{column}"] for column in columns)) for s in subsets})
