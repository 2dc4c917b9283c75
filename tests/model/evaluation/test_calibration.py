"""Intervals from errors on held-out clips: their coverage, and what a checkpoint keeps of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, ModelConfig, TrainConfig, subsets
from model.data.clips import ClipTable
from model.evaluation.calibration import LEVELS, calibrate, coverage, half_width, mean_widths, reliability, subset_name
from model.evaluation.inference import predict
from model.train import train

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
SHORT = TrainConfig(epochs=2, warmup_epochs=1, batch_size=8, learning_rate=2e-3, device="cpu")


@pytest.mark.parametrize("level", LEVELS)
def test_a_further_clip_is_covered_as_often_as_is_said(level):
    rng = np.random.default_rng(0)
    clips, trials = 60, 4000
    errors = np.abs(rng.standard_t(3, (trials, clips + 1)))
    covered = [row[-1] <= half_width(row[:-1], level) for row in errors]
    exact = np.ceil((clips + 1) * level) / (clips + 1)  # of exchangeable errors without ties
    assert np.mean(covered) == pytest.approx(exact, abs=0.02) and exact >= level


def test_few_clips_promise_little():
    errors = np.arange(1.0, 10.0)
    assert half_width(errors, 0.9) == 9.0 and half_width(errors, 0.5) == 5.0
    assert half_width(errors, 0.95) is None and half_width(np.zeros(0), 0.5) is None


def test_subsets_come_from_the_largest_to_the_smallest():
    names = [subset_name(chosen) for chosen in subsets(("vision", "text", "audio"))]
    assert names == ["text+audio+vision", "text+audio", "text+vision", "audio+vision", "text", "audio", "vision"]
    assert subsets(("audio",)) == [("audio",)]


def test_a_trained_checkpoint_knows_how_far_it_is_off_for_every_subset(dataset_writer, tmp_path):
    dataset = dataset_writer(tmp_path / "data", clips={"train": 24, "valid": 40, "test": 4})
    result = train(dataset, tmp_path / "out", SMALL, SHORT, seed=0)
    network, info = load_checkpoint(result.best)
    valid = ClipTable.read(dataset, "valid", 32)
    assert [*info.calibration] == [subset_name(chosen) for chosen in subsets(MODALITIES)]
    shown = ("text", "vision")
    rows = np.flatnonzero((valid.lengths(shown) > 0).all(axis=1))
    error = np.abs(predict(network, valid.select(rows), shown) - valid.labels[rows])
    found = info.calibration["text+vision"]
    assert found["n"] == len(rows) < 40
    assert found["0.8"] == pytest.approx(half_width(error, 0.8), abs=1e-6)
    assert found["0.5"] < found["0.9"] < found["0.95"] or found["0.95"] is None
    assert "calibration" not in json.loads((result.last / "checkpoint.json").read_text())


def test_a_network_of_fewer_modalities_is_calibrated_for_these(dataset, tmp_path):
    result = train(dataset, tmp_path, SMALL, replace(SHORT, modalities=("audio",)), seed=0)
    network, info = load_checkpoint(result.best)
    assert [*info.calibration] == ["audio"]
    assert info.calibration == calibrate(network, ClipTable.read(dataset, "valid", 32), ("audio",))


def test_coverage_is_the_share_of_clips_inside_their_own_subsets_interval():
    widths = {
        "text": {"n": 9, "0.5": 1.0, "0.8": 2.0, "0.9": None},
        "audio": {"n": 9, "0.5": 0.1, "0.8": 0.1, "0.9": 1},
    }
    label = np.zeros(4)
    prediction_SN = np.array([[0.5, 1.5, 0.05, 0.5]])
    found = {
        entry.level: entry for entry in coverage([widths], ["text", "text", "audio", "audio"], prediction_SN, label)
    }
    assert (found[0.5].clips, found[0.5].share) == (4, 0.5)
    assert found[0.8].share == 0.75
    assert (found[0.9].clips, found[0.9].share) == (2, 1.0), "text has no interval of that level"
    assert (found[0.95].clips, found[0.95].share, found[0.95].interval) == (0, None, None)
    low, high = found[0.5].interval
    assert low < 0.5 < high


def test_coverage_of_several_seeds_is_their_mean():
    seeds = [{"text": {"n": 9, "0.5": 1.0}}, {"text": {"n": 9, "0.5": 3.0}}]
    found = coverage(seeds, ["text"] * 3, np.array([[2.0, 2.0, 0.5], [2.0, 2.0, 4.0]]), np.zeros(3))[0]
    assert found.share == pytest.approx(3 / 6)
    assert mean_widths(seeds) == {"text": {"n": 9, "0.5": 2.0, "0.8": None, "0.9": None, "0.95": None}}
    assert mean_widths([]) == {}


def test_conformal_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    errors = rng.normal(size=5000)
    widths = {"text": {"n": 2000, **{f"{level:g}": half_width(np.abs(errors[:2000]), level) for level in LEVELS}}}
    label = rng.uniform(-3, 3, 3000)
    for entry in coverage([widths], ["text"] * 3000, (label + errors[2000:])[None], label):
        assert entry.share == pytest.approx(entry.level, abs=0.03)
        assert entry.interval[0] < entry.share < entry.interval[1]


def test_bins_hold_equal_numbers_of_neighbouring_predictions():
    rng = np.random.default_rng(0)
    prediction = rng.permutation(np.linspace(-2, 2, 100))
    bins = reliability(prediction, 0.5 * prediction + 1)
    assert [entry.clips for entry in bins] == [10] * 10
    means = [entry.prediction for entry in bins]
    assert means == sorted(means)
    for entry in bins:
        assert entry.label == pytest.approx(0.5 * entry.prediction + 1)
        assert entry.interval[0] < entry.label < entry.interval[1]
    assert len(reliability(prediction[:20], prediction[:20])) == 2
    assert reliability(prediction[:7], prediction[:7]) == []
