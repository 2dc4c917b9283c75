"""The report's plots for other places: as data for DVC, as pictures for Prefect's pages."""

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
    """Write the data of DVC's plots, one row a labelled clip, its prediction averaged over the seeds.

    `confusion.csv`: actual, predicted: names of the seven (five for [-1, 1]) classes, behind a letter because
    DVC's confusion template sorts them as text. `scatter.csv`: label, prediction.
    """
    from model.evaluation.metrics import class_names, to_classes
    from model.evaluation.predictions import ClipPredictions

    clips = ClipPredictions.of(predictions).labelled()
    label, prediction = clips.label_N, clips.mean_N
    count = class_count(label_range)
    names = [f"{chr(ord('a') + i)}: {name}" for i, name in enumerate(class_names(label_range, count))]
    true, found = (to_classes(values, label_range, count) for values in (label, prediction))
    _write_csv(
        Path(folder) / "confusion.csv",
        ("actual", "predicted"),
        [(names[a], names[b]) for a, b in zip(true, found, strict=True)],
    )
    _write_csv(
        Path(folder) / "scatter.csv",
        ("label", "prediction"),
        [(f"{a:.6g}", f"{b:.6g}") for a, b in zip(label, prediction, strict=True)],
    )


def pictures(
    predictions: pa.Table, label_range: tuple[float, float], curves: Sequence[Mapping[str, Any]]
) -> list[tuple[str, bytes]]:
    """The report's plots as (title, PNG), for places that take pictures only: errors first, then the curves."""
    from model.evaluation.predictions import ClipPredictions

    clips = ClipPredictions.of(predictions).labelled()
    drawn = chain(error_figures(clips.label_N, clips.mean_N, label_range), curve_figures(curves))
    return [(title, to_png(figure)) for title, figure in drawn]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
