"""The nested blocks of the configuration, and checks of options.

The fields of these dataclasses are the keys of blocks in `model` and `train` of params.yaml. Import them from
`model.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

Reduction = Literal["paper", "published"]
SemanticNegatives = Literal["paired", "anchor"]
MinedIndex = Literal["clip", "rank"]
ClassRounding = Literal["away", "even"]
Scope = Literal["retrieved", "in_batch"]
Negatives = Literal["hard", "random"]
TextTokens = Literal["transcript", "text_bert"]
IntervalMethod = Literal["grouped_cv", "cv_plus", "split"]
TextMode = Literal["frozen", "finetune", "scratch"]
TextTokenizer = Literal["subword", "character"]


def require(holds: bool, option: str, value: object, rule: str, way_out: str) -> None:
    """Raise ValueError with the option, its value, the rule and the way out unless the rule holds."""
    if not holds:
        raise ValueError(f"{option} is {value!r}: {rule}; {way_out}")


def require_choice(option: str, value: str, choices: Any) -> None:
    """Raise ValueError unless the value is one of the Literal type `choices`."""
    known = get_args(choices)
    require(value in known, option, value, f"it must be one of {', '.join(known)}", f"{known[0]} is the paper's")


def require_at_least(option: str, value: float, minimum: float) -> None:
    """Raise ValueError if the value is below the minimum."""
    require(value >= minimum, option, value, f"it must be at least {minimum}", f"set it to {minimum} or more")


def require_probability(option: str, value: float) -> None:
    """Raise ValueError unless the value is in [0, 1)."""
    require(0 <= value < 1, option, value, "it must be in [0, 1)", "set it between 0 and 0.9")


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
        tokens: finetune: transcript, tokenised with the encoder's tokenizer; text_bert: the token ids of the dataset's
            text features, such as those of MMSA's files, which its models read. New clips are tokenised.
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
    tokens: TextTokens = "transcript"
    freeze_layers: int = 0
    tokenizer: TextTokenizer = "subword"
    vocabulary: int = 4000
    layers: int = 2
    width: int = 128
    heads: int = 4

    def __post_init__(self) -> None:
        require_choice("model.text.mode", self.mode, TextMode)
        require_choice("model.text.tokens", self.tokens, TextTokens)
        for item in fields(self):
            modes = _MODES_BY_OPTION.get(item.name, ("scratch",))
            value = getattr(self, item.name)
            require(
                item.name == "mode" or self.mode in modes or value == item.default,
                f"model.text.{item.name}",
                value,
                f"it has no effect with model.text.mode {self.mode}",
                f"leave it out, or set the mode to {' or '.join(modes)}",
            )
        require(
            self.tokenizer in get_args(TextTokenizer),
            "model.text.tokenizer",
            self.tokenizer,
            "it must be subword or character",
            "character suits languages without spaces",
        )
        for name, minimum in {"max_tokens": 3, "freeze_layers": 0, "vocabulary": 64, "layers": 1, "heads": 1}.items():
            require_at_least(f"model.text.{name}", getattr(self, name), minimum)
        require(
            self.width > 0 and self.width % self.heads == 0,
            "model.text.heads",
            self.heads,
            f"it must divide model.text.width ({self.width})",
            "choose a divisor, such as 4 for 128",
        )


_MODES_BY_OPTION = {
    "max_tokens": ("finetune", "scratch"),
    "encoder": ("finetune",),
    "tokens": ("finetune",),
    "freeze_layers": ("finetune",),
}
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
            require_at_least(f"model.padding.{name}", getattr(self, name), 0)


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
        require_at_least("train.contrastive.weight", self.weight, 0)
        require(
            self.temperature > 0,
            "train.contrastive.temperature",
            self.temperature,
            "similarities are divided by it, so it must be positive",
            "0.5 is the paper's",
        )
        require_choice("train.contrastive.reduction", self.reduction, Reduction)
        require_choice("train.contrastive.scope", self.scope, Scope)
        require_choice("train.contrastive.semantic_negatives", self.semantic_negatives, SemanticNegatives)
        require(
            self.semantic_negatives == "paired" or self.supervised,
            "train.contrastive.semantic_negatives",
            self.semantic_negatives,
            "these are the partners of the supervised loss, which is off",
            "set it to paired, or train.contrastive.supervised to true",
        )
        require(
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
            require_at_least(f"train.mining.{name}", getattr(self, name), 1)
        require_at_least("train.mining.pool_size", self.pool_size, 2)
        require_choice("train.mining.negatives", self.negatives, Negatives)
        require_choice("train.mining.index", self.index, MinedIndex)
        require_choice("train.mining.class_rounding", self.class_rounding, ClassRounding)
        require(
            self.index == "clip" or self.negatives == "hard",
            "train.mining.index",
            self.index,
            "with random negatives there is no ranking",
            "set it to clip, or train.mining.negatives to hard",
        )
        for name in ("positives", "hard_negatives", "easy_negatives"):
            value = getattr(self, name)
            require(
                0 <= value <= self.candidates,
                f"train.mining.{name}",
                value,
                f"it must be between 0 and train.mining.candidates ({self.candidates})",
                "raise candidates or lower it",
            )
        require(
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
        require_at_least("train.augment.noise", self.noise, 0)
        for name in ("spans", "words"):
            require_probability(f"train.augment.{name}", getattr(self, name))


@dataclass(frozen=True)
class IntervalConfig:
    """Prediction intervals, see `model.evaluation.intervals`.

    Attributes:
        method: grouped_cv: from errors on clips whose speakers a network was trained without, for which further
            networks are trained (`model.intervals`); cv_plus: from the same errors, around the predictions of those
            networks, which become part of the checkpoint (`model.evaluation.cv_plus`); split: from errors on the
            validation split, without further training. That split also chose the epoch, so its errors are somewhat
            too small.
        folds: Parts into which the training and validation clips are divided, by speaker, at least 2.
        epochs: Epochs of a fold's training; 0: half of those that the first seed's training took.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    method: IntervalMethod = "grouped_cv"
    folds: int = 5
    epochs: int = 0

    def __post_init__(self) -> None:
        require_choice("train.intervals.method", self.method, IntervalMethod)
        require_at_least("train.intervals.folds", self.folds, 2)
        require_at_least("train.intervals.epochs", self.epochs, 0)
