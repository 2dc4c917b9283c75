"""What can be set about the network and its training, checked where it enters.

Plain dataclasses: the fields' names are the keys of the `model` and `train` blocks of params.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any, ClassVar, Literal, get_args

MODALITIES = ("text", "audio", "vision")


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets, the largest first, each in the usual order."""
    ordered = [m for m in MODALITIES if m in modalities]
    return [chosen for size in range(len(ordered), 0, -1) for chosen in combinations(ordered, size)]


Modality = Literal["text", "audio", "vision"]
Anchor = Literal["text", "audio", "vision", "symmetric", "adaptive"]
Fusion = Literal["hbf", "concat_attention", "concat"]
Scope = Literal["retrieved", "in_batch"]
Negatives = Literal["hard", "random"]
TextMode = Literal["frozen", "finetune", "scratch"]
TextTokenizer = Literal["subword", "character"]
Precision = Literal["auto", 32, "bf16"]


def _require(holds: bool, option: str, value: object, rule: str, way_out: str) -> None:
    if not holds:
        raise ValueError(f"{option} is {value!r}: {rule}; {way_out}")


def _require_choice(option: str, value: str, choices: Any) -> None:
    known = get_args(choices)
    _require(value in known, option, value, f"it must be one of {', '.join(known)}", f"{known[0]} is the paper's")


def _require_at_least(option: str, value: float, least: float) -> None:
    _require(value >= least, option, value, f"it must be at least {least}", f"set it to {least} or more")


def _require_probability(option: str, value: float) -> None:
    _require(0 <= value < 1, option, value, "it must lie in [0, 1)", "set it between 0 and 0.9")


@dataclass(frozen=True)
class TextConfig:
    """What the network reads of the transcripts.

    Attributes:
        mode: frozen: the dataset's text features. finetune: tokens, by a pre-trained encoder that is trained on with
            the network. scratch: tokens, by a small encoder from random weights, with a tokenizer that is trained on
            the training transcripts, for a language without an encoder at hand.
        max_tokens: finetune, scratch: longer transcripts are cut; an encoder's own limit holds as well.
        encoder: finetune: minilm, a folder with a Hugging Face encoder, or an id on its hub; empty: the one that the
            dataset's text extractor names.
        freeze_layers: finetune: the embeddings and so many first layers stay as they are; 0: all is trained.
        tokenizer: scratch: subword, or character (Chinese, Japanese).
        vocabulary: scratch: most tokens.
        layers, width, heads: scratch: of the encoder.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    mode: TextMode = "frozen"
    max_tokens: int = 128
    encoder: str = ""
    freeze_layers: int = 0
    tokenizer: TextTokenizer = "subword"
    vocabulary: int = 4000
    layers: int = 2
    width: int = 128
    heads: int = 4

    def __post_init__(self) -> None:
        _require_choice("model.text.mode", self.mode, TextMode)
        for item in fields(self):
            modes = _MODES_OF.get(item.name, ("scratch",))
            value = getattr(self, item.name)
            _require(
                item.name == "mode" or self.mode in modes or value == item.default,
                f"model.text.{item.name}",
                value,
                f"it has no effect with model.text.mode {self.mode}",
                f"leave it out, or set the mode to {' or '.join(modes)}",
            )
        _require(
            self.tokenizer in get_args(TextTokenizer),
            "model.text.tokenizer",
            self.tokenizer,
            "it must be subword or character",
            "character suits languages without spaces",
        )
        for name, least in {"max_tokens": 3, "freeze_layers": 0, "vocabulary": 64, "layers": 1, "heads": 1}.items():
            _require_at_least(f"model.text.{name}", getattr(self, name), least)
        _require(
            self.width > 0 and self.width % self.heads == 0,
            "model.text.heads",
            self.heads,
            f"it must divide model.text.width ({self.width})",
            "choose a divisor, such as 4 for 128",
        )


_MODES_OF = {"max_tokens": ("finetune", "scratch"), "encoder": ("finetune",), "freeze_layers": ("finetune",)}
"""Where an option of `TextConfig` counts; the others count in mode scratch."""


@dataclass(frozen=True)
class ModelConfig:
    """Size and parts of the network.

    Attributes:
        dim: width d of every sequence after its encoder.
        heads: attention heads of the encoders and of the fusion; divides `dim`.
        encoder_layers: Transformer layers of audio and of vision (2 for MOSI and CH-SIMS, 4 for MOSEI).
        anchor: the modality whose steps look for their moment in the other two; symmetric: each of the three
            does, and the results are averaged; adaptive: weighted, by the clip, as is learned. Both streams of the
            alignment follow it. In a clip that lacks the anchor, the first modality that it has takes its place.
        alignment: temporal alignment; without it the anchor's own sequence takes the place of the aligned one.
        fusion: hbf; concat_attention (the sequences one after another through `fusion_layers` Transformer
            layers); concat (the sequences' first positions, no fusion layers).
        bottleneck_tokens: p, tokens of the first layer of hbf; each further one keeps half, 1 at least.
        fusion_layers: L of hbf and of concat_attention (2 for MOSI and CH-SIMS, 3 for MOSEI).
        dropout: probability, on the embedded sequences and on every sub-layer's output.
        max_positions: longest sequence in steps; longer ones are cut and counted.
        unimodal_heads: a prediction from each modality alone, taught by the clip's label of that modality (CH-SIMS's
            label_T, label_A and label_V).
        text: features or tokens, and the encoder of the latter.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

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
            _require_at_least(f"model.{name}", getattr(self, name), 1)
        _require(
            self.dim % self.heads == 0,
            "model.heads",
            self.heads,
            f"it must divide model.dim ({self.dim})",
            "choose a divisor, such as 8 for 128",
        )
        _require_choice("model.anchor", self.anchor, Anchor)
        _require_choice("model.fusion", self.fusion, Fusion)
        _require(
            self.alignment or self.anchor in MODALITIES,
            "model.anchor",
            self.anchor,
            "without temporal alignment one modality's sequence takes the place of the aligned one",
            "set it to text, audio or vision, or model.alignment to true",
        )
        _require_probability("model.dropout", self.dropout)


