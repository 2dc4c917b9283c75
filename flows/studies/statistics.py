"""Statistics of a study: predictions -> metrics of each training and over the seeds, and differences to the reference.

Shapes: N clips of the split, S seeds, R bootstrap resamples.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

import numpy as np

from flows.display.metrics import is_fraction
from flows.studies.results import ALL_CLIPS, CLEAN, Row
from flows.studies.spec import StudySpec
from model.evaluation.bootstrap import RESAMPLES, percentile_interval, resampled_by_seed, resampled_groups
from model.evaluation.crossed import crossed_draws, holm, holm_intervals, p_value
from model.evaluation.metrics import evaluate_metrics

Cell = tuple[str, str, float | None]
"""Variant, condition and level (None where the condition has none)."""


@dataclass(frozen=True)
class Measurements:
    """Predictions and costs of all trainings of a study.

    Attributes:
        spec: The study.
        label: Labels [N], NaN where unlabelled.
        speaker: Speaker of each clip [N]; its clips are resampled together.
        label_range: Range of the labels.
        metrics: Metrics to report.
        slices: Name -> its clips, [N] bool.
        predictions: Predictions of each cell [S, N].
        costs: Variant -> costs of each seed, as `flows.studies.trial.train_trial` returns them.
    """

    spec: StudySpec
    label: np.ndarray
    speaker: np.ndarray
    label_range: tuple[float, float]
    metrics: Sequence[str]
    slices: Mapping[str, np.ndarray]
    predictions: Mapping[Cell, np.ndarray]
    costs: Mapping[str, Sequence[Mapping[str, float]]]

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Rows of the labelled clips: of all, then of each slice that has any."""
        labelled = np.isfinite(self.label)
        groups = {ALL_CLIPS: labelled} | {name: rows & labelled for name, rows in self.slices.items()}
        return {name: np.flatnonzero(rows) for name, rows in groups.items() if rows.any()}

    def speakers(self, clips: str) -> int:
        """Return how many speakers of a group are resampled: of a single one, its clips are."""
        return resampled_groups(self.speaker[self.groups[clips]])


@dataclass(frozen=True, slots=True)
class Sample:
    """A metric of one cell on one group of clips; NaN where undefined.

    Attributes:
        by_seed_S: Its value of each seed.
        resampled_SR: The same on each resample of `model.evaluation.bootstrap`. The resamples are the same for all
            cells, so that differences between cells are paired.
    """

    by_seed_S: np.ndarray
    resampled_SR: np.ndarray

    def __sub__(self, other: Sample) -> Sample:
        """Return the paired difference."""
        return Sample(self.by_seed_S - other.by_seed_S, self.resampled_SR - other.resampled_SR)


CellSamples = Mapping[tuple[str, str], Sample]
"""Group of clips, metric -> sample."""


def measure_cells(measured: Measurements, resamples: int = RESAMPLES) -> Mapping[Cell, CellSamples]:
    """Measure all cells, on the same resamples."""
    return {cell: _samples(measured, cell, resamples) for cell in measured.predictions}


