"""The training settings of the authors' code against plain twins; `test_published.py` of the network has the layers."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import model.train
from model.checkpoint.io import load_checkpoint
from model.checkpoint.model_card import CARD
from model.config import MODALITIES, AugmentConfig, ContrastiveConfig, MiningConfig, ModelConfig, TrainConfig
from model.data.batching import training_batches
from model.data.clips import ClipTable
from model.data.info import read_info
from model.evaluate import evaluate
from model.network.base import STREAMS, Embedding
from model.network.flops import network_costs
from model.network.registry import build_network
from model.train import train
from model.training.losses import combine_contrastive, semantic_loss_against_partners, supervised_loss
from model.training.mining import label_classes, mine
from model.training.optimizer import parameter_groups

SMALL = ModelConfig(dim=16, heads=2, encoder_layers=1, fusion_layers=1, dropout=0.0)


def score(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.exp((a @ b / (a.norm() * b.norm())).item() / 0.5)


def published_contrastive(vectors: dict[str, torch.Tensor]) -> float:
    """The loss of one anchor from stream -> [7, d], its own vector, two positives' and four negatives': 22 pairs."""
    pairs = [("text", k, other, k) for k in range(7) for other in ("audio", "vision")]
    pairs += [(stream, 0, stream, k) for stream in STREAMS for k in (1, 2)]
    losses = []
    for stream, k, other, j in pairs:
        positive = score(vectors[stream][k], vectors[other][j])
        negatives = [score(vectors[stream][k], vectors[stream][n]) for n in (3, 4, 5, 6)] if k == 0 else []
        losses.append(-math.log(positive / (positive + sum(negatives))))
    assert len(losses) == 22
    return sum(losses) / 22


def test_the_contrastive_loss_is_one_mean_over_22_pairs():
    torch.manual_seed(0)
    clips, anchors, mining = 12, 4, MiningConfig()
    e = Embedding(
        {s: torch.randn(clips, 5, dtype=torch.float64) for s in STREAMS},
        {s: torch.ones(clips, dtype=torch.bool) for s in STREAMS},
    )
    partners = torch.stack([torch.tensor(np.random.default_rng(i).permutation(clips)[:6]) for i in range(anchors)])
    valid = torch.ones_like(partners, dtype=torch.bool)
    arguments = (e, anchors, partners, valid, mining.positives, 0.5)
    found = combine_contrastive(
        semantic_loss_against_partners(*arguments), supervised_loss(*arguments), "published", mining
    )
    slow = [
        published_contrastive({s: e.streams[s][torch.cat([torch.tensor([i]), partners[i]])] for s in STREAMS})
        for i in range(anchors)
    ]
    assert found.item() == pytest.approx(sum(slow) / anchors, abs=1e-12)


def test_a_clip_without_a_modality_is_no_semantic_pair():
    torch.manual_seed(0)
    present = {s: torch.ones(6, dtype=torch.bool) for s in STREAMS} | {"audio": torch.arange(6) != 0}
    e = Embedding({s: torch.randn(6, 5, dtype=torch.float64) for s in STREAMS}, present)
    partners, valid = torch.tensor([[1, 2, 3], [2, 3, 4]]), torch.ones(2, 3, dtype=torch.bool)
    t, found = e.streams["text"], semantic_loss_against_partners(e, 2, partners, valid, 1, 0.5)
    losses = []
    for i, other in ((1, "audio"), (0, "vision"), (1, "vision")):
        positive, negatives = score(t[i], e.streams[other][i]), [score(t[i], t[n]) for n in partners[i, 1:]]
        losses.append(-math.log(positive / (positive + sum(negatives))))
    assert found.item() == pytest.approx(sum(losses) / 3, abs=1e-12)


def published_candidates(similarity: np.ndarray, classes: np.ndarray, i: int) -> tuple[list[int], list[int], list[int]]:
    """The clips that the authors' code draws partners of clip i from: positions in the ranking, taken for clips."""
    ranking, count = np.argsort(-similarity[i], kind="stable"), len(classes)
    first = [j for j in range(count) if j != i]
    same = [j for j in first if classes[ranking[j]] == classes[i]]
    other = [j for j in first if classes[ranking[j]] != classes[i]]
    last = [j for j in range(count - 1, -1, -1) if classes[ranking[j]] != classes[i]]
    return same[:10], other[:10], last[:10]


