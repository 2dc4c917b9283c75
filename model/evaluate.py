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
from model.config import check_modalities
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


@dataclass(frozen=True)
class Evaluation:
    """One or several networks on one split.

    Attributes:
        metrics: of one network as `evaluate_metrics` gives them; of several, the mean under the same keys,
            the sample standard deviation under `<key>_std`, and their number under `seeds`.
        by_seed: seed -> metrics of that network.
        predictions: `PREDICTIONS_SCHEMA`, all clips of one network after the other.
        unlabelled: clips that are predicted but not measured.
        truncated: modality -> clips that were cut to the network's longest sequence.
    """

    metrics: Mapping[str, Metric]
    by_seed: Mapping[int, Mapping[str, Metric]]
    predictions: pa.Table
    unlabelled: int
    truncated: Mapping[str, int]


@torch.inference_mode()
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
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    prediction_N = np.zeros(len(table), np.float32)
    batches = sorted_batches(table.lengths(modalities), batch_size)[part[0] :: part[1]]
    for rows, batch in zip(batches, prefetch(lambda rows: table.batch(rows, modalities), batches), strict=True):
        prediction_N[rows] = network(batch.to(device)).prediction.cpu().numpy()
    network.train(training)
    return prediction_N


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
        prediction_N = predict(network, table, shown, batch_size)
        labelled = table.labelled
        label_range = table.info.label_range
        by_seed[info.seed] = evaluate_metrics(prediction_N[labelled], table.labels[labelled], label_range)
        tables.append(_predictions(table, info.seed, prediction_N))
    return Evaluation(
        metrics=_over_seeds(list(by_seed.values())),
        by_seed=by_seed,
        predictions=pa.concat_tables(tables),
        unlabelled=int((~labelled).sum()),
        truncated=table.truncated,
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
