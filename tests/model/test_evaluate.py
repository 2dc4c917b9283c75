"""Checkpoints, predictions and what is written about them."""

from __future__ import annotations

import json
import statistics
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoint.io import load_checkpoint, read_checkpoint_info, save_checkpoint
from model.config import MODALITIES, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.data.info import read_info
from model.evaluate import evaluate, write_metrics, write_predictions
from model.evaluation.baselines import compare_with_baselines, fit_baselines
from model.evaluation.inference import predict
from model.evaluation.metrics import LabelMap, evaluate_metrics
from model.evaluation.predictions import ClipPredictions
from model.network.dashfusion import DashFusion
from tests.support.datasets import drop_audio

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)


def untrained(dataset, folder, seed, **options):
    torch.manual_seed(seed)
    network = DashFusion(SMALL, read_info(dataset)).eval()
    save_checkpoint(folder, network, TrainConfig(**options), seed, epoch=1, metrics={"valid_mae": 1.5})
    return network


def test_a_checkpoint_gives_back_identical_predictions(dataset, tmp_path):
    network = untrained(dataset, tmp_path / "best", seed=0)
    untrained(dataset, tmp_path / "best", seed=5)
    untrained(dataset, tmp_path / "best", seed=0)  # replaces a checkpoint whole
    loaded, info = load_checkpoint(tmp_path / "best")
    table = ClipTable.read(dataset, "test", 32)
    assert np.array_equal(predict(network, table, MODALITIES), predict(loaded, table, MODALITIES))
    assert (info.seed, info.epoch, info.metrics) == (0, 1, {"valid_mae": 1.5})
    assert info.dataset == read_info(dataset) and info.train == TrainConfig() and info.model == SMALL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == ["checkpoint.json", "model.safetensors"]


def test_features_of_another_signature_are_refused_naming_both(dataset, tmp_path):
    untrained(dataset, tmp_path / "all", seed=0)
    untrained(dataset, tmp_path / "text", seed=0, modalities=("text",))
    info = read_info(dataset)
    vision = replace(info.modalities["vision"], signature="vision.other-v2-111111111111")
    other = replace(info, modalities={**info.modalities, "vision": vision})
    with pytest.raises(ValueError, match=r"vision\.synthetic-v1-0+ .*vision\.other-v2-1+ .*train again"):
        load_checkpoint(tmp_path / "all")[1].check_compatible(other)
    load_checkpoint(tmp_path / "text")[1].check_compatible(other)
    with pytest.raises(ValueError, match="predicts labels in"):
        load_checkpoint(tmp_path / "all")[1].check_compatible(replace(info, label_range=(-1.0, 1.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"versions": {"lib": "2.0"}, "signature": "vision.synthetic-v1-222222222222"}, ""),  # of an earlier version
        ({"versions": {"lib": "2.0"}, "signature": "vision.synthetic-v2-222222222222"}, "train again"),
        ({"versions": {"lib": "2.0"}, "signature": "vision.synthetic-v1-2", "options": {}}, "train again"),
    ],
)
def test_other_versions_of_libraries_are_a_warning(dataset, tmp_path, caplog, change, message):
    untrained(dataset, tmp_path / "best", seed=0)
    checkpoint, info = load_checkpoint(tmp_path / "best")[1], read_info(dataset)
    other = replace(info, modalities={**info.modalities, "vision": replace(info.modalities["vision"], **change)})
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        checkpoint.check_compatible(other)
    assert bool(message) != ("vision features were computed with unknown versions in training" in caplog.text)


def test_a_missing_or_foreign_checkpoint_is_refused(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="dashfusion train"):
        load_checkpoint(tmp_path / "nowhere")
    untrained(dataset, tmp_path / "best", seed=0)
    path = tmp_path / "best" / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 9}))
    with pytest.raises(ValueError, match="checkpoint schema 9, this version reads 2"):
        load_checkpoint(tmp_path / "best")


def test_predictions_do_not_depend_on_the_batch_size(dataset, tmp_path):
    network = untrained(dataset, tmp_path / "best", seed=0).train()
    table = ClipTable.read(dataset, "train", 32)
    one, many = predict(network, table, MODALITIES, 1), predict(network, table, MODALITIES, 64)
    assert np.abs(one - many).max() < 1e-5
    assert network.training, "the network's mode must be left as it was"


