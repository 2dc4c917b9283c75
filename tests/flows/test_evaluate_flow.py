"""What `evaluate` shows: the change since the last run, and plot_images for Prefect's pages."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from corpora.manifest import Clip, Manifest
from flows import evaluate
from flows.config.params import Params, load_params
from flows.orchestration import evaluations
from flows.report import analysis, plot_images
from model.checkpoint import io as checkpoint_io
from model.evaluation.predictions import ClipPredictions
from model.evaluation.subgroups import split_into_subgroups

OLD = {"acc2_np": 0.90, "mae": 0.60, "corr": 0.5, "acc7": None, "n": 80}
NEW = {"acc2_np": 0.95, "mae": 0.65, "corr": 0.5001, "acc7": 0.4, "n": 80}


@pytest.fixture
def params(tmp_path, monkeypatch) -> Params:
    """The project's, in a folder without a history."""
    found = load_params(Path(__file__).parents[2] / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return found


def test_a_change_says_whether_it_is_for_the_better():
    changes = {name: (before, change) for name, _, before, change in evaluate.compared_rows(NEW, OLD)}
    assert changes["Acc-2 (negative / positive)"] == ("90.0%", "+5.0 points")
    assert changes["Mean absolute error"] == ("0.600", "+0.050")
    assert changes["Pearson correlation"] == ("0.500", "same")
    assert changes["Acc-7"] == ("–", "") and changes["Clips"] == ("80", "")  # noqa: RUF001
    backwards = {name: change for name, _, _, change in evaluate.compared_rows(OLD, NEW)}
    assert backwards["Mean absolute error"] == "\u22120.050"
    assert backwards["Acc-2 (negative / positive)"] == "\u22125.0 points"


def test_the_first_evaluation_has_nothing_to_compare_with(params):
    assert evaluations.previous_metrics(params, OLD) is None
    evaluations.append_to_history(params, OLD)
    assert evaluations.previous_metrics(params, OLD) is None


def test_an_evaluation_is_compared_with_the_last_one_of_its_corpus_and_split(params):
    evaluations.append_to_history(params, OLD)
    evaluations.append_to_history(replace(params, prepare=replace(params.prepare, corpus="other")), {"mae": 9.0})
    evaluations.append_to_history(params, NEW)
    assert evaluations.previous_metrics(params, NEW) == OLD
    assert evaluations.previous_metrics(params, {"mae": 7.0}) == NEW, "metrics that DVC brought back from its cache"
    evaluations.append_to_history(params, NEW)
    assert evaluations.previous_metrics(params, NEW) == NEW, "the same again"


def test_the_last_evaluation_says_when_it_was(params):
    evaluations.append_to_history(params, OLD)
    evaluations.append_to_history(params, NEW)
    before = evaluations.previous_evaluation(params, NEW)
    assert before.metrics == OLD and before.time.endswith("+00:00") and before.day.endswith(" UTC")


def looked_at(params, tmp_path, weights: bytes, labels=(1.0, None)) -> evaluate.Looks | None:
    """A look at a split of two clips with models of these weights."""
    path = params.paths.models / "seed-0/best/model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights)
    return evaluate.record_look(params, pa.table({"clip_id": ["a/1", "a/2"], "label": list(labels)}))


def test_looks_at_the_test_split_are_counted_by_models_and_dataset(params, tmp_path, monkeypatch):
    first = looked_at(params, tmp_path, b"one")
    assert first.count == 1 and first.text == "with this model only"
    assert looked_at(params, tmp_path, b"one") == first, "the same models again"
    second = looked_at(params, tmp_path, b"two")
    assert second.count == 2 and second.text == f"with 2 different models since {first.first[:10]}"
    assert looked_at(params, tmp_path, b"two", labels=(1.0, 2.0)).count == 1, "another split"
    on_valid = replace(params, evaluate=replace(params.evaluate, split="valid"))
    assert looked_at(on_valid, tmp_path, b"three") is None
    with (evaluate.settings.STATE / evaluate.LOOKS).open("a", encoding="utf-8") as file:
        file.write('{"time": "2026\n{"dataset": "' + "0" * 16 + '"}\n')
    copy = tmp_path / ".dvc/tmp/exps/standalone/copy"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert looked_at(params, copy, b"four").count == 3, "an experiment's copy counts with its project"


def test_a_line_that_was_cut_short_does_not_hide_the_others(params):
    evaluations.append_to_history(params, OLD)
    with evaluations.HISTORY.open("a", encoding="utf-8") as file:
        file.write('{"time": "2026-01-0\n')
    assert evaluations.previous_metrics(params, NEW) == OLD


def test_the_table_has_columns_for_the_change_only_where_there_is_one(params):
    def shown(*given) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(evaluations.metrics_table(params, *given))
        return console.file.getvalue()

    assert "+5.0 points" in shown(NEW, OLD) and "last run" not in shown(NEW)


@pytest.mark.parametrize("clips", [30, 2000])
def test_pictures_are_drawn_in_colours_that_can_be_seen(clips):
    import matplotlib.image

    label = np.linspace(-3, 3, clips)
    predictions = pa.table({"clip_id": [str(i) for i in range(clips)], "label": label, "prediction": label / 2})
    curves = [{"seed": 0, "epoch": i, "train_loss": 1 / i, "valid_mae": 1 / i} for i in (1, 2, 3)]
    made = dict(plot_images(predictions, (-3.0, 3.0), curves))
    assert list(made)[:3] == ["Confusion matrix", "Predicted against true", "Training loss"]
    for title, png in made.items():
        assert len(png) < 60_000, f"{title}: too large for an artifact"
        image = matplotlib.image.imread(io.BytesIO(png))[:, :, :3]
        blue = (image[:, :, 2] > image[:, :, 0] + 0.2).mean()
        assert blue > 0.002, f"{title}: the data are not in the accent's colour"
        assert (image.max(axis=2) < 0.05).mean() < 0.001, f"{title}: marker colours are left"


def make_split() -> tuple[Manifest, ClipPredictions, dict[str, np.ndarray]]:
    """Twelve clips of two videos, the first unlabelled and without a picture; predictions of two seeds."""
    labels = np.linspace(-3, 3, 12)
    clips = [
        Clip(f"{'ab'[i % 2]}/{i:02d}", "ab"[i % 2], "test", "en", "", "", None if i == 0 else float(labels[i]),
             label_text=-1.0, duration=None if i == 1 else float(i + 1))
        for i in range(12)
    ]  # fmt: skip
    rows = [
        {"clip_id": clip.clip_id, "label": clip.label, "prediction": labels[i] + off}
        for off in (0.2, -0.4)
        for i, clip in enumerate(clips)
    ]
    steps = {m: np.full(12, 5) for m in ("text", "audio", "vision")}
    steps["vision"][0] = 0
    return Manifest("tiny", "", (-3.0, 3.0), tuple(clips)), ClipPredictions.of(pa.Table.from_pylist(rows)), steps


def test_what_clips_are_told_apart_by_comes_from_manifest_dataset_and_features():
    manifest, clips, steps = make_split()
    valid = {"audio": {clip_id: np.array([True, False]) for clip_id in clips.clip_ids}}
    valid["audio"]["a/00"] = np.zeros(0, bool)
    facts = analysis.clip_attributes(clips, steps, manifest, valid)
    assert np.isnan(facts.seconds_N[1]) and facts.seconds_N[2] == 3.0
    assert list(facts.speaker_N[:3]) == ["a", "b", "a"]
    assert np.isnan(facts.valid["audio"][0]) and facts.valid["audio"][1] == 0.5
    assert set(facts.gender_N) == {""}
    named = replace(manifest, clips=[replace(clip, speaker="Ann", gender="female") for clip in manifest.clips])
    facts_of_named = analysis.clip_attributes(clips, steps, named, valid)
    assert set(facts_of_named.speaker_N) == {"Ann"} and set(facts_of_named.gender_N) == {"female"}
    assert facts.own_label["text"].tolist() == [-1.0] * 12 and np.isnan(facts.own_label["audio"]).all()


def test_parts_and_videos_of_a_split_are_measured():
    manifest, clips, steps = make_split()
    facts = analysis.clip_attributes(clips, steps, manifest, {})
    found = analysis.subgroup_analysis(clips, split_into_subgroups(facts), facts, manifest.label_range)
    assert found.whole.clips == 11 and found.whole.mae == pytest.approx(0.3)
    assert {part.group for part in found.subgroups} == {"Length", "Modalities", "Polarity", "Conflict"}
    assert {video.name: video.clips for video in found.speakers} == {"a": 5, "b": 6} and found.speakers_measured == 2
    low, high = analysis.metric_intervals(clips.labelled(), manifest.label_range, np.arange(11))["acc2_np"]
    assert 0.5 < low < high <= 1


def test_a_clip_is_measured_against_the_intervals_of_the_modalities_that_it_has(params, monkeypatch):
    _, clips, steps = make_split()
    steps["vision"][1:] = [0, *[5] * 10]
    widths = {"text+audio+vision": {"n": 9, "0.5": 1.0}, "text+audio": {"n": 9, "0.5": 0.1}}
    info = SimpleNamespace(
        calibration=widths,
        calibrated_by={"method": "grouped_cv"},
        train=SimpleNamespace(modalities=("text", "audio", "vision")),
    )
    monkeypatch.setattr(checkpoint_io, "read_checkpoint_info", lambda folder: info)
    two_seeds = replace(params, train=replace(params.train, seeds=(0, 1)))
    found = analysis.calibration(two_seeds, clips, steps, np.arange(12))
    half = found.coverage[0]
    assert (half.level, half.clips) == (0.5, 11) and half.share == pytest.approx(10 / 11)
    assert found.source == "train and valid"
    assert found.widths["text+audio"]["0.5"] == pytest.approx(0.1) and len(found.bins) == 1
