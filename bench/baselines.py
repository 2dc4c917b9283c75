"""Time and memory of a training step of each network of the literature, beside that of MMSA's code.

Run:  python -m bench.baselines --mmsa FOLDER [--networks mult almt] [--repetitions 7]
FOLDER is MMSA's package, which holds `models`, `trains` and `config` (2.2.1 from the package index; `almt` is only in
its repository, `src/MMSA`, and needs einops).

A step is the forward pass, the losses, the backward pass, the limit of the gradient and the update, with the settings
that MMSA tuned for MOSI (config_regression.json) except the batch: 16 clips of the full lengths (text 50 x 768, audio
375 x 5, vision 500 x 20), so that neither side computes less because of padding. Text is features on both sides: a
trained encoder would cost both the same. MMSA's MISA reads as many steps of audio and vision as the text has, so there
both sides are given 50.

Steps of both alternate in one process; seconds are medians. Memory is the growth of the peak over the first step, in a
process for each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import types
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.results import own_peak_megabytes, write_result
from bench.shapes import SHAPES, table
from model.config import MODALITIES, ContrastiveConfig, ModelConfig, TrainConfig
from model.device import flush_denormals
from model.network.registry import build_network, find_network
from model.training.batch_planner import BatchPlanner
from model.training.objective import Objective
from model.training.optimizer import parameter_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from model.data.clips import ClipTable

MMSA = {
    "tfn": "singleTask.TFN", "lmf": "singleTask.LMF", "mult": "singleTask.MULT", "misa": "singleTask.MISA",
    "self_mm": "multiTask.SELF_MM", "almt": "singleTask.ALMT",
}  # fmt: skip
"""Our name of a network -> MMSA's module. Nearly all of mag_bert is the text encoder, the same on both sides."""

CLIPS = 16
STEPS = {"text": 50, "audio": 375, "vision": 500}


def clips_of(name: str) -> ClipTable:
    """Return random clips that are all of the full lengths."""
    steps = dict.fromkeys(MODALITIES, 50) if name == "misa" else STEPS
    shape = SHAPES["mosi"]
    shape = replace(shape, dims={**shape.dims, "text": 768}, min_steps=steps, max_steps=steps)
    return table(shape, shape.clips if name == "self_mm" else CLIPS)  # it keeps labels of all training clips


def our_step(name: str, clips: ClipTable) -> Callable[[], None]:
    """Return the training loop's step, with the published settings."""
    settings = find_network(name).paper
    model = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    options = {key.removeprefix("options."): model.pop(key) for key in list(model) if key.startswith("options.")}
    keys = ("regression_loss", "learning_rate", "weight_decay")
    training = {key: settings[f"train.{key}"] for key in keys if f"train.{key}" in settings}
    config = TrainConfig(contrastive=ContrastiveConfig(weight=0), **training)
    network = build_network(ModelConfig(name=name, options=options, **model), clips.info).train()
    objective = Objective(network, config, auxiliary=network.auxiliary_loss(clips)).train()
    optimizer = torch.optim.AdamW(parameter_groups(network, config), fused=True)
    batch = BatchPlanner(clips, np.zeros(len(clips), int), config, 0).plan(np.arange(CLIPS), None, 2, 0)

    @flush_denormals()
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(batch)[0].backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()

    return step


