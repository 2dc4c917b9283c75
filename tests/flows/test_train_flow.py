"""What `train` tells while it runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flows import train


def test_prefect_hears_the_percentage_and_the_epochs_numbers_but_not_of_every_short_epoch(monkeypatch):
    heard: list[tuple[float, str]] = []
    live = SimpleNamespace(log_metric=lambda name, value: None, next_step=lambda: None)
    bar = SimpleNamespace(update=lambda row, **fields: None)
    now = 1000.0
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: now))
    observer = train.CurveObserver(live, None, bar, 0, 4, lambda percent, words: heard.append((percent, words)))
    for epoch in (1, 2, 3, 4):
        observer.on_epoch(epoch, {"train_loss": 1 / epoch, "valid_mae": 0.5})
        now += train.MIN_PUBLISH_SECONDS if epoch == 2 else 0.1
    assert [percent for percent, _ in heard] == [25, 75, 100]
    assert heard[1][1] == "epoch 3  loss 0.333  valid MAE 0.500"


def test_a_log_gets_a_line_an_epoch_but_for_those_before_a_resumption():
    live = SimpleNamespace(log_metric=lambda name, value: None, next_step=lambda: None)
    lines: list[str] = []
    bar = SimpleNamespace(update=lambda row, **fields: None, print_line=lambda row, text: lines.append(text))
    observer = train.CurveObserver(live, None, bar, 0, 4, lambda percent, words: None)
    for epoch in (1, 2, 3):
        if epoch > 1:  # the first was trained before the run was killed
            observer.on_batch(epoch, 6, 6)
        observer.on_epoch(epoch, {"train_loss": 1 / epoch, "valid_mae": 0.5, "seconds": 2.34})
    assert lines == [
        "epoch 2 of 4, loss 0.500, valid MAE 0.500, 2.3 s", "epoch 3 of 4, loss 0.333, valid MAE 0.500, 2.3 s",
    ]  # fmt: skip


def test_outputs_of_other_seeds_that_a_killed_run_left_behind_are_removed(tmp_path):
    for name in ("models/seed-0", "models/seed-7", "metrics/training/seed-0", "metrics/training/seed-7", "models/mine"):
        (tmp_path / name).mkdir(parents=True)
    paths = SimpleNamespace(models=tmp_path / "models", training_curves=tmp_path / "metrics/training")
    train._remove_other_seeds(SimpleNamespace(paths=paths, train=SimpleNamespace(seeds=[0])))
    assert sorted(path.name for path in tmp_path.rglob("*-*")) == ["seed-0", "seed-0"]
    assert (tmp_path / "models/mine").is_dir()


def test_validation_metrics_are_those_of_the_epoch_that_was_kept():
    one = {"epoch": 7, "metrics": {"valid_mae": 0.5, "valid_corr": 0.8, "train_loss": 2.0}}
    other = {"epoch": 9, "metrics": {"valid_mae": 0.7, "valid_corr": 0.6, "valid_acc2": 0.9}}
    assert train.validation_metrics([one]) == {"mae": 0.5, "corr": 0.8, "epoch": 7}, "undefined metrics are left out"
    both = train.validation_metrics([one, other])
    assert both.pop("mae") == pytest.approx(0.6) and both.pop("mae_std") == pytest.approx(0.1414, abs=1e-4)
    assert both.keys() == {"corr", "corr_std", "epoch", "epoch_std", "seeds"} and both["seeds"] == 2
