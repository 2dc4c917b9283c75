"""Models on other corpora than their own: one model on one dataset, and the matrix of several on several.

Shapes: N clips, S seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from corpora.files import atomic_file
from flows.display.metrics import METRICS, NOTHING, Interval, format_interval, format_metric, is_fraction, metric_table
from model.checkpoint.description import read_description
from model.data.info import read_info
from model.evaluation.bootstrap import percentile_interval, resampled_by_seed, resampled_groups
from model.evaluation.crossed import crossed_draws, speaker_draws
from model.evaluation.metrics import evaluate_metrics
from model.evaluation.predictions import ClipPredictions

if TYPE_CHECKING:
    from model.data.info import DatasetInfo
    from model.evaluate import Evaluation

Range = tuple[float, float]

MATRIX = "cross_corpus.json"
"""File of the last matrix, in the folder of the studies' results."""

MATRIX_METRICS = ("mae", "acc2", "corr")
"""Metrics of which a matrix is shown."""


@dataclass(frozen=True)
class CrossCorpusResult:
    """A model on a dataset.

    Attributes:
        model: Name of the model.
        trained_on: Corpus that it was trained on.
        dataset: Folder of the dataset, as it was named.
        corpus: Corpus of the dataset.
        split: Measured split.
        trained_range: Label range of the training.
        label_range: Label range of the dataset, on whose scale the metrics are.
        metrics: As in metrics/<split>.json, with the baselines of the dataset's own training split.
        intervals: 95 % interval of each metric for other speakers of the dataset and, of several seeds, other seeds.
        notes: How the corpora differ, see `CheckpointInfo.differences`.
        refusal: Why the model cannot read the dataset; then there is nothing else. Empty: it can.
        looks: How often the test split was evaluated in this project, in words; empty for other splits.
    """

    model: str
    trained_on: str
    dataset: str
    corpus: str
    split: str
    trained_range: Range
    label_range: Range
    metrics: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    notes: Sequence[str] = ()
    refusal: str = ""
    looks: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the content of metrics/on.json."""
        return {key: value for key, value in asdict(self).items() if key not in ("refusal", "looks")}

    @property
    def mapping(self) -> str:
        """How scores were mapped, as `Scores in [-3, 3] were mapped linearly to [-1, 1].`; empty if they were not."""
        if self.trained_range == self.label_range:
            return ""
        return f"Scores in {_range(self.trained_range)} were mapped linearly to {_range(self.label_range)}."

    @property
    def subject(self) -> str:
        """What was measured on what, in words."""
        return f"{self.corpus}, {self.split} split, by a model trained on {self.trained_on}"


def measure_on(
    checkpoints: Sequence[Path], dataset: Path, split: str, device: str = "auto", name: str = "model"
) -> tuple[CrossCorpusResult, Evaluation]:
    """Measure a model on a dataset, whose label range may be another one, and whose corpus is another or its own.

    Args:
        checkpoints: Its checkpoints, one per seed.
        dataset: Folder of the dataset, which must hold features of the signatures that the model was trained on.
        split: Split to measure.
        device: Device, see `resolve_device`.
        name: Name of the model.

    Raises:
        FileNotFoundError: No dataset or no checkpoint there.
        ValueError: As `model.evaluate.evaluate`: among others, features of another signature.
    """
    from model.evaluate import evaluate

    found = evaluate(dataset, checkpoints, split, device=device, other_corpus=True)
    trained, info = read_description(checkpoints[0])["dataset"], read_info(dataset)
    clips = ClipPredictions.of(found.predictions)
    speaker_N = found.speakers[np.isfinite(clips.label_N)]
    result = CrossCorpusResult(
        model=name,
        trained_on=trained["corpus"],
        dataset=str(dataset),
        corpus=info.corpus,
        split=split,
        trained_range=found.label_map.source,
        label_range=found.label_map.target,
        metrics=found.metrics,
        intervals=mean_intervals(clips.labelled(), info.label_range, speaker_N),
        notes=found.notes,
    )
    return result, found


def mean_intervals(clips: ClipPredictions, label_range: Range, speaker_N: np.ndarray) -> dict[str, Interval]:
    """Return the 95 % interval of each metric's mean over the seeds; None where undefined, empty without clips."""
    if not clips.clip_ids:
        return {}
    by_seed = [evaluate_metrics(prediction_N, clips.label_N, label_range) for prediction_N in clips.prediction_SN]
    intervals: dict[str, Interval] = {}
    groups = resampled_groups(speaker_N)
    resampled = resampled_by_seed(clips.prediction_SN, clips.label_N, label_range, speaker_N=speaker_N)
    for key, value_SR in resampled.items():
        value_S = np.array([metrics[key] for metrics in by_seed], np.float64)  # None becomes NaN
        draws_R = (
            crossed_draws(value_S, value_SR, groups)
            if len(value_S) > 1
            else speaker_draws(float(value_S[0]), value_SR[0], groups)
        )
        interval = None if draws_R is None else percentile_interval(draws_R)
        if interval is not None:  # widened draws may leave the metric's range
            low, high = (0.0, 1.0) if is_fraction(key) else (-1.0, 1.0) if key == "corr" else (0.0, float("inf"))
            interval = max(low, interval[0]), min(high, interval[1])
        intervals[key] = interval
    return intervals


