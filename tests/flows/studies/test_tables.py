"""A study's tables as a terminal shows them."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from flows.studies.results import Row, StudyResult
from flows.studies.tables import tables

METRICS = ["acc2_np", "f1_np", "mae", "corr"]


def numbers(variant, condition="", level=None, clips="all", better=0.0):
    for metric, value in zip(METRICS, (0.8, 0.75, 0.9, 0.6), strict=True):
        for statistic, shown in (("mean", value + better), ("std", 0.011)):
            yield Row(variant, None, condition, level, clips, metric, statistic, shown)
        if variant != "full":
            yield Row(
                variant, None, condition, level, clips, metric, "difference", better, better - 0.02, better + 0.03,
                p=0.01, p_adjusted=0.04,
            )  # fmt: skip


RESULT = StudyResult(
    study="mine",
    title="A study",
    question="Is it?",
    corpus="demo_en",
    split="test",
    clips=80,
    reference="full",
    variants={"full": {}, "without a part of it": {}},
    seeds=[0, 1, 2],
    metrics=METRICS,
    conditions={"no text": "", "audio noise": "dB"},
    rows=[
        *numbers("full"),
        *numbers("without a part of it", better=-0.05),
        *numbers("full", clips="text misleads"),
        *numbers("full", "no text"),
        *numbers("full", "audio noise", 10.0),
        *numbers("full", "audio noise", 0.0),
        Row("full", None, "audio noise", None, "all", "acc2_np", "area", 0.77),
        Row("full", None, "", None, "all", "madds", "mean", 51.26),
        Row("full", None, "", None, "all", "step_seconds", "mean", 0.345),
    ],
)


def drawn(result=RESULT, width=120):
    console = Console(width=width, record=True, file=StringIO())
    for table in tables(result):
        console.print(table)
    return console.export_text()


def test_means_differences_and_costs_stand_beside_each_other():
    text = drawn()
    assert "A study (demo_en, test split, 3 seeds)" in text and "clips whose text misleads" in text
    row = next(line for line in text.splitlines() if line.startswith("│ full"))
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "full", "80.0% ± 1.1", "75.0% ± 1.1", "0.900 ± 0.011", "51.3", "0.34",
    ]  # fmt: skip
    assert "75.0% ± 1.1" in text and "\u22125.0 [\u22127.0, \u22122.0]" in text
    assert "\u22120.050 [\u22120.070, \u22120.020]" in text
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if "\u22125.0" in line)
    assert [cell.strip() for cell in lines[first + 1].split("│")[2:5]] == ["p 0.010, adjusted 0.040"] * 3
    verdicts = lines[first + 2].split("│")[2:5]
    assert [cell.strip() for cell in verdicts] == ["worse", "worse", "better"], "less error is better"
    assert "Correlation: in the report" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


def test_conditions_have_tables_of_their_own():
    text = drawn()
    assert "Acc-2 in each condition" in text and "Acc-2 under audio noise (dB)" in text
    head = text[text.index("Acc-2 under audio noise") :].splitlines()[2]
    assert [cell.strip() for cell in head.split("┃")[1:-1]] == ["variant", "clean", "10", "0", "area"]
    assert "77.0" in text
    assert "–" in text, "what was not measured is an en dash"  # noqa: RUF001


def test_no_verdict_is_given_if_the_reference_has_learned_nothing():
    worse = {"mae": 0.8, "mae_difference": 0.1, "mae_interval": [0.05, 0.2]}
    baselines = {"verdict": "worse", "hardest": "mean_label", "mean_label": worse}
    text = drawn(replace(RESULT, baselines=baselines))
    assert "no verdict" in text and "worse" not in text and "better" not in text
