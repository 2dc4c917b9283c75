"""Predictions from each modality alone, taught by labels of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, ContrastiveConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluate import evaluate
from model.evaluation.metrics import evaluate_metrics
from model.network.dashfusion import DashFusion
from model.train import train
from model.training.batch_planner import BatchPlanner
from model.training.mining import label_classes
from model.training.objective import LOSS_TERMS, Objective

WITH_HEADS = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32, unimodal_heads=True)
SHORT = TrainConfig(epochs=6, warmup_epochs=1, batch_size=8, learning_rate=2e-3, patience=6, device="cpu")
SHIFT = {"text": 0.1, "audio": -0.1, "vision": 0.2}


def own_label(m, label, row):
    """Of a modality: near the clip's, but none in every sixth clip."""
    return None if row % 6 == 5 else min(3.0, max(-3.0, label + SHIFT[m]))


@pytest.fixture(scope="module")
def labelled(dataset_writer, tmp_path_factory):
    """A dataset with labels of the modalities, as CH-SIMS has them."""

    def change(split, table):
        labels = table["label"].to_pylist()
        for m in MODALITIES:
            column = pa.array([own_label(m, label, row) for row, label in enumerate(labels)], pa.float32())
            table = table.set_column(table.schema.get_field_index(f"label_{m}"), f"label_{m}", column)
        return table

    return dataset_writer(tmp_path_factory.mktemp("labelled"), change=change)


def test_heads_learn_from_labels_of_their_own_and_are_measured_against_them(labelled, tmp_path):
    result = train(labelled, tmp_path, WITH_HEADS, SHORT, seed=0)
    losses = [epoch["train_unimodal"] for epoch in result.history]
    assert losses[-1] < 0.8 * losses[0]
    found = evaluate(labelled, [result.best], device="cpu")
    table = ClipTable.read(labelled, "test", 32)
    for column, m in enumerate(MODALITIES):
        prediction = np.array(found.predictions[f"prediction_{m}"].to_pylist(), float)
        label = np.array(found.predictions[f"label_{m}"].to_pylist(), float)
        assert np.array_equal(np.isfinite(prediction), table.sequences[m].lengths > 0) and np.isnan(prediction).any()
        assert np.allclose(label, table.unimodal_labels[:, column], equal_nan=True) and np.isnan(label).sum() == 1
        both = np.isfinite(prediction) & np.isfinite(label)
        expected = evaluate_metrics(prediction[both], label[both], (-3, 3))
        assert found.metrics[f"mae_{m}"] == pytest.approx(expected["mae"], abs=1e-6)
        assert found.metrics[f"acc2_{m}"] == expected["acc2_np"]
    assert found.metrics["mae"] == evaluate(labelled, [result.best], device="cpu").metrics["mae"]


def test_the_loss_counts_each_label_once_and_what_is_missing_as_no_error(labelled):
    torch.manual_seed(0)
    clips = ClipTable.read(labelled, "train", 32)
    network = DashFusion(WITH_HEADS, clips.info).eval()
    config = replace(SHORT, contrastive=ContrastiveConfig(weight=0.0), unimodal_weight=0.25)
    planner = BatchPlanner(clips, label_classes(clips.labels, (-3, 3)), config, seed=0)
    rows = np.arange(12)  # two lack their own labels, six others a modality
    parts = dict(zip(LOSS_TERMS, Objective(network, config)(planner.plan(rows, None, 1, 0)), strict=True))

    alone = network(clips.batch(rows)).unimodal
    expected, counted = 0.0, 0
    for row in rows:
        for column, m in enumerate(MODALITIES):
            label = own_label(m, float(clips.labels[row]), row)
            if label is not None and clips.sequences[m].lengths[row]:
                expected, counted = expected + (alone[row, column].item() - label) ** 2, counted + 1
    assert counted == 12 * 3 - 2 * 3 - 6
    assert parts["unimodal"].item() == pytest.approx(expected / (12 * 3), rel=1e-5)
    assert parts["loss"].item() == pytest.approx((parts["regression"] + 0.25 * parts["unimodal"]).item(), rel=1e-6)


def test_without_heads_nothing_of_them_is_in_losses_metrics_or_predictions(labelled, tmp_path):
    result = train(labelled, tmp_path, replace(WITH_HEADS, unimodal_heads=False), replace(SHORT, epochs=1), seed=0)
    assert "train_unimodal" not in result.history[0]
    found = evaluate(labelled, [result.best], device="cpu")
    of_heads = [f"{name}_{m}" for name in ("label", "prediction", "mae", "corr", "acc2") for m in MODALITIES]
    assert not {*found.metrics, *found.predictions.column_names} & {*of_heads}
    assert not any(name.startswith("unimodal") for name in load_checkpoint(result.best)[0].state_dict())


def test_a_corpus_without_such_labels_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"model.unimodal_heads is true: .* no labels .* label_T, label_A and label_V"):
        train(dataset, tmp_path, WITH_HEADS, SHORT, seed=0)
    with pytest.raises(ValueError, match=r"train.unimodal_weight is 0: it must be positive"):
        replace(SHORT, unimodal_weight=0)
