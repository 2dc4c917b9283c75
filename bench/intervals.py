"""Prediction intervals: coverage of the test split and half-widths, of networks trained with several seeds.

Run:  python -m bench.intervals PROJECT... [--seeds 12] [--fold-seeds 2] [--folder FOLDER]
Each PROJECT is a project after `dashfusion align`, such as the English and the Mandarin demo. Per seed one network is
trained with the project's parameters and partners from the batch, and per fold seed the networks of all folds, with
the default budget. Every set of folds calibrates the networks of all seeds; CV+ has the same intervals for all of them,
and its half-width is the mean over the test clips. "marginal" is split conformal with the rank that ignores the draw of
the validation clips, the only method of earlier versions.

Errors are stored in FOLDER as they are measured, so that an interrupted run continues. Trainings use one thread. The
12 seeds of both demos take about an hour and a half on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.results import write_result
from flows.config.params import Params, load_params
from model.checkpoint.io import WEIGHTS, load_checkpoint, read_weights
from model.data.clips import ClipTable
from model.data.tokens import prepare_text
from model.evaluation.calibration import share_interval
from model.evaluation.cv_plus import cv_plus_bounds
from model.evaluation.inference import predict
from model.evaluation.intervals import (
    LEVELS,
    Errors,
    grouped_half_width,
    marginal_rank,
    order_statistic,
    split_half_width,
    subset_errors,
    subset_name,
)
from model.files import atomic_file
from model.intervals import plan_folds, train_fold
from model.network.registry import build_network
from model.train import train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from model.training.folds import Fold

METHODS: Mapping[str, tuple[str, Callable[[Errors, float], float | None]]] = {
    "marginal": (
        "valid",
        lambda found, level: order_statistic(found.error_n, marginal_rank(len(found.error_n), level)),
    ),
    "split": ("valid", split_half_width),
    "grouped_cv": ("folds", grouped_half_width),
}
"""Method -> the errors that it uses, and its half-width. CV+ has intervals of another form, see `figures_of`."""


def stored(path: Path, measure: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file, measured if it does not exist."""
    if not path.is_file():
        arrays = dict(measure())
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stubs take them for allow_pickle
    with np.load(path) as found:
        return dict(found)


