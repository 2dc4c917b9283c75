"""Runs that are killed go on where they were, and processes that share a run compute what one would."""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint.io import load_checkpoint
from model.config import ContrastiveConfig, MiningConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.network.dashfusion import DashFusion
from model.train import forget_run, train
from model.training.batch_planner import BatchPlanner
from model.training.mining import label_classes, mine
from model.training.objective import LOSS_TERMS, Objective
from model.training.resume import run_signature

ROOT = Path(__file__).parents[3]
SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, fusion_layers=1, max_positions=32)
EXACT = TrainConfig(
    epochs=3,
    warmup_epochs=1,
    batch_size=5,
    device="cpu",
    checkpoint_minutes=0,
    mining=MiningConfig(refresh_epochs=2),
)
MEASURED = ("seconds", "clips_per_second", "steps_per_second", "peak_megabytes")

RUN = """
import json, os, pickle, sys
from pathlib import Path
import torch
from model.train import train

torch.set_num_threads(1)
dataset, out, scratch, settings = sys.argv[1:]
model, config = pickle.loads(bytes.fromhex(settings))

class Diary:
    def on_batch(self, epoch, done, total):
        print("batch", epoch, done, flush=True)
    def on_epoch(self, epoch, metrics):
        print("epoch", epoch, flush=True)

result = train(Path(dataset), Path(out), model, config, 0, Diary(), Path(scratch) if scratch else None)
if os.environ.get("RANK", "0") == "0":  # every process of a run has the history; two that write one file mix it
    Path(out, "history.json").write_text(json.dumps(list(result.history)))
"""


class KilledError(Exception):
    """Stands for the end of a process."""


class KillAt:
    """An observer that ends the run at a batch, as late as it can: after the save, before the next step."""

    def __init__(self, epoch: int, done: int):
        self.at, self.batches, self.epochs = (epoch, done), [], []

    def on_batch(self, epoch, done, total):
        self.batches.append((epoch, done))
        if (epoch, done) == self.at:
            raise KilledError

    def on_epoch(self, epoch, metrics):
        self.epochs.append(epoch)


class KillAtOnce(KillAt):
    """Ends the run at the first batch that it computes."""

    def __init__(self):
        super().__init__(0, 0)

    def on_batch(self, epoch, done, total):
        self.batches.append((epoch, done))
        raise KilledError


def first_batch(dataset, out, scratch, model=SMALL, config=EXACT, seed=0):
    """Which batch a training begins with: (1, 1) unless it goes on from an earlier one."""
    killer = KillAtOnce()
    with pytest.raises(KilledError):
        train(dataset, out, model, config, seed, killer, scratch)
    return killer.batches[0]


def numbers(history):
    return [{k: v for k, v in m.items() if k not in MEASURED} for m in history]


def weights(folder):
    return load_checkpoint(folder)[0].state_dict()


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """Trains without a kill, once for each configuration; the result and its folder, only to be read."""

    @functools.cache
    def run(config):
        out = tmp_path_factory.mktemp("whole")
        return train(dataset, out, SMALL, config, 0), out

    return run


@pytest.mark.parametrize(
    ("change", "at", "goes_on"),
    [
        ({}, (1, 1), (1, 1)),
        ({}, (2, 4), (2, 4)),
        ({}, (2, 5), (2, 4)),  # the epoch's last batch is saved with the epoch
        ({}, (3, 2), (3, 2)),
        ({"accumulate": 2, "batch_tokens": 200}, (2, 3), (2, 2)),  # saved after an update alone
        ({"contrastive": ContrastiveConfig(scope="in_batch")}, (2, 3), (2, 3)),
        ({"checkpoint_minutes": 9}, (3, 3), (3, 0)),
    ],
)
def test_a_killed_run_goes_on_with_the_next_batch_and_ends_with_the_same_metrics(
    dataset, undisturbed, tmp_path, change, at, goes_on
):
    config = replace(EXACT, **change)
    whole, folder = undisturbed(config)
    killer = KillAt(*at)
    with pytest.raises(KilledError):
        train(dataset, tmp_path / "out", SMALL, config, 0, killer, tmp_path / "scratch")
    watcher = KillAt(0, 0)
    taken_up = train(dataset, tmp_path / "out", SMALL, config, 0, watcher, tmp_path / "scratch")
    assert numbers(taken_up.history) == numbers(whole.history)
    for which in ("best", "last"):
        expected, found = weights(folder / which), weights(tmp_path / "out" / which)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert taken_up.resumed == goes_on
    assert watcher.epochs == [1, 2, 3]
    assert watcher.batches[0] == (goes_on[0], goes_on[1] + 1)


