"""What training does to its clips: seeded, by clip, and never more than it was told to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, AugmentConfig, ContrastiveConfig, ModelConfig, TrainConfig
from model.data.augmentation import augment_batch
from model.data.clips import ClipTable
from model.train import train
from model.training.batch_planner import BatchPlanner
from model.training.mining import label_classes

PLAIN = TrainConfig(epochs=2, warmup_epochs=1, batch_size=8, learning_rate=2e-3, device="cpu")
DROPS = replace(PLAIN, modality_dropout=0.5)
DISTURBS = replace(PLAIN, augment=AugmentConfig(noise=0.5, spans=0.5, words=0.3))


@pytest.fixture(scope="module")
def clips(dataset_writer, tmp_path_factory):
    counts = {"train": 300, "valid": 4, "test": 4}
    return ClipTable.read(dataset_writer(tmp_path_factory.mktemp("augment"), clips=counts), "train", 64)


def change(clips, config, rows=None, epoch=1, seed=0):
    rows = np.arange(len(clips)) if rows is None else rows
    return augment_batch(clips.batch(rows), rows, config, clips.info, seed, epoch)


def present(batch):
    return torch.stack([batch.masks[m].any(dim=1) for m in MODALITIES], dim=1)


def same(a, b):
    pairs = [(a.values[m], b.values[m]) for m in MODALITIES] + [(a.masks[m], b.masks[m]) for m in MODALITIES]
    return all(torch.equal(x, y) for x, y in pairs)


def test_by_default_nothing_is_changed(clips):
    batch = clips.batch(np.arange(4))
    assert augment_batch(batch, range(4), PLAIN, clips.info, 0, 1) is batch


def test_modalities_are_dropped_at_their_rate_and_a_clip_keeps_one(clips):
    before, after = present(clips.batch(np.arange(len(clips)))), present(change(clips, DROPS))
    assert not (after & ~before).any() and after.any(dim=1).all()
    whole = before.all(dim=1)
    # Half of each, but for those that would have left nothing: (1/2)^3 of the clips keep one after all.
    assert after[whole].float().mean() == pytest.approx(0.5 + 0.125 / 3, abs=0.06)
    assert len({tuple(row) for row in after[whole].tolist()}) == 7


def test_a_change_follows_from_seed_epoch_and_clip_alone(clips):
    config = replace(DROPS, augment=DISTURBS.augment)
    rows = np.array([9, 4, 250])
    alone, together = change(clips, config, rows), change(clips, config)
    for place, row in enumerate(rows):
        for m in MODALITIES:
            length = alone.masks[m].shape[1]
            assert torch.equal(alone.masks[m][place], together.masks[m][row, :length])
            shown = alone.masks[m][place]
            assert torch.equal(alone.values[m][place][shown], together.values[m][row, :length][shown])
    assert same(together, change(clips, config))
    assert not same(together, change(clips, config, epoch=2)) and not same(together, change(clips, config, seed=1))


def test_steps_are_hidden_and_noise_is_in_units_of_the_feature(clips):
    before, after = clips.batch(np.arange(len(clips))), change(clips, DISTURBS)
    for m in ("audio", "vision"):
        visible, left = before.masks[m].sum(dim=1), after.masks[m].sum(dim=1)
        assert not (after.masks[m] & ~before.masks[m]).any()
        has = visible > 0
        assert (left[has] >= torch.maximum(visible[has] // 2, torch.tensor(1))).all() and (left < visible).any()
        moved = (after.values[m] - before.values[m])[after.masks[m]] / torch.tensor(clips.info.statistics[m].std)
        assert moved.std().item() == pytest.approx(0.5, rel=0.05) and abs(moved.mean().item()) < 0.02
    words = before.masks["text"]
    assert torch.equal(after.masks["text"][:, 0], words[:, 0]) and torch.equal(
        after.values["text"], before.values["text"]
    )
    assert (words & ~after.masks["text"])[:, 1:].sum() / words[:, 1:].sum() == pytest.approx(0.3, abs=0.05)


def test_a_clip_that_is_no_anchor_stays_as_it_is(clips):
    batch = clips.batch(np.arange(5))
    after = augment_batch(batch, [0, -1, -1, 3, -1], replace(DROPS, augment=DISTURBS.augment), clips.info, 0, 1)
    for place in (1, 2, 4):
        for m in MODALITIES:
            assert torch.equal(after.values[m][place], batch.values[m][place])
            assert torch.equal(after.masks[m][place], batch.masks[m][place])
    assert not same(after, batch)


def test_processes_share_a_batch_that_is_changed_as_one_process_changes_it(clips):
    config = replace(DROPS, augment=DISTURBS.augment, contrastive=ContrastiveConfig(weight=0.0))
    classes, rows = label_classes(clips.labels, (-3, 3)), np.arange(7)
    whole = BatchPlanner(clips, classes, config, seed=3).plan(rows, None, 2, 0).anchors
    for rank in range(2):
        part = BatchPlanner(clips, classes, config, seed=3, rank=rank, processes=2).plan(rows, None, 2, 0).anchors
        for m in MODALITIES:
            steps = part.masks[m].shape[1]
            assert torch.equal(part.masks[m], whole.masks[m][rank::2, :steps])


def test_training_with_it_is_repeatable_and_kept_in_the_checkpoint(dataset, tmp_path):
    model = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
    config = replace(DROPS, augment=DISTURBS.augment)
    losses = []
    for name, chosen in (("a", config), ("b", config), ("plain", PLAIN)):
        result = train(dataset, tmp_path / name, model, chosen, seed=0)
        losses.append([epoch["train_loss"] for epoch in result.history])
    assert losses[0] == losses[1] != losses[2]
    assert load_checkpoint(tmp_path / "a/best")[1].train == config


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: TrainConfig(modality_dropout=1.0), "train.modality_dropout"),
        (lambda: AugmentConfig(noise=-0.1), "train.augment.noise"),
        (lambda: AugmentConfig(spans=1.5), "train.augment.spans"),
        (lambda: AugmentConfig(words=-0.1), "train.augment.words"),
    ],
    ids=["dropout", "noise", "spans", "words"],
)
def test_a_rate_that_is_none_is_refused_with_the_way_out(make, option):
    with pytest.raises(ValueError, match=rf"{option} is .*: it must .*; set it "):
        make()
