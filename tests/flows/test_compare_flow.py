"""The flow `compare`: tunes, trains and measures networks, and ranks them."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from extractors.transcripts.table import Transcript, write_transcripts
from flows import compare as flow
from flows.config.params import CompareParams, load_params
from flows.orchestration.training_pool import TrainingPool
from flows.studies.leaderboard import leaderboard_table
from flows.studies.results import SEARCH, VALID_MAE, read_study, write_study
from flows.studies.tables import leaderboard_tables
from flows.zero_shot.answers import FOLDER, Answer, Request, append_answer, start_file, text_hash
from model.data.clips import ClipTable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(dataset, tmp_path, monkeypatch):
    """A project with the small dataset; comparisons train two networks for an epoch, in this process."""
    monkeypatch.setattr(TrainingPool, "call", lambda pool, function, *arguments: function(*arguments))
    monkeypatch.setattr(flow, "count_look", lambda *_: None)
    monkeypatch.setattr("flows.study.scratch_folder", lambda: tmp_path / "scratch")
    params = load_params(ROOT / "params.yaml")
    monkeypatch.chdir(dataset.parent)  # outputs lie in the project
    budget = CompareParams(models=("text", "late_fusion"), seeds=(0, 1, 2), epochs=1)
    model = replace(params.model, max_positions=32)
    return replace(
        params,
        paths=replace(params.paths, dataset=Path(dataset.name)),
        model=model,
        train=replace(params.train, device="cpu"),
        compare=budget,
    )


def test_networks_are_tuned_trained_and_ranked_on_the_test_split(params, tmp_path):
    params = replace(params, compare=replace(params.compare, trials=2))
    result = flow._compare(params, workers=1)
    assert (result.split, result.clips, set(result.variants)) == ("test", 8, {"text", "late_fusion"})
    comparison = result.comparison
    assert comparison.references[0] == result.reference and "text" in comparison.references
    assert result.variants["text"]["train.modalities"] == ["text"]
    for name in result.variants:
        tried = [row.value for row in result.find(variant=name, condition=SEARCH)]
        assert len(tried) == 2 and comparison.chosen[name] == tried.index(min(tried))
        errors = [row.value for row in result.find(variant=name, metric=VALID_MAE, statistic="value", condition="")]
        assert len(errors) == 3 and result.get(name, VALID_MAE).value == pytest.approx(sum(errors) / 3)
        assert all(result.get(name, cost).value > 0 for cost in ("madds", "parameters", "step_seconds", "clip_seconds"))
    other = next(name for name in result.variants if name != result.reference)
    difference = result.get(other, "mae", "difference")
    means = [result.get(name, "mae").value for name in (other, result.reference)]
    assert difference.value == pytest.approx(means[0] - means[1])
    assert result.verdict(difference) == "no verdict", "one epoch teaches nothing"
    assert comparison.refusal(other).startswith(f"The network {other} is ")
    assert read_study(write_study(result, tmp_path)) == result

    again = flow._compare(params, workers=2)
    assert again.rows == result.rows, "kept trainings, costs included"


def test_chat_models_that_were_asked_about_the_split_stand_beside_every_network(params, tmp_path):
    table = ClipTable.read(params.paths.dataset, "test", 32, cache=None)
    clips = {clip_id: f"words of {clip_id}" for clip_id in table.clip_ids.tolist()}
    place = params.prepare.corpus, "test", table.info.label_range
    request = Request("tiny", "http://localhost/v1", "Rate it.", 0.0, 64, *place)
    path = params.paths.studies / FOLDER / request.file_name
    spoken = [Transcript(clip_id, text, "corpus", text.split()) for clip_id, text in clips.items()]
    write_transcripts(spoken, params.paths.transcripts)
    start_file(path, request)
    for clip_id, text in list(clips.items())[1:]:
        counted = "stop", "tiny-1", "2026-01-01", 0.1, 5, 1
        append_answer(path, Answer(clip_id, text_hash(text), "answered", 0.0, "0", *counted))
    result = flow._compare(params, workers=1)
    label = table.labels[1:]
    for name in result.variants:
        (row,) = result.comparison.baselines[name]["zero_shot"]
        assert (row["model"], row["clips"], row["answered"], row["not_asked"]) == ("tiny", 8, 7, 1)
        assert row["mae"] == pytest.approx(abs(label).mean())
    rows = {row["network"]: row for row in leaderboard_table(result)}
    assert rows["Zero-shot: tiny"]["mae"] == row["mae"] and "7 of 8 clips" in rows["Zero-shot: tiny"]["note"]
    console = Console(width=100, record=True, file=StringIO())
    for drawn in leaderboard_tables(result, 100):
        console.print(drawn)
    words = " ".join(console.export_text().split())
    assert f"the difference of {result.reference} to each" in words and "Zero-shot: tiny" in words


def test_a_network_that_cannot_be_trained_is_left_out_with_the_reason(params, monkeypatch):
    def call(trial, study, scratch):
        if trial.variant == "late_fusion":
            raise ValueError("it reads tokens: set model.text.mode to finetune")
        return real(trial, study, scratch)

    real = flow.call_training
    monkeypatch.setattr(flow, "call_training", call)
    result = flow._compare(params, workers=1)
    assert list(result.variants) == ["text"] == result.comparison.references
    assert result.comparison.left_out == {"late_fusion": "it reads tokens: set model.text.mode to finetune"}
    assert not list(result.find(statistic="difference"))
