"""Figures of the report: training curves, errors, calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.display.metrics import MINUS, Interval
from flows.display.plots import ACCENT, INK, MUTED, SERIES, Plot, plotting, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from model.evaluation.calibration import Bin, Coverage

MAX_POINTS = 1500
"""Number of clips up to which the scatter plot shows points; with more it shows their density."""

CURVES = (
    (
        "Training loss",
        {
            "train_loss": "total",
            "train_regression": "regression",
            "train_semantic": "semantic",
            "train_supervised": "supervised",
            "train_auxiliary": "auxiliary",
        },
    ),
    ("Validation mean absolute error", {"valid_mae": ""}),
    ("Validation correlation", {"valid_corr": ""}),
)


def class_count(label_range: tuple[float, float]) -> int:
    """Return the number of classes of the confusion matrix: seven for [-3, 3], the five bins of CH-SIMS for [-1, 1]."""
    return 7 if tuple(label_range) == (-3.0, 3.0) else 5


def curve_plots(curves: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Return a plot for each entry of `CURVES` that has any value."""
    return [Plot(title, to_svg(figure, title)) for title, figure in curve_figures(curves)]


def curve_figures(curves: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Yield (title, figure) for each entry of `CURVES` that has any value."""
    for title, series in CURVES:
        recorded = {key for row in curves for key, value in row.items() if value is not None}
        present = {key: name for key, name in series.items() if key in recorded}
        if present:
            with plotting(3.5, 2.6) as (figure, axes):
                _draw_curves(axes, curves, present)
                yield title, figure


def _draw_curves(axes: Axes, curves: Sequence[Mapping[str, Any]], series: Mapping[str, str]) -> None:
    """Draw each series by epoch: a line for each seed and, of several, their mean over the epochs that all have."""
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
                best = min(rows.values(), key=lambda row: _inf_if_none(row.get("valid_mae")))["epoch"]
                if best in line:
                    axes.plot(best, line[best], "o", color=colour, markersize=5)
        if several:
            common = sorted(set.intersection(*(set(line) for line in lines)))
            mean = [float(np.mean([line[epoch] for line in lines])) for epoch in common]
            axes.plot(common, mean, color=colour, linewidth=2.0, label=name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.grid(axis="x", visible=False)
    if any(series.values()):
        axes.legend(ncols=2, fontsize=8, handlelength=1.4, columnspacing=1.2)


def error_plots(label: np.ndarray, prediction: np.ndarray, label_range: tuple[float, float]) -> list[Plot]:
    """Return the confusion matrix and the scatter plot of predictions; none without a labelled clip."""
    return [Plot(title, to_svg(figure, title)) for title, figure in error_figures(label, prediction, label_range)]


def error_figures(
    label: np.ndarray, prediction: np.ndarray, label_range: tuple[float, float]
) -> Iterator[tuple[str, Figure]]:
    """Yield (title, figure) of `error_plots`."""
    from model.evaluation.metrics import class_names, confusion

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
    """Draw counts; the opacity of a cell is its share of the clips of its true class.

    It is about half at most, so that the counts stay readable in the light and the dark scheme.
    """
    from matplotlib.patches import Rectangle

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(matrix):
        opacity = 0.04 + 0.51 * float(share[row, column])
        cell = Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=ACCENT, alpha=opacity)
        axes.add_patch(cell)
        if count:
            axes.text(column, row, f"{count}", ha="center", va="center_baseline", color=INK)
    ends = (-0.5, len(names) - 0.5)
    axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="predicted", ylabel="true")
    ticks = [name.replace("-", MINUS) for name in names]
    long = max(map(len, ticks)) > 3
    axes.set_xticks(range(len(names)), ticks, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(names)), ticks)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)


def _draw_scatter(axes: Axes, label: np.ndarray, prediction: np.ndarray, label_range: tuple[float, float]) -> None:
    """Draw a point for each clip, clipped at twice the label range; the diagonal is a perfect prediction."""
    low, high = label_range
    shown = np.clip(prediction, 2 * low, 2 * high)  # a diverged model must not stretch the axis
    margin = 0.04 * (high - low)
    axes.plot(label_range, label_range, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    if len(label) > MAX_POINTS:
        _draw_density(axes, label, shown)
    else:
        alpha = float(np.clip(6 / np.sqrt(len(label)), 0.25, 0.7))
        axes.plot(label, shown, "o", color=ACCENT, markersize=4.5, markeredgewidth=0, alpha=alpha)
    axes.set(xlim=(low - margin, high + margin), xlabel="true", ylabel="predicted")
    axes.set_ylim(min(low, float(shown.min())) - margin, max(high, float(shown.max())) + margin)
    _tick_labels(axes, label_range)


def _tick_labels(axes: Axes, label_range: tuple[float, float]) -> None:
    """Set the ticks of both axes to the classes' distance."""
    from matplotlib.ticker import MultipleLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator((label_range[1] - label_range[0]) / (class_count(label_range) - 1)))