def cross_corpus_matrix(
    models: Mapping[str, Sequence[Path]],
    datasets: Sequence[Path],
    split: str = "test",
    device: str = "auto",
    on_measured: Callable[[CrossCorpusResult, Evaluation], None] = lambda result, evaluation: None,
) -> list[CrossCorpusResult]:
    """Measure every model on every dataset, model by model; one that cannot read a dataset has the reason there.

    Args:
        models: Name -> checkpoints, one per seed.
        datasets: Folders of datasets; that of a model's training is measured like the others.
        split: Split to measure.
        device: Device, see `resolve_device`.
        on_measured: Called with each result and its predictions, such as to count a look at a test split.

    Raises:
        FileNotFoundError: No dataset or no checkpoint there.
        ValueError: A damaged dataset or checkpoint.
    """
    results = []
    for name, checkpoints in models.items():
        trained = read_description(checkpoints[0])["dataset"]
        for dataset in datasets:
            info = read_info(dataset)
            if refusal := _refusal(checkpoints, info, split):
                where = str(dataset), info.corpus, split
                ranges = tuple(trained["label_range"]), info.label_range
                results.append(CrossCorpusResult(name, trained["corpus"], *where, *ranges, refusal=refusal))
                continue
            result, evaluation = measure_on(checkpoints, dataset, split, device, name)
            on_measured(result, evaluation)
            results.append(result)
    return results


def _refusal(checkpoints: Sequence[Path], info: DatasetInfo, split: str) -> str:
    """Return why the split of a dataset cannot be measured; empty if it can."""
    from model.checkpoint.io import read_checkpoint_info

    if info.clips and not info.clips.get(split):
        return f"{info.corpus} has no clips in its {split} split"
    for checkpoint in map(read_checkpoint_info, checkpoints):
        try:
            checkpoint.check_features(info)
        except ValueError as error:
            return str(error)
    return ""


def write_matrix(results: Sequence[CrossCorpusResult], path: Path) -> None:
    """Write a matrix as a JSON list with an object for each cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [result.to_json() | {"refusal": result.refusal} for result in results]
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(cells, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_matrix(path: Path) -> list[CrossCorpusResult]:
    """Read a matrix; empty if there is no file.

    Raises:
        ValueError: The file is no matrix.
    """
    if not path.is_file():
        return []
    try:
        return [CrossCorpusResult(**cell) for cell in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a matrix of `dashfusion compare --on` ({error}); remove it") from error


def matrix_rows(results: Sequence[CrossCorpusResult]) -> list[dict[str, str]]:
    """Return a row for each cell as text, with the metrics that its label range has."""
    rows = []
    for result in results:
        row = {"network": result.model, "trained on": result.trained_on, "measured on": result.corpus}
        row |= {entry.name: entry.value for entry in metric_table(result.metrics)} if result.metrics else {}
        rows.append(row | {"refused": result.refusal})
    return rows


@dataclass(frozen=True, slots=True)
class Matrix:
    """One metric of models on corpora, as text.

    Attributes:
        metric: Short name of the metric.
        corpora: Heads of the columns; two datasets of one corpus have their folders in a second line.
        rows: Of each model its training corpus and name, and a value and its 95 % interval on each corpus.
        facts: How labels were mapped, how corpora differ, and what a model cannot read.
    """

    metric: str
    corpora: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    facts: Sequence[str]


def matrix_of(results: Sequence[CrossCorpusResult], metric: str) -> Matrix:
    """Return the matrix of a metric: a row for each model, a column for each corpus.

    A column whose label range has another metric of that kind, such as Acc-2, shows that one.
    """
    corpora = {result.dataset: result.corpus for result in results}
    names = list(corpora.values())
    heads = [f"{name}\n{dataset}" if names.count(name) > 1 else name for dataset, name in corpora.items()]
    rows = []
    for name, trained_on in dict.fromkeys((result.model, result.trained_on) for result in results):
        cells = {r.dataset: r for r in results if (r.model, r.trained_on) == (name, trained_on)}
        rows.append((f"{trained_on}: {name}", [_cell(cells.get(dataset), metric) for dataset in corpora]))
    facts = [result.mapping for result in results if not result.refusal]
    facts += [f"Trained on {r.trained_on}, measured on {r.corpus}: {note}." for r in results for note in r.notes]
    facts += [f"{r.trained_on}: {r.model} on {r.corpus}: {r.refusal}." for r in results if r.refusal]
    return Matrix(METRICS[metric].short, heads, rows, list(dict.fromkeys(filter(None, facts))))


def matrix_table(results: Sequence[CrossCorpusResult], metric: str) -> Table:
    """Return `matrix_of` as a table for the terminal; facts are in the caption."""
    matrix = matrix_of(results, metric)
    split = results[0].split if results else ""
    table = Table(title=f"{matrix.metric} across corpora, {split} split", title_justify="left")
    table.add_column("trained on")
    for head in matrix.corpora:
        table.add_column(escape(head), justify="right", no_wrap=True)
    for name, cells in matrix.rows:
        table.add_row(escape(name), *("\n".join(filter(None, cell)) for cell in cells))
    table.caption = escape("\n".join(["Below a value: its 95 % interval.", *matrix.facts]))
    table.caption_justify = "left"
    return table


def _cell(result: CrossCorpusResult | None, metric: str) -> tuple[str, str]:
    """Return a value and its interval; the latter is empty where undefined."""
    if result is None or result.refusal:
        return NOTHING, ""
    key = next((key for key in result.metrics if key in METRICS and METRICS[key].short == METRICS[metric].short), "")
    if not key or result.metrics[key] is None:
        return NOTHING, ""
    return format_metric(key, result.metrics[key]), format_interval(key, result.intervals.get(key))


def _range(label_range: Range) -> str:
    return f"[{label_range[0]:g}, {label_range[1]:g}]"
