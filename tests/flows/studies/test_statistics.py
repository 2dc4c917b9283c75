"""A study's numbers: metrics of each seed and of all, differences, areas, answers."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from flows.studies.spec import Check, StudySpec
from flows.studies.statistics import Numbers, answers, tidy_rows
from model.evaluation.bootstrap import difference_interval, resampled_metrics
from model.evaluation.metrics import evaluate_metrics

CLIPS, SEEDS = 60, (0, 1)
RNG = np.random.default_rng(0)
LABEL = RNG.uniform(-3, 3, CLIPS).round(1)
LABEL[5] = np.nan
MISLEADS = np.arange(CLIPS) % 4 == 0


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
def numbers() -> Numbers:
    noise = {"full": 0.8, "worse": 2.5, "cheap": 0.9}
    where = [("", None), ("no text", None), *(("audio missing", level) for level in (0.5, 0, 1))]
    predictions = {
        (variant, *place): guess(noise[variant] + i / 4, i) for variant in noise for i, place in enumerate(where)
    }
    costs = {v: [{"madds": madds, "fusion_madds": madds / 2}] * 2 for v, madds in zip(noise, (50, 90, 20), strict=True)}
    slices = {"text misleads": MISLEADS, "audio misleads": np.zeros(CLIPS, bool)}
    return Numbers(spec(), LABEL, (-3, 3), ["acc2_np", "mae"], slices, predictions, costs)


@pytest.fixture(scope="module")
def rows(numbers):
    return tidy_rows(numbers)


def find(rows, **wanted):
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def one(rows, **wanted):
    (row,) = find(rows, **wanted)
    return row


def test_every_seed_has_its_metrics_and_all_of_them_a_mean_with_its_interval(numbers, rows):
    labelled = np.isfinite(LABEL)
    at = {"variant": "worse", "condition": "no text", "level": None, "clips": "all", "metric": "mae"}
    cell = numbers.predictions["worse", "no text", None]
    values = [evaluate_metrics(p[labelled], LABEL[labelled], (-3, 3))["mae"] for p in cell]
    assert [row.value for row in find(rows, **at, statistic="value")] == values
    assert [row.seed for row in find(rows, **at, statistic="value")] == [*SEEDS]
    mean = one(rows, **at, statistic="mean")
    assert mean.value == pytest.approx(statistics.fmean(values)) and mean.low < mean.value < mean.high
    assert one(rows, **at, statistic="std").value == pytest.approx(statistics.stdev(values))
    assert mean.cost == 90 and mean.seed is None


def test_differences_are_to_the_reference_under_the_same_condition_and_paired(numbers, rows):
    labelled = np.isfinite(LABEL)
    at = {"condition": "audio missing", "level": 1, "clips": "all", "metric": "acc2_np", "statistic": "difference"}
    found = one(rows, variant="worse", **at)
    sides = [numbers.predictions[v, "audio missing", 1][:, labelled] for v in ("worse", "full")]
    means = [statistics.fmean(evaluate_metrics(p, LABEL[labelled], (-3, 3))["acc2_np"] for p in s) for s in sides]
    assert found.value == pytest.approx(means[0] - means[1])
    resampled = [resampled_metrics(side, LABEL[labelled], (-3, 3))["acc2_np"] for side in sides]
    assert (found.low, found.high) == pytest.approx(difference_interval(*resampled))
    assert not find(rows, variant="full", statistic="difference")


def test_slices_are_measured_on_their_clips_and_empty_ones_left_out(numbers, rows):
    at = {"variant": "full", "condition": "", "level": None, "metric": "mae", "statistic": "mean"}
    some = MISLEADS & np.isfinite(LABEL)
    cell = numbers.predictions["full", "", None]
    expected = statistics.fmean(evaluate_metrics(p[some], LABEL[some], (-3, 3))["mae"] for p in cell)
    assert one(rows, **at, clips="text misleads").value == pytest.approx(expected)
    assert not find(rows, clips="audio misleads")


def test_the_area_is_the_mean_over_the_levels(rows):
    at = {"variant": "full", "condition": "audio missing", "clips": "all", "metric": "mae"}
    values = {row.level: row.value for row in find(rows, **at, statistic="mean")}
    expected = (values[0] + 2 * values[0.5] + values[1]) / 4
    assert one(rows, **at, statistic="area").value == pytest.approx(expected)
    assert not find(rows, condition="no text", statistic="area")


def test_costs_are_rows_of_their_own(rows):
    assert [row.value for row in find(rows, variant="cheap", metric="fusion_madds", statistic="value")] == [10, 10]
    assert one(rows, variant="cheap", metric="madds", statistic="mean").value == 20


METRIC_OF = {"acc2": "acc2_np", "mae": "mae"}


def ask(numbers, **check):
    checks = (TypeAdapter(Check).validate_python({"question": "Is it?", **check}),)
    (answer,) = answers(replace(numbers, spec=replace(numbers.spec, checks=checks)), checks, METRIC_OF)
    return answer


def test_a_question_is_answered_with_both_numbers_their_difference_and_its_interval(numbers):
    answer = ask(numbers, metric="mae", of={"variant": "worse"}, against={"variant": "full"}, at_least=0.1)
    assert answer.holds is True
    assert answer.answer.startswith("Mean absolute error: ") and " against " in answer.answer
    assert "(95 % interval +" in answer.answer and "other answers" not in answer.answer
    assert ask(numbers, metric="mae", of={"variant": "worse"}, at_most=0.1).holds is False


def test_an_answer_whose_interval_reaches_over_the_bar_says_so(numbers):
    close = ask(numbers, metric="acc2", of={"variant": "cheap"}, at_least=-0.01)
    assert close.answer.endswith("; the interval holds other answers too.") and " points (95 %" in close.answer


def test_a_relative_question_is_answered_in_percent_of_the_other_number(numbers):
    answer = ask(numbers, metric="mae", of={"variant": "worse"}, at_least=0.5, relative=True)
    sides = [statistics.fmean(numbers.by_seed((v, "", None), "all", "mae")) for v in ("worse", "full")]
    assert f"+{100 * (sides[0] / sides[1] - 1):.1f} % (95 % interval" in answer.answer


def test_what_cannot_be_told_is_said_to_be_so(numbers):
    assert ask(numbers, metric="acc7", of={"variant": "worse"}, at_least=0).holds is None
    clips = {"clips": "audio misleads"}
    answer = ask(numbers, metric="mae", of={"variant": "worse", **clips}, against=clips, at_least=0)
    assert answer.holds is None and "No clip of the split" in answer.answer


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ({"a": 2.5, "b": 0.6, "c": 0.5}, "the front bends at b."),
        ({"a": 0.5, "b": 1.5, "c": 2.5}, "there is no bend to be seen: the cheapest, a, is the best."),
        ({"a": 1.5, "b": 2.0, "c": 0.5}, "no bend to be seen: the best, c, is better than the cheapest, a, by "),
        ({"a": 2.5, "b": 2.4, "c": 0.5}, "no bend to be seen: the best, c, is better than the cheapest, a, by "),
    ],
    ids=["bend", "cheapest is best", "two", "below the line"],
)
def test_the_knee_is_where_the_front_bends(noise, said):
    variants = {name: {} for name in noise}
    predictions = {(name, "", None): guess(one, 0) for name, one in noise.items()}
    costs = {name: [{"fusion_madds": 10.0 * (i + 1)}] * 2 for i, name in enumerate(noise)}
    numbers = Numbers(spec(variants=variants, reference="a", conditions={}, slices=[]), LABEL, (-3, 3), ["mae"], {},
                      predictions, costs)  # fmt: skip
    answer = ask(numbers, metric="mae", knee={"variants": [*noise]})
    assert said in answer.answer and answer.holds is None and "a: " in answer.answer
