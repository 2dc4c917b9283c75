"""Training runs on a tiny dataset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.checkpoint.io import load_checkpoint
from model.config import ContrastiveConfig, MiningConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluation.inference import predict
from model.network.dashfusion import DashFusion
from model.train import train
from model.training.batch_planner import BatchPlanner
from model.training.losses import supervised_loss
from model.training.mining import label_classes, mine
from model.training.objective import LOSS_TERMS, Objective
from model.training.optimizer import learning_rate_factor, parameter_groups
from tests.support.datasets import drop_audio

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
SHORT = TrainConfig(epochs=2, warmup_epochs=1, batch_size=8, device="cpu", mining=MiningConfig(refresh_epochs=1))


class Watcher:
    def __init__(self):
        self.batches, self.epochs = [], []

    def on_batch(self, epoch, done, total):
        self.batches.append((epoch, done, total))

    def on_epoch(self, epoch, metrics):
        self.epochs.append((epoch, metrics))


def without_times(history):
    measured = ("seconds", "clips_per_second", "steps_per_second", "peak_megabytes")
    return [{k: v for k, v in m.items() if k not in measured} for m in history]


def test_the_same_seed_gives_the_same_metrics_and_another_does_not(dataset, tmp_path):
    first = train(dataset, tmp_path / "a", SMALL, SHORT, seed=3)
    torch.randn(7)
    second = train(dataset, tmp_path / "b", SMALL, SHORT, seed=3)
    other = train(dataset, tmp_path / "c", SMALL, SHORT, seed=4)
    assert without_times(first.history) == without_times(second.history)
    assert without_times(first.history) != without_times(other.history)
    assert len(first.history) == 2


def test_the_first_epoch_does_not_depend_on_how_many_follow(dataset, tmp_path):
    short = train(dataset, tmp_path / "a", SMALL, SHORT, seed=0)
    longer = train(dataset, tmp_path / "b", SMALL, replace(SHORT, epochs=3), seed=0)
    assert without_times(short.history)[0] == without_times(longer.history)[0]


def test_the_learning_rate_rises_over_the_warm_up_epochs_and_falls_to_zero():
    config = replace(SHORT, epochs=6, warmup_epochs=2)
    rates = [learning_rate_factor(step / 5, 1 / 5, config) for step in range(31)]
    assert rates[:10] == pytest.approx(np.linspace(0.1, 1, 10))
    assert rates[10:] == pytest.approx(np.linspace(1, 0, 21))
    assert learning_rate_factor(0, 1 / 5, replace(SHORT, warmup_epochs=0)) == 1


def test_biases_norms_and_learned_vectors_do_not_decay(dataset):
    network = DashFusion(SMALL, ClipTable.read(dataset, "train", 32).info)
    decayed, spared = parameter_groups(network, SHORT)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-3, 0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    kinds = {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]}
    assert kinds == {"weight", "positions"}
    norms = [m.weight for m in network.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {id(p) for p in norms} <= {id(p) for p in spared["params"]}


def test_partners_are_mined_anew_every_so_many_epochs(dataset, tmp_path, monkeypatch):
    watcher, mined = Watcher(), []
    monkeypatch.setattr("model.train.mine", lambda *args: mined.append(len(watcher.epochs) + 1) or mine(*args))
    config = replace(SHORT, epochs=5, patience=5, mining=MiningConfig(refresh_epochs=2))
    train(dataset, tmp_path, SMALL, config, 0, watcher)
    assert mined == [1, 3, 5]


def test_the_observer_sees_every_batch_and_epoch(dataset, tmp_path):
    watcher = Watcher()
    result = train(dataset, tmp_path, SMALL, SHORT, 0, watcher)
    assert watcher.batches == [(e, b, 3) for e in (1, 2) for b in (1, 2, 3)]
    assert [metrics for _, metrics in watcher.epochs] == list(result.history)
    for metrics in result.history:
        total = metrics["train_regression"] + 0.2 * (metrics["train_semantic"] + metrics["train_supervised"])
        assert metrics["train_loss"] == pytest.approx(total, rel=1e-5)
        assert metrics["train_semantic"] > 0 and metrics["train_supervised"] > 0
        assert {"valid_mae", "valid_acc2", "learning_rate", "seconds", "clips_per_second"} <= set(metrics)
        assert metrics["steps_per_second"] > metrics["clips_per_second"] and metrics["peak_megabytes"] > 50


@torch.inference_mode()
def test_partners_are_compared_as_the_clips_that_were_drawn(dataset):
    """Against embeddings of the whole split at once, in its own order."""
    torch.manual_seed(0)
    clips = ClipTable.read(dataset, "train", SMALL.max_positions)
    network = DashFusion(SMALL, clips.info).eval()
    streams = network.embed(clips.batch(np.arange(len(clips)))).streams
    together = torch.cat([streams["text"], streams["audio"], streams["vision"]], dim=1)
    classes = label_classes(clips.labels, (-3, 3))
    partners = mine(together, classes, SHORT.mining)
    rows = np.array([9, 2, 17, 4])
    rank_batch = BatchPlanner(clips, classes, SHORT, seed=1).plan(rows, partners, epoch=5, number=3)
    found = Objective(network, SHORT)(rank_batch)[LOSS_TERMS.index("supervised")]

    drawn, valid = partners.draw(np.random.default_rng((1, 5, 1, 3)), rows)
    order = np.concatenate([rows, np.setdiff1d(np.arange(len(clips)), rows)])
    expected = supervised_loss(
        network.embed(clips.batch(order)),
        len(rows),
        torch.from_numpy(np.argsort(order)[drawn]),
        torch.from_numpy(valid),
        positives=2,
        temperature=0.5,
    )
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    encoded = len(rows) + sum(len(chunk) for chunk in rank_batch.partner_chunks)
    assert encoded == len(np.union1d(rows, drawn[valid])) < drawn.size  # each distinct clip once


def test_the_best_checkpoint_is_that_of_the_lowest_validation_error(dataset, tmp_path):
    config = replace(SHORT, epochs=6, patience=6, learning_rate=0.02)
    result = train(dataset, tmp_path, SMALL, config, seed=0)
    errors = [metrics["valid_mae"] for metrics in result.history]
    assert result.best_epoch == int(np.argmin(errors)) + 1
    network, info = load_checkpoint(result.best)
    assert (info.epoch, info.metrics["valid_mae"]) == (result.best_epoch, min(errors))
    valid = ClipTable.read(dataset, "valid", 32)
    error = np.abs(predict(network, valid, config.modalities) - valid.labels).mean()
    assert error == pytest.approx(min(errors), abs=1e-6)
    assert load_checkpoint(result.last)[1].epoch == 6


def test_training_stops_when_patience_is_spent(dataset, tmp_path):
    config = replace(SHORT, epochs=40, patience=2, learning_rate=0.05, contrastive=ContrastiveConfig(weight=0))
    result = train(dataset, tmp_path, SMALL, config, seed=0)
    assert len(result.history) == result.best_epoch + 2 < 40


@pytest.mark.parametrize("modality", ["text", "audio", "vision"])
def test_a_single_modality_trains_and_the_others_do_not_matter(dataset, tmp_path, modality):
    config = replace(SHORT, modalities=(modality,))
    result = train(dataset, tmp_path, SMALL, config, seed=0)
    assert all(metrics["train_semantic"] == 0 < metrics["train_supervised"] for metrics in result.history)


def test_a_contrastive_weight_of_zero_leaves_regression_alone(dataset, tmp_path):
    result = train(dataset, tmp_path, SMALL, replace(SHORT, contrastive=ContrastiveConfig(weight=0)), seed=0)
    assert all(m["train_semantic"] == m["train_supervised"] == 0 for m in result.history)
    assert all(m["train_loss"] == m["train_regression"] > 0 for m in result.history)


def test_unit_range_labels_train(dataset_writer, tmp_path):
    root = dataset_writer(tmp_path / "data", label_range=(-1, 1))
    result = train(root, tmp_path / "out", SMALL, SHORT, seed=0)
    assert "valid_acc2" in result.history[-1]


def test_clips_without_a_label_are_left_out_and_counted(dataset_writer, tmp_path):
    def unlabel(split: str, table: pa.Table) -> pa.Table:
        labels = [None, None, *table["label"].to_pylist()[2:]]
        return table.set_column(table.column_names.index("label"), "label", pa.array(labels, pa.float32()))

    root = dataset_writer(tmp_path / "data", change=unlabel)
    result = train(root, tmp_path / "out", SMALL, SHORT, seed=0)
    assert result.unlabelled == 2
    assert np.isfinite(result.history[-1]["valid_mae"])


def test_half_precision_trains_to_nearly_the_same_numbers(dataset, tmp_path):
    full = train(dataset, tmp_path / "a", SMALL, replace(SHORT, precision=32), seed=0).history[-1]
    half = train(dataset, tmp_path / "b", SMALL, replace(SHORT, precision="bf16"), seed=0).history[-1]
    assert half["train_loss"] != full["train_loss"]
    for name in ("train_regression", "train_semantic", "train_supervised", "valid_mae"):
        assert half[name] == pytest.approx(full[name], rel=0.1)


def test_accumulated_batches_update_as_one(dataset, tmp_path):
    """Without what hangs on a batch's company, 4 batches of 6 are one of 24."""
    alone = replace(SHORT, epochs=3, batch_size=24, contrastive=ContrastiveConfig(weight=0))
    model = replace(SMALL, dropout=0.0)
    whole = train(dataset, tmp_path / "a", model, alone, seed=0).history
    parts = train(dataset, tmp_path / "b", model, replace(alone, batch_size=6, accumulate=4), seed=0).history
    for one, other in zip(without_times(whole), without_times(parts), strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_an_empty_validation_split_is_refused(dataset_writer, tmp_path):
    root = dataset_writer(tmp_path / "data", clips={"train": 24, "valid": 0, "test": 4})
    with pytest.raises(ValueError, match="the valid split has no clips"):
        train(root, tmp_path / "out", SMALL, SHORT, seed=0)


def test_a_split_without_any_of_the_modalities_is_refused_and_a_lack_of_one_is_warned_of(
    dataset_writer, tmp_path, caplog
):
    root = dataset_writer(tmp_path / "data", change=drop_audio)
    with pytest.raises(ValueError, match="no labelled clip of the train split has audio"):
        train(root, tmp_path / "out", SMALL, replace(SHORT, modalities=("audio",)), seed=0)
    train(root, tmp_path / "out", SMALL, replace(SHORT, epochs=1, warmup_epochs=0), seed=0)
    assert [r.message for r in caplog.records if "no clip has audio" in r.message]


def test_a_loss_that_is_not_finite_names_the_clips(dataset, tmp_path, monkeypatch):
    forward = DashFusion.forward

    def diverge(self, batch):
        output = forward(self, batch)
        return replace(output, prediction=output.prediction * float("inf"))

    monkeypatch.setattr(DashFusion, "forward", diverge)
    with pytest.raises(FloatingPointError, match=r"train/\d{4}, train/\d{4}"):
        train(dataset, tmp_path, SMALL, SHORT, seed=0)


def test_a_device_that_is_not_there_is_refused(dataset, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match="use auto or cpu"):
        train(dataset, tmp_path, SMALL, replace(SHORT, device="cuda"), seed=0)
