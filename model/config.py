"""Configuration of the network and its training, validated on construction.

The fields of these dataclasses are the keys of the `model` and `train` blocks of params.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any, ClassVar, Literal, get_args

Modality = Literal["text", "audio", "vision"]
NetworkName = Literal["dashfusion", "dashfusion_published"]
Anchor = Literal["text", "audio", "vision", "symmetric", "adaptive"]
Fusion = Literal["hbf", "concat_attention", "concat"]
Reduction = Literal["paper", "published"]
SemanticNegatives = Literal["paired", "anchor"]
MinedIndex = Literal["clip", "rank"]
ClassRounding = Literal["away", "even"]
Batching = Literal["by_length", "shuffled"]
BestEpoch = Literal["first", "last"]
Scope = Literal["retrieved", "in_batch"]
Negatives = Literal["hard", "random"]
TextMode = Literal["frozen", "finetune", "scratch"]
TextTokenizer = Literal["subword", "character"]
Precision = Literal["auto", 32, "bf16"]

MODALITIES: tuple[str, ...] = get_args(Modality)


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all non-empty subsets, largest first, each in the order of `MODALITIES`."""
    ordered = [m for m in MODALITIES if m in modalities]
    return [subset for size in range(len(ordered), 0, -1) for subset in combinations(ordered, size)]


def _require(holds: bool, option: str, value: object, rule: str, way_out: str) -> None:
    if not holds:
        raise ValueError(f"{option} is {value!r}: {rule}; {way_out}")


def _require_choice(option: str, value: str, choices: Any) -> None:
    known = get_args(choices)
    _require(value in known, option, value, f"it must be one of {', '.join(known)}", f"{known[0]} is the paper's")


def _require_at_least(option: str, value: float, minimum: float) -> None:
    _require(value >= minimum, option, value, f"it must be at least {minimum}", f"set it to {minimum} or more")


def _require_probability(option: str, value: float) -> None:
    _require(0 <= value < 1, option, value, "it must be in [0, 1)", "set it between 0 and 0.9")


@dataclass(frozen=True)
class TextConfig:
    """Text input of the network.

    Attributes:
        mode: frozen: the dataset's text features. finetune: tokens, with a pre-trained encoder that is trained with the
            network. scratch: tokens, with a small randomly initialised encoder and a tokenizer trained on the training
            transcripts, for a language without a pre-trained encoder.
        max_tokens: finetune, scratch: maximum tokens of a transcript, at least 3; longer ones are truncated. The
            encoder's own limit applies as well.
        encoder: finetune: minilm, a folder with a Hugging Face encoder, or its id on the hub; empty: the encoder that
            the dataset's text extractor names.
        freeze_layers: finetune: number of first layers that are not trained, with the embeddings; 0: all is trained.
        tokenizer: scratch: subword, or character (Chinese, Japanese).
        vocabulary: scratch: maximum number of tokens in the vocabulary, at least 64.
        layers: scratch: Transformer layers.
        width: scratch: width of the encoder.
        heads: scratch: attention heads; divides `width`.
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
            modes = _MODES_BY_OPTION.get(item.name, ("scratch",))
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
        for name, minimum in {"max_tokens": 3, "freeze_layers": 0, "vocabulary": 64, "layers": 1, "heads": 1}.items():
            _require_at_least(f"model.text.{name}", getattr(self, name), minimum)
        _require(
            self.width > 0 and self.width % self.heads == 0,
            "model.text.heads",
            self.heads,
            f"it must divide model.text.width ({self.width})",
            "choose a divisor, such as 4 for 128",
        )


_MODES_BY_OPTION = {"max_tokens": ("finetune", "scratch"), "encoder": ("finetune",), "freeze_layers": ("finetune",)}
"""Text modes in which an option of `TextConfig` has an effect; default: scratch."""


@dataclass(frozen=True)
class PaddingConfig:
    """Steps to which `dashfusion_published` pads a clip's audio and vision; 0: padding is masked.

    The authors' code pads every clip to one length, and its alignment and fusion attend to the padding.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    audio: int = 0
    vision: int = 0

    def __post_init__(self) -> None:
        for name in ("audio", "vision"):
            _require_at_least(f"model.padding.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the network.

    Attributes:
        name: dashfusion, as the paper describes it; dashfusion_published, as the authors' code has it, for which
            `FIXED_OPTIONS` lists the options without effect.
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

    name: NetworkName = "dashfusion"
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
        _require_choice("model.name", self.name, NetworkName)
        for item in fields(self):
            value = getattr(self, item.name)
            _require(
                item.name not in FIXED_OPTIONS.get(self.name, ()) or value == item.default,
                f"model.{item.name}",
                value,
                f"model.name {self.name} has it as the authors' code does",
                f"leave it at {item.default}, or set model.name to dashfusion",
            )
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
            "without temporal alignment one modality's sequence replaces the aligned one",
            "set it to text, audio or vision, or model.alignment to true",
        )
        _require_probability("model.dropout", self.dropout)