def test_one_checkpoint_is_measured_plainly(dataset, tmp_path):
    network = untrained(dataset, tmp_path / "best", seed=0)
    found = evaluate(dataset, [tmp_path / "best"], "test", device="cpu")
    table = ClipTable.read(dataset, "test", 32)
    expected = predict(network, table, MODALITIES)
    baselines = compare_with_baselines(
        expected[None], table.labels, table.speakers, (-3, 3), fit_baselines(dataset, "test")
    )
    assert found.metrics == evaluate_metrics(expected, table.labels, (-3, 3)) | {"baselines": baselines}
    columns = ["clip_id", "split", "seed", "label", "prediction"]
    assert found.predictions.column_names == [*columns, *(f"prediction_without_{m}" for m in MODALITIES)]
    assert found.predictions["clip_id"].to_pylist() == table.clip_ids.tolist()
    assert found.predictions["prediction"].to_pylist() == expected.tolist()
    assert set(found.predictions["split"].to_pylist()) == {"test"}


def test_predictions_without_each_modality_stand_beside_those_with_all(dataset_writer, tmp_path):
    dataset = dataset_writer(tmp_path / "data", clips={"train": 8, "valid": 4, "test": 30})
    network = untrained(dataset, tmp_path / "best", seed=0)
    table = ClipTable.read(dataset, "test", 32)
    found = evaluate(dataset, [tmp_path / "best"], "test", device="cpu").predictions
    for m in MODALITIES:
        expected = predict(network, table, [other for other in MODALITIES if other != m])
        lacks = table.sequences[m].lengths == 0
        column = found[f"prediction_without_{m}"].to_numpy()
        assert lacks.any() and np.isnan(column[lacks]).all() and np.array_equal(column[~lacks], expected[~lacks])
    two = evaluate(dataset, [tmp_path / "best"], "test", ("text", "audio"), device="cpu").predictions
    alone = np.array([(table.sequences[m].lengths > 0) for m in ("text", "audio")]).sum(axis=0) == 1
    assert np.isnan(two["prediction_without_text"].to_numpy()[alone]).all() and "prediction_without_vision" not in two
    one = evaluate(dataset, [tmp_path / "best"], "test", ("text",), device="cpu").predictions
    assert not any(name.startswith("prediction_without") for name in one.column_names)


def test_several_seeds_give_mean_and_deviation(dataset, tmp_path):
    folders = [tmp_path / str(seed) for seed in (0, 1, 2)]
    for seed, folder in enumerate(folders):
        untrained(dataset, folder, seed)
    found = evaluate(dataset, folders, "test", device="cpu")
    singles = [evaluate(dataset, [folder], "test", device="cpu").metrics for folder in folders]
    assert found.metrics["mae"] == pytest.approx(statistics.fmean(m["mae"] for m in singles))
    assert found.metrics["mae_std"] == pytest.approx(statistics.stdev(m["mae"] for m in singles))
    assert (found.metrics["n"], found.metrics["seeds"]) == (8, 3)
    assert found.by_seed[1] | {"baselines": singles[1]["baselines"]} == singles[1]
    assert found.predictions["seed"].to_pylist() == [0] * 8 + [1] * 8 + [2] * 8
    with pytest.raises(ValueError, match="second checkpoint of seed 0"):
        evaluate(dataset, [folders[0], folders[0]], "test")


def test_unlabelled_clips_are_predicted_but_not_measured(dataset_writer, tmp_path):
    def unlabel(split: str, table: pa.Table) -> pa.Table:
        labels = [None, *table["label"].to_pylist()[1:]]
        return table.set_column(table.column_names.index("label"), "label", pa.array(labels, pa.float32()))

    root = dataset_writer(tmp_path / "data", change=unlabel)
    untrained(root, tmp_path / "best", seed=0)
    found = evaluate(root, [tmp_path / "best"], "test", device="cpu")
    assert (found.metrics["n"], found.unlabelled) == (7, 1)
    assert found.predictions["label"].to_pylist()[0] is None
    assert found.predictions["prediction"].null_count == 0 and len(found.predictions) == 8


def test_modalities_shown_follow_the_checkpoint_or_the_caller(dataset, tmp_path):
    untrained(dataset, tmp_path / "all", seed=0)
    untrained(dataset, tmp_path / "two", seed=0, modalities=("text", "audio"))
    whole = evaluate(dataset, [tmp_path / "all"], "test", device="cpu")
    left_out = evaluate(dataset, [tmp_path / "all"], "test", modalities=("text", "audio"), device="cpu")
    two = evaluate(dataset, [tmp_path / "two"], "test", device="cpu")
    assert left_out.predictions["prediction"].to_pylist() == two.predictions["prediction"].to_pylist()
    assert whole.predictions["prediction"].to_pylist() != two.predictions["prediction"].to_pylist()
    with pytest.raises(ValueError, match="trained with text, audio only"):
        evaluate(dataset, [tmp_path / "two"], "test", modalities=("vision",))
    with pytest.raises(ValueError, match="must name at least one of text, audio, vision"):
        evaluate(dataset, [tmp_path / "all"], "test", modalities=())


