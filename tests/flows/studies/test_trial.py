"""Trainings of a study: kept by what they depend on, and shown a split in several ways."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from flows.studies import trial
from flows.studies.trial import TRIALS, View, dropped_clips, is_trained, predict_views, train_trial, trial_folder
from model.checkpoint.io import load_checkpoint
from model.config import ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluation.inference import predict
from model.training.resume import RunStore

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
SHORT = TrainConfig(epochs=2, warmup_epochs=1, batch_size=8, learning_rate=2e-3, device="cpu")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Scratch with one finished training, and what it cost."""
    scratch = tmp_path_factory.mktemp("scratch")
    return scratch, train_trial(dataset, SMALL, SHORT, 0, scratch, "test")


def folder_of(dataset, trained, config=SHORT, seed=0):
    return trial_folder(trained[0], dataset, SMALL, config, seed)


def test_a_training_is_kept_by_all_that_it_depends_on(dataset, trained, dataset_writer, tmp_path):
    kept = folder_of(dataset, trained)
    assert is_trained(kept) and kept.is_relative_to(trained[0] / TRIALS)
    assert folder_of(dataset, trained, replace(SHORT, seeds=(0, 1, 2))) == kept, "the other seeds do not matter"
    others = [
        folder_of(dataset, trained, seed=1),
        folder_of(dataset, trained, replace(SHORT, epochs=3)),
        trial_folder(trained[0], dataset, replace(SMALL, anchor="audio"), SHORT, 0),
        folder_of(dataset_writer(tmp_path / "other", seed=9), trained),
    ]
    assert len({kept, *others}) == 5 and not any(map(is_trained, others))


def test_what_was_trained_is_not_trained_again(dataset, trained, monkeypatch):
    monkeypatch.setattr(trial, "train", lambda *_, **__: pytest.fail("trained again"))
    assert train_trial(dataset, SMALL, SHORT, 0, trained[0], "test") == trained[1]


def test_it_says_what_it_cost(dataset, trained):
    costs = trained[1]
    network, _ = load_checkpoint(folder_of(dataset, trained) / "best")
    assert costs["parameters"] == sum(p.numel() for p in network.parameters())
    assert 0 < costs["fusion_madds"] < costs["madds"] < 5
    assert 0 < costs["step_seconds"] < costs["train_seconds"]
    assert not list(trained[0].glob("training-*/seed-0")), "what a finished training would go on from is of no use"


def test_a_killed_training_goes_on_where_it_was(dataset, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    saves = []

    def save(self, state, best_epoch):
        RunStore_save(self, state, best_epoch)
        saves.append(state["position"][0])
        if len(saves) == 1:
            raise KilledError

    RunStore_save = RunStore.save
    monkeypatch.setattr(RunStore, "save", save)
    with pytest.raises(KilledError):
        train_trial(dataset, SMALL, SHORT, 0, tmp_path, "test")
    assert not is_trained(trial_folder(tmp_path, dataset, SMALL, SHORT, 0))
    train_trial(dataset, SMALL, SHORT, 0, tmp_path, "test")
    assert saves == [2, 3], "the second epoch alone was left"


def test_each_view_is_what_the_network_says_of_clips_shown_so(dataset, trained, dataset_writer, tmp_path):
    folder = folder_of(dataset, trained)
    other = dataset_writer(tmp_path / "other", seed=4)
    views = [View(dataset), View(dataset, show=("text", "vision")), View(dataset, drop=("audio", 0.5)), View(other)]
    found = predict_views(folder, views, "test", "cpu")
    network, _ = load_checkpoint(folder / "best")
    table = ClipTable.read(dataset, "test", 32)
    lost = dropped_clips(len(table), "audio", 0.5)
    whole, without = predict(network, table, ("text", "audio", "vision")), predict(network, table, ("text", "vision"))
    assert np.array_equal(found[0], whole) and np.array_equal(found[1], without)
    assert np.allclose(found[2], np.where(lost, without, whole), atol=1e-5) and 0 < lost.sum() < len(lost)
    assert not np.allclose(found[3], whole)
    shutil.rmtree(folder / "best")
    again = predict_views(folder, views, "test", "cpu")
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True)), "what was predicted is kept"


def test_a_network_that_never_saw_what_is_shown_is_refused(dataset, trained):
    alone = replace(SHORT, modalities=("audio",), epochs=1)
    train_trial(dataset, SMALL, alone, 0, trained[0], "test")
    with pytest.raises(ValueError, match=r"trained with audio cannot be shown text only: leave out"):
        predict_views(folder_of(dataset, trained, alone), [View(dataset, show=("text",))], "test", "cpu")


def test_clips_that_are_lost_at_a_share_are_lost_at_all_greater_ones():
    lost = [dropped_clips(40, "text", share) for share in (0, 0.25, 0.5, 1)]
    assert [int(rows.sum()) for rows in lost] == [0, 10, 20, 40]
    assert all((few <= more).all() for few, more in pairwise(lost))
    assert not np.array_equal(dropped_clips(40, "audio", 0.5), lost[2])
