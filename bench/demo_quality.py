"""What the demo corpus asks for, measured on its test split: python -m bench.demo_quality [--what modalities scope]

Run after `dvc repro align`. Every variant is trained in the same way, once a seed, but for one thing:

- `modalities`: all three, or each alone; what is left out is fed as missing.
- `scope`: where contrastive learning finds an anchor's partners, `train.contrastive.scope`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.results import write_result
from flows.params import Params, load_params
from model.config import MODALITIES, TrainConfig
from model.evaluate import evaluate
from model.train import train

QUALITY = ("acc2_np", "acc5", "mae", "corr")


def variants(what: str, config: TrainConfig) -> dict[str, TrainConfig]:
    """The trainings to compare, by name."""
    if what == "modalities":
        return {"all": config} | {m: replace(config, modalities=(m,)) for m in MODALITIES}
    scopes = {scope: replace(config.contrastive, scope=scope) for scope in ("retrieved", "in_batch")}
    without = {"without": replace(config.contrastive, weight=0.0)}
    return {name: replace(config, contrastive=contrastive) for name, contrastive in (scopes | without).items()}


def measure(params: Params, chosen: Mapping[str, TrainConfig], seeds: Sequence[int]) -> dict[str, float]:
    """Print and return mean and standard deviation over the seeds, and the median seconds of an epoch."""
    figures: dict[str, float] = {"seeds": len(seeds)}
    head = "".join(f"{key:>16}" for key in QUALITY)
    print(f"{'':<10}{head}{'s/epoch':>9}   {len(seeds)} seeds")
    with tempfile.TemporaryDirectory() as scratch:
        for name, config in chosen.items():
            folders = [Path(scratch) / f"{name}-{seed}" for seed in seeds]
            seconds = []
            for seed, folder in zip(seeds, folders, strict=True):
                result = train(params.paths.dataset, folder, params.model, config, seed)
                seconds += [epoch["seconds"] for epoch in result.history]
            metrics = evaluate(params.paths.dataset, [folder / "best" for folder in folders], "test").metrics
            row = f"{name:<10}"
            for key in QUALITY:
                mean, std = metrics[key], metrics.get(f"{key}_std", 0.0)
                figures |= {f"{name}_{key}": mean, f"{name}_{key}_std": std}
                row += f"{mean:>8.3f} ± {std:.3f}"
            figures[f"{name}_epoch_seconds"] = statistics.median(seconds)
            print(f"{row}{figures[f'{name}_epoch_seconds']:>9.2f}", flush=True)
    return figures


def main() -> None:
    """Train, evaluate, print the tables and write bench/results/demo_<what>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("modalities", "scope"), default=["modalities", "scope"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    params = load_params()
    for what in options.what:
        figures = measure(params, variants(what, params.train), options.seeds)
        if what == "modalities":
            best_single = max(figures[f"{m}_acc2_np"] for m in MODALITIES)
            figures["all_minus_best_single_acc2_np"] = figures["all_acc2_np"] - best_single
            print(f"all - best single modality: {figures['all_minus_best_single_acc2_np']:+.3f}")
        write_result(f"demo_{what}", figures, f"demo_quality --what {what}")


if __name__ == "__main__":
    main()