def test_an_empty_split_is_refused(dataset_writer, tmp_path):
    root = dataset_writer(tmp_path / "data", clips={"train": 8, "valid": 4, "test": 0})
    untrained(root, tmp_path / "best", seed=0)
    with pytest.raises(ValueError, match="the test split has no clips"):
        evaluate(root, [tmp_path / "best"], "test")


def test_what_is_written_reads_back(dataset, tmp_path):
    untrained(dataset, tmp_path / "best", seed=0)
    found = evaluate(dataset, [tmp_path / "best"], "test", device="cpu")
    write_metrics({**found.metrics, "corr": None}, tmp_path / "metrics" / "test.json")
    write_predictions(found.predictions, tmp_path / "predictions.parquet")
    assert json.loads((tmp_path / "metrics" / "test.json").read_text()) == {**found.metrics, "corr": None}
    assert pq.read_table(tmp_path / "predictions.parquet").equals(found.predictions)
    with pytest.raises(ValueError):
        write_metrics({"mae": float("nan")}, tmp_path / "metrics" / "test.json")
    assert json.loads((tmp_path / "metrics" / "test.json").read_text())["n"] == 8


def test_predictions_become_arrays_by_clip_and_seed():
    table = pa.table(
        {
            "clip_id": ["b", "a", "b", "a"],
            "label": pa.array([1.0, None, 1.0, None], pa.float32()),
            "prediction": pa.array([0.5, 2.0, 1.5, 4.0], pa.float32()),
            "prediction_without_text": pa.array([0.0, None, 2.0, None], pa.float32()),
        }
    )
    clips = ClipPredictions.of(table)
    assert clips.clip_ids == ("b", "a")
    np.testing.assert_array_equal(clips.label_N, [1.0, np.nan])
    np.testing.assert_array_equal(clips.prediction_SN, [[0.5, 2.0], [1.5, 4.0]])
    np.testing.assert_array_equal(clips.mean_N, [1.0, 3.0])
    np.testing.assert_array_equal(clips.without["text"], [1.0, np.nan])
    labelled = clips.labelled()
    assert labelled.clip_ids == ("b",) and labelled.without["text"].tolist() == [1.0]
    nothing = ClipPredictions.of(table.slice(0, 0))
    assert nothing.clip_ids == () and len(nothing.mean_N) == len(nothing.label_N) == 0


def test_an_evaluation_says_how_many_steps_each_clip_has(dataset, tmp_path):
    untrained(dataset, tmp_path / "best", seed=0)
    result = evaluate(dataset, [tmp_path / "best"], device="cpu")
    table = ClipTable.read(dataset, "test", 32)
    assert result.predictions["clip_id"].to_pylist() == list(table.clip_ids)
    for m in MODALITIES:
        np.testing.assert_array_equal(result.steps[m], table.lengths((m,))[:, 0])


def test_a_checkpoint_can_be_described_without_its_weights(dataset, tmp_path):
    untrained(dataset, tmp_path / "best", seed=3)
    (tmp_path / "best" / "model.safetensors").unlink()
    assert read_checkpoint_info(tmp_path / "best").seed == 3


