"""The leaderboard of a comparison of networks: statistics on planted results, ranking, tables and CSV."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from pydantic import TypeAdapter
from rich.console import Console

from flows.studies.leaderboard import chosen_changes, leaderboard_table, ranking, write_leaderboard
from flows.studies.results import NetworkComparison, Row, StudyResult, read_study, write_study
from flows.studies.spec import StudySpec, read_spec
from flows.studies.statistics import Measurements, best_network, leaderboard_rows
from flows.studies.tables import leaderboard_tables

CLIPS, SEEDS = 80, (0, 1, 2, 3, 4)
BEST, OTHERS = "dashfusion", ("late_fusion", "tfn", "text")


def measure(noise: dict[str, float], seed: int = 0, speakers: int = 20) -> Measurements:
    """Networks whose errors have these standard deviations, half of them common to all networks."""
    rng = np.random.default_rng(seed)
    label = rng.uniform(-3, 3, CLIPS).round(1)
    label[5] = np.nan
    common = 0.5 * rng.standard_normal(CLIPS)
    predictions = {
        (name, "", None): np.nan_to_num(label) + common + std * rng.standard_normal((len(SEEDS), CLIPS))
        for name, std in noise.items()
    }
    spec = TypeAdapter(StudySpec).validate_python(
        {"name": "compare", "title": "t", "question": "q", "reference": next(iter(noise)), "metrics": ("mae", "acc2"),
         "seeds": SEEDS, "variants": {name: {} for name in noise}}
    )  # fmt: skip
    costs = {name: [{"madds": 10.0 * i, "parameters": 1e6}] * len(SEEDS) for i, name in enumerate(noise, start=1)}
    speaker = np.array([f"speaker {i % speakers}" for i in range(CLIPS)], object)
    return Measurements(spec, label, speaker, (-3, 3), ["mae", "acc2_np"], {}, predictions, costs)


def differences(rows, **wanted):
    return {
        (row.variant, row.reference): row
        for row in rows
        if row.statistic == "difference" and all(getattr(row, name) == value for name, value in wanted.items())
    }


@pytest.fixture(scope="module")
def rows():
    """Of two networks that are alike, and two that are worse and alike."""
    noise = {BEST: 0.2, "late_fusion": 0.22, "tfn": 1.5, "text": 1.4}
    return leaderboard_rows(measure(noise), [BEST, "text"])


def test_a_clear_difference_is_decided_and_a_small_one_is_not(rows):
    found = differences(rows, metric="mae")
    verdicts = {pair: row.verdict for pair, row in found.items()}
    assert verdicts == {
        ("late_fusion", BEST): "undecided", ("tfn", BEST): "worse", ("text", BEST): "worse",
        (BEST, "text"): "better", ("late_fusion", "text"): "better", ("tfn", "text"): "undecided",
    }  # fmt: skip
    for row in found.values():
        assert row.low <= row.value <= row.high
        assert (row.verdict == "undecided") == (row.low <= 0 <= row.high), "by the interval alone"


def test_a_difference_between_two_references_is_the_same_from_both_sides(rows):
    for metric in ("mae", "acc2_np"):
        found = differences(rows, metric=metric)
        ours, theirs = found["text", BEST], found[BEST, "text"]
        assert (theirs.value, theirs.low, theirs.high) == (-ours.value, -ours.high, -ours.low)
        assert (theirs.p, theirs.p_adjusted) == (ours.p, ours.p_adjusted)
        assert ours.cost == 40 and theirs.cost == 10


def test_networks_that_are_alike_are_rarely_told_apart(monkeypatch):
    """Of families of comparisons of equal networks, at most 5 % have any verdict, and what chance adds in 20."""
    monkeypatch.setattr("flows.studies.statistics.COMPARISON_RESAMPLES", 1000)
    noise = dict.fromkeys([BEST, *OTHERS], 0.6)
    decided = 0
    for seed in range(20):
        found = differences(leaderboard_rows(measure(noise, seed), [BEST, "text"]), metric="mae")
        decided += any(row.verdict != "undecided" for row in found.values())
    assert decided <= 3


def test_the_best_is_chosen_by_validation():
    assert best_network({"a": [0.5, 0.7], "b": [0.4, 0.7], "c": [0.3, 0.9]}) == "b"


def test_without_labels_there_is_nothing_but_costs():
    measured = measure({BEST: 0.2, "text": 1.0})
    rows = leaderboard_rows(replace(measured, label=np.full(CLIPS, np.nan)), [BEST, "text"])
    assert {row.metric for row in rows} == {"madds", "parameters"}


LEARNED = {"verdict": "better", "hardest": "mean_label",
           "mean_label": {"mae": 1.7, "mae_difference": -1.1, "mae_interval": [-1.3, -0.9]}}  # fmt: skip
UNLEARNED = {"verdict": "undecided", "hardest": "mean_label",
             "mean_label": {"mae": 1.7, "mae_difference": -0.1, "mae_interval": [-0.3, 0.1]}}  # fmt: skip


@pytest.fixture(scope="module")
def result(rows) -> StudyResult:
    names = [BEST, *OTHERS]
    published = {name: {"model.name": name, "train.learning_rate": 0.001} for name in names}
    tried = {name: [published[name], published[name] | {"train.learning_rate": 0.002}] for name in names}
    return StudyResult(
        study="compare", title="Networks compared", question="Which?", corpus="demo_en", split="test", clips=79,
        reference=BEST, variants={name: tried[name][name == "tfn"] for name in names}, seeds=list(SEEDS),
        metrics=["mae", "acc2_np"], notes=[],
        rows=[*rows, *(Row(name, None, "", None, "all", "valid_mae", "mean", 0.5) for name in names)],
        comparison=NetworkComparison(
            references=[BEST, "text"], budget={"trials": 2, "epochs": 30, "patience": 10}, settings=tried,
            chosen={name: int(name == "tfn") for name in names},
            baselines={name: UNLEARNED if name == "tfn" else LEARNED for name in names},
            left_out={"mag_bert": "it reads tokens: set model.text.mode to finetune"},
        ),
    )  # fmt: skip


def test_a_network_that_has_learned_nothing_gets_no_verdict_and_the_reason(result):
    compared = result.find(statistic="difference", metric="mae")
    verdicts = {(row.variant, row.reference): result.verdict(row) for row in compared}
    assert verdicts["tfn", BEST] == verdicts["tfn", "text"] == "no verdict"
    assert verdicts["text", BEST] == "worse" and verdicts[BEST, "text"] == "better"
    assert result.comparison.refusal("tfn").startswith("The network tfn is not shown to be better than the baseline")
    assert result.comparison.refusal("text") == ""


def test_the_ranking_is_by_the_measured_split(result):
    assert ranking(result) == [BEST, "late_fusion", "text", "tfn"]
    by_accuracy = replace(result, metrics=["acc2_np", "mae"])
    assert ranking(by_accuracy)[0] in (BEST, "late_fusion")
    lost = [row for row in result.rows if row.variant != BEST]
    assert ranking(replace(result, rows=lost))[-1] == BEST, "undefined comes last"


def test_what_is_written_is_read(result, tmp_path):
    path = write_study(result, tmp_path)
    assert path.name == "compare.parquet" and read_study(path) == result
    assert read_study(path).get(BEST, "mae", "difference", reference="text").value < 0
    assert read_study(path).get(BEST, "mae", "difference") is None, "the reference differs from nothing"


def test_the_table_in_csv_has_a_row_a_network(result, tmp_path):
    write_leaderboard(result, tmp_path / "leaderboard.csv")
    with (tmp_path / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        found = {row["network"]: row for row in csv.DictReader(file)}
    assert list(found) == [BEST, "late_fusion", "text", "tfn", "Mean label", "mag_bert"]
    assert found["Mean label"]["mae"] == "1.7" and found["Mean label"]["note"] == "mean of the training labels"
    assert float(found[BEST]["mae"]) == result.get(BEST, "mae").value and found[BEST]["mae_to_best"] == ""
    assert found[BEST]["mae_to_text_verdict"] == "better" and found["tfn"]["mae_to_best_verdict"] == "no verdict"
    assert found["tfn"]["note"].startswith("The network tfn is not shown") and float(found["text"]["madds"]) == 40
    assert found["mag_bert"]["note"] == "left out: it reads tokens: set model.text.mode to finetune"
    assert leaderboard_table(result)[0]["rank"] == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_terminal(result, width):
    longest = {name: name.replace("late_fusion", "dashfusion_published") for name in result.variants}
    renamed = replace(
        result,
        variants={longest[name]: changes for name, changes in result.variants.items()},
        rows=[replace(row, variant=longest[row.variant]) for row in result.rows],
        comparison=replace(
            result.comparison,
            **{
                key: {longest[name]: value for name, value in getattr(result.comparison, key).items()}
                for key in ("settings", "chosen", "baselines")
            },
        ),
    )
    console = Console(width=width, record=True, file=StringIO())
    for table in leaderboard_tables(renamed, width):
        console.print(table)
    text = console.export_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and "…" not in text
    assert sum(line.split()[:1] == ["dashfusion_published"] for line in lines) >= 2, "names are whole"
    head = next(line for line in lines if "to the best" in line)
    assert ("Acc-2" in head) == (width == 120)
    row = next(i for i, line in enumerate(lines) if line.strip().startswith("2"))
    assert "undecided" in lines[row] and "[" in lines[row + 1]
    words = " ".join(text.split())
    assert "the best: dashfusion" in words and "tfn The network tfn is not shown to be better" in words
    assert "mag_bert it reads tokens" in words and "train.learning_rate 0.002" in words


def test_chosen_settings_are_told_by_what_is_not_published(result):
    assert chosen_changes(result, "tfn") == {"train.learning_rate": 0.002} and chosen_changes(result, "text") == {}


def test_a_study_cannot_take_the_comparisons_place(tmp_path):
    (tmp_path / "compare.yaml").write_text("title: t", encoding="utf-8")
    with pytest.raises(ValueError, match="`dashfusion compare` has this name"):
        read_spec(str(tmp_path / "compare.yaml"))