def tidy_rows(
    measured: Measurements, samples: Mapping[Cell, CellSamples] | None = None, differences: bool = True
) -> list[Row]:
    """Return all rows of the study's table.

    Args:
        measured: Predictions and costs.
        samples: Those of `measure_cells`, if they are there.
        differences: Whether to compare the variants with the reference.
    """
    spec = measured.spec
    samples = measure_cells(measured) if samples is None else samples
    conditions: dict[str, Sequence[float | None]] = {CLEAN: (None,)}
    conditions |= {name: condition.levels or (None,) for name, condition in spec.conditions.items()}
    rows: list[Row] = []
    for variant in spec.variants:
        cost = statistics.fmean(seed["madds"] for seed in measured.costs[variant])
        rows += _cost_rows(measured, variant, cost)
        for (condition, levels), clips, metric in product(conditions.items(), measured.groups, measured.metrics):
            row = partial(Row, variant=variant, condition=condition, clips=clips, metric=metric, cost=cost)
            speakers = measured.speakers(clips)
            ours = [samples[variant, condition, level][clips, metric] for level in levels]
            theirs = [samples[spec.reference, condition, level][clips, metric] for level in levels]
            for level, our, their in zip(levels, ours, theirs, strict=True):
                at = partial(row, level=level)
                rows += [
                    at(seed=seed, statistic="value", value=_none_if_nan(value))
                    for seed, value in zip(spec.seeds, our.by_seed_S, strict=True)
                ]
                other = their if differences and variant != spec.reference else None
                rows += _summary_rows(at, our, other, speakers, "mean", "difference")
                if len(spec.seeds) > 1:
                    std = _none_if_nan(np.std(our.by_seed_S, ddof=1))
                    rows.append(at(seed=None, statistic="std", value=std))
            if len(levels) > 1:
                area = _area(levels, ours)
                other = _area(levels, theirs) if differences and variant != spec.reference else None
                rows += _summary_rows(partial(row, level=None), area, other, speakers, "area", "area_difference")
    return _adjusted(rows)


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """Add adjusted p values to the comparisons of each metric; those of single levels count only by their area."""
    families: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.p is not None and row.level is None:
            families.setdefault(row.metric, []).append(i)
    adjusted = list(rows)
    for family in families.values():
        for i, p in zip(family, holm([rows[i].p or 0.0 for i in family]), strict=True):
            adjusted[i] = replace(rows[i], p_adjusted=p)
    return adjusted


def _samples(measured: Measurements, cell: Cell, resamples: int) -> CellSamples:
    samples = {}
    for clips, rows in measured.groups.items():
        prediction_SN, label_N = measured.predictions[cell][:, rows], measured.label[rows]
        speaker_N = measured.speaker[rows]
        by_seed = [evaluate_metrics(prediction_N, label_N, measured.label_range) for prediction_N in prediction_SN]
        resampled = resampled_by_seed(prediction_SN, label_N, measured.label_range, resamples, speaker_N=speaker_N)
        for metric in measured.metrics:
            values_S = np.array([metrics[metric] for metrics in by_seed], np.float64)  # None becomes NaN
            samples[clips, metric] = Sample(values_S, resampled[metric])
    return samples


def _area(levels: Sequence[float | None], samples: Sequence[Sample]) -> Sample:
    """Return the mean of a metric over the levels: the area under its curve (trapezoidal rule) by its width."""
    level_L = np.array(levels, np.float64)
    order_L = np.argsort(level_L)
    x_L, width = level_L[order_L], float(np.ptp(level_L))
    by_seed_LS, resampled_LSR = (
        np.stack(values)[order_L] for values in zip(*((s.by_seed_S, s.resampled_SR) for s in samples), strict=True)
    )
    return Sample(np.trapezoid(by_seed_LS, x_L, axis=0) / width, np.trapezoid(resampled_LSR, x_L, axis=0) / width)


def _summary_rows(
    row: Callable[..., Row], ours: Sample, theirs: Sample | None, speakers: int, statistic: str, difference: str
) -> Iterator[Row]:
    """Yield the mean over the seeds and, given the reference's sample, the paired difference to it."""
    of_all = partial(row, seed=None)
    yield _summary(partial(of_all, statistic=statistic), ours, speakers, p=False)
    if theirs is not None and np.isfinite(ours.by_seed_S).all() and np.isfinite(theirs.by_seed_S).all():
        yield _summary(partial(of_all, statistic=difference), ours - theirs, speakers, p=True)


def _summary(row: Callable[..., Row], sample: Sample, speakers: int, p: bool) -> Row:
    """Return the mean over the seeds with its crossed interval and, of a difference, its p value."""
    draws_R = crossed_draws(sample.by_seed_S, sample.resampled_SR, speakers)
    interval = None if draws_R is None else percentile_interval(draws_R)
    low, high = interval or (None, None)
    found = row(value=_none_if_nan(sample.by_seed_S.mean()), low=low, high=high)
    if draws_R is not None and interval is not None and p:
        return replace(found, p=p_value(draws_R))
    if interval is not None and is_fraction(found.metric):  # widened draws may leave the metric's range
        return replace(found, low=max(0.0, interval[0]), high=min(1.0, interval[1]))
    return found


