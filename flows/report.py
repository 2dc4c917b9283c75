"""The report: one HTML file that says how good the model is, where it fails, and what it was made from.

Nothing in it is fetched: style and plots are inline, there is no script, and a content policy forbids the
rest. The same input gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import atomic_path
from corpora.manifest import MODALITIES
from flows.record import told, told_versions

if TYPE_CHECKING:
    import pyarrow as pa
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from corpora.manifest import Clip
    from corpora.problems import Problem
    from flows.corpus_card import CorpusCard

NOTHING = "–"  # noqa: RUF001  (an en dash stands for an undefined value)
WORST_CLIPS = 15
LISTED_PROBLEMS = 200


@dataclass(frozen=True, slots=True)
class MetricText:
    """How a metric is written for people: its name, whether it is a fraction, and what it measures."""

    label: str
    is_fraction: bool
    meaning: str


METRICS = {
    "acc2_np": MetricText("Acc-2 (negative / positive)", True, "sign right, clips labelled 0 left out"),
    "f1_np": MetricText("F1 (negative / positive)", True, "weighted by class, clips labelled 0 left out"),
    "acc2_nn": MetricText("Acc-2 (negative / non-negative)", True, "all clips, 0 counts as non-negative"),
    "f1_nn": MetricText("F1 (negative / non-negative)", True, "weighted by class, all clips"),
    "acc2": MetricText("Acc-2 (non-positive / positive)", True, "all clips, 0 counts as non-positive"),
    "f1": MetricText("F1 (non-positive / positive)", True, "weighted by class, all clips"),
    "acc3": MetricText("Acc-3", True, "negative, neutral, positive"),
    "acc5": MetricText("Acc-5", True, "right class of five"),
    "acc7": MetricText("Acc-7", True, "right class of seven, from -3 to 3"),
    "mae": MetricText("Mean absolute error", False, "in units of the label, less is better"),
    "corr": MetricText("Pearson correlation", False, "predicted against true"),
}
METRICS |= {
    f"{key}_{m}": MetricText(f"{name}, {m} alone", key == "acc2", f"against the labels of {m} alone, by its own head")
    for m in MODALITIES
    for key, name in {"acc2": "Acc-2", "mae": METRICS["mae"].label, "corr": METRICS["corr"].label}.items()
}
HEADLINE = ("acc2_np", "acc2", "f1_np", "f1", "mae", "corr", "acc7", "acc5")
CARDS = 5

CURVES = (
    (
        "Training loss",
        {
            "train_loss": "total",
            "train_regression": "regression",
            "train_semantic": "semantic",
            "train_supervised": "supervised",
        },
    ),
    ("Validation mean absolute error", {"valid_mae": ""}),
    ("Validation correlation", {"valid_corr": ""}),
)

# Matplotlib knows no CSS variables: it draws with these marker colours, `to_svg` then puts the page's own in
# their place, so that plots follow the reader's light or dark scheme.
INK, MUTED, LINE, ACCENT = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010111", "#010112", "#010113", "#010114")
PAGE_COLOURS = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    ACCENT: "--accent",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
}
PICTURE_COLOURS = {
    INK: "#1a1f26",
    MUTED: "#5d6774",
    LINE: "#dfe3e8",
    ACCENT: "#2a5bd0",
    **dict(zip(SERIES, ("#2a5bd0", "#c2571a", "#0d8a72", "#8b4bb8"), strict=True)),
}
"""Those of the page's light scheme, for pictures, which follow no scheme."""