def network_errors(params: Params, dataset: Path, seed: int) -> dict[str, np.ndarray]:
    """Train with a seed; return the absolute errors on `valid` and `test`, all modalities shown, and the `epochs`."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(dataset, Path(folder), params.model, params.train, seed)
        network, _ = load_checkpoint(result.best)
    complete = subset_name(params.train.modalities)
    errors: dict[str, np.ndarray] = {}
    for split in ("valid", "test"):
        table = ClipTable.read(dataset, split, params.model.max_positions, text=network.text)
        found = subset_errors(network, table.select(table.labelled), params.train.modalities)[complete]
        errors |= {split: found.error_n, f"{split}_speakers": found.speaker_n.astype(str)}
    return errors | {"epochs": np.array(len(result.history))}


def folds_of(params: Params, dataset: Path, seed: int, epochs: int, folder: Path) -> list[dict[str, np.ndarray]]:
    """Return of each fold the `errors` on its clips by the network without it, and the `test` predictions of that."""
    intervals = replace(params.train.intervals, method="cv_plus")  # keeps the networks
    config = replace(params.train, intervals=intervals)
    trainings = plan_folds(dataset, params.model, config, seed, epochs, folder / "scratch")
    complete, text = subset_name(params.train.modalities), prepare_text(params.model, dataset)
    table = ClipTable.read(dataset, "test", params.model.max_positions, text=text)
    has_all_N = (table.lengths(params.train.modalities) > 0).all(axis=1)
    clips = table.select(np.flatnonzero(table.labelled & has_all_N))  # those of `network_errors`

    def measure(fold: Fold) -> dict[str, np.ndarray]:
        found = train_fold(trainings, fold)[complete]
        network = build_network(params.model, table.info, text)
        network.load_state_dict(read_weights(trainings.folder(fold) / WEIGHTS, network.state_dict()))
        return {
            "errors": found.error_n,
            "speakers": found.speaker_n.astype(str),
            "test": predict(network, clips, params.train.modalities),
            "test_labels": clips.labels,
        }

    return [stored(folder / f"{fold.name}.npz", partial(measure, fold)) for fold in trainings.folds]


def figures_of(networks: list[dict[str, np.ndarray]], sets: list[list[dict[str, np.ndarray]]]) -> dict[str, float]:
    """Return coverage and half-width of each method and level, averaged over networks and sets of folds."""
    figures: dict[str, float] = {}
    joined = [Errors.join([Errors(fold["errors"], fold["speakers"]) for fold in folds]) for folds in sets]
    for method, (source, half_width) in METHODS.items():
        for level in LEVELS:
            shares, widths = [], []
            for network in networks:
                own = [Errors(network["valid"], network["valid_speakers"])]
                for errors in own if source == "valid" else joined:
                    width = half_width(errors, level)
                    shares.append(network["test"] <= (np.inf if width is None else width))
                    widths.append(np.nan if width is None else width)
            figures |= _summary(method, level, shares, widths, networks[0]["test_speakers"])
    for level in LEVELS:  # the same for all networks
        shares, widths = [], []
        for folds, errors in zip(sets, joined, strict=True):
            low_N, high_N = cv_plus_bounds(np.stack([fold["test"] for fold in folds]), errors, level)
            label_N = folds[0]["test_labels"]
            shares.append((low_N <= label_N) & (label_N <= high_N))
            widths.append(float((high_N - low_N).mean() / 2))
        figures |= _summary("cv_plus", level, shares, widths, networks[0]["test_speakers"])
    return figures


def _summary(
    method: str, level: float, shares: Sequence[np.ndarray], widths: Sequence[float], speaker_N: np.ndarray
) -> dict[str, float]:
    name = f"{method}_{level:g}"
    by_network = np.mean(shares, axis=1)
    figures = {f"{name}_coverage": float(by_network.mean()), f"{name}_half_width": float(np.mean(widths))}
    if level == 0.9:
        low, high = share_interval(np.mean(shares, axis=0), speaker_N) or (np.nan, np.nan)
        figures |= {f"{name}_coverage_lowest": float(by_network.min()), f"{name}_low": low, f"{name}_high": high}
    return figures


def measure_project(project: Path, folder: Path, seeds: int, fold_seeds: int) -> dict[str, float]:
    """Train and measure the networks of a project."""
    params = load_params(project / "params.yaml")
    contrastive = replace(params.train.contrastive, scope="in_batch")
    params = replace(params, train=replace(params.train, contrastive=contrastive, device="cpu"))
    dataset, folder = project / params.paths.dataset, folder / params.prepare.corpus
    networks = []
    for seed in range(seeds):
        measure = partial(network_errors, params, dataset, seed)
        networks.append(stored(folder / f"seed-{seed}.npz", measure))
        print(params.prepare.corpus, "seed", seed, f"test MAE {networks[-1]['test'].mean():.3f}", flush=True)
    epochs = int(networks[0]["epochs"])
    sets = [folds_of(params, dataset, seed, epochs, folder) for seed in range(fold_seeds)]
    figures = figures_of(networks, sets)
    figures |= {"seeds": len(networks), "fold_seeds": len(sets)}
    return {f"{params.prepare.corpus}_{name}": value for name, value in figures.items()}


def main() -> None:
    """Measure all projects and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", type=Path, nargs="+", metavar="PROJECT")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--fold-seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(".dashfusion/bench/intervals"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for project in arguments.projects:
        figures |= measure_project(project, arguments.folder, arguments.seeds, arguments.fold_seeds)
    for name, value in figures.items():
        print(f"{name} {value:.4f}")
    command = f"intervals PROJECT... --seeds {arguments.seeds} --fold-seeds {arguments.fold_seeds}"
    write_result("intervals", figures, command)


if __name__ == "__main__":
    main()