def test_what_the_stage_removed_is_there_again_and_an_ended_run_is_not_repeated(dataset, tmp_path):
    first = train(dataset, tmp_path / "a", SMALL, EXACT, 0, None, tmp_path / "scratch")
    watcher = KillAt(0, 0)
    second = train(dataset, tmp_path / "b", SMALL, EXACT, 0, watcher, tmp_path / "scratch")
    assert watcher.batches == [] and watcher.epochs == [1, 2, 3]
    assert second.history == first.history and second.best_epoch == first.best_epoch
    for which in ("best", "last"):
        _, expected = load_checkpoint(tmp_path / "a" / which)
        _, found = load_checkpoint(tmp_path / "b" / which)
        assert found == expected
        assert all(torch.equal(a, b) for a, b in zip(
            weights(tmp_path / "a" / which).values(), weights(tmp_path / "b" / which).values(), strict=True
        ))  # fmt: skip
    forget_run(tmp_path / "scratch", dataset, SMALL, EXACT)
    assert first_batch(dataset, tmp_path / "c", tmp_path / "scratch") == (1, 1)


def test_a_run_that_ends_forgets_its_own_seeds_and_no_others(dataset, tmp_path):
    scratch = tmp_path / "scratch"
    for seed in (0, 1):
        with pytest.raises(KilledError):
            train(dataset, tmp_path / str(seed), SMALL, EXACT, seed, KillAt(1, 2), scratch)
    forget_run(scratch, dataset, SMALL, replace(EXACT, seeds=(0,)))
    assert first_batch(dataset, tmp_path / "1", scratch, seed=1) == (1, 3)
    assert first_batch(dataset, tmp_path / "0", scratch) == (1, 1)
    forget_run(scratch, dataset, SMALL, replace(EXACT, seeds=(0, 1)))
    assert not list(scratch.glob("training-*"))


@pytest.mark.parametrize("what", ["dataset", "model", "train"])
def test_another_dataset_or_setting_never_goes_on_from_this_state(dataset_writer, tmp_path, what):
    root = dataset_writer(tmp_path / "data")
    before = run_signature(root, SMALL, EXACT)
    with pytest.raises(KilledError):
        train(root, tmp_path / "out", SMALL, EXACT, 0, KillAt(1, 2), tmp_path / "scratch")
    assert run_signature(root, SMALL, replace(EXACT, seeds=(0, 1), checkpoint_minutes=9)) == before
    model, config = SMALL, EXACT
    if what == "dataset":
        dataset_writer(root, seed=1)
    elif what == "model":
        model = replace(SMALL, dropout=0.2)
    else:
        config = replace(EXACT, learning_rate=1e-3)
    assert run_signature(root, model, config) != before
    assert first_batch(root, tmp_path / "out", tmp_path / "scratch", model, config) == (1, 1)