@dataclass(frozen=True)
class ContrastiveConfig:
    """The contrastive part of the loss: `L = MSE + weight * (semantic + supervised)`.

    A weight of 0 switches it off, mining included.

    Attributes:
        weight: lambda.
        temperature: tau, of both parts.
        semantic: the alignment of the modalities' vectors within a clip.
        supervised: clips of one class against clips of others; it alone needs partners.
        scope: where an anchor's partners come from. retrieved: mined among all training clips and encoded
            beside the batch. in_batch: mined among the batch's own clips, so nothing more is encoded.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    weight: float = 0.2
    temperature: float = 0.5
    semantic: bool = True
    supervised: bool = True
    scope: Scope = "retrieved"

    def __post_init__(self) -> None:
        _require_at_least("train.contrastive.weight", self.weight, 0)
        _require(
            self.temperature > 0,
            "train.contrastive.temperature",
            self.temperature,
            "similarities are divided by it, so it must be positive",
            "0.5 is the paper's",
        )
        _require_choice("train.contrastive.scope", self.scope, Scope)
        _require(
            self.weight == 0 or self.semantic or self.supervised,
            "train.contrastive.weight",
            self.weight,
            "with semantic and supervised both off it has nothing to weigh",
            "set it to 0, or one of the two to true",
        )


@dataclass(frozen=True)
class MiningConfig:
    """How the partners of an anchor are found.

    Attributes:
        refresh_epochs: epochs between two passes that rank the training clips.
        pool_size: most clips that an anchor is ranked against. A larger training split is ranked against that
            many of its clips, drawn at random at each refresh: ranking then costs clips x pool, not clips squared.
        negatives: hard (the most and the least similar clips of another class, as the paper has it) or random
            (both kinds are any clips of another class: the paper's ablation).
        candidates: how many of the nearest (farthest) clips are drawn from.
        positives, hard_negatives, easy_negatives: partners drawn for each anchor.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    refresh_epochs: int = 2
    pool_size: int = 20_000
    negatives: Negatives = "hard"
    candidates: int = 10
    positives: int = 2
    hard_negatives: int = 2
    easy_negatives: int = 2

    def __post_init__(self) -> None:
        for name in ("refresh_epochs", "candidates", "positives"):
            _require_at_least(f"train.mining.{name}", getattr(self, name), 1)
        _require_at_least("train.mining.pool_size", self.pool_size, 2)
        _require_choice("train.mining.negatives", self.negatives, Negatives)
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
class AugmentConfig:
    """What is done to the features of the training clips, anew in each epoch; mined partners stay as they are.

    Attributes:
        noise: standard deviation of the noise on audio and vision, in standard deviations of the feature itself.
        spans: the largest part of an audio or vision sequence that is hidden, in one span; a fraction.
        words: probability that a step of the text, but for its first, is hidden.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    noise: float = 0.0
    spans: float = 0.0
    words: float = 0.0

    def __post_init__(self) -> None:
        _require_at_least("train.augment.noise", self.noise, 0)
        for name in ("spans", "words"):
            _require_probability(f"train.augment.{name}", getattr(self, name))


@dataclass(frozen=True)
class TrainConfig:
    """One training run for each seed.

    Attributes:
        modalities: what the network is shown; the others are fed as missing.
        modality_dropout: probability that a training clip is shown without one of its modalities, drawn for each of
            them; one is always left. The network then predicts well from what a clip has.
        augment: what else is done to the training clips.
        seeds: one run each.
        epochs: most epochs; training stops earlier after `patience` epochs without a better validation MAE.
        batch_size: most clips that are regressed in one batch; their partners come on top.
        batch_tokens: most steps of one batch, padding and attention's square counted (`model.data.batching.batch_cost`,
            all modalities together): a batch of long clips holds fewer of them, which bounds memory. 0: no bound.
        accumulate: batches whose gradients are averaged into one update.
        learning_rate: the highest, reached after `warmup_epochs`, falling linearly to 0 at the end.
        text_learning_rate: the same of the text encoder that model.text.mode finetune or scratch trains; null: as
            `learning_rate`. What is pre-trained wants less, such as 2e-5.
        unimodal_weight: of the loss of model.unimodal_heads, where there are any.
        weight_decay: of AdamW, on everything but biases, LayerNorms and the learned vectors.
        device: auto (the first of cuda, mps, cpu that is there), cpu, cuda, cuda:<n> or mps.
        precision: 32, bf16 (autocast: weights and losses stay in float32) or auto (bf16 on a CUDA device that has
            it, else 32).
        checkpoint_minutes: at most so much training is lost to a kill in the middle of an epoch; 0 saves after
            every update. Every epoch is saved in any case.
        tensorboard: write the learning curves for TensorBoard as well.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    modalities: tuple[Modality, ...] = MODALITIES
    modality_dropout: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seeds: tuple[int, ...] = (0,)
    epochs: int = 30
    batch_size: int = 16
    batch_tokens: int = 0
    accumulate: int = 1
    learning_rate: float = 5e-4
    text_learning_rate: float | None = None
    warmup_epochs: int = 2
    unimodal_weight: float = 0.5
    weight_decay: float = 1e-3
    patience: int = 10
    device: str = "auto"
    precision: Precision = "auto"
    checkpoint_minutes: float = 5.0
    tensorboard: bool = False
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)

    def __post_init__(self) -> None:
        check_modalities(self.modalities, "train.modalities")
        _require_probability("train.modality_dropout", self.modality_dropout)
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
        for name in ("epochs", "batch_size", "accumulate", "patience"):
            _require_at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("warmup_epochs", "weight_decay", "batch_tokens", "checkpoint_minutes"):
            _require_at_least(f"train.{name}", getattr(self, name), 0)
        _require(
            self.warmup_epochs <= self.epochs,
            "train.warmup_epochs",
            self.warmup_epochs,
            f"the warm-up must fit into train.epochs ({self.epochs})",
            "lower it or train longer",
        )
        _require(
            self.unimodal_weight > 0,
            "train.unimodal_weight",
            self.unimodal_weight,
            "it must be positive",
            "set model.unimodal_heads to false for a network without them",
        )
        _require(
            self.learning_rate > 0,
            "train.learning_rate",
            self.learning_rate,
            "it must be positive",
            "try 5e-4",
        )
        _require(
            self.text_learning_rate is None or self.text_learning_rate > 0,
            "train.text_learning_rate",
            self.text_learning_rate,
            "it must be positive, or null",
            "try 2e-5, or set model.text.mode to frozen for an encoder that is not trained",
        )
        _require(
            re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device) is not None,
            "train.device",
            self.device,
            "it must be auto, cpu, mps, cuda or cuda:<n>",
            "use auto to take what is there",
        )
        _require(
            self.precision in get_args(Precision),
            "train.precision",
            self.precision,
            "it must be auto, 32 or bf16",
            "use auto: bf16 where the GPU has it",
        )


def check_together(model: ModelConfig, train: TrainConfig) -> None:
    """Raise ValueError where each of the two is right and they do not go together."""
    trained = model.text.mode != "frozen"
    _require(
        trained or train.text_learning_rate is None,
        "train.text_learning_rate",
        train.text_learning_rate,
        "with model.text.mode frozen no text encoder is trained",
        "set it to null, or the mode to finetune or scratch",
    )
    _require(
        not trained or "text" in train.modalities,
        "model.text.mode",
        model.text.mode,
        f"train.modalities ({', '.join(train.modalities)}) shows the network no text to train its encoder on",
        "set it to frozen, or add text to train.modalities",
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
