"""A network's own loss in training: added, reported, in float32, resumed exactly, the same for several processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoint.io import load_checkpoint
from model.config import ContrastiveConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.network.baselines.self_mm import SelfMMLoss
from model.network.registry import build_network
from model.train import runs_folder, train
from model.training.batch_planner import BatchPlanner
from model.training.mining import label_classes
from model.training.objective import LOSS_TERMS, Objective
from model.training.resume import STATE

SELF_MM = ModelConfig(name="self_mm", dim=16, max_positions=32)
MISA = ModelConfig(name="misa", dim=16, heads=4, max_positions=32)
CONFIG = TrainConfig(
    epochs=4,
    warmup_epochs=1,
    batch_size=5,
    accumulate=2,
    learning_rate=5e-3,
    modality_dropout=0.2,
    regression_loss="mae",
    device="cpu",
    checkpoint_minutes=0,
    contrastive=ContrastiveConfig(weight=0),
)


class KilledError(Exception):
    """Stands for the end of a process."""


class KillAt:
    """An observer that ends the run after a batch."""

    def __init__(self, epoch: int, done: int):
        self.at = epoch, done

    def on_batch(self, epoch, done, total):
        if (epoch, done) == self.at:
            raise KilledError

    def on_epoch(self, epoch, metrics):
        """Nothing."""


def state_of(scratch, dataset):
    (folder,) = runs_folder(scratch, dataset, SELF_MM, CONFIG).glob("seed-0")
    return torch.load(folder / STATE, weights_only=True)["auxiliary"]


def test_a_killed_run_resumes_with_the_state_of_its_loss_and_ends_as_an_unbroken_one(dataset, tmp_path):
    whole = train(dataset, tmp_path / "whole", SELF_MM, CONFIG, 0, None, tmp_path / "scratch-whole")
    for at in [(2, 3), (4, 2)]:  # within an update, and after one
        with pytest.raises(KilledError):
            train(dataset, tmp_path / "out", SELF_MM, CONFIG, 0, KillAt(*at), tmp_path / "scratch")
    resumed = train(dataset, tmp_path / "out", SELF_MM, CONFIG, 0, None, tmp_path / "scratch")
    assert resumed.resumed == (4, 2)
    for term in (*LOSS_TERMS[:2], "auxiliary"):
        assert [m[f"train_{term}"] for m in resumed.history] == [m[f"train_{term}"] for m in whole.history]
    assert [m["valid_mae"] for m in resumed.history] == [m["valid_mae"] for m in whole.history]
    expected, found = (state_of(tmp_path / name, dataset) for name in ("scratch-whole", "scratch"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    labels = found["labels_SN"]
    assert (labels[1:] != labels[0]).any(dim=1).all() and found["seen_SN"].any(dim=1).all()
    last = [load_checkpoint(tmp_path / name / "last")[0].state_dict() for name in ("whole", "out")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert not any("labels" in name or "seen" in name for name in last[0])


def test_the_loss_is_added_and_reported_by_networks_that_have_one(dataset, tmp_path):
    config = replace(CONFIG, epochs=2, accumulate=1, regression_loss="mse")
    for metrics in train(dataset, tmp_path / "misa", MISA, config, 0).history:
        total = metrics["train_regression"] + metrics["train_auxiliary"]
        assert metrics["train_loss"] == pytest.approx(total, rel=1e-6) and metrics["train_auxiliary"] > 0.1
    plain = train(dataset, tmp_path / "late", replace(MISA, name="late_fusion"), replace(config, epochs=1), 0)
    assert "train_auxiliary" not in plain.history[0]


def test_under_bf16_the_loss_is_computed_in_float32(dataset, tmp_path, monkeypatch):
    seen, forward = [], SelfMMLoss.forward

    def spy(self, tensors, rows_B, epoch):
        assert not torch.is_autocast_enabled("cpu")
        seen.extend(x.dtype for x in tensors.values())
        return forward(self, tensors, rows_B, epoch)

    monkeypatch.setattr(SelfMMLoss, "forward", spy)
    history = train(dataset, tmp_path, SELF_MM, replace(CONFIG, epochs=3, precision="bf16"), 0).history
    assert set(seen) == {torch.float32, torch.bool}
    assert all(np.isfinite(metrics["train_auxiliary"]) for metrics in history) and history[-1]["train_auxiliary"] > 0


@pytest.mark.parametrize("model", [SELF_MM, MISA], ids=lambda model: model.name)
@pytest.mark.parametrize("clips", [16, 7, 2])
def test_the_shares_of_a_batch_give_its_loss_gradient_and_state(dataset, monkeypatch, model, clips):
    """Three processes in turn, with the exchange between them put in: all of them, also one without a clip."""
    table = ClipTable.read(dataset, "train", model.max_positions)
    torch.manual_seed(0)
    network = build_network(replace(model, dropout=0.0), table.info).eval()  # a fusion layer has dropout of its own
    classes, config = label_classes(table.labels, (-3, 3)), replace(CONFIG, modality_dropout=0.0)
    rows = np.random.default_rng(0).permutation(len(table))[:clips]
    every = np.arange(len(table))

    def shared(processes, exchange):
        """Return each process's terms of an epoch's second batch, and its loss with its state."""
        terms, losses = [], []
        for rank in range(processes):
            loss = network.auxiliary_loss(table)
            with torch.no_grad():  # the first epoch, which all processes have seen alike
                loss(network(table.batch(every)).auxiliary, torch.from_numpy(every), 1)
            monkeypatch.setattr("model.training.objective._all_gather", exchange)
            objective = Objective(network, config, processes, loss)
            planner = BatchPlanner(table, classes, config, 0, rank, processes)
            for epoch in (2, 3):
                result = objective(planner.plan(rows, None, epoch, 0))
            terms.append(result)
            losses.append(loss)
        return terms, losses

    (whole,), (whole_loss,) = shared(1, None)
    given = []
    with torch.no_grad():
        shared(3, lambda own: given.append(own) or torch.stack([own] * 3))
    calls = iter(range(6))

    def exchange(own):
        here = next(calls) // 2  # two epochs of each process; the network stays
        return torch.stack([own if rank == here else given[2 * rank] for rank in range(3)])

    parts, losses = shared(3, exchange)
    for name, expected, found in zip(LOSS_TERMS, whole, torch.stack(parts).mean(0), strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-5), name
    for loss in losses:
        for name, buffer in loss.named_buffers():
            torch.testing.assert_close(buffer, whole_loss.get_buffer(name), rtol=1e-5, atol=1e-5)

    def gradient(term):
        found = torch.autograd.grad(term, list(network.parameters()), retain_graph=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    # Each process's gradient flows through its own rows alone; the exchange's backward pass sums those of all
    position = LOSS_TERMS.index("auxiliary")
    own = sum(gradient(part[position]) for part in parts)
    expected = gradient(whole[position])
    assert torch.allclose(own, expected, atol=1e-5) and expected.norm() > 1e-3
