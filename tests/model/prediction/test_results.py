"""Results as CSV: the numbers of the JSON, and no text that a spreadsheet runs."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model.evaluation.outliers import OutlierTest
from model.prediction.protocol import Note
from model.prediction.results import RESULTS_SCHEMA, Failure, Interval, Prediction, Score, Window, write_results

if TYPE_CHECKING:
    from pathlib import Path

SCORE = Score(
    -1.23456, -1.23456, "negative", "-1", Interval(0.9, -2.5, 0.1, 70), ("text", "vision"),
    {"text": -0.1, "vision": 1e-4}, OutlierTest(0.031, 60, ("vision",)),
)  # fmt: skip
PREDICTION = Prediction(
    "talk, 1.mp4", SCORE, "clip", 3.2, 'He said "no".\nThen 不.', "given", (Window(0.0, 1.0, "", None),),
    (Note("no_face", "no face in any frame"), Note("cut", "=1+1 was cut")), {"decode": 0.1},
)  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_the_numbers_of_the_json(tmp_path):
    write_results([PREDICTION, Failure("torn.mp4", "MediaError", "torn.mp4: damaged")], tmp_path / "out.CSV")
    scored, failed = read(tmp_path / "out.CSV")
    shown = PREDICTION.to_dict()
    for name in ("score", "raw_score", "class", "duration", "file", "text"):
        assert scored[name] == str(shown[name])
    assert [scored[f"interval.{name}"] for name in ("level", "low", "high", "clips")] == ["0.9", "-2.5", "0.1", "70"]
    assert scored["contributions.vision"] == "0.0001" and scored["contributions.audio"] == ""
    assert scored["outlier_test.modalities"] == "vision" and scored["used"] == "text vision"
    assert scored["warnings"] == "no_face cut" and scored["warnings.message"] == "no face in any frame; =1+1 was cut"
    assert scored["windows"] == "1" and scored["error.class"] == "" and scored["seconds.decode"] == "0.1"
    assert failed["error.message"] == "torn.mp4: damaged" and failed["score"] == "" and failed["windows"] == "0"
    assert {name.split(".")[0] for name in scored} == set(RESULTS_SCHEMA.names)


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"])  # noqa: RUF001
def test_no_text_becomes_a_formula(tmp_path, text):
    hostile = replace(PREDICTION, name=text, text=text, warnings=(Note("no_face", text),))
    write_results([hostile, Failure(text, "MediaError", text)], tmp_path / "out.csv")
    scored, failed = read(tmp_path / "out.csv")
    assert {scored["file"], scored["text"], scored["warnings.message"]} == {f"'{text}"}
    assert {failed["file"], failed["error.message"]} == {f"'{text}"}
    assert scored["score"] == "-1.2346" and scored["class"] == "-1"
