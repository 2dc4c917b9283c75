"""Time and memory of one training step, for each corpus's shapes.

Run:  python -m bench.train_step [--cases mosi/minilm]
A step is the batching, forward pass, losses, backward pass and update of 16 clips with their contrastive partners.
Lengths are realistic (`bench.shapes`). Text is frozen features, or tokens for an encoder trained with the network:
MiniLM, or one of BERT-base's size (with random weights, which do not affect the cost).

- `plain`, the baseline: every clip padded to the corpus's fixed lengths, as in published code, and each of the 96
  partners encoded separately, even if it is duplicated. Network and losses are the same, so the ratio is due to
  batching alone.
- `retrieved`, `in_batch`: the training loop's own step, by `train.contrastive.scope`; with `train.precision` 32 and, if
  the device supports it, bf16.
- `published`: `--peer COMMAND` times other code on the same clips, on a CPU. The command is given a file of clips
  (`write_inputs`) and a number of steps, and prints a line of JSON with `seconds` and `megabytes`. It replaces `plain`
  as the baseline if the text encoder is trained.

Each variant, a function in `VARIANTS`, runs in a new process. Memory is the growth of the process's peak over the
steps; on a GPU, the peak of allocated tensors.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.results import write_result
from bench.shapes import SHAPES, Shape, table
from model.config import MODALITIES, ContrastiveConfig, ModelConfig, TextConfig, TrainConfig
from model.data.batching import training_batches
from model.data.tokens import MINILM, TextBackbone, encoder_name, prepare_text
from model.device import peak_megabytes, prefetch, resolve_device
from model.network.dashfusion import DashFusion
from model.training.batch_planner import CHUNK_OVERHEAD, BatchPlanner
from model.training.losses import semantic_loss, supervised_loss
from model.training.mining import Partners, label_classes, mine
from model.training.objective import Objective, _concatenate

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.data.batch import Batch
    from model.data.clips import ClipTable
    from model.network.base import Network

CLIPS = 600
"""Size of the synthetic split: enough for batches and partners of all lengths."""

WORDS = "the film was good and i liked it very much but its end is bad so it could not make me happy"
"""Words of one token each."""


@dataclass(frozen=True)
class Setting:
    """Inputs of a variant."""

    shape: Shape
    clips: ClipTable
    classes: np.ndarray
    partners: Partners
    network: Network
    device: torch.device

    def config(self, scope: str) -> TrainConfig:
        """Return the training configuration with this contrastive scope."""
        return TrainConfig(contrastive=ContrastiveConfig(scope=scope))


def ours(scope: str) -> Callable[[Setting], Callable[[list[np.ndarray]], list[Tensor]]]:
    """Return the variant that runs the training loop's own step."""

    def losses_of(setting: Setting) -> Callable[[list[np.ndarray]], list[Tensor]]:
        config = setting.config(scope)
        overhead = CHUNK_OVERHEAD[setting.device.type]
        planner = BatchPlanner(setting.clips, setting.classes, config, 0, overhead=overhead)
        objective = Objective(setting.network, config)
        partners = setting.partners if scope == "retrieved" else None

        def losses(batches: list[np.ndarray]):
            numbers = range(len(batches))
            for rank_batch in prefetch(lambda n: planner.plan(batches[n], partners, 1, n), numbers):
                yield objective(rank_batch.to(setting.device))[0]

        return losses

    return losses_of


