"""Each metric against an example computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.metrics import class_names, confusion, defined_metrics, evaluate_metrics, to_classes, weighted_f1

WIDE, UNIT = (-3.0, 3.0), (-1.0, 1.0)


def test_every_metric_of_the_wide_range():
    label = np.array([-3.0, -1.0, 0.0, 2.0, 0.6])
    prediction = np.array([-3.6, 0.2, -0.4, 1.2, 0.9])
    m = evaluate_metrics(prediction, label, WIDE)
    assert list(m) == ["n", "mae", "corr", "acc2_nn", "f1_nn", "acc2_np", "f1_np", "acc3", "acc5", "acc7"]
    assert m["n"] == 5
    assert m["mae"] == pytest.approx((0.6 + 1.2 + 0.4 + 0.8 + 0.3) / 5)
    # label >= 0: 0 0 1 1 1; prediction >= 0: 0 1 0 1 1 -> 3 of 5 right.
    assert m["acc2_nn"] == pytest.approx(3 / 5)
    # F1: negative 2*1/(2+2) with weight 2/5, non-negative 2*2/(3+3) with weight 3/5.
    assert m["f1_nn"] == pytest.approx(2 / 5 * 1 / 2 + 3 / 5 * 2 / 3)
    # Without the label 0: 0 0 1 1 against 0 1 1 1.
    assert m["acc2_np"] == pytest.approx(3 / 4)
    assert m["f1_np"] == pytest.approx(1 / 2 * 2 / 3 + 1 / 2 * 4 / 5)
    # Rounded labels -3 -1 0 2 1, predictions -4 0 0 1 1.
    assert m["acc7"] == pytest.approx(3 / 5)  # -3 (clipped), 0, 1
    assert m["acc5"] == pytest.approx(3 / 5)  # -2, 0, 1
    assert m["acc3"] == pytest.approx(4 / 5)  # -1, 0, 1 (2 and 1.2 both clip to 1), 1
    # Deviations from the means -0.28 and -0.34.
    dy, dp = label + 0.28, prediction + 0.34
    assert m["corr"] == pytest.approx((dy * dp).sum() / np.sqrt((dy**2).sum() * (dp**2).sum()))


def test_every_metric_of_the_unit_range_with_clipping():
    label = np.float32([-1.0, -0.2, 0.0, 0.4, 1.0])
    prediction = np.float32([-1.5, 0.05, 0.1, 0.65, 1.2])
    m = evaluate_metrics(prediction, label, UNIT)
    assert list(m) == ["n", "mae", "corr", "acc2", "f1", "acc3", "acc5"]
    assert m["mae"] == pytest.approx((0 + 0.25 + 0.1 + 0.25 + 0) / 5)
    # label > 0: 0 0 0 1 1; prediction > 0: 0 1 1 1 1.
    assert m["acc2"] == pytest.approx(3 / 5)
    assert m["f1"] == pytest.approx(3 / 5 * 2 / 4 + 2 / 5 * 4 / 6)
    # Three bins: labels 0 0 1 2 2, predictions 0 1 1 2 2; five: 0 1 2 3 4 against 0 2 2 3 4.
    assert m["acc3"] == pytest.approx(4 / 5)
    assert m["acc5"] == pytest.approx(4 / 5)


def test_bins_are_closed_on_the_right_also_in_float32():
    edges = np.float32([-1, -0.7, -0.1, 0.1, 0.7, 1])
    assert to_classes(edges, UNIT, 5).tolist() == [0, 0, 1, 2, 3, 4]
    assert to_classes(edges, UNIT, 3).tolist() == [0, 0, 0, 1, 2, 2]
    assert to_classes(np.float32([0, 1e-6]), UNIT, 2).tolist() == [0, 1]


def test_halves_round_to_even_as_in_mmsa():
    assert to_classes(np.array([-2.5, -0.5, 0.5, 1.5, 2.5]), WIDE, 7).tolist() == [1, 3, 3, 5, 5]


def test_a_constant_prediction_has_no_correlation():
    m = evaluate_metrics(np.full(4, 0.1, np.float32), np.float32([-1, 0, 1, 2]), WIDE)
    assert m["corr"] is None
    assert evaluate_metrics(np.array([0.1, 0.2]), np.array([1.0, 1.0]), WIDE)["corr"] is None


def test_rounding_noise_of_a_constant_prediction_has_no_correlation():
    """A network that sees nothing gives clips of different batches values that differ in the last bits."""
    label = np.float32([-1, 0, 1, 2])
    assert evaluate_metrics(np.float32([0.1, 0.1, 0.1 + 5e-8, 0.1 + 5e-8]), label, WIDE)["corr"] is None
    assert evaluate_metrics(np.float32([0.1, 0.1, 0.101, 0.101]), label, WIDE)["corr"] > 0.8


def test_what_is_undefined_is_none():
    nothing = evaluate_metrics(np.zeros(0), np.zeros(0), WIDE)
    assert nothing.pop("n") == 0 and set(nothing.values()) == {None}
    neutral = evaluate_metrics(np.array([0.5, -0.5]), np.zeros(2), WIDE)
    assert neutral["acc2_np"] is None and neutral["f1_np"] is None and neutral["acc2_nn"] == 0.5


@pytest.mark.parametrize("label_range", [WIDE, UNIT])
def test_normal_data_has_every_metric_and_no_reason(label_range):
    rng = np.random.default_rng(0)
    label = np.round(rng.uniform(*label_range, 60), 1)
    prediction = label + rng.normal(size=60)
    assert defined_metrics(prediction, label, label_range) == (evaluate_metrics(prediction, label, label_range), {})


ONE_CLASS = "all labels are of one class"


@pytest.mark.parametrize(
    ("prediction", "label", "label_range", "defined", "reasons"),
    [
        ([], [], WIDE, {"n"}, {"mae": "no labelled clip", "acc7": "no labelled clip", "corr": "no labelled clip"}),
        ([0.5], [1.0], WIDE, {"n", "mae"}, {"acc2_np": "one clip", "f1_nn": "one clip", "corr": "one clip"}),
        ([0.5, 1.0], [1.0, 1.0], WIDE, {"n", "mae"}, {"acc7": ONE_CLASS, "corr": "all labels are equal"}),
        ([0.5, 1.0], [0.5, 2.0], WIDE, {"n", "mae", "corr", "acc3", "acc5", "acc7"}, {"acc2_nn": ONE_CLASS}),
        ([0.5, -1.0], [0.0, 0.0], WIDE, {"n", "mae"}, {"acc2_np": "all labels are 0", "acc2_nn": ONE_CLASS}),
        ([0.5, -1.0], [0.0, 1.0], WIDE, None, {"acc2_np": "one clip", "acc2_nn": ONE_CLASS}),
        ([2.0, 2.0, 2.0], [-1.0, 0.0, 1.0], WIDE, None, {"corr": "all predictions are equal"}),
        ([2.0, 3.0], [-1.0, 1.0], UNIT, None, {"corr": "all predictions are equal"}),  # after clipping
        ([0.2, 0.4], [0.8, 0.9], UNIT, {"n", "mae", "corr"}, {"acc2": ONE_CLASS, "f1": ONE_CLASS, "acc5": ONE_CLASS}),
    ],
)
def test_metrics_that_measure_nothing_are_none_with_the_reason(prediction, label, label_range, defined, reasons):
    metrics, found = defined_metrics(np.float32(prediction), np.float32(label), label_range)
    assert {key for key, value in metrics.items() if value is None} == set(found)
    assert reasons.items() <= found.items()
    if defined is not None:
        assert metrics.keys() - found.keys() == defined


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([np.nan, 1.0], [0.0, 1.0], "1 of 2 predictions"),
        ([0.0, 1.0], [0.0, np.nan], "1 of 2 labels"),
        ([0.0], [0.0, 1.0], "must be"),
    ],
)
def test_what_cannot_be_measured_is_refused(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        evaluate_metrics(np.array(prediction), np.array(label), WIDE)


def test_weighted_f1_with_a_class_that_is_never_predicted():
    # Class 2 is never predicted: F1 0; class 0: 2*2/(3+2); class 1: 2*1/(1+1).
    f1 = weighted_f1(np.array([0, 0, 1, 0]), np.array([0, 0, 1, 2]))
    assert f1 == pytest.approx(2 / 4 * 4 / 5 + 1 / 4 * 1 + 0)


def test_confusion_counts_true_rows_and_predicted_columns():
    counts = confusion(np.array([1.2, -1.0, 0.0]), np.array([0.1, -1.0, 2.0]), WIDE, 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert class_names(WIDE, 3) == ["-1", "0", "1"]
    assert class_names(UNIT, 3) == ["[-1, -0.1]", "(-0.1, 0.1]", "(0.1, 1]"]
