"""Does the demo corpus need all three modalities? Test metrics of DashFusion with all and with each alone.

Run after `dvc repro align`:  python -m bench.demo_quality [--seeds 0 1 2]
Every row is trained in the same way; a modality that is left out is fed as missing.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.results import write_result
from flows.params import load_params
from model.evaluate import evaluate
from model.train import train

CHOICES = {
    "all": ("text", "audio", "vision"),
    "text": ("text",),
    "audio": ("audio",),
    "vision": ("vision",),
}


def main() -> None:
    """Train, evaluate, print the table and write bench/results/demo_quality.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    params = load_params()
    figures: dict[str, float] = {}
    print(f"{'modalities':<10} {'Acc-2 (NP)':>16} {'MAE':>8} {'Corr':>8}   mean of {len(seeds)} seeds")
    with tempfile.TemporaryDirectory() as scratch:
        for name, modalities in CHOICES.items():
            config = replace(params.train, modalities=modalities)
            folders = [Path(scratch) / f"{name}-{seed}" for seed in seeds]
            for seed, folder in zip(seeds, folders, strict=True):
                train(params.paths.dataset, folder, params.model, config, seed)
            metrics = evaluate(params.paths.dataset, [folder / "best" for folder in folders], "test").metrics
            figures |= {
                f"{name}_{key}": metrics[key]
                for key in (*_with_std("acc2_np"), *_with_std("mae"), "corr")
                if key in metrics
            }
            std = metrics.get("acc2_np_std", 0.0)
            print(
                f"{name:<10} {metrics['acc2_np']:>8.3f} ± {std:.3f} {metrics['mae']:>8.3f} {metrics['corr']:>8.3f}",
                flush=True,
            )
    best_single = max(figures[f"{name}_acc2_np"] for name in CHOICES if name != "all")
    figures["all_minus_best_single_acc2_np"] = figures["all_acc2_np"] - best_single
    print(f"all - best single modality: {figures['all_minus_best_single_acc2_np']:+.3f}")
    write_result("demo_quality", figures)


def _with_std(key: str) -> tuple[str, str]:
    return key, f"{key}_std"


if __name__ == "__main__":
    main()