def plain(setting: Setting) -> Callable[[list[np.ndarray]], list[Tensor]]:
    """Encode clips at fixed lengths, and each partner separately."""
    config = setting.config("retrieved")

    def fixed_batch(rows: np.ndarray) -> Batch:
        batch = setting.clips.batch(rows)
        for m in MODALITIES:
            missing = setting.shape.padded[m] - batch.masks[m].shape[1]
            width = (0, 0) * (batch.values[m].ndim - 2)  # of the feature dimension, which token ids lack
            batch.values[m] = F.pad(batch.values[m], (*width, 0, missing))
            batch.masks[m] = F.pad(batch.masks[m], (0, missing))
        return batch.to(setting.device)

    def losses(batches: list[np.ndarray]):
        for number, rows in enumerate(batches):
            partners_BP, valid_BP = setting.partners.draw(np.random.default_rng(number), rows)
            output = setting.network(fixed_batch(rows))
            embeddings = [output.embedding, *(setting.network.embed(fixed_batch(column)) for column in partners_BP.T)]
            count, kinds = partners_BP.shape
            indices_BP = count * (1 + torch.arange(kinds)) + torch.arange(count)[:, None]
            pool = _concatenate(embeddings)
            labels = torch.from_numpy(setting.clips.labels[rows]).to(setting.device)
            temperature = config.contrastive.temperature
            supervised = supervised_loss(
                pool, count, indices_BP.to(setting.device), torch.from_numpy(valid_BP).to(setting.device),
                config.mining.positives, temperature,
            )  # fmt: skip
            contrastive = semantic_loss(output.embedding, temperature) + supervised
            yield F.mse_loss(output.prediction, labels) + config.contrastive.weight * contrastive

    return losses


VARIANTS = {"plain": plain, "retrieved": ours("retrieved"), "in_batch": ours("in_batch")}


def transcripts(clips: ClipTable) -> list[str]:
    """Return transcripts with as many tokens as the clips' text has steps, including special tokens."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS.split(), max(1, steps - 2))) for steps in clips.sequences["text"].lengths]


def bert_base(folder: Path) -> Path:
    """Write an encoder of BERT-base's size with random weights, and MiniLM's tokenizer, which is BERT's."""
    from transformers import BertConfig, BertModel

    BertModel(BertConfig()).save_pretrained(folder)
    minilm = Path(encoder_name(TextConfig(mode="finetune", encoder=MINILM), table(SHAPES["mosi"], 1).info))
    for path in minilm.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def build_clips(shape: Shape, encoder: str) -> tuple[ClipTable, ModelConfig, TextBackbone | None]:
    """Return the synthetic clips, with tokens if an encoder is named, and the network's configuration."""
    clips = table(shape, CLIPS)
    model = ModelConfig(encoder_layers=shape.encoder_layers, fusion_layers=shape.fusion_layers)
    if not encoder:
        return clips, model, None
    model = replace(model, text=TextConfig(mode="finetune", encoder=encoder))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dataset.json").write_text(json.dumps(clips.info.to_dict()), encoding="utf-8")
        text = prepare_text(model, Path(folder))
    sequences = {**clips.sequences, "text": text.sequences(transcripts(clips))[0]}
    return replace(clips, sequences=sequences, text=text), model, text


def write_inputs(shape_name: str, encoder: str, path: Path) -> None:
    """Write the clips, 16 anchors and six partners of each, as inputs of a step for other code.

    Arrays: corpus, text_model, text_dim; texts [N]; labels [N]; for audio and vision, as `<m>_<name>`: values [S, D] of
    all clips end to end, starts [N], lengths [N], dim, fixed (length to pad to); anchors [16], partners [96].
    """
    shape = SHAPES[shape_name]
    clips, _, text = build_clips(shape, encoder)
    rows = training_batches(clips.lengths(), 16, seed=0, epoch=1)[0]
    classes = label_classes(clips.labels, shape.label_range)
    partners = mine(torch.randn(CLIPS, 8), classes, TrainConfig().mining)
    arrays = {
        "corpus": shape_name,
        "text_model": text.pretrained,
        "text_dim": text.config.hidden_size,
        "texts": np.array(transcripts(table(shape, CLIPS))),
        "labels": clips.labels,
        "anchors": rows,
        "partners": partners.draw(np.random.default_rng(0), rows)[0].ravel(),
    }
    for m in ("audio", "vision"):
        sequences = clips.sequences[m]
        arrays |= {f"{m}_values": sequences.values, f"{m}_starts": sequences.starts, f"{m}_lengths": sequences.lengths}
        arrays |= {f"{m}_dim": shape.dims[m], f"{m}_fixed": shape.padded[m]}
    np.savez(path, **arrays)


