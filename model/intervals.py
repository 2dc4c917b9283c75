"""Prediction intervals from cross-validation: networks are trained without some speakers and measured on them.

A checkpoint's errors on its validation split are a little too small, because that split chose the epoch, and those of a
single split of few speakers vary much. Here every training and validation clip is in one of several folds, grouped by
speaker, and its error is that of a network that was trained without its fold, for a fixed number of epochs. One set of
folds serves the checkpoints of all seeds. Held-out clips of the training split have a part in the normalisation
statistics and in the vocabulary of a text encoder trained from scratch, and in nothing else.

The trainings have a budget: half of the epochs, partners from the batch. `bench/RESULTS.md` has the coverage.
"""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.checkpoint.io import WEIGHTS, add_calibration, load_checkpoint
from model.checkpoint.model_card import write_card
from model.data.clips import TRAIN_AND_VALID
from model.data.tokens import prepare_text
from model.device import resolve_device
from model.evaluation.cv_plus import add_fold_networks
from model.evaluation.intervals import Errors, calibrate, grouped_half_width, subset_errors
from model.files import atomic_file
from model.train import MAPPED, runs_folder, train
from model.training.folds import Fold, fold_count
from model.training.labelled import read_labelled, read_training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.config import ModelConfig, TrainConfig

ERRORS = "errors.npz"
"""File with a fold's errors; it marks a finished fold."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldTrainings:
    """The trainings of all folds.

    Attributes:
        dataset: Folder of the dataset.
        model: Configuration of the network.
        config: Configuration of the folds' trainings.
        folds: The folds; none if there are too few clips.
        speakers: Number of speakers.
        scratch: Folder for memory-mapped features, states and results.
    """

    dataset: Path
    model: ModelConfig
    config: TrainConfig
    folds: Sequence[Fold]
    speakers: int
    scratch: Path

    def folder(self, fold: Fold) -> Path:
        """Return the folder of a fold's state and errors."""
        return runs_folder(self.scratch, self.dataset, self.model, self.config) / fold.name

    def forget(self) -> None:
        """Remove the states and results."""
        for fold in self.folds:
            shutil.rmtree(self.folder(fold), ignore_errors=True)


def plan_folds(
    dataset: Path, model: ModelConfig, config: TrainConfig, seed: int, epochs: int, scratch: Path
) -> FoldTrainings:
    """Divide the labelled clips into folds and set the budget of their trainings.

    Args:
        dataset: Folder of the dataset.
        model: Configuration of the network.
        config: Configuration of the training whose checkpoints are calibrated.
        seed: Seed of the folds and of their trainings.
        epochs: Epochs that the training took.
        scratch: Folder for memory-mapped features, states and results.

    Raises:
        FileNotFoundError: No dataset there.
        ValueError: No labelled clip, or none with any of the modalities.
    """
    epochs = config.intervals.epochs or math.ceil(epochs / 2)
    budget = replace(
        config,
        epochs=epochs,
        patience=epochs,  # no early stopping, as the fold chooses nothing
        warmup_epochs=min(config.warmup_epochs, max(1, epochs // 5)),
        best_epoch="first",
        contrastive=replace(config.contrastive, scope="in_batch"),
    )
    text = prepare_text(model, dataset)
    clips, _ = read_labelled(dataset, TRAIN_AND_VALID, model, config.modalities, Path(scratch) / MAPPED, text)
    assert clips.speakers is not None, "read from a dataset"
    count = fold_count(clips.speakers, config.intervals.folds)
    folds = [Fold(number, count, seed) for number in range(count)]
    return FoldTrainings(dataset, model, budget, folds, len(set(clips.speakers.tolist())), scratch)


def train_fold(trainings: FoldTrainings, fold: Fold) -> dict[str, Errors]:
    """Train without a fold, unless it was done before, and return the errors on it, see `subset_errors`.

    A training that was killed resumes. Under `torchrun` all processes train, and only the first one returns errors.

    Raises:
        As `model.train.train` does.
    """
    folder = trainings.folder(fold)
    if not (folder / ERRORS).is_file():
        dataset, model, config = trainings.dataset, trainings.model, trainings.config
        out = folder / "checkpoints"
        result = train(dataset, out, model, config, fold.seed, scratch=trainings.scratch, fold=fold)
        if not (result.last / "checkpoint.json").is_file():  # another process writes it
            return {}
        network, _ = load_checkpoint(result.last, resolve_device(config.device))
        _, held_out, _ = read_training(
            dataset, model, config.modalities, trainings.scratch / MAPPED, network.text, fold
        )
        if config.intervals.method == "cv_plus":
            (result.last / WEIGHTS).replace(folder / WEIGHTS)
        with atomic_file(folder / ERRORS) as temporary, temporary.open("wb") as file:
            errors = subset_errors(network, held_out, config.modalities)
            arrays = {f"{subset}.errors": found.error_n for subset, found in errors.items()}
            arrays |= {f"{subset}.speakers": found.speaker_n.astype(str) for subset, found in errors.items()}
            np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stubs take them for allow_pickle
        shutil.rmtree(out)
    with np.load(folder / ERRORS) as stored:
        subsets = [name.removesuffix(".errors") for name in stored if name.endswith(".errors")]
        return {subset: Errors(stored[f"{subset}.errors"], stored[f"{subset}.speakers"]) for subset in subsets}


def calibrate_checkpoints(
    checkpoints: Sequence[Path], trainings: FoldTrainings, errors: Sequence[Mapping[str, Errors]]
) -> None:
    """Replace the checkpoints' intervals by those of the folds' errors, and write their model cards again."""
    if not errors:
        log.warning("too few clips for folds: the intervals are those of the validation split")
        return
    merged = {subset: Errors.join([fold[subset] for fold in errors]) for subset in errors[0]}
    method = trainings.config.intervals.method
    calibrated_by = {
        "method": method,
        "folds": len(trainings.folds),
        "epochs": trainings.config.epochs,
        "seed": trainings.folds[0].seed,
        "speakers": trainings.speakers,
    }
    for folder in checkpoints:
        add_calibration(folder, calibrate(merged, grouped_half_width), calibrated_by)
        if method == "cv_plus":
            add_fold_networks(folder, [trainings.folder(fold) / WEIGHTS for fold in trainings.folds], merged)
        write_card(folder)
