"""Predictions of a split as a table.

Shapes: N clips, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping

PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("label", pa.float32()),
        pa.field("prediction", pa.float32(), nullable=False),
    ]
)

WITHOUT = "prediction_without_"
"""Prefix of the columns with the predictions without one modality, followed by its name."""


@dataclass(frozen=True)
class ClipPredictions:
    """A table of predictions as arrays, clips in the order of their first rows.

    Attributes:
        clip_ids: N ids.
        label_N: NaN where unlabelled.
        prediction_SN: predictions of each seed's network.
        without: modality -> [N] mean prediction over the seeds without that modality, NaN where undefined.
    """

    clip_ids: tuple[str, ...]
    label_N: np.ndarray
    prediction_SN: np.ndarray
    without: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, predictions: pa.Table) -> ClipPredictions:
        """Convert `Evaluation.predictions`, in which every seed has the same clips."""
        without = {name.removeprefix(WITHOUT): name for name in predictions.column_names if name.startswith(WITHOUT)}
        groups = predictions.group_by("clip_id", use_threads=False)
        table = groups.aggregate([(name, "list") for name in ("label", "prediction", *without.values())])

        def by_seed(name: str) -> np.ndarray:
            values = table[f"{name}_list"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            by_clip: np.ndarray = values.astype(np.float64).reshape(len(table), -1)
            return by_clip.T

        return cls(
            clip_ids=tuple(table["clip_id"].to_pylist()),
            label_N=by_seed("label")[0] if len(table) else np.zeros(0),
            prediction_SN=by_seed("prediction") if len(table) else np.zeros((1, 0)),
            without={m: by_seed(name).mean(axis=0) for m, name in without.items() if len(table)},
        )

    @property
    def mean_N(self) -> np.ndarray:
        """Mean prediction over the seeds."""
        mean_N: np.ndarray = self.prediction_SN.mean(axis=0)
        return mean_N

    def labelled(self) -> ClipPredictions:
        """Return the labelled clips."""
        rows = np.flatnonzero(np.isfinite(self.label_N))
        return ClipPredictions(
            clip_ids=tuple(self.clip_ids[row] for row in rows),
            label_N=self.label_N[rows],
            prediction_SN=self.prediction_SN[:, rows],
            without={m: values_N[rows] for m, values_N in self.without.items()},
        )