def measure(shape_name: str, variant: str, steps: int, bf16: bool, encoder: str) -> dict[str, float]:
    """Measure seconds per step, clips per second and megabytes: means over `steps` batches after two for warm-up."""
    shape, device = SHAPES[shape_name], resolve_device("auto")
    torch.manual_seed(0)
    clips, model, text = build_clips(shape, encoder)
    network = DashFusion(model, clips.info, text).to(device)
    classes = label_classes(clips.labels, shape.label_range)
    config = TrainConfig()
    partners = mine(torch.randn(CLIPS, 8), classes, config.mining)
    setting = Setting(shape, clips, classes, partners, network, device)
    losses = VARIANTS[variant](setting)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, fused=True)
    balanced = classes if variant == "in_batch" else None
    batches = training_batches(clips.lengths(), 16, seed=0, epoch=1, classes_N=balanced)
    batches = [rows for rows in batches if len(rows) == 16][: steps + 2]
    network.train()
    before = peak_megabytes(device) or 0.0
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for number, loss in enumerate(losses(batches)):
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number == 1:
                began = time.perf_counter()
    seconds = (time.perf_counter() - began) / (len(batches) - 2)
    megabytes = (peak_megabytes(device) or 0.0) - (before if device.type == "cpu" else 0.0)
    return {"seconds": seconds, "clips_per_second": 16 / seconds, "megabytes": megabytes}


def run(command: list[str]) -> dict[str, float]:
    """Run a command, and return the figures of its last line."""
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def run_peer(command: str, shape: str, encoder: str) -> dict[str, float]:
    """Run other code on the same clips, and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        write_inputs(shape, encoder, inputs)
        figures = run([*shlex.split(command), str(inputs), "2"])
    return {
        "seconds": figures["seconds"],
        "clips_per_second": 16 / figures["seconds"],
        "megabytes": figures["megabytes"],
    }


def main() -> None:
    """Run the benchmark, and write bench/results/train_step.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [f"{shape}/{text}" for shape in SHAPES for text in ("frozen", MINILM, "bert")]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, metavar="SHAPE/TEXT")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--peer", metavar="COMMAND")
    parser.add_argument("--variant", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--encoder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        shape = options.cases[0].partition("/")[0]
        print(json.dumps(measure(shape, options.variant, options.steps, options.bf16, options.encoder)))
        return
    figures: dict[str, float] = {}
    print(f"{'shape':<8}{'text':<8}{'step':<18}{'s a step':>10}{'clips/s':>10}{'MB':>9}{'times':>8}")
    with tempfile.TemporaryDirectory() as folder:
        encoders = {"frozen": "", MINILM: MINILM, "bert": str(Path(folder) / "bert")}
        bert_base(Path(encoders["bert"]))
        for case in options.cases:
            shape, _, text = case.partition("/")
            peer = None if text == "frozen" else options.peer
            figures |= compare(shape, text, encoders[text], options.steps, peer)
    write_result("train_step", figures)


def compare(shape: str, text: str, encoder: str, steps: int, peer: str | None) -> dict[str, float]:
    """Run all variants, and print and return their figures; `times` is the speed-up over the first one in float32."""
    rows = {"published": run_peer(peer, shape, encoder)} if peer else {}
    for precision in ("", "bf16") if has_bf16() else ("",):
        for variant in ("retrieved", "in_batch") if peer else VARIANTS:
            command = [sys.executable, "-m", "bench.train_step", "--cases", f"{shape}/{text}", "--variant", variant]
            command += ["--steps", str(steps), "--encoder", encoder, *(["--bf16"] if precision else [])]
            rows[f"{variant}_{precision}".rstrip("_")] = run(command)
    baseline, figures = next(iter(rows)), {}
    for variant, row in rows.items():
        row[f"times_faster_than_{baseline}"] = times = rows[baseline]["seconds"] / row["seconds"]
        figures |= {f"{shape}_{text}_{variant}_{key}": value for key, value in row.items()}
        print(
            f"{shape:<8}{text:<8}{variant:<18}{row['seconds']:>10.3f}"
            f"{row['clips_per_second']:>10.1f}{row['megabytes']:>9.0f}{times:>8.1f}",
            flush=True,
        )
    return figures


def has_bf16() -> bool:
    """Return whether the device has bfloat16 instructions."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


if __name__ == "__main__":
    main()
