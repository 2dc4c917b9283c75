"""Evaluation of trained networks on a split: predictions and metrics."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, check_modalities
from model.data.clips import ClipTable
from model.device import resolve_device
from model.evaluation.baselines import compare_with_baselines, fit_baselines
from model.evaluation.inference import infer, predict
from model.evaluation.metrics import LabelMap, Metric, defined_metrics
from model.evaluation.predictions import PREDICTIONS_SCHEMA, WITHOUT
from model.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from model.checkpoint.io import CheckpointInfo
    from model.network.base import Network


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one or several networks on one split.

    Attributes:
        metrics: For one network, as returned by `evaluate_metrics`; for several, the mean under the same keys, the
            sample standard deviation under `<key>_std`, and their number under `seeds`. Of networks that predict from
            each modality alone also `mae_<modality>`, `corr_<modality>` and `acc2_<modality>`, against the modality's
            own labels if there are any. `undefined`: metric that is None -> the reason; left out if there is none.
            `baselines`: the comparison with them, see `compare_with_baselines`.
        by_seed: Seed -> metrics of its network.
        predictions: Table of `PREDICTIONS_SCHEMA`, the networks' clips one after another, with further columns:
            `prediction_without_<modality>` for each modality used beside others, null if the clip lacks it or has no
            other; of networks that predict from each alone `label_<modality>` and `prediction_<modality>`, null if the
            clip lacks it.
        unlabelled: Number of clips that have a prediction but no label.
        truncated: Modality -> number of clips cut to the network's longest sequence.
        steps: Modality -> [N] steps of each clip, in the order of the predictions; 0 if the clip lacks the modality.
        speakers: [N] speaker of each clip or, where unknown, its video.
        label_map: From the scores of the networks to those here; both ranges are the same but for another corpus.
        notes: How another corpus differs from that of the training, see `CheckpointInfo.differences`.
    """

    metrics: Mapping[str, Any]
    by_seed: Mapping[int, Mapping[str, Metric]]
    predictions: pa.Table
    unlabelled: int
    truncated: Mapping[str, int]
    steps: Mapping[str, np.ndarray]
    speakers: np.ndarray
    label_map: LabelMap
    notes: tuple[str, ...] = ()