def test_ranks_are_taken_for_clips():
    rng = np.random.default_rng(0)
    vectors, classes = rng.normal(size=(60, 6)), rng.integers(0, 4, 60)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = mine(torch.tensor(vectors), classes, MiningConfig(index="rank"), block=7)
    for i in range(60):
        expected = published_candidates(unit @ unit.T, classes, i)
        for ours, theirs in zip((found.positives[i], found.hard[i], found.easy[i]), expected, strict=True):
            assert ours[ours >= 0].tolist() == theirs
    mined = mine(torch.tensor(vectors), classes, MiningConfig())
    assert (found.positives != mined.positives).any()


def test_classes_are_rounded_as_numpy_rounds():
    labels = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1.4, -1.6])
    assert label_classes(labels, (-3, 3), "even").tolist() == np.round(labels).tolist()
    assert label_classes(labels, (-3, 3)).tolist() == [-3, -2, -1, 1, 2, 3, 1, -2]
    steps = np.float32(np.round(np.linspace(-1, 1, 11), 1))
    assert label_classes(steps, (-1, 1), "even").tolist() == label_classes(steps, (-1, 1)).tolist()


def test_batches_are_cut_from_a_uniform_shuffle():
    lengths = np.random.default_rng(0).integers(1, 500, (50, 3))
    batches = training_batches(lengths, 16, seed=3, epoch=2, shuffled=True)
    assert [len(batch) for batch in batches] == [16, 16, 16, 2], "the last one is kept"
    assert np.array_equal(np.concatenate(batches), np.random.default_rng((3, 2)).permutation(50))
    again = training_batches(lengths, 16, seed=3, epoch=3, shuffled=True)
    assert not np.array_equal(np.concatenate(again), np.concatenate(batches))


def update_of(clip_norm: float) -> torch.Tensor:
    network = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(network.weight)
    network.weight.grad = torch.tensor([[3.0, 4.0]])
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    config = TrainConfig(clip_norm=clip_norm)
    run = SimpleNamespace(network=network, optimizer=optimizer, peak_rates=[1.0], config=config)
    model.train._update(run, 1.0, ["clip"])
    return -network.weight.detach()[0]


