"""Intervals from errors on held-out clips: their coverage, and what a checkpoint keeps of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, ModelConfig, TrainConfig, subsets
from model.data.clips import ClipTable
from model.evaluation.inference import predict
from model.evaluation.intervals import (
    LEVELS,
    Errors,
    calibrate,
    conditional_rank,
    grouped_half_width,
    marginal_rank,
    order_statistic,
    split_half_width,
    subset_errors,
    subset_name,
)
from model.train import train

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
SHORT = TrainConfig(epochs=2, warmup_epochs=1, batch_size=8, learning_rate=2e-3, device="cpu")


@pytest.mark.parametrize("level", LEVELS)
def test_a_further_clip_is_covered_as_often_as_is_said(level):
    rng = np.random.default_rng(0)
    clips, trials = 60, 4000
    errors = np.abs(rng.standard_t(3, (trials, clips + 1)))
    covered = [row[-1] <= order_statistic(row[:-1], marginal_rank(clips, level)) for row in errors]
    exact = np.ceil((clips + 1) * level) / (clips + 1)  # of exchangeable errors without ties
    assert np.mean(covered) == pytest.approx(exact, abs=0.02) and exact >= level


def test_few_clips_promise_little():
    errors = np.arange(1.0, 10.0)
    assert (
        order_statistic(errors, marginal_rank(9, 0.9)) == 9.0 and order_statistic(errors, marginal_rank(9, 0.5)) == 5.0
    )
    assert marginal_rank(9, 0.95) is None and marginal_rank(0, 0.5) is None
    assert order_statistic(errors, None) is None
    assert conditional_rank(0, 0.5) is None and conditional_rank(9, 0.9) is None and conditional_rank(48, 0.95) == 48


@pytest.mark.parametrize("level", LEVELS)
def test_split_intervals_cover_in_nine_of_ten_draws_of_the_validation_clips(level):
    """The coverage of the k-th of n uniform errors is that error itself."""
    rng = np.random.default_rng(0)
    coverage = np.sort(rng.random((4000, 60)), axis=1)[:, conditional_rank(60, level) - 1]
    assert 0.89 < (coverage >= level).mean() < 0.99
    if conditional_rank(60, level) > 1:
        below = np.sort(rng.random((4000, 60)), axis=1)[:, conditional_rank(60, level) - 2]
        assert (below >= level).mean() < 0.91, "and it is the smallest such rank"


def test_ranks_of_many_clips_are_found_without_overflow():
    assert 90_000 < conditional_rank(100_000, 0.9) < 90_200


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
    assert found["0.8"] == pytest.approx(order_statistic(error, conditional_rank(len(rows), 0.8)), abs=1e-6)
    assert found["0.5"] < found["0.8"] and info.calibrated_by == {"method": "split"}
    assert "calibration" not in json.loads((result.last / "checkpoint.json").read_text())


def test_a_network_of_fewer_modalities_is_calibrated_for_these(dataset, tmp_path):
    result = train(dataset, tmp_path, SMALL, replace(SHORT, modalities=("audio",)), seed=0)
    network, info = load_checkpoint(result.best)
    assert [*info.calibration] == ["audio"]
    errors = subset_errors(network, ClipTable.read(dataset, "valid", 32), ("audio",))
    assert info.calibration == calibrate(errors, split_half_width)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_clips_of_a_further_speaker_are_covered_as_often_as_is_said(level):
    """Errors that are alike within a speaker, of whom some have more clips: plain ranks cover less."""
    rng = np.random.default_rng(0)
    by_speaker, by_clip = [], []
    for _ in range(400):
        sizes = rng.integers(2, 15, size=31)
        scale = np.exp(0.8 * rng.normal(size=31))
        speaker = np.repeat(np.arange(31), sizes)
        error = scale[speaker] * np.abs(rng.normal(size=len(speaker)))
        known = speaker < 30
        errors = Errors(error[known], speaker[known])
        plain = order_statistic(error[known], marginal_rank(int(known.sum()), level))
        by_speaker.append(np.mean(error[~known] <= grouped_half_width(errors, level)))
        by_clip.append(np.mean(error[~known] <= plain))
    assert level - 0.02 < np.mean(by_speaker) < level + 0.05
    assert np.mean(by_clip) < np.mean(by_speaker)


def test_one_clip_a_speaker_is_a_plain_rank_and_few_speakers_say_nothing_of_others():
    rng = np.random.default_rng(0)
    error = rng.random(50)
    for level in LEVELS:
        plain = np.sort(error)[int(np.ceil(50.5 * level)) - 1]
        assert grouped_half_width(Errors(error, np.arange(50)), level) == plain
        assert grouped_half_width(Errors(error, np.zeros(50)), level) == plain, "for further clips of this speaker"
    eight, nine = (Errors(error, np.arange(50) % speakers) for speakers in (8, 9))
    assert grouped_half_width(eight, 0.9) == np.sort(error)[45], "for further clips of these speakers"
    least = min(e for e in error if sum((error[nine.speaker_n == s] <= e).mean() for s in range(9)) >= 0.9 * 9.5)
    assert grouped_half_width(nine, 0.9) == least
    assert grouped_half_width(Errors(np.zeros(0), np.zeros(0)), 0.5) is None
