"""The tidy tables of studies: what is written is read, alone and as one folder of Parquet."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.tables import METADATA_KEY
from flows.studies.results import ALL_CLIPS, CLEAN, Row, StudyResult, read_studies, read_study, write_study

RESULT = StudyResult(
    study="ablation",
    title="What each part is worth",
    question="Which parts matter?",
    corpus="demo_en",
    split="test",
    clips=80,
    reference="full",
    variants={"full": {}, "no alignment": {"model.alignment": False}},
    seeds=[0, 1],
    metrics=["acc2_np", "mae"],
    conditions={"audio noise": "dB"},
    pareto=("fusion_madds", "f1_np"),
    notes=["vision blur was left out: no media"],
    provenance={"seconds": 1.5},
    rows=[
        Row("full", 0, CLEAN, None, ALL_CLIPS, "acc2_np", "value", 0.9, cost=59.25),
        Row("full", None, "audio noise", 10.0, "text misleads", "acc2_np", "mean", 0.8, 0.7, 0.9, 59.25),
        Row("full", None, CLEAN, None, ALL_CLIPS, "corr", "mean", None),
    ],
)


def test_what_is_written_is_read(tmp_path):
    path = write_study(RESULT, tmp_path)
    assert path == tmp_path / "ablation.parquet"
    assert read_study(path) == RESULT
    write_study(replace(RESULT, study="anchor", pareto=None), tmp_path)
    (tmp_path / ".gitignore").write_text("*")
    assert [found.study for found in read_studies(tmp_path)] == ["ablation", "anchor"]
    assert read_studies(tmp_path)[1].pareto is None


def test_all_studies_are_one_table(tmp_path):
    for name in ("ablation", "anchor"):
        write_study(replace(RESULT, study=name), tmp_path)
    table = pq.read_table(tmp_path)
    assert table.num_rows == 6 and set(table["study"].to_pylist()) == {"ablation", "anchor"}
    assert {"study", "variant", "seed", "metric", "value", "cost"} <= {*table.column_names}


def test_numbers_are_found_by_what_they_are_of():
    place = {"condition": "audio noise", "level": 10.0, "clips": "text misleads"}
    assert RESULT.get("full", "acc2_np", **place).value == 0.8
    assert RESULT.get("full", "acc2_np") is None, "a single seed's value is no statistic over the seeds"
    assert RESULT.get("full", "corr") is None, "an undefined value"
    assert RESULT.levels("audio noise") == [10.0] and RESULT.slices == ["text misleads"]
    assert [row.metric for row in RESULT.find(variant="full", statistic="mean")] == ["acc2_np", "corr"]


def test_another_parquet_file_is_refused_by_name(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(
        ValueError, match=r"other.parquet: .* not a study result .* run the study again, or remove the file"
    ):
        read_studies(tmp_path)


def test_results_of_the_version_with_questions_still_load(tmp_path):
    path = write_study(RESULT, tmp_path)
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    metadata["answers"] = [{"question": "Does it matter?", "answer": "It costs 2.0 points.", "holds": True}]
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), path)
    assert read_study(path) == RESULT


@pytest.mark.parametrize(
    ("metric", "low", "high", "adjusted", "verdict"),
    [
        ("acc2_np", 0.01, 0.03, 0.02, "better"),
        ("acc2_np", -0.03, -0.01, 0.05, "worse"),
        ("mae", -0.03, -0.01, 0.001, "better"),
        ("mae", 0.01, 0.03, 0.01, "worse"),
        ("acc2_np", -0.01, 0.03, 0.02, "undecided"),
        ("acc2_np", 0.0, 0.03, 0.02, "undecided"),
        ("acc2_np", None, None, None, "undecided"),
        ("acc2_np", 0.01, 0.03, 0.051, "undecided"),  # one of many comparisons
        ("acc2_np", 0.01, 0.03, None, "undecided"),  # by an earlier version, over clips alone
    ],
)
def test_the_interval_and_the_adjusted_p_decide_the_verdict(metric, low, high, adjusted, verdict):
    row = Row("wide", None, CLEAN, None, ALL_CLIPS, metric, "difference", 0.02, low, high, p_adjusted=adjusted)
    assert row.verdict == verdict


def test_p_values_are_shown_raw_and_adjusted():
    row = Row("wide", None, CLEAN, None, ALL_CLIPS, "mae", "difference", 0.02)
    assert row.p_text == ""
    assert replace(row, p=0.0004, p_adjusted=0.0123).p_text == "p < 0.001, adjusted 0.012"
    assert replace(row, p=0.5).p_text == "p 0.50"


def test_results_without_p_values_still_load(tmp_path):
    path = write_study(RESULT, tmp_path)
    pq.write_table(pq.read_table(path).drop(["p", "p_adjusted"]), path)
    assert read_study(path) == RESULT


UNDECIDED = {
    "verdict": "undecided",
    "hardest": "mean_label",
    "mean_label": {"mae": 1.0, "mae_difference": -0.1, "mae_interval": [-0.3, 0.1]},
}


def test_a_reference_that_is_not_better_than_the_baselines_gives_no_verdicts(tmp_path):
    row = Row("wide", None, CLEAN, None, ALL_CLIPS, "mae", "difference", -0.02, -0.03, -0.01, p_adjusted=0.001)
    assert RESULT.verdict(row) == "better" and RESULT.refusal == "", "an earlier version compared with none"
    assert replace(RESULT, baselines=UNDECIDED | {"verdict": "better"}).verdict(row) == "better"
    refused = read_study(write_study(replace(RESULT, baselines=UNDECIDED), tmp_path))
    assert refused.verdict(row) == "no verdict"
    assert refused.refusal.startswith("No verdicts. The reference, full, is not shown to be better than the baseline")


def test_results_that_were_compared_with_no_baselines_still_load(tmp_path):
    path = write_study(RESULT, tmp_path)
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    del metadata["baselines"]
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), path)
    assert read_study(path) == RESULT
