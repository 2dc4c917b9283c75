"""Metrics in words."""

from __future__ import annotations

import pytest

from flows.display.metrics import (
    METRICS,
    format_count,
    format_difference,
    format_interval,
    format_metric,
    format_number,
    metrics_rows,
)

WIDE_METRICS = {"n": 12, "mae": 0.5074, "corr": 0.9104, "acc2_np": 0.9168, "f1_nn": 0.89}


def test_what_a_modality_says_alone_is_named_so():
    rows = metrics_rows({"mae": 0.5, "acc2_text": 0.91, "mae_text": 0.3, "corr_vision": None})
    assert rows == [
        ("Mean absolute error", "0.500"),
        ("Acc-2, text alone", "91.0%"),
        ("Mean absolute error, text alone", "0.300"),
        ("Pearson correlation, vision alone", "–"),  # noqa: RUF001
    ]


def test_metrics_are_named_in_plain_language():
    rows = dict(metrics_rows(WIDE_METRICS))
    assert rows["Acc-2 (negative / positive)"] == "91.7%"
    assert rows["F1 (negative / non-negative)"] == "89.0%"
    assert rows["Mean absolute error"] == "0.507"
    assert rows["Pearson correlation"] == "0.910"
    assert rows["Clips"] == "12"
    assert len(rows) == len(WIDE_METRICS)


def test_an_unknown_metric_is_shown_under_its_key():
    assert metrics_rows({"rank_corr": 0.25, "rank_corr_std": 0.01}) == [("rank_corr", "0.250 ± 0.010")]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [("mae", 0.5, "0.500"), ("acc5", 0.6125, "61.3%"), ("corr", -0.1, "\u22120.100"), ("acc2", None, "–")],  # noqa: RUF001
)
def test_a_value_is_written_as_its_metric_is(key, value, shown):
    assert format_metric(key, value) == shown


def test_one_thing_is_counted_in_the_singular():
    counts = [format_count(number, "problem") for number in (0, 1, 2)]
    assert counts == ["0 problems", "1 problem", "2 problems"]
    assert [format_count(number, "process", "processes") for number in (1, 3)] == ["1 process", "3 processes"]


def test_differences_have_a_sign_and_intervals_two_ends():
    assert format_difference("acc2_np", -0.0312) == "\u22123.1" and format_difference("mae", 0.05) == "+0.050"
    assert format_interval("acc2_np", (0.5, 1.0)) == "50.0 to 100.0%" and format_interval("mae", None) == ""
    assert format_number(-0.0004, 3, sign=True) == "\u22120.000" and format_number(None) == "–"  # noqa: RUF001


def test_names_of_columns_tell_metrics_of_one_range_apart():
    wide = [text.short for key, text in METRICS.items() if key not in ("acc2", "f1")]
    assert len(wide) == len(set(wide))