PLOT_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dashfusion",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "font.size": 9.0,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
}


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything that a report shows. Of one split: `metrics` and `predictions`.

    Attributes:
        corpus, split: named in the title.
        label_range: (-3, 3) or (-1, 1).
        metrics: as in metrics/<split>.json; several seeds bring `<key>_std` and `seeds`.
        predictions: columns clip_id, label (null = unlabelled), prediction; one row a clip and seed.
        clips: clip_id -> its row of the manifest, all splits.
        curves: one row an epoch and seed: `seed`, `epoch` (from 1), keys of `CURVES`; others are ignored.
        problems: rows of the problems tables of all stages.
        word_times: as in dataset.json: by method, what it timed and, where true times are known, its `error`.
        record: of this run, with those of its trainings under `train`, as in metrics/run.json.
        card: of the corpus, all splits.
    """

    corpus: str
    split: str
    label_range: tuple[float, float]
    metrics: Mapping[str, Any]
    predictions: pa.Table
    clips: Mapping[str, Clip]
    curves: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[Problem] = ()
    word_times: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    card: CorpusCard | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing for the page: `title` above it, `svg` to be placed as it is."""

    title: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class WorstClip:
    """A labelled clip whose prediction is far off. `clip` is None where the manifest does not know it."""

    clip_id: str
    clip: Clip | None
    label: float
    prediction: float


