"""Configuration of the network and its training, validated on construction.

The fields of these dataclasses are the keys of the `model` and `train` blocks of params.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, Literal, get_args

from model.config_blocks import (
    AugmentConfig,
    ClassRounding,
    ContrastiveConfig,
    IntervalConfig,
    MiningConfig,
    PaddingConfig,
    Reduction,
    TextConfig,
    require,
    require_at_least,
    require_choice,
    require_probability,
)

__all__ = [
    "MODALITIES", "AugmentConfig", "ClassRounding", "ContrastiveConfig", "IntervalConfig", "MiningConfig", "Modality",
    "ModelConfig", "PaddingConfig", "Reduction", "TextConfig", "TrainConfig", "check_modalities", "check_together",
    "subsets",
]  # fmt: skip

Modality = Literal["text", "audio", "vision"]
Anchor = Literal["text", "audio", "vision", "symmetric", "adaptive"]
Fusion = Literal["hbf", "concat_attention", "concat"]
Batching = Literal["by_length", "shuffled"]
RegressionLoss = Literal["mse", "mae"]
BestEpoch = Literal["first", "last"]
Precision = Literal["auto", 32, "bf16"]

MODALITIES: tuple[str, ...] = get_args(Modality)


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all non-empty subsets, largest first, each in the order of `MODALITIES`."""
    ordered = [m for m in MODALITIES if m in modalities]
    return [subset for size in range(len(ordered), 0, -1) for subset in combinations(ordered, size)]


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the network.

    Attributes:
        name: Network, one of `model.network.registry.network_names()`. `model.network.registry.check_network` checks
            the configuration against the network, which may lack some of these options.
        options: Hyperparameters of the network's own, the fields of its `options_class`.
        normalise: Whether audio and vision are normalised by the training statistics; false: used as extracted.
        padding: Length to which dashfusion_published pads audio and vision; other networks mask all padding.
        dim: Width d of every sequence after its encoder.
        heads: Attention heads of the encoders and of the fusion; divides `dim`.
        encoder_layers: Transformer layers of the audio and vision encoders (2 for MOSI and CH-SIMS, 4 for MOSEI).
        anchor: Modality whose steps attend to the other two in the temporal alignment. symmetric: each of the three in
            turn, averaged; adaptive: averaged with learned weights per clip. Both alignment streams follow it. In a
            clip without the anchor, its first available modality takes its place.
        alignment: Whether to use temporal alignment; without it the anchor's own sequence replaces the aligned one.
        fusion: hbf; concat_attention (concatenated sequences through `fusion_layers` Transformer layers); concat (the
            sequences' first positions, without fusion layers).
        bottleneck_tokens: p, bottleneck tokens of the first hbf layer; each further layer keeps half, at least 1.
        fusion_layers: L, layers of hbf and of concat_attention (2 for MOSI and CH-SIMS, 3 for MOSEI).
        dropout: Dropout probability, in [0, 1), of the embedded sequences and of every sub-layer's output.
        max_positions: Maximum steps of a sequence; longer ones are truncated and counted.
        unimodal_heads: Whether to also predict from each modality alone, trained on the clip's label of that modality
            (label_T, label_A and label_V of CH-SIMS).
        text: Text features or tokens, and the encoder of the latter.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str = "dashfusion"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    normalise: bool = True
    padding: PaddingConfig = field(default_factory=PaddingConfig)
    dim: int = 128
    heads: int = 8
    encoder_layers: int = 2
    anchor: Anchor = "text"
    alignment: bool = True
    fusion: Fusion = "hbf"
    bottleneck_tokens: int = 8
    fusion_layers: int = 2
    dropout: float = 0.1
    max_positions: int = 2048
    unimodal_heads: bool = False
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "encoder_layers", "bottleneck_tokens", "fusion_layers", "max_positions"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        require(
            self.dim % self.heads == 0,
            "model.heads",
            self.heads,
            f"it must divide model.dim ({self.dim})",
            "choose a divisor, such as 8 for 128",
        )
        require_choice("model.anchor", self.anchor, Anchor)
        require_choice("model.fusion", self.fusion, Fusion)
        require(
            self.alignment or self.anchor in MODALITIES,
            "model.anchor",
            self.anchor,
            "without temporal alignment one modality's sequence replaces the aligned one",
            "set it to text, audio or vision, or model.alignment to true",
        )
        require_probability("model.dropout", self.dropout)


@dataclass(frozen=True)
class TrainConfig:
    """Training, one run per seed.

    Attributes:
        modalities: Modalities that the network uses; the others are treated as missing.
        modality_dropout: Probability, in [0, 1), of dropping each modality of a training clip; one is always kept.
            Makes the network robust against missing modalities.
        augment: Augmentation of the training clips.
        seeds: Seeds, from 0 to 2**32 - 1.
        epochs: Maximum number of epochs, see `patience`.
        batch_size: Maximum clips per batch; their partners are encoded in addition.
        batch_tokens: Maximum cost of a batch in steps, including padding and attention's square, over all modalities
            (`model.data.batching.batch_cost`). Bounds memory: a batch of long clips holds fewer. 0: no limit.
        batching: by_length: clips of similar length together, so that little of a batch is padding; shuffled: any.
        accumulate: Batches of one update, whose loss is the mean over all their clips.
        clip_norm: Maximum norm of an update's gradient, which is scaled down to it; 0: no limit.
        learning_rate: Peak learning rate, reached after `warmup_epochs`, then decaying linearly to 0.
        text_learning_rate: Peak learning rate of a text encoder that is trained (model.text.mode finetune or scratch);
            null: `learning_rate`. Pre-trained encoders need a lower one, such as 2e-5.
        warmup_epochs: Epochs of linear learning-rate warm-up.
        regression_loss: Loss of the prediction: mse, the mean squared error; mae, the mean absolute error, as several
            baselines were published with.
        unimodal_weight: Weight of the loss of model.unimodal_heads, positive.
        weight_decay: Weight decay of AdamW, except on biases, LayerNorms and learned vectors.
        best_epoch: Epoch that is kept, of those with the lowest validation MAE. first: the first; last: the last,
            equal to four decimals counting as equal and the first epoch left out, as in the authors' code.
        patience: Epochs without a better validation MAE after which training stops.
        device: auto (first available of cuda, mps, cpu), cpu, cuda, cuda:<n> or mps.
        precision: 32, bf16 (autocast; weights and losses stay in float32) or auto (bf16 on a CUDA device that supports
            it, else 32).
        checkpoint_minutes: Minutes between two saves of the mid-epoch training state; 0: save after every update. The
            state is always saved after an epoch.
        tensorboard: Whether to write the learning curves for TensorBoard as well.
        contrastive: Contrastive losses.
        mining: Mining of contrastive partners.
        intervals: Prediction intervals.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    modalities: tuple[Modality, ...] = get_args(Modality)
    modality_dropout: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seeds: tuple[int, ...] = (0,)
    epochs: int = 30
    batch_size: int = 16
    batch_tokens: int = 0
    batching: Batching = "by_length"
    accumulate: int = 1
    clip_norm: float = 1.0
    learning_rate: float = 5e-4
    text_learning_rate: float | None = None
    warmup_epochs: int = 2
    regression_loss: RegressionLoss = "mse"
    unimodal_weight: float = 0.5
    weight_decay: float = 1e-3
    best_epoch: BestEpoch = "first"
    patience: int = 10
    device: str = "auto"
    precision: Precision = "auto"
    checkpoint_minutes: float = 5.0
    tensorboard: bool = False
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    intervals: IntervalConfig = field(default_factory=IntervalConfig)

    def __post_init__(self) -> None:
        check_modalities(self.modalities, "train.modalities")
        require_probability("train.modality_dropout", self.modality_dropout)
        seeds = self.seeds
        require(len(seeds) > 0, "train.seeds", seeds, "a run needs a seed", "name one, such as [0]")
        require(len(set(seeds)) == len(seeds), "train.seeds", seeds, "each seed is one run", "name each seed once")
        require(
            all(0 <= seed < 2**32 for seed in seeds),
            "train.seeds",
            seeds,
            "numpy takes seeds from 0 to 2**32 - 1",
            "choose non-negative ones",
        )
        for name in ("epochs", "batch_size", "accumulate", "patience"):
            require_at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("warmup_epochs", "weight_decay", "batch_tokens", "checkpoint_minutes", "clip_norm"):
            require_at_least(f"train.{name}", getattr(self, name), 0)
        require_choice("train.batching", self.batching, Batching)
        require_choice("train.regression_loss", self.regression_loss, RegressionLoss)
        require_choice("train.best_epoch", self.best_epoch, BestEpoch)
        require(
            self.best_epoch == "first" or self.epochs > 1,
            "train.best_epoch",
            self.best_epoch,
            "it leaves out the first epoch, and train.epochs is 1",
            "set it to first, or train longer",
        )
        require(
            self.warmup_epochs <= self.epochs,
            "train.warmup_epochs",
            self.warmup_epochs,
            f"the warm-up must fit into train.epochs ({self.epochs})",
            "lower it or train longer",
        )
        require(
            self.unimodal_weight > 0,
            "train.unimodal_weight",
            self.unimodal_weight,
            "it must be positive",
            "set model.unimodal_heads to false for a network without them",
        )
        require(
            self.learning_rate > 0,
            "train.learning_rate",
            self.learning_rate,
            "it must be positive",
            "try 5e-4",
        )
        require(
            self.text_learning_rate is None or self.text_learning_rate > 0,
            "train.text_learning_rate",
            self.text_learning_rate,
            "it must be positive, or null",
            "try 2e-5, or set model.text.mode to frozen for an encoder that is not trained",
        )
        require(
            re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device) is not None,
            "train.device",
            self.device,
            "it must be auto, cpu, mps, cuda or cuda:<n>",
            "use auto to take what is there",
        )
        require(
            self.precision in get_args(Precision),
            "train.precision",
            self.precision,
            "it must be auto, 32 or bf16",
            "use auto: bf16 where the GPU has it",
        )


def check_together(model: ModelConfig, train: TrainConfig) -> None:
    """Raise ValueError if the two configurations are valid but not compatible with each other."""
    trained = model.text.mode != "frozen"
    require(
        trained or train.text_learning_rate is None,
        "train.text_learning_rate",
        train.text_learning_rate,
        "with model.text.mode frozen no text encoder is trained",
        "set it to null, or the mode to finetune or scratch",
    )
    require(
        not trained or "text" in train.modalities,
        "model.text.mode",
        model.text.mode,
        f"train.modalities ({', '.join(train.modalities)}) shows the network no text to train its encoder on",
        "set it to frozen, or add text to train.modalities",
    )


def check_modalities(modalities: tuple[str, ...], option: str) -> None:
    """Raise ValueError unless `modalities` names at least one of text, audio and vision, each at most once."""
    require(
        0 < len(modalities) == len(set(modalities)) and set(modalities) <= set(MODALITIES),
        option,
        tuple(modalities),
        f"it must name at least one of {', '.join(MODALITIES)}, each once",
        "use [text, audio, vision] for all",
    )
