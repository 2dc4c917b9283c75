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
from model.evaluation.bootstrap import percentile_interval, resampled_by_seed, resampled_groups
from model.evaluation.crossed import crossed_draws, holm, p_value
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
class _Sample:
    """A metric of one cell on one group of clips; NaN where undefined.

    Attributes:
        by_seed_S: Its value of each seed.
        resampled_SR: The same on each resample of `model.evaluation.bootstrap`. The resamples are the same for all
            cells, so that differences between cells are paired.
    """

    by_seed_S: np.ndarray
    resampled_SR: np.ndarray


def tidy_rows(measured: Measurements) -> list[Row]:
    """Return all rows of the study's table."""
    spec = measured.spec
    samples = {cell: _samples(measured, cell) for cell in measured.predictions}
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
                other = None if variant == spec.reference else their
                rows += _summary_rows(at, our, other, speakers, "mean", "difference")
                if len(spec.seeds) > 1:
                    std = _none_if_nan(np.std(our.by_seed_S, ddof=1))
                    rows.append(at(seed=None, statistic="std", value=std))
            if len(levels) > 1:
                area = _area(levels, ours)
                other = None if variant == spec.reference else _area(levels, theirs)
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


def _samples(measured: Measurements, cell: Cell) -> dict[tuple[str, str], _Sample]:
    """Measure a cell: (group of clips, metric) -> sample."""
    samples = {}
    for clips, rows in measured.groups.items():
        prediction_SN, label_N = measured.predictions[cell][:, rows], measured.label[rows]
        speaker_N = measured.speaker[rows]
        by_seed = [evaluate_metrics(prediction_N, label_N, measured.label_range) for prediction_N in prediction_SN]
        resampled = resampled_by_seed(prediction_SN, label_N, measured.label_range, speaker_N=speaker_N)
        for metric in measured.metrics:
            values_S = np.array([metrics[metric] for metrics in by_seed], np.float64)  # None becomes NaN
            samples[clips, metric] = _Sample(values_S, resampled[metric])
    return samples


def _area(levels: Sequence[float | None], samples: Sequence[_Sample]) -> _Sample:
    """Return the mean of a metric over the levels: the area under its curve (trapezoidal rule) by its width."""
    level_L = np.array(levels, np.float64)
    order_L = np.argsort(level_L)
    x_L, width = level_L[order_L], float(np.ptp(level_L))
    by_seed_LS, resampled_LSR = (
        np.stack(values)[order_L] for values in zip(*((s.by_seed_S, s.resampled_SR) for s in samples), strict=True)
    )
    return _Sample(np.trapezoid(by_seed_LS, x_L, axis=0) / width, np.trapezoid(resampled_LSR, x_L, axis=0) / width)


def _summary_rows(
    row: Callable[..., Row], ours: _Sample, theirs: _Sample | None, speakers: int, statistic: str, difference: str
) -> Iterator[Row]:
    """Yield the mean over the seeds and, given the reference's sample, the paired difference to it."""
    of_all = partial(row, seed=None)
    yield _summary(partial(of_all, statistic=statistic), ours, speakers, p=False)
    if theirs is not None and np.isfinite(ours.by_seed_S).all() and np.isfinite(theirs.by_seed_S).all():
        paired = _Sample(ours.by_seed_S - theirs.by_seed_S, ours.resampled_SR - theirs.resampled_SR)
        yield _summary(partial(of_all, statistic=difference), paired, speakers, p=True)


def _summary(row: Callable[..., Row], sample: _Sample, speakers: int, p: bool) -> Row:
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
    for metric in measured.costs[variant][0]:
        values = [seed[metric] for seed in measured.costs[variant]]
        for seed, value in zip(measured.spec.seeds, values, strict=True):
            yield row(seed=seed, metric=metric, statistic="value", value=value)
        yield row(seed=None, metric=metric, statistic="mean", value=statistics.fmean(values))


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
