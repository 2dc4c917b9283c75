"""Intervals from networks that were trained without some speakers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from model.checkpoint.io import load_checkpoint
from model.checkpoint.model_card import CARD
from model.config import MODALITIES, IntervalConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluation.cv_plus import FOLDS, cv_plus_bounds, cv_plus_intervals, read_fold_networks
from model.evaluation.inference import predict
from model.evaluation.intervals import Errors, grouped_half_width
from model.intervals import ERRORS, calibrate_checkpoints, plan_folds, train_fold
from model.predict import Predictor
from model.train import train
from model.training import resume

FIELDS = ("error_n", "speaker_n")
SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, fusion_layers=1, max_positions=32)
SHORT = TrainConfig(
    epochs=2, warmup_epochs=1, batch_size=8, learning_rate=2e-3, device="cpu", intervals=IntervalConfig(folds=3)
)


def with_speakers(count):
    """A change of a dataset: `count` speakers of the training split and two of the validation split, by turns."""

    def change(split, table):
        names = count if split == "train" else 2
        return table.append_column("speaker", pa.array([f"{split} {i % names}" for i in range(len(table))]))

    return change


@pytest.fixture
def dataset(dataset_writer, tmp_path):
    return dataset_writer(tmp_path / "data", change=with_speakers(4))


def test_every_clip_has_an_error_of_a_network_that_was_trained_without_its_speaker(dataset, tmp_path):
    result = train(dataset, tmp_path / "out", SMALL, SHORT, seed=0)
    trainings = plan_folds(dataset, SMALL, SHORT, 0, len(result.history), tmp_path / "scratch")
    assert len(trainings.folds) == 3 and trainings.speakers == 6
    assert (trainings.config.epochs, trainings.config.contrastive.scope) == (1, "in_batch")
    errors = [train_fold(trainings, fold) for fold in trainings.folds]
    calibrate_checkpoints([result.best], trainings, errors)
    _, info = load_checkpoint(result.best)
    assert info.calibrated_by == {"method": "grouped_cv", "folds": 3, "epochs": 1, "seed": 0, "speakers": 6}
    assert info.density, "the outlier test stays"
    merged = Errors(*(np.concatenate([getattr(fold["audio"], name) for fold in errors]) for name in FIELDS))
    assert info.calibration["audio"]["n"] == len(merged.error_n) < 32 == 24 + 8
    assert len(set(merged.speaker_n)) == 6
    assert info.calibration["audio"]["0.8"] == grouped_half_width(merged, 0.8)
    assert "6 speakers that 3 further networks were trained without" in (result.best / CARD).read_text()
    trainings.forget()
    assert not any(trainings.folder(fold).exists() for fold in trainings.folds)


def test_cv_plus_keeps_the_networks_in_the_checkpoint_and_scores_with_them(dataset, tmp_path):
    config = replace(SHORT, intervals=replace(SHORT.intervals, method="cv_plus"))
    best = train(dataset, tmp_path / "out", SMALL, config, seed=0).best
    trainings = plan_folds(dataset, SMALL, config, 0, 2, tmp_path / "scratch")
    errors = [train_fold(trainings, fold) for fold in trainings.folds]
    calibrate_checkpoints([best], trainings, errors)
    trainings.forget()
    assert load_checkpoint(best)[1].calibrated_by["method"] == "cv_plus"
    assert "Intervals are CV+" in (best / CARD).read_text()

    predictor = Predictor.load(best, device="cpu")
    shown = MODALITIES
    table = ClipTable.read(dataset, "test", SMALL.max_positions)
    row = int(np.flatnonzero((table.lengths(shown) > 0).all(axis=1))[0])
    features, masks = {}, {}
    for m in shown:
        values, start, length = table.sequences[m], table.sequences[m].starts[row], table.sequences[m].lengths[row]
        features[m], masks[m] = values.values[start : start + length], values.visible[start : start + length]
    networks = read_fold_networks(best, load_checkpoint(best)[0])
    assert len(networks.networks) == 3
    clip = table.select(np.array([row]))
    prediction_K1 = np.array([predict(network, clip, shown) for network in networks.networks], np.float64)
    assert len(set(prediction_K1[:, 0])) == 3
    merged = Errors.join([fold["text+audio+vision"] for fold in errors])
    (low,), (high,) = cv_plus_bounds(prediction_K1, merged, 0.5)
    score = predictor.from_features(features, masks=masks, level=0.5).score
    assert score.interval.low == pytest.approx(max(-3, min(low, score.value)), abs=1e-5)
    assert score.interval.high == pytest.approx(min(3, max(high, score.value)), abs=1e-5)

    found = cv_plus_intervals(best, dataset, "test", [table.clip_ids[row]], ["text+audio+vision"], "cpu")[0.5]
    assert found[0][0] == pytest.approx(low) and found[1][0] == pytest.approx(high)

    weights = best / FOLDS / "1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match=r"folds/1.safetensors: damaged or replaced"):
        Predictor.load(best, device="cpu")


def test_a_finished_fold_is_not_trained_again_and_a_killed_one_resumes(dataset, tmp_path, monkeypatch):
    trainings = plan_folds(dataset, SMALL, SHORT, 0, 4, tmp_path / "scratch")
    first, second = trainings.folds[:2]
    errors = train_fold(trainings, first)
    expected = train_fold(trainings, second)
    (trainings.folder(second) / ERRORS).unlink()
    for path in (trainings.folder(second)).glob("*"):
        if path.name.startswith("state"):
            path.unlink()
    monkeypatch.setattr("model.intervals.train", lambda *a, **k: pytest.fail("trained again"))
    again = train_fold(trainings, first)
    assert errors.keys() == again.keys() and all((errors[s].error_n == again[s].error_n).all() for s in errors)
    monkeypatch.undo()

    class KilledError(Exception):
        pass

    def save_and_stop(self, state, best_epoch):
        save(self, state, best_epoch)
        raise KilledError

    save = resume.RunStore.save
    monkeypatch.setattr(resume.RunStore, "save", save_and_stop)
    with pytest.raises(KilledError):
        train_fold(trainings, second)
    monkeypatch.undo()
    resumed = train_fold(trainings, second)
    for subset in expected:
        np.testing.assert_array_equal(resumed[subset].error_n, expected[subset].error_n)


def test_a_fold_is_of_both_splits_and_trains_on_all_other_clips(dataset, tmp_path):
    trainings = plan_folds(dataset, SMALL, SHORT, 0, 2, tmp_path / "scratch")
    fold = trainings.folds[0]
    out = tmp_path / "fold"
    result = train(dataset, out, SMALL, trainings.config, 0, fold=fold)
    description = json.loads((result.last / "checkpoint.json").read_text())
    assert "calibration" not in description and not (result.last / CARD).exists()
    assert description["epoch"] == 1


@pytest.mark.parametrize("speakers", [1, 24])
def test_one_speaker_and_one_clip_a_speaker(dataset_writer, tmp_path, speakers):
    def change(split, table):
        names = [f"{i}" if speakers > 1 else "Ann" for i in range(len(table))]
        return table.append_column("speaker", pa.array([name if speakers == 1 else split + name for name in names]))

    dataset = dataset_writer(tmp_path / "data", change=change)
    trainings = plan_folds(dataset, SMALL, SHORT, 0, 2, tmp_path / "scratch")
    assert len(trainings.folds) == 3 and trainings.speakers == (1 if speakers == 1 else 32)
    errors = train_fold(trainings, trainings.folds[0])
    assert len(errors["text+audio+vision"].error_n) > 0


def test_more_folds_than_speakers_and_hardly_any_clips(dataset_writer, tmp_path):
    dataset = dataset_writer(tmp_path / "data", clips={"train": 2, "valid": 1, "test": 1}, change=with_speakers(1))
    trainings = plan_folds(
        dataset, SMALL, replace(SHORT, intervals=IntervalConfig(folds=5)), 0, 2, tmp_path / "scratch"
    )
    assert len(trainings.folds) == 2
    errors = [train_fold(trainings, fold) for fold in trainings.folds]
    checkpoint = train(dataset, tmp_path / "out", SMALL, SHORT, seed=0).best
    calibrate_checkpoints([checkpoint], trainings, errors)
    _, info = load_checkpoint(checkpoint)
    assert info.calibration["text+audio"]["n"] <= 3 and info.calibration["text+audio"]["0.9"] is None
    before = info.calibration
    calibrate_checkpoints([checkpoint], trainings, [])
    assert load_checkpoint(checkpoint)[1].calibration == before, "without errors the intervals stay"


def test_the_budget_can_be_set_and_needs_no_more_than_two_folds():
    with pytest.raises(ValueError, match=r"train.intervals.folds is 1"):
        IntervalConfig(folds=1)
    with pytest.raises(ValueError, match=r"train.intervals.method"):
        IntervalConfig(method="conformal")  # type: ignore[arg-type]


def test_unlabelled_validation_clips_are_refused_as_in_training(dataset_writer, tmp_path):
    def unlabelled(split, table):
        index = table.schema.get_field_index("label")
        return table.set_column(index, "label", pa.nulls(len(table), pa.float32()))

    dataset = dataset_writer(tmp_path / "data", change=unlabelled)
    with pytest.raises(ValueError, match="training needs labelled clips"):
        plan_folds(dataset, SMALL, SHORT, 0, 2, tmp_path / "scratch")
