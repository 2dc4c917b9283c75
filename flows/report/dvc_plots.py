"""The report's plots in other forms: as data for DVC, and as PNG for Prefect's artifacts."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.files import atomic_file
from flows.display.plots import to_png
from flows.report.figures import class_count, curve_figures, error_figures

if TYPE_CHECKING:
    import pyarrow as pa


def write_plot_data(folder: Path, predictions: pa.Table, label_range: tuple[float, float]) -> None:
    """Write the data of DVC's plots, one row for each labelled clip, with its mean prediction over the seeds.

    `confusion.csv`: actual, predicted: names of the seven (five for [-1, 1]) classes, prefixed by a letter because
    DVC's confusion template sorts them as text. `scatter.csv`: label, prediction.
    """
    from model.evaluation.metrics import class_names, to_classes
    from model.evaluation.predictions import ClipPredictions

    clips = ClipPredictions.of(predictions).labelled()
    label, prediction = clips.label_N, clips.mean_N
    count = class_count(label_range)
    names = [f"{chr(ord('a') + i)}: {name}" for i, name in enumerate(class_names(label_range, count))]
    actual, predicted = (to_classes(values, label_range, count) for values in (label, prediction))
    _write_csv(
        Path(folder) / "confusion.csv",
        ("actual", "predicted"),
        [(names[a], names[b]) for a, b in zip(actual, predicted, strict=True)],
    )
    _write_csv(
        Path(folder) / "scatter.csv",
        ("label", "prediction"),
        [(f"{a:.6g}", f"{b:.6g}") for a, b in zip(label, prediction, strict=True)],
    )


def plot_images(
    predictions: pa.Table, label_range: tuple[float, float], curves: Sequence[Mapping[str, Any]]
) -> list[tuple[str, bytes]]:
    """Return the plots of errors and the training curves as (title, PNG)."""
    from model.evaluation.predictions import ClipPredictions

    clips = ClipPredictions.of(predictions).labelled()
    figures = chain(error_figures(clips.label_N, clips.mean_N, label_range), curve_figures(curves))
    return [(title, to_png(figure)) for title, figure in figures]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