FIXED_OPTIONS = {"dashfusion_published": ("anchor", "alignment", "fusion", "dropout", "unimodal_heads")}
"""Options of `ModelConfig` that a network does not have."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Contrastive losses: `L = MSE + weight * contrastive`.

    Attributes:
        weight: lambda, at least 0; 0 switches both losses and the mining off.
        temperature: tau of both losses, positive.
        semantic: Whether to align the modalities' embeddings of the same clip.
        semantic_negatives: What the semantic loss contrasts a clip's pair of modalities with. paired: the other clips'
            embeddings of the modality that is paired with the anchor; anchor: embeddings of the anchor modality, those
            of the clip's negative partners, as in the authors' code.
        supervised: Whether to contrast clips of one class with clips of others; only this loss needs partners.
        reduction: How the two losses become one. paper: the sum of their means over pairs; published: the mean over all
            pairs of the authors' code, which has about a fifth of that gradient (`losses.combine_contrastive`).
        scope: Source of an anchor's partners. retrieved: mined from all training clips and encoded with the batch;
            in_batch: mined from the batch itself, so that nothing more is encoded.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    weight: float = 0.2
    temperature: float = 0.5
    semantic: bool = True
    semantic_negatives: SemanticNegatives = "paired"
    supervised: bool = True
    reduction: Reduction = "paper"
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
        _require_choice("train.contrastive.reduction", self.reduction, Reduction)
        _require_choice("train.contrastive.scope", self.scope, Scope)
        _require_choice("train.contrastive.semantic_negatives", self.semantic_negatives, SemanticNegatives)
        _require(
            self.semantic_negatives == "paired" or self.supervised,
            "train.contrastive.semantic_negatives",
            self.semantic_negatives,
            "these are the partners of the supervised loss, which is off",
            "set it to paired, or train.contrastive.supervised to true",
        )
        _require(
            self.weight == 0 or self.semantic or self.supervised,
            "train.contrastive.weight",
            self.weight,
            "with semantic and supervised both off it has nothing to weigh",
            "set it to 0, or one of the two to true",
        )


@dataclass(frozen=True)
class MiningConfig:
    """Mining of the partners of an anchor.

    Attributes:
        refresh_epochs: Epochs between two rankings of the training clips.
        pool_size: Maximum clips that an anchor is ranked against, at least 2. From a larger training split a random
            pool is drawn at each refresh, so that ranking costs clips x pool instead of clips squared.
        negatives: hard (the most and the least similar clips of other classes, as in the paper) or random (any clips
            of other classes, the paper's ablation).
        index: clip: the ranked clips are the partners; rank: the clips whose index equals the position in the ranking,
            always the first and last of the corpus. This is a mistake of the authors' code, to reproduce it.
        class_rounding: Rounding of a label half-way between two classes: away from zero, or even, as NumPy rounds.
        candidates: Number of most (least) similar clips that partners are drawn from.
        positives: Positives drawn per anchor, from 1 to `candidates`.
        hard_negatives: Most similar negatives drawn per anchor, from 0 to `candidates`.
        easy_negatives: Least similar negatives drawn per anchor, from 0 to `candidates`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    refresh_epochs: int = 2
    pool_size: int = 20_000
    negatives: Negatives = "hard"
    index: MinedIndex = "clip"
    class_rounding: ClassRounding = "away"
    candidates: int = 10
    positives: int = 2
    hard_negatives: int = 2
    easy_negatives: int = 2

    def __post_init__(self) -> None:
        for name in ("refresh_epochs", "candidates", "positives"):
            _require_at_least(f"train.mining.{name}", getattr(self, name), 1)
        _require_at_least("train.mining.pool_size", self.pool_size, 2)
        _require_choice("train.mining.negatives", self.negatives, Negatives)
        _require_choice("train.mining.index", self.index, MinedIndex)
        _require_choice("train.mining.class_rounding", self.class_rounding, ClassRounding)
        _require(
            self.index == "clip" or self.negatives == "hard",
            "train.mining.index",
            self.index,
            "with random negatives there is no ranking",
            "set it to clip, or train.mining.negatives to hard",
        )
        for name in ("positives", "hard_negatives", "easy_negatives"):
            value = getattr(self, name)
            _require(
                0 <= value <= self.candidates,
                f"train.mining.{name}",
                value,
                f"it must be between 0 and train.mining.candidates ({self.candidates})",
                "raise candidates or lower it",
            )
        _require(
            self.hard_negatives + self.easy_negatives > 0,
            "train.mining.hard_negatives and easy_negatives",
            0,
            "a positive needs negatives to contrast with",
            "set one of them to 1 or more, or train.contrastive.weight to 0",
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of the training clips' features, drawn anew in each epoch; mined partners are not augmented.

    Attributes:
        noise: Standard deviation of Gaussian noise on audio and vision, in standard deviations of the feature.
        spans: Maximum fraction of an audio or vision sequence to mask in one span, in [0, 1).
        words: Probability of masking a text step other than the first, in [0, 1).
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
        for name in ("warmup_epochs", "weight_decay", "batch_tokens", "checkpoint_minutes", "clip_norm"):
            _require_at_least(f"train.{name}", getattr(self, name), 0)
        _require_choice("train.batching", self.batching, Batching)
        _require_choice("train.best_epoch", self.best_epoch, BestEpoch)
        _require(
            self.best_epoch == "first" or self.epochs > 1,
            "train.best_epoch",
            self.best_epoch,
            "it leaves out the first epoch, and train.epochs is 1",
            "set it to first, or train longer",
        )
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
    """Raise ValueError if the two configurations are valid but not compatible with each other."""
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
    """Raise ValueError unless `modalities` names at least one of text, audio and vision, each at most once."""
    _require(
        0 < len(modalities) == len(set(modalities)) and set(modalities) <= set(MODALITIES),
        option,
        tuple(modalities),
        f"it must name at least one of {', '.join(MODALITIES)}, each once",
        "use [text, audio, vision] for all",
    )