def evaluate(
    dataset: Path,
    checkpoints: Sequence[Path],
    split: str = "test",
    modalities: Sequence[str] | None = None,
    device: str = "auto",
    batch_size: int = 64,
    other_corpus: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluate checkpoints, one per seed, on a split.

    Args:
        dataset: Folder of the dataset.
        checkpoints: Checkpoint folders.
        split: Name of the split.
        modalities: Modalities to use; None: those that each network was trained with.
        device: Device, see `resolve_device`.
        batch_size: Clips per forward pass; it does not change the predictions.
        other_corpus: Whether the dataset may be of another label range than the checkpoints' own: their scores are then
            mapped to it (`LabelMap`), and metrics and predictions are on its scale.
        progress: Called after each batch with its number of clips. Every network predicts each clip once with all its
            modalities and, if it uses several, once without each.

    Raises:
        FileNotFoundError: No dataset or no checkpoint there.
        ValueError: The split has no clips, a checkpoint does not fit the dataset, two checkpoints have the same seed,
            or a modality that a checkpoint was trained without.
    """
    if modalities is not None:
        check_modalities(tuple(modalities), "modalities")
    if not checkpoints:
        raise ValueError("no checkpoint to evaluate; name at least one folder that the train stage made")
    runs: dict[int, _Run] = {}
    for folder in checkpoints:
        network, info = load_checkpoint(folder, resolve_device(device))
        if info.seed in runs:
            raise ValueError(f"{folder}: a second checkpoint of seed {info.seed}; name one checkpoint a seed")
        used = tuple(modalities) if modalities is not None else info.train.modalities
        unknown = sorted(set(used) - set(info.train.modalities))
        if unknown:
            raise ValueError(
                f"{folder}: trained with {', '.join(info.train.modalities)} only; it cannot use "
                f"{', '.join(unknown)}; leave that out or train with it"
            )
        table = ClipTable.read(dataset, split, info.model.max_positions, text=network.text)
        (info.check_features if other_corpus else info.check_compatible)(table.info)
        if not len(table):
            raise ValueError(f"{dataset}: the {split} split has no clips; evaluate another split")
        runs[info.seed] = _evaluate_network(network, info, table, used, batch_size, progress)
    speaker_N = table.clip_ids if table.speakers is None else table.speakers
    found: dict[str, Any] = {**_over_seeds([run.metrics for run in runs.values()])}
    if table.lengths(used).any():
        baselines = fit_baselines(dataset, split, text="text" in used)
        compared = np.stack([run.prediction_N for run in runs.values()]), table.labels, speaker_N
        found["baselines"] = compare_with_baselines(*compared, table.info.label_range, baselines)
    undefined = {key: reason for run in runs.values() for key, reason in run.undefined.items()}
    return Evaluation(
        metrics=found | ({"undefined": undefined} if undefined else {}),
        by_seed={seed: run.metrics for seed, run in runs.items()},
        predictions=pa.concat_tables([run.predictions for run in runs.values()], promote_options="default"),
        unlabelled=int((~table.labelled).sum()),
        truncated=table.truncated,
        steps={m: table.sequences[m].lengths for m in MODALITIES},
        speakers=speaker_N,
        label_map=runs[info.seed].label_map,
        notes=tuple(dict.fromkeys(note for run in runs.values() for note in run.notes)),
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """One network on the split: as in `Evaluation`, and its predictions [N]."""

    prediction_N: np.ndarray
    metrics: Mapping[str, Metric]
    undefined: Mapping[str, str]
    predictions: pa.Table
    label_map: LabelMap
    notes: tuple[str, ...]


def _evaluate_network(
    network: Network,
    info: CheckpointInfo,
    table: ClipTable,
    used: Sequence[str],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> _Run:
    label_range = table.info.label_range
    label_map = LabelMap(info.dataset.label_range, label_range)
    outputs = infer(network, table, used, batch_size, progress=progress)
    prediction_N, labelled = label_map(outputs.prediction_N), table.labelled
    metrics, reasons = defined_metrics(prediction_N[labelled], table.labels[labelled], label_range)
    predictions = _predictions(table, info.seed, prediction_N)
    for m, (without_N, defined_N) in _without_each(network, table, used, batch_size, progress).items():
        column = pa.array(label_map(without_N), pa.float32(), mask=~defined_N)
        predictions = predictions.append_column(pa.field(f"{WITHOUT}{m}", pa.float32()), column)
    if outputs.unimodal_NM is not None:
        unimodal_NM = label_map(outputs.unimodal_NM)
        if np.isfinite(table.unimodal_labels).any():
            own = _unimodal_metrics(unimodal_NM, table.unimodal_labels, label_range)
            metrics, reasons = metrics | own[0], reasons | own[1]
        predictions = _with_unimodal(predictions, unimodal_NM, table.unimodal_labels)
    if not table.lengths(used).any():
        reasons = {key: f"no clip has {' or '.join(used)}" for key in metrics if key != "n"}
        metrics |= dict.fromkeys(reasons)
    return _Run(prediction_N, metrics, reasons, predictions, label_map, info.differences(table.info))


def write_metrics(metrics: Mapping[str, Any], path: Path) -> None:
    """Write metrics as JSON with null where undefined, and the reasons under `undefined`."""
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
    network: Network,
    table: ClipTable,
    used: Sequence[str],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, for each modality that is used beside others, the predictions [N] without it and where they are defined.

    They are where the clip has the modality and another one.
    """
    has = {m: table.lengths((m,))[:, 0] > 0 for m in used}
    found = {}
    for m in used if len(used) > 1 else ():
        others = [other for other in used if other != m]
        defined_N = has[m] & np.logical_or.reduce([has[other] for other in others])
        found[m] = predict(network, table, others, batch_size, progress=progress), defined_N
    return found


def _unimodal_metrics(
    prediction_NM: np.ndarray, label_NM: np.ndarray, label_range: tuple[float, float]
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return `defined_metrics` of each modality's own prediction against its own labels."""
    result: dict[str, Metric] = {}
    undefined: dict[str, str] = {}
    for m, prediction, label in zip(MODALITIES, prediction_NM.T, label_NM.T, strict=True):
        both = np.isfinite(prediction) & np.isfinite(label)
        metrics, reasons = defined_metrics(prediction[both], label[both], label_range)
        names = {"mae": "mae", "corr": "corr", "acc2": "acc2_np" if "acc2_np" in metrics else "acc2"}
        result |= {f"{name}_{m}": metrics[key] for name, key in names.items()}
        undefined |= {f"{name}_{m}": reasons[key] for name, key in names.items() if key in reasons}
    return result, undefined


def _with_unimodal(predictions: pa.Table, prediction_NM: np.ndarray, label_NM: np.ndarray) -> pa.Table:
    for name, values_NM in (("label", label_NM), ("prediction", prediction_NM)):
        for m, values in zip(MODALITIES, values_NM.T, strict=True):
            column = pa.array(values, pa.float32(), mask=~np.isfinite(values))
            predictions = predictions.append_column(pa.field(f"{name}_{m}", pa.float32()), column)
    return predictions


def _over_seeds(runs: Sequence[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Combine the runs' metrics: see `Evaluation.metrics`. A metric undefined in one run is undefined."""
    if len(runs) == 1:
        return dict(runs[0])
    combined: dict[str, Metric] = {"n": runs[0]["n"], "seeds": len(runs)}
    for key in runs[0]:
        if key == "n":
            continue
        values = [run[key] for run in runs]
        defined = [value for value in values if value is not None]
        complete = len(defined) == len(values)
        combined[key] = statistics.fmean(defined) if complete else None
        combined[f"{key}_std"] = statistics.stdev(defined) if complete else None
    return combined
