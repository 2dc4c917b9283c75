"""Self-MM against plain implementations: its heads, and the unimodal labels that it generates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import MODALITIES, ContrastiveConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluate import evaluate
from model.network.baselines.self_mm import STREAMS, Options, SelfMMLoss
from model.network.layers import MaskedSequence
from model.network.registry import build_network
from model.train import train
from model.training.batch_planner import BatchPlanner
from model.training.mining import label_classes
from model.training.objective import LOSS_TERMS, Objective

SMALL = {"dim": 16, "max_positions": 64}
WIDTHS = {"fusion": 5, "text": 4, "audio": 3, "vision": 2}


class PlainLabels:
    """Generates labels clip by clip, with lists in place of tensors."""

    def __init__(self, labels, limit):
        self.own, self.limit = list(labels), limit
        self.labels = {m: list(labels) for m in MODALITIES}
        self.features = {stream: {} for stream in STREAMS}

    def alpha(self, stream, features):
        labels, known = {"fusion": self.own, **self.labels}[stream], self.features[stream]
        sides = [[f for i, f in known.items() if labels[i] * sign > 0] for sign in (1, -1)]
        if not all(sides):
            return None
        positive, negative = (np.linalg.norm(features - np.mean(side, axis=0)) for side in sides)
        return (negative - positive) / (positive + 1e-8)

    def batch(self, rows, features, predictions, present, epoch):
        """Return the loss of a batch, then move its labels and take up its features."""
        loss, moved = 0.0, []
        for b, row in enumerate(rows):
            for k, m in enumerate(MODALITIES):
                if not present[b, k]:
                    continue
                weight = np.tanh(abs(self.labels[m][row] - self.own[row]))
                loss += weight * abs(predictions[b, k] - self.labels[m][row]) / len(rows)
                fused, alone = (self.alpha(stream, features[stream][b]) for stream in ("fusion", m))
                if epoch > 1 and fused is not None and alone is not None:
                    y = self.own[row]
                    new = y + (alone - fused) / 2 * (y + fused) / fused
                    new = min(self.limit, max(-self.limit, new))
                    moved.append((m, row, (epoch - 1) / (epoch + 1) * self.labels[m][row] + 2 / (epoch + 1) * new))
        for m, row, label in moved:
            self.labels[m][row] = label
        for b, row in enumerate(rows):
            self.features["fusion"][row] = features["fusion"][b]
            for k, m in enumerate(MODALITIES):
                if present[b, k]:
                    self.features[m][row] = features[m][b]
        return loss


@pytest.mark.parametrize("limit", [3.0, 1.0])
def test_labels_move_as_the_paper_describes(limit):
    rng = np.random.default_rng(0)
    labels = np.round(rng.uniform(-limit, limit, 20), 1)
    labels[:3] = 0  # neither positive nor negative
    plain, loss = PlainLabels(labels, limit), SelfMMLoss(torch.from_numpy(labels), limit, WIDTHS).double()
    for epoch in range(1, 5):
        for rows in np.array_split(rng.permutation(20), 3):
            features = {s: rng.normal(size=(len(rows), w)) + labels[rows, None] for s, w in WIDTHS.items()}
            predictions, present = rng.normal(size=(len(rows), 3)), rng.random((len(rows), 3)) > 0.2
            expected = plain.batch(rows, features, predictions, present, epoch)
            tensors = {**features, "unimodal": predictions, "present": present}
            found = loss({k: torch.from_numpy(v) for k, v in tensors.items()}, torch.from_numpy(rows), epoch)
            assert found.item() == pytest.approx(expected, abs=1e-6)
            for k, m in enumerate(MODALITIES, start=1):
                assert loss.labels_SN[k].numpy() == pytest.approx(np.array(plain.labels[m]), abs=1e-6)
    assert np.array_equal(loss.labels_SN[0], labels)
    found = loss.labels_SN.numpy()
    assert np.abs(found - labels).max() > 0.1 and np.abs(found).max() <= limit


@pytest.mark.parametrize("labels", [[1.0, 2.0, 3.0], [-1.0, -0.2, 0.0]])
def test_without_clips_of_both_signs_labels_stay(labels):
    loss = SelfMMLoss(torch.tensor(labels), 3.0, WIDTHS)
    tensors = {s: torch.randn(3, w) for s, w in WIDTHS.items()} | {"unimodal": torch.randn(3, 3)}
    for epoch in (1, 2, 3):
        value = loss({**tensors, "present": torch.ones(3, 3, dtype=torch.bool)}, torch.arange(3), epoch)
        assert value == 0
    assert torch.equal(loss.labels_SN, torch.tensor([labels] * 4))


def test_in_evaluation_mode_nothing_moves():
    loss = SelfMMLoss(torch.tensor([-1.0, 2.0, 1.0]), 3.0, WIDTHS)
    tensors = {s: torch.randn(3, w) for s, w in WIDTHS.items()} | {"unimodal": torch.randn(3, 3)}
    tensors["present"] = torch.ones(3, 3, dtype=torch.bool)
    loss(tensors, torch.arange(3), 1)
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    loss.eval()(tensors, torch.arange(3), 2)
    assert all(torch.equal(before[name], buffer) for name, buffer in loss.named_buffers())
    loss.train()(tensors, torch.arange(3), 2)
    assert not torch.equal(before["labels_SN"], loss.labels_SN)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@torch.inference_mode()
def test_a_clip_is_predicted_from_the_vectors_of_its_modalities(dataset, pooling):
    """Clip by clip, on the visible steps alone."""
    clips = ClipTable.read(dataset, "train", 64)
    torch.manual_seed(0)
    config = ModelConfig(name="self_mm", options={"text_pooling": pooling, "text_features": 7}, **SMALL)
    network = build_network(config, clips.info).eval().double()
    together = network(clips.batch(np.arange(len(clips))))
    for row in range(len(clips)):
        batch, vectors = clips.batch(np.array([row])), {}
        for m in MODALITIES:
            inputs, seen = network.inputs.of[m], batch.masks[m]
            x = ((batch.values[m][seen].double() - inputs.mean) / inputs.std)[None]
            if not seen.any():
                x = inputs.missing_embedding[None, None]
            if m == "text":
                vectors[m] = x[:, 0] if pooling == "first" else x.mean(dim=1)
            else:
                steps = MaskedSequence(x, torch.ones(x.shape[:2], dtype=torch.bool))
                vectors[m] = network.project[m](network.recurrent[m](steps).last)
        joint = torch.cat([vectors[m] for m in MODALITIES], dim=1)
        heads = {"fusion": (network.fusion, joint)} | {m: (network.heads[m], vectors[m]) for m in MODALITIES}
        found = {"fusion": together.prediction} | dict(zip(MODALITIES, together.unimodal.unbind(dim=1), strict=True))
        for name, (head, vector) in heads.items():
            features = head.features[1](vector).relu()
            hidden, _, last = head.predictor
            torch.testing.assert_close(found[name][row], last(hidden(features).relu())[0, 0])
            torch.testing.assert_close(together.auxiliary[name][row], features[0])


def test_labels_of_modalities_that_the_corpus_has_are_not_used(dataset):
    clips = ClipTable.read(dataset, "train", 64)
    labelled = replace(clips, unimodal_labels=np.full((len(clips), 3), 2.5, np.float32))
    config = TrainConfig(contrastive=ContrastiveConfig(weight=0), device="cpu")
    losses = []
    for table in (clips, labelled):
        torch.manual_seed(0)
        network = build_network(ModelConfig(name="self_mm", dropout=0.0, **SMALL), table.info)
        planner = BatchPlanner(table, label_classes(table.labels, (-3, 3)), config, seed=0)
        objective = Objective(network, config, auxiliary=network.auxiliary_loss(table))
        for epoch in (1, 2, 3):
            terms = objective(planner.plan(np.arange(12), None, epoch, 0))
        losses.append(dict(zip(LOSS_TERMS, terms.tolist(), strict=True)))
    assert losses[0] == losses[1] and losses[0]["unimodal"] == 0 < losses[0]["auxiliary"]
    assert losses[0]["loss"] == pytest.approx(losses[0]["regression"] + losses[0]["auxiliary"])


def test_predictions_of_modalities_are_reported_also_without_labels_to_measure_them_by(dataset, tmp_path):
    config = TrainConfig(epochs=1, warmup_epochs=0, contrastive=ContrastiveConfig(weight=0), device="cpu")
    trained = train(dataset, tmp_path, ModelConfig(name="self_mm", **SMALL), config, seed=0)
    found = evaluate(dataset, [trained.best], device="cpu")
    table = ClipTable.read(dataset, "test", 64)
    for m in MODALITIES:
        is_given = np.isfinite(np.array(found.predictions[f"prediction_{m}"].to_pylist(), float))
        assert np.array_equal(is_given, table.sequences[m].lengths > 0)
        assert f"mae_{m}" not in found.metrics


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"model\.options\.text_pooling is 'last': it must be one of first, mean"):
        Options(text_pooling="last")
    with pytest.raises(ValueError, match=r"model\.options\.audio_features is 0: it must be at least 1"):
        Options(audio_features=0)