class GivenFeatures(nn.Module):
    """In place of MMSA's BERT: text features, whatever the tokens."""

    features: ClassVar[Tensor]

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the features [B, T, D]."""
        return self.features


def mmsa_module(folder: Path, name: str) -> Any:
    """Import a module of MMSA without the packages around it, which need many libraries.

    Args:
        folder: of MMSA's package.
        name: such as models.singleTask.MULT.
    """
    for package in ("", ".models", ".models.singleTask", ".models.multiTask", ".models.subNets", ".trains",
                    ".trains.singleTask", ".trains.multiTask", ".utils"):  # fmt: skip
        module = types.ModuleType(f"MMSA{package}")
        module.__path__ = [str(folder.joinpath(*package.split(".")))]
        sys.modules.setdefault(f"MMSA{package}", module)
    feature_nets = importlib.import_module("MMSA.models.subNets.FeatureNets")
    parts = {"BertTextEncoder": GivenFeatures, "SubNet": feature_nets.SubNet, "TextSubNet": feature_nets.TextSubNet}
    vars(sys.modules["MMSA.models.subNets"]).update(parts)
    no_metrics = types.SimpleNamespace(getMetics=str)
    vars(sys.modules["MMSA.utils"]).update(MetricsTop=lambda mode: no_metrics, dict_to_str=str)
    return importlib.import_module(f"MMSA.{name}")


def mmsa_settings(folder: Path, name: str) -> types.SimpleNamespace:
    """Return MMSA's settings of the network for MOSI."""
    settings = json.loads((folder / "config/config_regression.json").read_text(encoding="utf-8"))[name]
    shape = SHAPES["mosi"]
    return types.SimpleNamespace(
        **{
            "feature_dims": [768, shape.dims["audio"], shape.dims["vision"]], "train_mode": "regression",
            "dataset_name": "mosi", "device": "cpu", "num_classes": 3, "train_samples": shape.clips,
            "need_data_aligned": False,
        } | settings["commonParams"] | settings["datasetParams"]["mosi"]
    )  # fmt: skip


