"""From a study's predictions to its table: metrics of each training, of all seeds together, and what differs.

Shapes: N clips of the split, S seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flows.display.metrics import LESS_IS_BETTER, METRICS
from flows.studies.results import ALL_CLIPS, CLEAN, Answer, Row
from flows.studies.spec import Check, Place, StudySpec
from model.evaluation.bootstrap import difference_interval, percentile_interval, resampled_metrics
from model.evaluation.metrics import evaluate_metrics

NO_INTERVAL = (None, None)
CLOSE = "; the interval holds other answers too"

Cell = tuple[str, str, float | None]
"""Variant, condition and level (None where the condition has none)."""


@dataclass(frozen=True)
class Numbers:
    """All that a study measured.

    Attributes:
        spec: of the study.
        label: [N], NaN where unlabelled.
        label_range: of the labels.
        metrics: keys that the study shows.
        slices: name -> [N] bool, which clips.
        predictions: of each cell [S, N].
        costs: variant -> of each seed, what `flows.studies.trial.train_trial` says.
    """

    spec: StudySpec
    label: np.ndarray
    label_range: tuple[float, float]
    metrics: Sequence[str]
    slices: Mapping[str, np.ndarray]
    predictions: Mapping[Cell, np.ndarray]
    costs: Mapping[str, Sequence[Mapping[str, float]]]

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """The labelled clips of each group, all of them first; groups without a clip are left out."""
        labelled = np.isfinite(self.label)
        found = {ALL_CLIPS: labelled} | {name: rows & labelled for name, rows in self.slices.items()}
        return {name: np.flatnonzero(rows) for name, rows in found.items() if rows.any()}

    @cached_property
    def _resampled(self) -> dict[tuple[Cell, str], Mapping[str, np.ndarray]]:
        return {}

    def resampled(self, cell: Cell, clips: str) -> Mapping[str, np.ndarray]:
        """Metric -> its mean over the seeds on the draws of `model.evaluation.bootstrap`, the same for all cells."""
        if (cell, clips) not in self._resampled:
            rows = self.groups[clips]
            self._resampled[cell, clips] = resampled_metrics(
                self.predictions[cell][:, rows], self.label[rows], self.label_range
            )
        return self._resampled[cell, clips]

    def by_seed(self, cell: Cell, clips: str, metric: str) -> list[float | None]:
        """The metric of each seed."""
        rows = self.groups[clips]
        return [
            evaluate_metrics(prediction_N[rows], self.label[rows], self.label_range)[metric]
            for prediction_N in self.predictions[cell]
        ]


def tidy_rows(numbers: Numbers) -> list[Row]:
    """Every row of the study's table."""
    rows = []
    for variant in numbers.spec.variants:
        cost = statistics.fmean(seed["madds"] for seed in numbers.costs[variant])
        rows += _cost_rows(numbers, variant, cost)
        for condition, levels in _levels(numbers.spec):
            for clips in numbers.groups:
                for metric in numbers.metrics:
                    for level in levels:
                        rows += _metric_rows(numbers, (variant, condition, level), clips, metric, cost)
                    rows += _area_rows(numbers, variant, condition, levels, clips, metric, cost)
    return rows


def _levels(spec: StudySpec) -> Iterator[tuple[str, Sequence[float | None]]]:
    yield CLEAN, (None,)
    for name, condition in spec.conditions.items():
        yield name, condition.levels or (None,)


def _cost_rows(numbers: Numbers, variant: str, cost: float) -> Iterator[Row]:
    seeds = numbers.costs[variant]
    for metric in seeds[0]:
        values = [seed[metric] for seed in seeds]
        for seed, value in zip(numbers.spec.seeds, values, strict=True):
            yield Row(variant, seed, CLEAN, None, ALL_CLIPS, metric, "value", value, cost=cost)
        yield Row(variant, None, CLEAN, None, ALL_CLIPS, metric, "mean", statistics.fmean(values), cost=cost)


def _metric_rows(numbers: Numbers, cell: Cell, clips: str, metric: str, cost: float) -> Iterator[Row]:
    variant, condition, level = cell
    values = numbers.by_seed(cell, clips, metric)
    for seed, value in zip(numbers.spec.seeds, values, strict=True):
        yield Row(variant, seed, condition, level, clips, metric, "value", value, cost=cost)
    if any(value is None for value in values):
        yield Row(variant, None, condition, level, clips, metric, "mean", None, cost=cost)
        return
    mean, resampled = statistics.fmean(values), numbers.resampled(cell, clips)[metric]
    yield Row(variant, None, condition, level, clips, metric, "mean", mean, *(percentile_interval(resampled) or NO_INTERVAL), cost)
    if len(values) > 1:
        yield Row(variant, None, condition, level, clips, metric, "std", statistics.stdev(values), cost=cost)
    reference = (numbers.spec.reference, condition, level)
    theirs = numbers.by_seed(reference, clips, metric)
    if variant != numbers.spec.reference and None not in theirs:
        low, high = difference_interval(resampled, numbers.resampled(reference, clips)[metric]) or NO_INTERVAL
        difference = mean - statistics.fmean(theirs)
        yield Row(variant, None, condition, level, clips, metric, "difference", difference, low, high, cost)