def _draw_density(axes: Axes, label: np.ndarray, prediction: np.ndarray) -> None:
    """Draw hexagons whose opacity is the square root of their share of clips, so that few clips are visible too."""
    from matplotlib.colors import to_rgba

    cells = axes.hexbin(label, prediction, gridsize=36, mincnt=1, linewidths=0)
    count = np.asarray(cells.get_array(), np.float64)
    cells.set_array(None)
    cells.set_facecolor([to_rgba(ACCENT, round(0.1 + 0.8 * float(np.sqrt(n / count.max())), 2)) for n in count])


def calibration_plots(
    bins: Sequence[Bin], coverage: Sequence[Coverage], label_range: tuple[float, float]
) -> list[Plot]:
    """Return the plots of mean label by prediction, and of the intervals' coverage by their level."""
    plots = []
    if bins:
        with plotting(4.0, 3.4) as (figure, axes):
            _draw_reliability(axes, bins, label_range)
            plots.append(Plot("Mean label by prediction", to_svg(figure, "Mean label by prediction")))
    shown = [entry for entry in coverage if entry.share is not None]
    if shown:
        with plotting(4.0, 3.4) as (figure, axes):
            _draw_coverage(axes, shown)
            plots.append(Plot("Coverage of the intervals", to_svg(figure, "Coverage of the intervals")))
    return plots


def _draw_reliability(axes: Axes, bins: Sequence[Bin], label_range: tuple[float, float]) -> None:
    """Draw bins as points with intervals; on the diagonal, the mean label equals the mean prediction."""
    axes.plot(label_range, label_range, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    x = [entry.prediction for entry in bins]
    y = [entry.label for entry in bins]
    _draw_intervals(axes, x, y, [entry.interval for entry in bins])
    low, high = min(label_range[0], *x), max(label_range[1], *x)
    margin = 0.04 * (high - low)
    axes.set(xlim=(low - margin, high + margin), xlabel="mean prediction of a bin", ylabel="mean label of its clips")
    _tick_labels(axes, label_range)


def _draw_coverage(axes: Axes, coverage: Sequence[Coverage]) -> None:
    """Draw levels as points with intervals; below the diagonal, coverage is below the nominal level."""
    from matplotlib.ticker import PercentFormatter

    levels = [100 * entry.level for entry in coverage]
    shares = [100 * entry.share for entry in coverage if entry.share is not None]
    intervals = [entry.interval and (100 * entry.interval[0], 100 * entry.interval[1]) for entry in coverage]
    axes.plot((0, 100), (0, 100), color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    _draw_intervals(axes, levels, shares, intervals)
    lowest = min(levels[0], *(low for low, _ in filter(None, intervals)), 100)
    axes.set(xlim=(levels[0] - 5, 102), ylim=(max(0, lowest - 5), 102), xlabel="level (%)", ylabel="clips inside")
    axes.set_xticks(levels, [f"{level:g}" for level in levels])  # without a percent sign, as 90 and 95 are close
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))


def _draw_intervals(axes: Axes, x: Sequence[float], y: Sequence[float], intervals: Sequence[Interval]) -> None:
    axes.plot(x, y, color=ACCENT, linewidth=1.0, alpha=0.5)
    for at, interval in zip(x, intervals, strict=True):
        if interval:
            axes.plot((at, at), interval, color=ACCENT, linewidth=1.4)
    axes.plot(x, y, "o", color=ACCENT, markersize=5, markeredgewidth=0)


def _inf_if_none(value: float | None) -> float:
    return float("inf") if value is None else value