def test_the_gradient_is_clipped_only_if_there_is_a_limit():
    assert torch.allclose(update_of(1.0), torch.tensor([0.6, 0.8]))
    assert torch.allclose(update_of(2.5), torch.tensor([1.5, 2.0]))
    assert torch.equal(update_of(0.0), torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize(
    ("which", "errors", "best"),
    [
        ("first", [0.1, 0.5, 0.4], 1),
        ("last", [0.1, 0.5, 0.4], 3),
        ("first", [0.6, 0.50004, 0.49996, 0.5], 3),
        ("last", [0.6, 0.49996, 0.50004, 0.6, 0.5], 5),
        ("last", [0.6, 0.5, 0.6], 2),
    ],
)
def test_ties_go_to_the_later_epoch_and_the_first_epoch_is_left_out(
    monkeypatch, dataset, tmp_path, which, errors, best
):
    found = iter(errors)
    monkeypatch.setattr(model.train, "_epoch_metrics", lambda run, valid: {"valid_mae": next(found)})
    contrastive = ContrastiveConfig(weight=0)
    config = TrainConfig(epochs=len(errors), best_epoch=which, contrastive=contrastive, device="cpu", warmup_epochs=0)
    result = train(dataset, tmp_path, SMALL, config, seed=0)
    assert result.best_epoch == best and len(result.history) == len(errors)
    assert load_checkpoint(tmp_path / "best")[1].epoch == best


def test_a_run_without_a_best_epoch_yet_is_resumed(monkeypatch, dataset, tmp_path):
    config = TrainConfig(epochs=3, best_epoch="last", contrastive=ContrastiveConfig(weight=0), device="cpu")

    class KilledError(Exception):
        pass

    class Observer:
        def on_batch(self, epoch, done, total):
            if epoch == 2 and resumed is False:
                raise KilledError

        def on_epoch(self, epoch, metrics):
            pass

    resumed = False
    with pytest.raises(KilledError):
        train(dataset, tmp_path / "out", SMALL, config, seed=0, observer=Observer(), scratch=tmp_path / "scratch")
    resumed = True
    result = train(dataset, tmp_path / "out", SMALL, config, seed=0, observer=Observer(), scratch=tmp_path / "scratch")
    assert result.resumed == (2, 0) and result.best_epoch >= 2


def weights_after(dataset, folder, **options) -> dict[str, torch.Tensor]:
    contrastive = ContrastiveConfig(weight=0)
    config = TrainConfig(epochs=1, warmup_epochs=0, contrastive=contrastive, device="cpu", precision=32, **options)
    result = train(dataset, folder, SMALL, config, seed=0)
    return load_checkpoint(result.last)[0].state_dict()


@pytest.mark.parametrize("batching", ["by_length", "shuffled"])
def test_the_batches_of_an_update_count_by_their_clips(dataset, tmp_path, batching):
    """Batches of 16 and 8 clips give the update of one batch of 24."""
    whole = weights_after(dataset, tmp_path / "whole", batch_size=24, batching=batching)
    parts = weights_after(dataset, tmp_path / "parts", batch_size=16, accumulate=2, batching=batching)
    assert max((whole[name] - parts[name]).abs().max() for name in whole) < 1e-5


def test_weight_decay_spares_what_the_authors_spare(dataset):
    info = read_info(dataset)
    published = build_network(replace(SMALL, name="dashfusion_published", dropout=0.1), info)
    names = {id(p): name for name, p in published.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in parameter_groups(published, TrainConfig()))
    assert {"encoders.audio.cls", "encoders.audio.norm.weight", "fusion.layers.0.read_norm.weight"} < decayed
    assert spared and all(name.endswith("bias") for name in spared)
    for group in parameter_groups(build_network(SMALL, info), TrainConfig()):
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ContrastiveConfig(semantic_negatives="anchor", supervised=False),
            "semantic_negatives.*set it to paired",
        ),
        (lambda: MiningConfig(index="rank", negatives="random"), "train.mining.index.*set it to clip"),
        (lambda: TrainConfig(best_epoch="last", epochs=1, warmup_epochs=0), "train.best_epoch.*set it to first"),
        (lambda: TrainConfig(clip_norm=-1), "train.clip_norm is -1: it must be at least 0"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_recipe_trains_with_missing_modalities_and_predicts(dataset, tmp_path):
    network = replace(SMALL, name="dashfusion_published", dropout=0.1, normalise=False)
    config = TrainConfig(
        epochs=2, batching="shuffled", clip_norm=0, best_epoch="last", precision=32, device="cpu", modality_dropout=0.2,
        augment=AugmentConfig(noise=0.1), mining=MiningConfig(index="rank", class_rounding="even"),
        contrastive=ContrastiveConfig(reduction="published", semantic_negatives="anchor"),
    )  # fmt: skip
    result = train(dataset, tmp_path, network, config, seed=0)
    loaded, info = load_checkpoint(result.best)
    assert (info.model, info.train) == (network, config)
    assert loaded.config.name == "dashfusion_published"
    assert "2512.05515, as the code of its authors computes it, " in (result.best / CARD).read_text(encoding="utf-8")
    table = ClipTable.read(dataset, "test", network.max_positions)
    assert evaluate(dataset, [result.best], "test").metrics["n"] == len(table)
    costs = network_costs(loaded, table, MODALITIES)
    assert 0 < costs["fusion_madds"] < costs["madds"]
    assert all(0 < metrics["train_supervised"] < 3 and 0 < metrics["train_semantic"] < 3 for metrics in result.history)