def _area_rows(
    numbers: Numbers, variant: str, condition: str, levels: Sequence[float | None], clips: str, metric: str, cost: float
) -> Iterator[Row]:
    """The area under the metric's curve over the levels, over their width: its mean there."""
    if len(levels) < 2:
        return
    means = []
    for level in sorted(levels):
        values = numbers.by_seed((variant, condition, level), clips, metric)
        if None in values:
            return
        means.append(statistics.fmean(values))
    area = float(np.trapz(means, sorted(levels))) / (max(levels) - min(levels))
    yield Row(variant, None, condition, None, clips, metric, "area", area, cost=cost)


def answers(numbers: Numbers, checks: Sequence[Check], metric_of: Mapping[str, str]) -> list[Answer]:
    """Answers to the study's questions, in its numbers.

    Args:
        metric_of: the metrics' names in the study's file -> as `numbers` has them.
    """
    return [
        _knee(numbers, check, metric_of) if check.knee else _difference(numbers, check, metric_of) for check in checks
    ]


def _difference(numbers: Numbers, check: Check, metric_of: Mapping[str, str]) -> Answer:
    metric = metric_of.get(check.metric)
    if metric is None:
        return Answer(check.question, f"{check.metric} is not defined for this label range.", None)
    if check.of.clips not in numbers.groups:
        return Answer(check.question, f"No clip of the split is known to be one of those ({check.of.clips}).", None)
    sides = [_cell(numbers.spec, place) for place in (check.of, check.against)]
    values = [numbers.by_seed(cell, check.of.clips, metric) for cell in sides]
    if any(value is None for side in values for value in side):
        return Answer(check.question, f"{METRICS[metric].label} is undefined here.", None)
    of, against = (statistics.fmean(side) for side in values)
    scale = against if check.relative else 1.0
    difference, found = (of - against) / scale, _interval_between(numbers, sides, check.of.clips, metric, scale)
    holds = difference >= check.at_least if check.at_least is not None else difference <= check.at_most
    bar = check.at_least if check.at_least is not None else check.at_most
    told = _told(metric, difference, found, check.relative)
    clips = (
        ""
        if check.of.clips == ALL_CLIPS
        else f" on the {len(numbers.groups[check.of.clips])} clips whose {check.of.clips}"
    )
    answer = f"{METRICS[metric].label}{clips}: {_value(metric, of)} against {_value(metric, against)}, {told}"
    close = found is not None and found[0] < bar < found[1]
    return Answer(check.question, f"{answer}{CLOSE if close else ''}.", bool(holds))


def _knee(numbers: Numbers, check: Check, metric_of: Mapping[str, str]) -> Answer:
    """Where the front of cost and metric bends: the point farthest above the line between its ends.

    Satopää et al., "Finding a 'Kneedle' in a Haystack", ICDCS workshops 2011.
    """
    assert check.knee is not None
    metric = metric_of.get(check.metric)
    if metric is None:
        return Answer(check.question, f"{check.metric} is not defined for this label range.", None)
    better = -1 if metric in LESS_IS_BETTER else 1
    points = []
    for variant in check.knee.variants:
        values = numbers.by_seed((variant, CLEAN, None), ALL_CLIPS, metric)
        cost = statistics.fmean(seed[check.knee.cost] for seed in numbers.costs[variant])
        points.append((cost, better * statistics.fmean(values), variant))
    front: list[tuple[float, float, str]] = []
    for point in sorted(points):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    shown = ", ".join(f"{name}: {_value(metric, better * y)} at {x:.1f} million" for x, y, name in sorted(points))
    said = f"{METRICS[metric].label} and multiply-adds: {shown}; "
    (x0, y0, cheapest), (x1, y1, best) = front[0], front[-1]
    if cheapest == best:
        return Answer(check.question, f"{said}there is no bend to be seen: the cheapest, {best}, is the best.", None)
    # Of a front's ends neither lies above the line between them.
    bend = max(front, key=lambda p: (p[1] - y0) / (y1 - y0) - (p[0] - x0) / (x1 - x0))
    if bend in (front[0], front[-1]):
        cells = [(name, CLEAN, None) for name in (best, cheapest)]
        told = _told(metric, y1 - y0, _interval_between(numbers, cells, ALL_CLIPS, metric, better), False)
        said += f"there is no bend to be seen: the best, {best}, is better than the cheapest, {cheapest}, by {told}."
        return Answer(check.question, said, None)
    return Answer(check.question, f"{said}the front bends at {bend[2]}.", None)


def _interval_between(
    numbers: Numbers, cells: Sequence[Cell], clips: str, metric: str, scale: float
) -> tuple[float, float] | None:
    """Of the first cell's metric minus the second's, over `scale`."""
    first, second = (numbers.resampled(cell, clips)[metric] / scale for cell in cells)
    return difference_interval(first, second)


def _cell(spec: StudySpec, place: Place) -> Cell:
    return place.variant or spec.reference, place.condition, place.level


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if METRICS[metric].is_fraction else f"{value:.3f}"


def _told(metric: str, difference: float, found: tuple[float, float] | None, relative: bool) -> str:
    scale, unit, digits = (100, " points", 1) if METRICS[metric].is_fraction else (1, "", 3)
    if relative:
        scale, unit, digits = 100, " %", 1
    signed = [f"{scale * value:+.{digits}f}".replace("-", "\u2212") for value in (difference, *(found or ()))]
    return f"{signed[0]}{unit}" + (f" (95 % interval {signed[1]} to {signed[2]})" if found else "")
