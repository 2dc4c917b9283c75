"""What the contrastive reduction and the recipe of the authors' code are worth on a demo: over seeds, with intervals.

    python -m bench.reductions data/dataset --seeds 0 1 2 3 4 --out .dashfusion/bench/reductions

Trains each variant on each seed, one after the other and one thread each, resuming what an earlier call has trained,
and compares it on the test split with the first, paired by seed: mean, difference and its 95 % interval, which holds
for other seeds and other speakers. Other settings are those of params.yaml.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.results import write_result
from flows.config.params import load_params
from flows.studies.trial import View, predict_views, train_trial, trial_folder
from model.config import ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.data.sequences import read_column
from model.evaluation.bootstrap import resampled_by_seed
from model.evaluation.crossed import crossed_draws
from model.evaluation.metrics import evaluate_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

METRICS = {3.0: ("mae", "corr", "acc2_np", "acc5", "acc7"), 1.0: ("mae", "corr", "acc2", "acc3", "acc5")}
"""Metrics to show by the largest label."""

Setting = tuple[ModelConfig, TrainConfig]


def variants(model: ModelConfig, train: TrainConfig) -> Mapping[str, Setting]:
    """Return the settings to compare by name, the reference first."""
    published = replace(train.contrastive, reduction="published")
    negatives = replace(published, semantic_negatives="anchor")
    recipe = replace(
        train, batching="shuffled", clip_norm=0.0, best_epoch="last", precision=32, contrastive=negatives,
        mining=replace(train.mining, index="rank", class_rounding="even"),
    )  # fmt: skip
    network = replace(model, name="dashfusion_published")
    return {
        "paper": (model, replace(train, contrastive=replace(train.contrastive, reduction="paper"))),
        "published reduction": (model, replace(train, contrastive=published)),
        "no contrastive losses": (model, replace(train, contrastive=replace(train.contrastive, weight=0.0))),
        "published network, inputs normalised": (network, train),
        "published network and training": (replace(network, normalise=False), recipe),
    }


def main() -> None:
    """Train, predict and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", help="names, the reference first; default: all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    params = load_params(options.params)
    table = ClipTable.read(options.dataset, "test", params.model.max_positions)
    label_range, labels = table.info.label_range, table.labels
    speakers = np.array(read_column(sorted((options.dataset / "test").glob("part-*.parquet")), "video_id").to_pylist())

    # Train and predict
    results = {}
    settings = variants(params.model, params.train)
    for name in options.variants or settings:
        (model, train), rows = settings[name], []
        for seed in options.seeds:
            train_trial(options.dataset, model, train, seed, options.out, "test")
            folder = trial_folder(options.out, options.dataset, model, train, seed)
            rows += predict_views(folder, [View(options.dataset)], "test", "cpu")
        results[name] = np.stack(rows)
        print(f"{name}: trained", flush=True)

    # Compare with the reference
    shown = METRICS[label_range[1]]
    values = {
        name: {k: np.array([evaluate_metrics(p, labels, label_range)[k] for p in predictions], float) for k in shown}
        for name, predictions in results.items()
    }
    draws = {name: resampled_by_seed(x, labels, label_range, speaker_N=speakers) for name, x in results.items()}
    figures: dict[str, float] = {"seeds": len(options.seeds), "clips": len(labels), "speakers": len(set(speakers))}
    reference, *_ = results
    for name in results:
        for k in shown:
            key, value = f"{name.replace(' ', '_')}_{k}", values[name][k]
            figures |= {key: value.mean(), f"{key}_std": value.std(ddof=1)}
            if name == reference:
                continue
            difference = value - values[reference][k]
            drawn = crossed_draws(difference, draws[name][k] - draws[reference][k], len(set(speakers)))
            assert drawn is not None, "several seeds and speakers"
            low, high = np.nanquantile(drawn, [0.025, 0.975])
            figures |= {f"{key}_difference": difference.mean(), f"{key}_low": low, f"{key}_high": high}
            print(f"{name}, {k}: {value.mean():.3f}, {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    write_result(f"reductions_{table.info.corpus}", figures, f"reductions {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
