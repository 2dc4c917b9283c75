"""Predictions of trained networks on a split, and their metrics."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from model import checkpoint
from model.batching import sorted_batches
from model.config import MODALITIES, check_modalities
from model.data import ClipTable
from model.device import prefetch, resolve_device
from model.files import atomic_file
from model.metrics import Metric, evaluate_metrics
from model.network import DashFusion

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
"""Columns of the predictions with one modality left out: this and its name."""


@dataclass(frozen=True)
class Evaluation:
    """One or several networks on one split.

    Attributes:
        metrics: of one network as `evaluate_metrics` gives them; of several, the mean under the same keys,
            the sample standard deviation under `<key>_std`, and their number under `seeds`. With unimodal heads
            also `mae_<modality>`, `corr_<modality>` and `acc2_<modality>`, against the modality's own labels.
        by_seed: seed -> metrics of that network.
        predictions: `PREDICTIONS_SCHEMA`, all clips of one network after the other, and `prediction_without_<modality>`
            of each that the network is shown beside others, null where the clip lacks it, or has nothing else; with
            unimodal heads also `label_<modality>` and `prediction_<modality>`, null where the clip lacks the modality.
        unlabelled: clips that are predicted but not measured.
        truncated: modality -> clips that were cut to the network's longest sequence.
        steps: modality -> [N] steps of each clip, in the order of the predictions; 0 where it lacks the modality.
    """

    metrics: Mapping[str, Metric]
    by_seed: Mapping[int, Mapping[str, Metric]]
    predictions: pa.Table
    unlabelled: int
    truncated: Mapping[str, int]
    steps: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ClipPredictions:
    """A table of predictions as arrays of N clips, in the order of their first rows, and S seeds.

    Attributes:
        clip_ids: N ids.
        label_N: NaN where unlabelled.
        prediction_SN: by each seed's network.
        without: modality -> [N] the mean over the seeds of what is predicted without it, NaN where that is undefined.
    """

    clip_ids: tuple[str, ...]
    label_N: np.ndarray
    prediction_SN: np.ndarray
    without: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, predictions: pa.Table) -> ClipPredictions:
        """From a table as `Evaluation` has it, each seed with the same clips."""
        without = {name.removeprefix(WITHOUT): name for name in predictions.column_names if name.startswith(WITHOUT)}
        groups = predictions.group_by("clip_id", use_threads=False)
        table = groups.aggregate([(name, "list") for name in ("label", "prediction", *without.values())])

        def by_seed(name: str) -> np.ndarray:
            values = table[f"{name}_list"].combine_chunks().flatten()
            return values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(table), -1).T

        return cls(
            clip_ids=tuple(table["clip_id"].to_pylist()),
            label_N=by_seed("label")[0] if len(table) else np.zeros(0),
            prediction_SN=by_seed("prediction") if len(table) else np.zeros((1, 0)),
            without={m: by_seed(name).mean(axis=0) for m, name in without.items() if len(table)},
        )

    @property
    def mean_N(self) -> np.ndarray:
        """The mean prediction over the seeds."""
        return self.prediction_SN.mean(axis=0)

    def labelled(self) -> ClipPredictions:
        """The clips that have a label."""
        rows = np.flatnonzero(np.isfinite(self.label_N))
        return ClipPredictions(
            clip_ids=tuple(self.clip_ids[row] for row in rows),
            label_N=self.label_N[rows],
            prediction_SN=self.prediction_SN[:, rows],
            without={m: values_N[rows] for m, values_N in self.without.items()},
        )


def predict(
    network: DashFusion,
    table: ClipTable,
    modalities: Sequence[str],
    batch_size: int = 64,
    part: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """Sentiment [N] float32 of the table's clips, in its order, by the network in eval mode.

    Args:
        modalities: what the network is shown; the others are fed as missing.
        part: (k, n) = every n-th batch from the k-th on; clips of the others are 0, so that the n parts add up.
    """
    return _predict(network, table, modalities, batch_size, part)[0]


@torch.inference_mode()
def _predict(
    network: DashFusion, table: ClipTable, modalities: Sequence[str], batch_size: int, part: tuple[int, int] = (0, 1)
) -> tuple[np.ndarray, np.ndarray | None]:
    """`predict`, and of unimodal heads [N, 3], NaN where the clip lacks the modality."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    prediction_N = np.zeros(len(table), np.float32)
    unimodal_NM = np.zeros((len(table), len(MODALITIES)), np.float32) if network.config.unimodal_heads else None
    batches = sorted_batches(table.lengths(modalities), batch_size)[part[0] :: part[1]]
    for rows, batch in zip(batches, prefetch(lambda rows: table.batch(rows, modalities), batches), strict=True):
        output = network(batch.to(device))
        prediction_N[rows] = output.prediction.cpu().numpy()
        if unimodal_NM is not None:
            present_BM = torch.stack([output.embedding.present[m] for m in MODALITIES], dim=1)
            unimodal_NM[rows] = output.unimodal.where(present_BM, torch.nan).cpu().numpy()
    network.train(training)
    return prediction_N, unimodal_NM