@dataclass
class Peer:
    """MMSA's side of a network.

    Attributes:
        model: Its module.
        loss: Computes the loss that its training code minimises.
        clip_value: Limit of each value of the gradient; 0: none.
        learning_rate: Of its optimizer.
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    clip_value: float
    learning_rate: float


def mmsa_peer(folder: Path, name: str, values: Mapping[str, Tensor], labels: Tensor) -> Peer:
    """Build MMSA's module and loss for one batch."""
    module = MMSA[name]
    setting = mmsa_settings(folder, name)
    model = getattr(mmsa_module(folder, f"models.{module}"), module.partition(".")[2])(setting)
    text, audio, vision = (values[m] for m in MODALITIES)
    GivenFeatures.features = text
    tokens, target = torch.ones(CLIPS, 3, text.shape[1]), labels[:, None]

    def loss_of(reads: tuple[Tensor, ...], measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            output = model(*reads)
            return measure(output["M"] if isinstance(output, dict) else output, target)

        return loss

    if name in ("tfn", "lmf"):  # MMSA averages audio and vision once, when it reads the dataset
        loss = loss_of((text, audio.mean(dim=1, keepdim=True), vision.mean(dim=1, keepdim=True)), F.l1_loss)
    elif name == "mult":
        loss = loss_of((text, audio, vision), F.l1_loss)
    elif name == "almt":
        loss = loss_of((tokens, audio, vision), F.mse_loss)
    else:
        trainer = getattr(mmsa_module(folder, f"trains.{module}"), module.partition(".")[2])(setting)
        trainer.model = types.SimpleNamespace(Model=model)
        losses = {"misa": misa_loss, "self_mm": self_mm_loss}
        loss = losses[name](trainer, model, (tokens, audio, vision), target)
    rate = getattr(setting, "learning_rate", None) or setting.learning_rate_other
    return Peer(model, loss, getattr(setting, "grad_clip", 0.0), rate)


def misa_loss(trainer: Any, model: nn.Module, reads: tuple[Tensor, ...], target: Tensor) -> Callable[[], Tensor]:
    """Return MISA's loss: error, difference, similarity and reconstruction, of MMSA's functions."""

    def loss() -> Tensor:
        total: Tensor = trainer.criterion(model(*reads)["M"], target)
        total = total + trainer.args.diff_weight * trainer.get_diff_loss()
        total = total + trainer.args.sim_weight * trainer.get_cmd_loss()
        return total + trainer.args.recon_weight * trainer.get_recon_loss()

    return loss


def self_mm_loss(trainer: Any, model: nn.Module, reads: tuple[Tensor, ...], target: Tensor) -> Callable[[], Tensor]:
    """Return Self-MM's loss of four tasks and the update of labels and centres, of MMSA's functions."""
    tokens, audio, vision = reads
    rows = torch.arange(CLIPS)
    lengths = [torch.full((CLIPS,), x.shape[1]) for x in (audio, vision)]
    generator = torch.Generator().manual_seed(0)
    everyone = torch.randn(trainer.args.train_samples, generator=generator)
    everyone[:CLIPS] = target[:, 0]
    trainer.init_labels(torch.arange(len(everyone)), everyone)

    def loss() -> Tensor:
        output = model(tokens, (audio, lengths[0]), (vision, lengths[1]))
        total = torch.zeros(())
        for task, name in trainer.name_map.items():
            total = total + trainer.weighted_loss(output[task], trainer.label_map[name][rows], indexes=rows, mode=name)
        features = [output[f"Feature_{kind}"].detach() for kind in "ftav"]
        trainer.update_labels(*features, 2, rows, output)
        trainer.update_features(*features, rows)
        trainer.update_centers()
        return total

    return loss


def mmsa_step(folder: Path, name: str, clips: ClipTable) -> Callable[[], None]:
    """Return the step of MMSA's training code: Adam, and the gradient's values limited where it does so."""
    batch = clips.batch(np.arange(CLIPS))
    peer = mmsa_peer(folder, name, {m: value.float() for m, value in batch.values.items()}, batch.labels)
    peer.model.train()
    optimizer = torch.optim.Adam(peer.model.parameters(), lr=peer.learning_rate)

    def step() -> None:
        optimizer.zero_grad()
        peer.loss().backward()
        if peer.clip_value > 0:
            nn.utils.clip_grad_value_(peer.model.parameters(), peer.clip_value)
        optimizer.step()

    return step


def build_step(side: str, folder: Path, name: str) -> Callable[[], None]:
    """Return the step of `ours` or `mmsa`."""
    torch.manual_seed(0)
    clips = clips_of(name)
    return our_step(name, clips) if side == "ours" else mmsa_step(folder, name, clips)


def measure_seconds(folder: Path, name: str, repetitions: int) -> dict[str, float]:
    """Return the median seconds of a step of both sides, which alternate, after one step for warm-up."""
    steps = {side: build_step(side, folder, name) for side in ("ours", "mmsa")}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(repetitions + 1):
        for side, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[side].append(time.perf_counter() - began)
    return {f"{side}_seconds": median(values[1:]) for side, values in seconds.items()}


def measure_megabytes(side: str, folder: Path, name: str) -> dict[str, float]:
    """Return by how much a step raises the process's peak memory; it creates the optimizer's state as well."""
    step = build_step(side, folder, name)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    before = own_peak_megabytes()
    step()
    return {f"{side}_megabytes": own_peak_megabytes() - before}


def run(*arguments: str) -> dict[str, float]:
    """Run this module in a process of its own, and return the figures that it prints."""
    command = [sys.executable, "-m", "bench.baselines", *arguments]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Run the benchmark, and write bench/results/baselines_<network>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmsa", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--networks", nargs="+", choices=MMSA, default=list(MMSA))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--measure", choices=["seconds", "ours", "mmsa"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = options.networks[0]
    if options.measure == "seconds":
        print(json.dumps(measure_seconds(options.mmsa, name, options.repetitions)))
        return
    if options.measure:
        print(json.dumps(measure_megabytes(options.measure, options.mmsa, name)))
        return
    print(f"{'network':<10}{'s ours':>9}{'s MMSA':>9}{'times':>7}{'MB ours':>10}{'MB MMSA':>10}{'times':>7}")
    for name in options.networks:
        load = os.getloadavg()[0]
        common = ("--mmsa", str(options.mmsa), "--networks", name, "--repetitions", str(options.repetitions))
        row = run(*common, "--measure", "seconds") | run(*common, "--measure", "ours")
        row |= run(*common, "--measure", "mmsa")
        row["times_faster"] = row["mmsa_seconds"] / row["ours_seconds"]
        row["times_less_memory"] = row["mmsa_megabytes"] / row["ours_megabytes"]
        print(
            f"{name:<10}{row['ours_seconds']:>9.3f}{row['mmsa_seconds']:>9.3f}{row['times_faster']:>7.1f}"
            f"{row['ours_megabytes']:>10.0f}{row['mmsa_megabytes']:>10.0f}{row['times_less_memory']:>7.1f}",
            flush=True,
        )
        row |= {"threads": torch.get_num_threads(), "load_average_of_other_work": load}
        write_result(f"baselines_{name}", row, f"baselines --mmsa FOLDER --networks {name}")


if __name__ == "__main__":
    main()