def test_metrics_of_labels_that_are_all_equal_are_null_with_the_reason(dataset_writer, tmp_path):
    def all_ones(split, table):
        return table.set_column(table.column_names.index("label"), "label", pa.array(np.ones(len(table), np.float32)))

    dataset = dataset_writer(tmp_path / "data", clips={"train": 8, "valid": 4, "test": 6}, change=all_ones)
    for seed in (0, 1):
        untrained(dataset, tmp_path / f"{seed}", seed=seed)
    found = evaluate(dataset, [tmp_path / "0", tmp_path / "1"], "test", device="cpu").metrics
    assert found["mae"] > 0 and found["acc2_nn"] is None and found["acc2_nn_std"] is None
    assert found["undefined"]["acc2_nn"] == "all labels are of one class"
    assert found["undefined"]["corr"] == "all labels are equal" and "mae" not in found["undefined"]
    write_metrics(found, tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == found


def test_clips_without_any_of_the_modalities_measure_nothing(dataset_writer, tmp_path):
    dataset = dataset_writer(tmp_path / "data", change=drop_audio)
    untrained(dataset, tmp_path / "best", seed=0)
    found = evaluate(dataset, [tmp_path / "best"], "test", ["audio"], device="cpu").metrics
    assert {key for key, value in found.items() if value is not None} == {"n", "undefined"}
    assert set(found["undefined"].values()) == {"no clip has audio"}


def unit_dataset(dataset_writer, folder, **options):
    """A corpus with labels in [-1, 1], for the rest like `dataset`."""
    return dataset_writer(folder, label_range=(-1, 1), seed=3, **options)


def test_scores_are_mapped_to_the_label_range_of_another_corpus(dataset, dataset_writer, tmp_path):
    other = unit_dataset(dataset_writer, tmp_path / "other")
    network = untrained(dataset, tmp_path / "best", seed=0)
    with pytest.raises(ValueError, match=r"predicts labels in \[-3.0, 3.0\], the dataset has \[-1.0, 1.0\]"):
        evaluate(other, [tmp_path / "best"], "test", device="cpu")
    found = evaluate(other, [tmp_path / "best"], "test", device="cpu", other_corpus=True)
    table = ClipTable.read(other, "test", 32)
    expected = predict(network, table, MODALITIES) / 3
    np.testing.assert_allclose(found.predictions["prediction"], expected, atol=1e-6)
    without = predict(network, table, ("text", "audio")) / 3
    has = table.lengths(("vision",))[:, 0] > 0
    np.testing.assert_allclose(found.predictions["prediction_without_vision"].to_numpy()[has], without[has], atol=1e-6)
    measured = evaluate_metrics(found.predictions["prediction"].to_numpy(), table.labels, (-1.0, 1.0))
    assert {key: found.metrics[key] for key in measured} == measured and "acc2" in measured
    baselines = fit_baselines(other, "test").prediction["mean_label"]
    labels = pq.read_table(other / "train")["label"].to_numpy()
    assert baselines == pytest.approx(np.nanmean(labels), abs=1e-6), "of the other corpus's training split"
    assert found.metrics["baselines"]["mean_label"]["mae"] == pytest.approx(np.abs(baselines - table.labels).mean())
    assert found.label_map == LabelMap((-3.0, 3.0), (-1.0, 1.0)) and found.notes == ()
    assert found.speakers.tolist() == table.speakers.tolist()


def test_a_corpus_without_a_training_split_has_no_baselines_but_is_measured(dataset, dataset_writer, tmp_path):
    other = dataset_writer(tmp_path / "other", clips={"train": 4, "test": 8}, seed=3)
    (other / "train" / "part-00000.parquet").unlink()
    described = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(described | {"clips": {"test": 8}}))
    untrained(dataset, tmp_path / "best", seed=0)
    found = evaluate(other, [tmp_path / "best"], "test", device="cpu", other_corpus=True)
    assert found.metrics["mae"] > 0 and "verdict" not in found.metrics["baselines"]
    assert set(found.metrics["baselines"]["undefined"].values()) == {"the training split has no labelled clip"}


def test_what_differs_between_the_corpora_is_noted_and_other_features_are_refused(dataset, dataset_writer, tmp_path):
    other = dataset_writer(tmp_path / "other", seed=3)
    path = other / "dataset.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"language": "zh", "mask_invalid": [], "mode": "aligned"}))
    untrained(dataset, tmp_path / "best", seed=0)
    found = evaluate(other, [tmp_path / "best"], "test", device="cpu", other_corpus=True)
    assert found.notes == (
        "the transcripts are zh, those of the training en",
        "the modalities are aligned, those of the training unaligned",
        "invalid steps are hidden of no modality, in training of vision",
    )
    described["modalities"]["audio"]["signature"] = "audio.other-v1-111111111111"
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"trained on audio features audio\.synthetic.*audio\.other"):
        evaluate(other, [tmp_path / "best"], "test", device="cpu", other_corpus=True)


def test_audio_that_was_standardised_by_speaker_is_other_audio(dataset, tmp_path):
    untrained(dataset, tmp_path / "best", seed=0)
    untrained(dataset, tmp_path / "text", seed=0, modalities=("text",))
    standardised = replace(read_info(dataset), normalise_audio="speaker")
    with pytest.raises(ValueError, match=r"align.normalise_audio none, the dataset was aligned with speaker"):
        load_checkpoint(tmp_path / "best")[1].check_compatible(standardised)
    load_checkpoint(tmp_path / "text")[1].check_compatible(standardised)


@pytest.mark.parametrize(("source", "target"), [((-3.0, 3.0), (-1.0, 1.0)), ((-1.0, 1.0), (-3.0, 3.0))])
def test_label_ranges_are_mapped_end_to_end_and_back(source, target):
    scores = np.array([source[0], 0.0, source[1], 2 * source[1]], np.float32)
    found = LabelMap(source, target)(scores)
    np.testing.assert_allclose(found, [target[0], 0, target[1], 2 * target[1]], atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(LabelMap(target, source)(found), scores, atol=1e-6)
    assert LabelMap(source, source)(scores) is scores