def evaluate(
    dataset: Path,
    checkpoints: Sequence[Path],
    split: str = "test",
    modalities: Sequence[str] | None = None,
    device: str = "auto",
    batch_size: int = 64,
) -> Evaluation:
    """Measure the checkpoints, one a seed, on a split.

    Args:
        modalities: what the networks are shown; None = what each was trained with.

    Raises:
        FileNotFoundError: no dataset or no checkpoint there.
        ValueError: the split has no clips, a checkpoint does not fit the dataset, two checkpoints have one
            seed, or a modality is asked for that a checkpoint was trained without.
    """
    if modalities is not None:
        check_modalities(tuple(modalities), "modalities")
    if not checkpoints:
        raise ValueError("no checkpoint to evaluate; name at least one folder that the train stage made")
    by_seed: dict[int, Mapping[str, Metric]] = {}
    tables = []
    for folder in checkpoints:
        network, info = checkpoint.load(folder, resolve_device(device))
        if info.seed in by_seed:
            raise ValueError(f"{folder}: a second checkpoint of seed {info.seed}; name one checkpoint a seed")
        shown = tuple(modalities) if modalities is not None else info.train.modalities
        unknown = sorted(set(shown) - set(info.train.modalities))
        if unknown:
            raise ValueError(
                f"{folder}: trained with {', '.join(info.train.modalities)} only; it cannot be shown "
                f"{', '.join(unknown)}; leave that out or train with it"
            )
        table = ClipTable.read(dataset, split, info.model.max_positions, text=network.text)
        info.check_compatible(table.info)
        if not len(table):
            raise ValueError(f"{dataset}: the {split} split has no clips; evaluate another split")
        prediction_N, unimodal_NM = _predict(network, table, shown, batch_size)
        labelled = table.labelled
        label_range = table.info.label_range
        metrics = evaluate_metrics(prediction_N[labelled], table.labels[labelled], label_range)
        predictions = _without_each(_predictions(table, info.seed, prediction_N), network, table, shown, batch_size)
        if unimodal_NM is not None:
            metrics |= _unimodal_metrics(unimodal_NM, table.unimodal_labels, label_range)
            predictions = _with_unimodal(predictions, unimodal_NM, table.unimodal_labels)
        by_seed[info.seed] = metrics
        tables.append(predictions)
    return Evaluation(
        metrics=_over_seeds(list(by_seed.values())),
        by_seed=by_seed,
        predictions=pa.concat_tables(tables, promote_options="default"),
        unlabelled=int((~labelled).sum()),
        truncated=table.truncated,
        steps={m: table.sequences[m].lengths for m in MODALITIES},
    )


def write_metrics(metrics: Mapping[str, Metric], path: Path) -> None:
    """Write metrics as JSON with null where undefined."""
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(json.dumps(dict(metrics), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_predictions(predictions: pa.Table, path: Path) -> None:
    """Write the predictions table as Parquet (zstd)."""
    with atomic_file(Path(path)) as temporary:
        pq.write_table(predictions, temporary, compression="zstd")


def _predictions(table: ClipTable, seed: int, prediction_N: np.ndarray) -> pa.Table:
    columns = [
        pa.array(table.clip_ids, pa.string()),
        pa.array([table.split] * len(table), pa.string()),
        pa.array(np.full(len(table), seed), pa.int64()),
        pa.array(table.labels, pa.float32(), mask=~table.labelled),
        pa.array(prediction_N, pa.float32()),
    ]
    return pa.Table.from_arrays(columns, schema=PREDICTIONS_SCHEMA)


def _without_each(
    predictions: pa.Table, network: DashFusion, table: ClipTable, shown: Sequence[str], batch_size: int
) -> pa.Table:
    has = {m: table.lengths((m,))[:, 0] > 0 for m in shown}
    for m in shown if len(shown) > 1 else ():
        others = [other for other in shown if other != m]
        defined = has[m] & np.logical_or.reduce([has[other] for other in others])
        column = pa.array(predict(network, table, others, batch_size), pa.float32(), mask=~defined)
        predictions = predictions.append_column(pa.field(f"{WITHOUT}{m}", pa.float32()), column)
    return predictions


def _unimodal_metrics(
    prediction_NM: np.ndarray, label_NM: np.ndarray, label_range: tuple[float, float]
) -> dict[str, Metric]:
    """What of the metrics says how far each modality alone goes, against its own labels."""
    found: dict[str, Metric] = {}
    for m, prediction, label in zip(MODALITIES, prediction_NM.T, label_NM.T, strict=True):
        both = np.isfinite(prediction) & np.isfinite(label)
        metrics = evaluate_metrics(prediction[both], label[both], label_range)
        found |= {f"{key}_{m}": metrics[key] for key in ("mae", "corr")}
        found[f"acc2_{m}"] = metrics.get("acc2_np", metrics.get("acc2"))
    return found


def _with_unimodal(predictions: pa.Table, prediction_NM: np.ndarray, label_NM: np.ndarray) -> pa.Table:
    for name, values_NM in (("label", label_NM), ("prediction", prediction_NM)):
        for m, values in zip(MODALITIES, values_NM.T, strict=True):
            column = pa.array(values, pa.float32(), mask=~np.isfinite(values))
            predictions = predictions.append_column(pa.field(f"{name}_{m}", pa.float32()), column)
    return predictions


def _over_seeds(runs: Sequence[Mapping[str, Metric]]) -> dict[str, Metric]:
    """One run as it is; several as mean, `<key>_std` and `seeds`; undefined in one run is undefined."""
    if len(runs) == 1:
        return dict(runs[0])
    combined: dict[str, Metric] = {"n": runs[0]["n"], "seeds": len(runs)}
    for key in runs[0]:
        if key == "n":
            continue
        values = [run[key] for run in runs]
        defined = [value for value in values if value is not None]
        whole = len(defined) == len(values)
        combined[key] = statistics.fmean(defined) if whole else None
        combined[f"{key}_std"] = statistics.stdev(defined) if whole else None
    return combined
