"""What can be set about the network and its training, checked where it enters.

Plain dataclasses: the fields' names are the keys of the `model` and `train` blocks of params.yaml.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

MODALITIES = ("text", "audio", "vision")

Modality = Literal["text", "audio", "vision"]


def _require(holds: bool, option: str, value: object, rule: str, way_out: str) -> None:
    if not holds:
        raise ValueError(f"{option} is {value!r}: {rule}; {way_out}")


def _require_at_least(option: str, value: float, least: float) -> None:
    _require(value >= least, option, value, f"it must be at least {least}", f"set it to {least} or more")


@dataclass(frozen=True)
class ModelConfig:
    """Size of the network.

    Attributes:
        dim: width d of every sequence after its encoder.
        heads: attention heads of the encoders and of the fusion; divides `dim`.
        encoder_layers: Transformer layers of audio and of vision (2 for MOSI and CH-SIMS, 4 for MOSEI).
        bottleneck_tokens: p, tokens of the first fusion layer; each further one keeps half, 1 at least.
        fusion_layers: L (2 for MOSI and CH-SIMS, 3 for MOSEI).
        dropout: probability, on the embedded sequences and on every sub-layer's output.
        max_positions: longest sequence in steps; longer ones are cut and counted.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    dim: int = 128
    heads: int = 8
    encoder_layers: int = 2
    bottleneck_tokens: int = 8
    fusion_layers: int = 2
    dropout: float = 0.1
    max_positions: int = 2048

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "encoder_layers", "bottleneck_tokens", "fusion_layers", "max_positions"):
            _require_at_least(f"model.{name}", getattr(self, name), 1)
        _require(
            self.dim % self.heads == 0,
            "model.heads",
            self.heads,
            f"it must divide model.dim ({self.dim})",
            "choose a divisor, such as 8 for 128",
        )
        _require(
            0 <= self.dropout < 1,
            "model.dropout",
            self.dropout,
            "it is a probability below 1",
            "set it between 0 and 0.9",
        )


@dataclass(frozen=True)
class ContrastiveConfig:
    """The contrastive part of the loss: `L = MSE + weight * (semantic + supervised)`.

    A weight of 0 switches it off, mining included.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    weight: float = 0.2
    temperature: float = 0.5

    def __post_init__(self) -> None:
        _require_at_least("train.contrastive.weight", self.weight, 0)
        _require(
            self.temperature > 0,
            "train.contrastive.temperature",
            self.temperature,
            "similarities are divided by it, so it must be positive",
            "0.5 is the paper's",
        )


@dataclass(frozen=True)
class MiningConfig:
    """How the partners of an anchor are found.

    Attributes:
        refresh_epochs: epochs between two passes that rank the training clips.
        candidates: how many of the nearest (farthest) clips are drawn from.
        positives, hard_negatives, easy_negatives: partners drawn for each anchor.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    refresh_epochs: int = 2
    candidates: int = 10
    positives: int = 2
    hard_negatives: int = 2
    easy_negatives: int = 2

    def __post_init__(self) -> None:
        for name in ("refresh_epochs", "candidates", "positives"):
            _require_at_least(f"train.mining.{name}", getattr(self, name), 1)
        for name in ("positives", "hard_negatives", "easy_negatives"):
            value = getattr(self, name)
            _require(
                0 <= value <= self.candidates,
                f"train.mining.{name}",
                value,
                f"it must lie between 0 and train.mining.candidates ({self.candidates})",
                "raise candidates or lower it",
            )
        _require(
            self.hard_negatives + self.easy_negatives > 0,
            "train.mining.hard_negatives and easy_negatives",
            0,
            "a positive needs something to stand against",
            "set one of them to 1 or more, or train.contrastive.weight to 0",
        )


@dataclass(frozen=True)
class TrainConfig:
    """One training run for each seed.

    Attributes:
        modalities: what the network is shown; the others are fed as missing.
        seeds: one run each.
        epochs: most epochs; training stops earlier after `patience` epochs without a better validation MAE.
        batch_size: clips that are regressed in one step; their partners come on top.
        learning_rate: the highest, reached after `warmup_epochs`, falling linearly to 0 at the end.
        weight_decay: of AdamW, on everything but biases, LayerNorms and the learned vectors.
        device: auto (the first of cuda, mps, cpu that is there), cpu, cuda, cuda:<n> or mps.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    modalities: tuple[Modality, ...] = MODALITIES
    seeds: tuple[int, ...] = (0,)
    epochs: int = 30
    batch_size: int = 16
    learning_rate: float = 5e-4
    warmup_epochs: int = 2
    weight_decay: float = 1e-3
    patience: int = 10
    device: str = "auto"
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)

    def __post_init__(self) -> None:
        check_modalities(self.modalities, "train.modalities")
        seeds = self.seeds
        _require(len(seeds) > 0, "train.seeds", seeds, "a run needs a seed", "name one, such as [0]")
        _require(len(set(seeds)) == len(seeds), "train.seeds", seeds, "each seed is one run", "name each seed once")
        _require(
            all(0 <= seed < 2**32 for seed in seeds),
            "train.seeds",
            seeds,
            "numpy takes seeds from 0 to 2**32 - 1",
            "choose non-negative ones",
        )
        for name in ("epochs", "batch_size", "patience"):
            _require_at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("warmup_epochs", "weight_decay"):
            _require_at_least(f"train.{name}", getattr(self, name), 0)
        _require(
            self.warmup_epochs <= self.epochs,
            "train.warmup_epochs",
            self.warmup_epochs,
            f"the warm-up must fit into train.epochs ({self.epochs})",
            "lower it or train longer",
        )
        _require(
            self.learning_rate > 0,
            "train.learning_rate",
            self.learning_rate,
            "it must be positive",
            "try 5e-4",
        )
        _require(
            re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device) is not None,
            "train.device",
            self.device,
            "it must be auto, cpu, mps, cuda or cuda:<n>",
            "use auto to take what is there",
        )


def check_modalities(modalities: tuple[str, ...], option: str) -> None:
    """Raise ValueError unless `modalities` is a non-empty choice among text, audio and vision, each once."""
    _require(
        0 < len(modalities) == len(set(modalities)) and set(modalities) <= set(MODALITIES),
        option,
        tuple(modalities),
        f"it must name at least one of {', '.join(MODALITIES)}, each once",
        "use [text, audio, vision] for all",
    )
