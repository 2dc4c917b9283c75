"""Training does what it did: a known curve on a tiny dataset, and few clips learned by heart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, ContrastiveConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluation.inference import predict
from model.network.dashfusion import DashFusion
from model.train import train

SMALL = ModelConfig(dim=32, heads=4, encoder_layers=1, max_positions=32)
RECIPE = TrainConfig(epochs=4, warmup_epochs=1, batch_size=8, learning_rate=2e-3, device="cpu")

# Means of eight seeds, and more than how far any seed was from them.
CURVES = {
    "retrieved": {
        "train_regression": ([2.42, 0.88, 0.50, 0.41], 0.45),
        "train_semantic": ([1.74, 1.59, 1.50, 1.47], 0.20),
        "train_supervised": ([1.18, 1.14, 1.12, 1.11], 0.08),
        "valid_mae": ([0.97, 0.71, 0.63, 0.60], 0.25),
    },
    "in_batch": {  # class-balanced batches of 8 hold two or three classes
        "train_regression": ([2.43, 0.93, 0.54, 0.43], 0.45),
        "train_semantic": ([1.73, 1.63, 1.53, 1.51], 0.20),
        "train_supervised": ([1.03, 0.94, 0.84, 0.87], 0.25),
        "valid_mae": ([0.97, 0.71, 0.69, 0.63], 0.30),
    },
}


@pytest.mark.parametrize("scope", CURVES)
def test_the_training_curve_is_the_known_one(scope, dataset_writer, tmp_path):
    root = dataset_writer(tmp_path / "data", clips={"train": 48, "valid": 16, "test": 2}, seed=3)
    config = replace(RECIPE, contrastive=ContrastiveConfig(scope=scope))
    history = train(root, tmp_path / "out", SMALL, config, seed=0).history
    for name, (golden, far) in CURVES[scope].items():
        assert [epoch[name] for epoch in history] == pytest.approx(golden, abs=far), name


def sixteen_clips(dataset_writer, folder):
    root = dataset_writer(folder, clips={"train": 16, "valid": 2, "test": 2}, missing=False)
    return root, ClipTable.read(root, "train", SMALL.max_positions)


def test_sixteen_clips_are_learned_by_heart(dataset_writer, tmp_path):
    root, clips = sixteen_clips(dataset_writer, tmp_path / "data")
    config = replace(RECIPE, epochs=50, patience=50, warmup_epochs=4)
    result = train(root, tmp_path / "out", replace(SMALL, dropout=0.0), config, seed=0)
    network, _ = load_checkpoint(result.last)
    assert np.abs(clips.labels).mean() > 0.8
    assert np.abs(predict(network, clips, MODALITIES) - clips.labels).mean() < 0.05


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "concat_attention"},
        {"fusion": "concat"},
        {"anchor": "symmetric"},
        {"anchor": "adaptive"},
        {"alignment": False},
    ],
    ids=str,
)
def test_every_variant_learns_sixteen_clips_by_heart(changes, dataset_writer, tmp_path):
    _, clips = sixteen_clips(dataset_writer, tmp_path / "data")
    torch.manual_seed(0)
    network = DashFusion(replace(SMALL, dropout=0.0, **changes), clips.info)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=80)
    batch = clips.batch(np.arange(len(clips)))
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(batch).prediction, batch.labels).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        assert (network.eval()(batch).prediction - batch.labels).abs().mean() < 0.05
