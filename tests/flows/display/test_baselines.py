"""The comparison with the baselines as a user reads it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flows.display.baselines import baseline_rows, baseline_table, baseline_verdict, is_better


def values(mae: float | None, accuracy: float, low: float, high: float) -> dict:
    """A baseline to which the model's MAE of 0.6 differs with this interval, and its Acc-2 of 90 % by +-0.05."""
    found = {"acc2_np": accuracy, "acc2_np_difference": 0.9 - accuracy}
    found["acc2_np_interval"] = [0.85 - accuracy, 0.95 - accuracy]
    if mae is not None:
        found |= {"mae": mae, "mae_difference": 0.6 - mae, "mae_interval": [low, high]}
    return found


def comparison(verdict: str, low: float, high: float, accuracy: float = 0.7, **changes) -> dict:
    return {
        "verdict": verdict,
        "hardest": "ridge_text",
        "majority_class": values(None, 0.5, 0, 0),
        "mean_label": values(1.4, 0.5, -0.9, -0.7),
        "ridge_text": {"features": "text.transformer", **values(0.7, accuracy, low, high)},
    } | changes


def test_a_better_model_is_said_to_be():
    found = comparison("better", -0.15, -0.05)
    assert is_better(found)
    assert baseline_verdict(found) == (
        "The model is better than every baseline: MAE 0.600 against 0.700 of ridge on text, difference "
        "\u22120.100 [\u22120.150, \u22120.050]."
    )


@pytest.mark.parametrize(
    ("verdict", "low", "high", "words"),
    [
        ("undecided", -0.25, 0.05, "The model is not shown to be better than the baseline ridge on text: MAE 0.600 "),
        ("worse", 0.01, 0.05, "The model is worse than the baseline ridge on text: MAE 0.600 against 0.700,"),
    ],
)
def test_a_model_that_is_not_better_is_said_not_to_be(verdict, low, high, words):
    found = comparison(verdict, low, high)
    assert not is_better(found) and baseline_verdict(found).startswith(words)
    assert baseline_verdict(found, "the reference, full,").startswith("The reference, full, is ")


def test_an_accuracy_that_is_no_better_is_said_beside_the_error():
    text = baseline_verdict(comparison("better", -0.15, -0.05, accuracy=0.88))
    assert "The model is better than every baseline" in text
    assert (
        "It is not shown to be better than the baseline ridge on text: Acc-2 90.0% against 88.0%, "
        "difference +2.0 [\u22123.0, +7.0]." in text
    )


def test_what_was_not_compared_says_why():
    assert baseline_verdict({}) == "", "a file of an earlier version"
    none = {"undefined": dict.fromkeys(("majority_class", "mean_label"), "no labelled clip")}
    assert baseline_verdict(none) == "The model could not be compared with baselines: no labelled clip."
    assert not is_better(none) and baseline_rows(none) == []
    found = comparison("better", -0.15, -0.05, undefined={"ridge_text": "the model does not use text"})
    assert baseline_verdict(found).endswith("Ridge on text was left out: the model does not use text.")


def test_the_table_fits_into_80_columns():
    console = Console(file=io.StringIO(), width=80)
    console.print(baseline_table(comparison("better", -0.15, -0.05)))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and not any("\u2026" in line for line in lines)
    row = next(line for line in lines if line.startswith("Ridge on text"))
    assert "0.700" in row and "\u22120.100 [\u22120.150, \u22120.050]" in row and "+20.0 [+15.0, +25.0]" in row
    majority = next(line for line in lines if line.startswith("Majority class"))
    assert majority.split()[2:4] == ["–", "–"]  # noqa: RUF001