def metrics_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Metrics as (name, value) in plain language: accuracies and F1 in percent, the rest with three decimals.

    Several seeds give `mean ± standard deviation`; an undefined value is an en dash.
    """
    keys = [key for key in METRICS if key in metrics]
    known = {*METRICS, *(f"{key}_std" for key in metrics), "n", "seeds"}
    rows = [(METRICS[key].label, _metric_value(key, metrics)) for key in keys]
    rows += [(key, _metric_value(key, metrics)) for key in metrics if key not in known]
    counts = {"n": "Clips", "seeds": "Seeds"}
    return rows + [(name, f"{metrics[key]:,}") for key, name in counts.items() if key in metrics]


def write_plot_data(folder: Path, predictions: pa.Table, label_range: tuple[float, float]) -> None:
    """Write the data of DVC's plots, one row a labelled clip, its prediction averaged over the seeds.

    `confusion.csv`: actual, predicted: names of the seven (five for [-1, 1]) classes, behind a letter because
    DVC's confusion template sorts them as text. `scatter.csv`: label, prediction.
    """
    from model.metrics import class_names, to_classes

    _, label, prediction = mean_over_seeds(predictions)
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


def write_report(path: Path, report: ReportInput) -> None:
    """Write the report as one self-contained HTML file; it appears whole or not at all.

    Raises:
        ValueError: a label range other than [-3, 3] and [-1, 1].
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    clip_ids, label, prediction = mean_over_seeds(report.predictions)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": _signed, "decimals": _decimals}
    kinds = Counter((p.stage, p.modality, p.error) for p in report.problems)
    page = environment.get_template("report.html.j2").render(
        report=report,
        languages=sorted({clip.language for clip in report.clips.values()}),
        cards=_cards(report.metrics),
        rows=metrics_rows(report.metrics),
        meanings={text.label: text.meaning for text in METRICS.values()},
        curves=_curve_plots(report.curves),
        errors=_error_plots(label, prediction, report.label_range),
        by_modality=any(clip.label_text is not None for clip in report.clips.values()),
        worst=_worst_clips(clip_ids, label, prediction, report.clips),
        problem_kinds=sorted(kinds.items(), key=lambda item: (-item[1], item[0])),
        listed_problems=list(report.problems)[:LISTED_PROBLEMS],
        facts=told(report.record),
        settings=_settings(report.record.get("params", {})),
        versions=told_versions(report.record),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def pictures(
    predictions: pa.Table, label_range: tuple[float, float], curves: Sequence[Mapping[str, Any]]
) -> list[tuple[str, bytes]]:
    """The report's plots as (title, PNG), for places that take pictures only: errors first, then the curves."""
    _, label, prediction = mean_over_seeds(predictions)
    drawn = chain(_error_figures(label, prediction, label_range), _curve_figures(curves))
    return [(title, _to_png(figure)) for title, figure in drawn]


def class_count(label_range: tuple[float, float]) -> int:
    """Classes of the confusion matrix: seven for [-3, 3], the five bins of CH-SIMS for [-1, 1]."""
    return 7 if tuple(label_range) == (-3.0, 3.0) else 5


def mean_over_seeds(predictions: pa.Table) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, labels [N] and mean predictions [N] of the labelled clips, in the order of their first row."""
    groups = predictions.group_by("clip_id", use_threads=False)
    table = groups.aggregate([("label", "max"), ("prediction", "mean")])
    label = np.asarray(table["label_max"].to_numpy(), np.float64)
    prediction = np.asarray(table["prediction_mean"].to_numpy(), np.float64)
    labelled = np.isfinite(label)
    clip_ids = [clip_id for clip_id, keep in zip(table["clip_id"].to_pylist(), labelled, strict=True) if keep]
    return clip_ids, label[labelled], prediction[labelled]


def _decimals(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    """Three decimals with a sign; a minus as wide as a plus, so that columns line up."""
    return NOTHING if value is None else f"{value:+.3f}".replace("-", "\u2212")


def _metric_value(key: str, metrics: Mapping[str, Any]) -> str:
    value, spread = metrics[key], metrics.get(f"{key}_std")
    if value is None:
        return NOTHING
    if not isinstance(value, int | float):
        return str(value)
    if key in METRICS and METRICS[key].is_fraction:
        return f"{value:.1%}" + ("" if spread is None else f" ± {100 * spread:.1f}")
    return f"{value:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _cards(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, value, spread and meaning of the few metrics that stand large on top."""
    shown = [key for key in HEADLINE if key in metrics][:CARDS]
    return [
        (METRICS[key].label, *_metric_value(key, metrics).partition(" ± ")[::2], METRICS[key].meaning) for key in shown
    ]


def _worst_clips(
    clip_ids: Sequence[str], label: np.ndarray, prediction: np.ndarray, clips: Mapping[str, Clip]
) -> list[WorstClip]:
    """The clips with the largest absolute error, the worst first."""
    order = np.argsort(-np.abs(prediction - label), kind="stable")[:WORST_CLIPS]
    return [
        WorstClip(clip_ids[i], clips.get(clip_ids[i]), float(label[i]), float(prediction[i])) for i in order.tolist()
    ]


def _settings(blocks: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """One (block, [(dotted key, value)]) a stage; values outside any block come first."""
    loose = [(key, _plain(value)) for key, value in blocks.items() if not isinstance(value, Mapping)]
    nested = [(name, list(_flatten(block))) for name, block in blocks.items() if isinstance(block, Mapping)]
    return [("general", loose)] * bool(loose) + [(name, rows) for name, rows in nested if rows]


def _flatten(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> str:
    """A setting as params.yaml would have it, without brackets and quotes."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or NOTHING
    return str(value)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _curve_plots(curves: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Training curves, a plot for each entry of `CURVES` of which there is any value."""
    return [Plot(title, to_svg(figure, title)) for title, figure in _curve_figures(curves)]


def _curve_figures(curves: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    for title, series in CURVES:
        recorded = {key for row in curves for key, value in row.items() if value is not None}
        present = {key: name for key, name in series.items() if key in recorded}
        if present:
            with plotting(3.5, 2.6) as (figure, axes):
                _draw_curves(axes, curves, present)
                yield title, figure


def _draw_curves(axes: Axes, curves: Sequence[Mapping[str, Any]], series: Mapping[str, str]) -> None:
    """Each series by epoch: a line a seed, and with several seeds their mean as far as all of them went."""
    from matplotlib.ticker import MaxNLocator

    by_seed: dict[Any, dict[int, Mapping[str, Any]]] = {}
    for row in curves:
        by_seed.setdefault(row["seed"], {})[int(row["epoch"])] = row
    several = len(by_seed) > 1
    for (key, name), colour in zip(series.items(), SERIES, strict=False):
        lines = []
        for rows in by_seed.values():
            line = {epoch: row[key] for epoch, row in sorted(rows.items()) if row.get(key) is not None}
            lines.append(line)
            axes.plot(
                list(line),
                list(line.values()),
                color=colour,
                linewidth=0.9 if several else 1.8,
                alpha=0.4 if several else 1.0,
                label="" if several else name,
            )
            if key.startswith("valid_"):
                kept = min(rows.values(), key=lambda row: _or_infinite(row.get("valid_mae")))["epoch"]
                if kept in line:
                    axes.plot(kept, line[kept], "o", color=colour, markersize=5)
        if several:
            common = sorted(set.intersection(*(set(line) for line in lines)))
            mean = [float(np.mean([line[epoch] for line in lines])) for epoch in common]
            axes.plot(common, mean, color=colour, linewidth=2.0, label=name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.grid(axis="x", visible=False)
    if any(series.values()):
        axes.legend(ncols=2, fontsize=8, handlelength=1.4, columnspacing=1.2)


def _error_plots(label: np.ndarray, prediction: np.ndarray, label_range: tuple[float, float]) -> list[Plot]:
    """Confusion matrix, and predicted against true; none without a labelled clip."""
    return [Plot(title, to_svg(figure, title)) for title, figure in _error_figures(label, prediction, label_range)]


def _error_figures(
    label: np.ndarray, prediction: np.ndarray, label_range: tuple[float, float]
) -> Iterator[tuple[str, Figure]]:
    from model.metrics import class_names, confusion

    count = class_count(label_range)
    matrix = confusion(prediction, label, label_range, count)
    if not len(label):
        return
    with plotting(4.0, 3.65) as (figure, axes):
        _draw_confusion(axes, matrix, class_names(label_range, count))
        yield "Confusion matrix", figure
    with plotting(4.0, 3.65) as (figure, axes):
        _draw_scatter(axes, label, prediction, label_range)
        yield "Predicted against true", figure


def _draw_confusion(axes: Axes, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Counts; a cell's colour is the stronger, the larger its share of the clips of its true class.

    Half strength at most: the page's ink stays readable on it, light or dark.
    """
    from matplotlib.patches import Rectangle

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(matrix):
        part = float(share[row, column])
        cell = Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=ACCENT, alpha=0.04 + 0.51 * part)
        axes.add_patch(cell)
        if count:
            axes.text(column, row, f"{count}", ha="center", va="center_baseline", color=INK)
    ends = (-0.5, len(names) - 0.5)
    axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="predicted", ylabel="true")
    ticks = [name.replace("-", "\u2212") for name in names]
    long = max(map(len, ticks)) > 3
    axes.set_xticks(range(len(names)), ticks, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(names)), ticks)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)


def _draw_scatter(axes: Axes, label: np.ndarray, prediction: np.ndarray, label_range: tuple[float, float]) -> None:
    """A point a clip, at most at twice the label range; the diagonal is a perfect prediction."""
    from matplotlib.ticker import MultipleLocator

    low, high = label_range
    shown = np.clip(prediction, 2 * low, 2 * high)  # a diverged model must not stretch the axis out of sight
    margin = 0.04 * (high - low)
    alpha = float(np.clip(6 / np.sqrt(len(label)), 0.25, 0.7))
    axes.plot(label_range, label_range, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.plot(label, shown, "o", color=ACCENT, markersize=4.5, markeredgewidth=0, alpha=alpha)
    axes.set(xlim=(low - margin, high + margin), xlabel="true", ylabel="predicted")
    axes.set_ylim(min(low, float(shown.min())) - margin, max(high, float(shown.max())) + margin)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator((high - low) / (class_count(label_range) - 1)))


@contextmanager
def plotting(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of so many inches with one pair of axes, in the report's style as long as the context lasts.

    Matplotlib's own defaults come first, so that a user's matplotlibrc does not change the report. Not by
    pyplot, which keeps figures alive.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", PLOT_STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure, title: str) -> Markup:
    """The figure as an `<svg>` element: page colours, ids of its own, nothing that a page would fetch."""
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1).strip())


def _to_png(figure: Figure) -> bytes:
    """The figure as a picture on white."""
    from matplotlib.colors import is_color_like, to_hex

    figure.canvas.draw()  # an axis makes its ticks only then
    for artist in figure.findobj():
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            read, write = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
            if read and write and is_color_like(colour := read()) and to_hex(colour) in PICTURE_COLOURS:
                write(PICTURE_COLOURS[to_hex(colour)])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def _or_infinite(value: float | None) -> float:
    return float("inf") if value is None else value
