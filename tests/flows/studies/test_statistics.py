"""A study's statistics: metrics of each seed and over all seeds, differences to the reference, areas."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from flows.studies.spec import StudySpec
from flows.studies.statistics import Measurements, tidy_rows
from model.evaluation.bootstrap import percentile_interval, resampled_by_seed
from model.evaluation.crossed import crossed_draws, holm, p_value
from model.evaluation.metrics import evaluate_metrics

CLIPS, SEEDS = 60, (0, 1, 2)
RNG = np.random.default_rng(0)
LABEL = RNG.uniform(-3, 3, CLIPS).round(1)
LABEL[5] = np.nan
MISLEADS = np.arange(CLIPS) % 4 == 0
SPEAKER = np.array([f"speaker {i % 12}" for i in range(CLIPS)], object)


def guess(noise: float, seed: int) -> np.ndarray:
    """[S, N] predictions that are off by so much."""
    rng = np.random.default_rng(seed)
    return np.nan_to_num(LABEL) + noise * rng.standard_normal((len(SEEDS), CLIPS))


def spec(**changes) -> StudySpec:
    values = {
        "name": "mine", "title": "t", "question": "q", "reference": "full", "metrics": ("acc2", "mae"),
        "seeds": SEEDS, "variants": {"full": {}, "worse": {}, "cheap": {}},
        "conditions": {"no text": {"show": ["audio"]}, "audio missing": {"drop": "audio", "levels": [0.5, 0, 1]}},
        "slices": ["text misleads", "audio misleads"],
    }  # fmt: skip
    return TypeAdapter(StudySpec).validate_python({**values, **changes})


@pytest.fixture(scope="module")
def measured() -> Measurements:
    noise = {"full": 0.8, "worse": 2.5, "cheap": 0.9}
    where = [("", None), ("no text", None), *(("audio missing", level) for level in (0.5, 0, 1))]
    predictions = {
        (variant, *place): guess(noise[variant] + i / 4, i) for variant in noise for i, place in enumerate(where)
    }
    costs = {v: [{"madds": madds, "fusion_madds": madds / 2}] * 3 for v, madds in zip(noise, (50, 90, 20), strict=True)}
    slices = {"text misleads": MISLEADS, "audio misleads": np.zeros(CLIPS, bool)}
    return Measurements(spec(), LABEL, SPEAKER, (-3, 3), ["acc2_np", "mae"], slices, predictions, costs)


@pytest.fixture(scope="module")
def rows(measured):
    return tidy_rows(measured)


def find(rows, **wanted):
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def one(rows, **wanted):
    (row,) = find(rows, **wanted)
    return row


def test_every_seed_has_its_metrics_and_all_of_them_a_mean_with_its_interval(measured, rows):
    labelled = np.isfinite(LABEL)
    at = {"variant": "worse", "condition": "no text", "level": None, "clips": "all", "metric": "mae"}
    cell = measured.predictions["worse", "no text", None]
    values = [evaluate_metrics(p[labelled], LABEL[labelled], (-3, 3))["mae"] for p in cell]
    assert [row.value for row in find(rows, **at, statistic="value")] == values
    assert [row.seed for row in find(rows, **at, statistic="value")] == [*SEEDS]
    mean = one(rows, **at, statistic="mean")
    assert mean.value == pytest.approx(statistics.fmean(values)) and mean.low < mean.value < mean.high
    assert one(rows, **at, statistic="std").value == pytest.approx(statistics.stdev(values))
    assert mean.cost == 90 and mean.seed is None


def test_differences_are_to_the_reference_under_the_same_condition_and_paired(measured, rows):
    labelled = np.isfinite(LABEL)
    at = {"condition": "audio missing", "level": 1, "clips": "all", "metric": "acc2_np", "statistic": "difference"}
    found = one(rows, variant="worse", **at)
    sides = [measured.predictions[v, "audio missing", 1][:, labelled] for v in ("worse", "full")]
    means = [statistics.fmean(evaluate_metrics(p, LABEL[labelled], (-3, 3))["acc2_np"] for p in s) for s in sides]
    assert found.value == pytest.approx(means[0] - means[1])
    values = [[evaluate_metrics(p, LABEL[labelled], (-3, 3))["acc2_np"] for p in side] for side in sides]
    resampled = [
        resampled_by_seed(side, LABEL[labelled], (-3, 3), speaker_N=SPEAKER[labelled])["acc2_np"] for side in sides
    ]
    draws = crossed_draws(np.subtract(*values), np.subtract(*resampled), speakers=12)
    assert (found.low, found.high) == pytest.approx(percentile_interval(draws))
    assert found.p == p_value(draws) and found.p_adjusted is None, "levels are judged by their area"
    assert not find(rows, variant="full", statistic="difference")


def test_slices_are_measured_on_their_clips_and_empty_ones_left_out(measured, rows):
    at = {"variant": "full", "condition": "", "level": None, "metric": "mae", "statistic": "mean"}
    some = MISLEADS & np.isfinite(LABEL)
    cell = measured.predictions["full", "", None]
    expected = statistics.fmean(evaluate_metrics(p[some], LABEL[some], (-3, 3))["mae"] for p in cell)
    assert one(rows, **at, clips="text misleads").value == pytest.approx(expected)
    assert not find(rows, clips="audio misleads")


def test_the_area_is_the_mean_over_the_levels(rows):
    at = {"variant": "full", "condition": "audio missing", "clips": "all", "metric": "mae"}
    values = {row.level: row.value for row in find(rows, **at, statistic="mean")}
    expected = (values[0] + 2 * values[0.5] + values[1]) / 4
    assert one(rows, **at, statistic="area").value == pytest.approx(expected)
    assert not find(rows, condition="no text", statistic="area")


def test_areas_are_compared_with_the_references_and_paired(rows):
    at = {"condition": "audio missing", "level": None, "clips": "all", "metric": "mae"}
    areas = {variant: one(rows, variant=variant, statistic="area", **at) for variant in ("full", "worse")}
    found = one(rows, variant="worse", statistic="area_difference", **at)
    assert found.value == pytest.approx(areas["worse"].value - areas["full"].value)
    assert found.low < found.value < found.high and found.verdict == "worse"
    widths = [areas[variant].high - areas[variant].low for variant in areas]
    assert found.high - found.low < sum(widths), "draws are shared"
    assert not find(rows, variant="full", statistic="area_difference")


def test_an_undefined_metric_has_neither_spread_nor_difference(measured):
    constant = {cell: prediction * (cell[0] != "worse") for cell, prediction in measured.predictions.items()}
    rows = tidy_rows(replace(measured, metrics=["corr"], predictions=constant))
    at = {"variant": "worse", "condition": "", "clips": "all", "metric": "corr"}
    assert {row.value for row in find(rows, **at)} == {None}
    assert not find(rows, statistic="difference", **at)
    assert find(rows, statistic="difference", **at | {"variant": "cheap"})


def test_costs_are_rows_of_their_own(rows):
    assert [row.value for row in find(rows, variant="cheap", metric="fusion_madds", statistic="value")] == [10, 10, 10]
    assert one(rows, variant="cheap", metric="madds", statistic="mean").value == 20


def test_the_comparisons_of_a_metric_are_one_family(rows):
    for metric in ("acc2_np", "mae"):
        family = [row for row in find(rows, metric=metric, level=None) if row.statistic.endswith("difference")]
        assert len(family) == 2 * 3 * 2, (
            "two variants, clean, without text and by the area, on all clips and on a slice"
        )
        assert [row.p_adjusted for row in family] == holm([row.p for row in family])
    everywhere = [row for row in rows if row.level is not None or not row.statistic.endswith("difference")]
    assert {row.p_adjusted for row in everywhere} == {None}


def test_intervals_of_fractions_stay_in_their_range(measured):
    perfect = {cell: np.tile(np.nan_to_num(LABEL), (3, 1)) for cell in measured.predictions}
    for row in find(tidy_rows(replace(measured, predictions=perfect)), metric="acc2_np", statistic="mean"):
        assert (row.value, row.low, row.high) == (1, 1, 1)


def test_a_single_speaker_is_measured_by_its_clips_and_a_single_clip_by_nothing(measured):
    alone = replace(measured, speaker=np.array(["Ann"] * CLIPS, object))
    difference = one(tidy_rows(alone), variant="worse", condition="", clips="all", metric="mae", statistic="difference")
    assert difference.verdict == "worse" and difference.p < 0.05
    one_clip = np.full(CLIPS, np.nan)
    one_clip[3] = LABEL[3]
    for row in tidy_rows(replace(measured, label=one_clip, metrics=["mae"])):
        assert row.interval is None and row.p is None and row.verdict == "undecided"


def test_no_labels_are_no_rows_but_costs(measured):
    unlabelled = replace(measured, label=np.full(CLIPS, np.nan))
    assert {row.metric for row in tidy_rows(unlabelled)} == {"madds", "fusion_madds"}