@pytest.mark.parametrize("scope", ["retrieved", "in_batch"])
@pytest.mark.parametrize("clips", [16, 7, 2])
def test_the_shares_of_a_batch_add_up_to_its_loss_and_gradient(dataset, monkeypatch, scope, clips):
    """Three processes in turn, with the exchange between them put in: all of them, also one without a clip."""
    table = ClipTable.read(dataset, "train", SMALL.max_positions)
    labels = np.where(np.arange(len(table))[:, None] % 4 == 3, np.nan, table.labels[:, None] + np.arange(3) / 8)
    table = replace(table, unimodal_labels=labels.astype(np.float32))
    config = replace(EXACT, contrastive=ContrastiveConfig(scope=scope))
    torch.manual_seed(0)
    network = DashFusion(replace(SMALL, dropout=0.0, unimodal_heads=True), table.info)
    classes = label_classes(table.labels, (-3, 3))
    partners = mine(torch.randn(len(table), 4), classes, config.mining) if scope == "retrieved" else None
    rows = np.random.default_rng(0).permutation(len(table))[:clips]

    def shared(processes, exchange):
        monkeypatch.setattr("model.training.objective._all_gather", exchange)
        objective = Objective(network, config, processes)
        planners = [BatchPlanner(table, classes, config, 0, rank, processes) for rank in range(processes)]
        return [objective(planner.plan(rows, partners, 1, 0)) for planner in planners]

    whole, given = shared(1, None)[0], []
    with torch.no_grad():
        shared(3, lambda own: given.append(own) or torch.stack([own] * 3))
    calls = iter(range(3))

    def exchange(own):
        here = next(calls)
        return torch.stack([own if rank == here else rows for rank, rows in enumerate(given)])

    parts = shared(3, exchange)
    assert len({tuple(rows.shape) for rows in given}) == 1
    for name, expected, found in zip(LOSS_TERMS, whole, torch.stack(parts).mean(0), strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-5), name

    # Here each process's gradient flows through its own rows alone; the exchange's backward pass sums those of all.
    def gradient(loss):
        found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    def regressed(part):
        return part[LOSS_TERMS.index("regression")] + config.unimodal_weight * part[LOSS_TERMS.index("unimodal")]

    assert whole[LOSS_TERMS.index("unimodal")] > 0
    regression = sum(gradient(regressed(part)) for part in parts)
    contrastive = sum(gradient(part[0]) for part in parts) - regression
    assert torch.allclose(regression / 3, gradient(regressed(whole)), atol=1e-6)
    assert torch.allclose(contrastive, gradient(whole[0] - regressed(whole)), atol=1e-6)
    assert contrastive.norm() > 1e-3


@pytest.mark.e2e
def test_after_sigkill_at_random_moments_a_run_ends_as_if_undisturbed(dataset_writer, tmp_path):
    root = dataset_writer(tmp_path / "data", clips={"train": 60, "valid": 8, "test": 0})
    config = replace(EXACT, epochs=4)
    whole = train(root, tmp_path / "whole", SMALL, config, 0)
    rng, kills = np.random.default_rng(int.from_bytes(os.urandom(4))), 0
    for _ in range(30):
        process = run_process(root, tmp_path / "out", tmp_path / "scratch", config, stdout=subprocess.PIPE)
        batches = int(rng.integers(1, 20)) if kills < 2 else 1000
        for line in process.stdout:
            batches -= line.startswith("batch")
            if batches <= 0:
                time.sleep(float(rng.uniform(0, 0.02)))
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        code = process.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 1
    assert numbers(json.loads((tmp_path / "out" / "history.json").read_text())) == numbers(whole.history)
    expected, found = weights(tmp_path / "whole" / "best"), weights(tmp_path / "out" / "best")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "contrastive"),
    [
        ("dashfusion", ContrastiveConfig(scope="retrieved")),
        ("dashfusion", ContrastiveConfig(scope="in_batch")),
        ("self_mm", ContrastiveConfig(weight=0)),  # has a loss with state
    ],
)
def test_two_processes_compute_what_one_computes(dataset, tmp_path, name, contrastive):
    """24 clips in batches of 7: uneven shares, and a last batch of 3; nothing random inside the network."""
    model = replace(SMALL, name=name, dropout=0.0)
    config = replace(EXACT, batch_size=7, accumulate=2, learning_rate=3e-3, contrastive=contrastive)
    whole = train(dataset, tmp_path / "whole", model, config, 0)
    process = run_process(dataset, tmp_path / "out", "", config, model, processes=2)
    assert process.wait() == 0
    found = json.loads((tmp_path / "out" / "history.json").read_text())
    for ours, theirs in zip(numbers(whole.history), numbers(found), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-5)
    expected, found = weights(tmp_path / "whole" / "last"), weights(tmp_path / "out" / "last")
    assert all(torch.allclose(expected[name], found[name], atol=1e-4) for name in expected)


def run_process(root, out, scratch, config, model=SMALL, processes=1, **streams):
    script = Path(out).parent / "run.py"
    script.write_text(RUN)
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = pickle.dumps((model, config)).hex()
    Path(out).mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *(several if processes > 1 else []), str(script), *map(str, (root, out, scratch)), settings],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        **streams,
    )