def _cost_rows(measured: Measurements, variant: str, cost: float) -> Iterator[Row]:
    row = partial(Row, variant=variant, condition=CLEAN, level=None, clips=ALL_CLIPS, cost=cost)
    first, *others = measured.costs[variant]
    for metric in (key for key in first if all(key in seed for seed in others)):  # an earlier version measured fewer
        values = [seed[metric] for seed in measured.costs[variant]]
        for seed, value in zip(measured.spec.seeds, values, strict=True):
            yield row(seed=seed, metric=metric, statistic="value", value=value)
        yield row(seed=None, metric=metric, statistic="mean", value=statistics.fmean(values))


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# --- comparisons of networks ---------------------------------------------------------------------------------------

COMPARISON_RESAMPLES = 10_000
"""Bootstrap samples: the intervals of a family of twenty differences end at the outermost thousandth of the draws."""


def best_network(valid_mae: Mapping[str, Sequence[float]]) -> str:
    """Return the network with the lowest mean error over the seeds on the validation split.

    The test split does not choose it: the best of many by the measure that they are compared by would be flattered.
    """
    return min(valid_mae, key=lambda name: np.mean(valid_mae[name]))


def leaderboard_rows(measured: Measurements, references: Sequence[str]) -> list[Row]:
    """Return the rows of a comparison: as of a study, but with the differences to each of `references`.

    The differences by a metric are a family, in which that of two references counts once. Their intervals are those
    of `model.evaluation.crossed.holm_intervals`.
    """
    samples = measure_cells(measured, COMPARISON_RESAMPLES)
    rows = tidy_rows(measured, samples, differences=False)
    for metric in measured.metrics if measured.groups else ():
        by_network = {name: samples[name, CLEAN, None][ALL_CLIPS, metric] for name in measured.spec.variants}
        differences = _differences(by_network, references, measured.speakers(ALL_CLIPS), metric)
        mirrored = [_mirrored(row) for row in differences if row.variant in references]
        rows += [replace(row, cost=_mean_madds(measured, row.variant)) for row in (*differences, *mirrored)]
    return rows


def _mean_madds(measured: Measurements, network: str) -> float:
    return float(np.mean([seed["madds"] for seed in measured.costs[network]]))


def _differences(samples: Mapping[str, Sample], references: Sequence[str], speakers: int, metric: str) -> list[Row]:
    """Return the differences of a metric to each reference, those between two references in one direction."""
    found, draws = [], []
    for number, reference in enumerate(references):
        for name in samples:
            paired = samples[name] - samples[reference]
            if name == reference or name in references[:number] or not np.isfinite(paired.by_seed_S).all():
                continue
            value = float(paired.by_seed_S.mean())
            found.append(Row(name, None, CLEAN, None, ALL_CLIPS, metric, "difference", value, reference=reference))
            draws_R = crossed_draws(paired.by_seed_S, paired.resampled_SR, speakers)
            defined = draws_R is not None and percentile_interval(draws_R) is not None
            draws.append(draws_R if defined else None)
    family = [i for i, draws_R in enumerate(draws) if draws_R is not None]
    drawn = [draws_R for draws_R in draws if draws_R is not None]
    p_values = [p_value(draws_R) for draws_R in drawn]
    for i, p, adjusted, interval in zip(family, p_values, holm(p_values), holm_intervals(drawn, p_values), strict=True):
        found[i] = _with_interval(replace(found[i], p=p, p_adjusted=adjusted), interval)
    return found


def _with_interval(row: Row, interval: tuple[float, float] | None) -> Row:
    if interval is None:
        return row
    low, high = interval
    if is_fraction(row.metric):  # widened draws may leave the range of a difference
        low, high = max(-1.0, low), min(1.0, high)
    return replace(row, low=low, high=high)


def _mirrored(row: Row) -> Row:
    """Return a difference between two references in the other direction."""
    assert row.value is not None and row.reference is not None
    low, high = (-row.interval[1], -row.interval[0]) if row.interval else (None, None)
    return replace(row, variant=row.reference, reference=row.variant, value=-row.value, low=low, high=high)
