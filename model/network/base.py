"""The interface of networks to training, evaluation, checkpoints, prediction and export.

Shapes: B clips, T steps, K steps of the text, M modalities, d width of a modality's vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from model.config import MODALITIES, ModelConfig
from model.network.text_encoder import TokenEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from model.data.batch import Batch
    from model.data.clips import ClipTable
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone
    from model.network.auxiliary import AuxiliaryLoss

STREAMS = (*MODALITIES, "aligned")
"""The vectors of a clip that contrastive learning compares: one per modality and one of the aligned sequence."""


@dataclass(frozen=True)
class Embedding:
    """Vectors of the clips, for contrastive learning, mining and the test for outliers.

    Attributes:
        streams: Text, audio and vision (those that the network reads) and, in a network with an alignment, aligned
            (position 0 of H) -> [B, d], in at least float32.
        present: The same names -> [B] bool, False where the clip lacks the modality; always True for aligned.
    """

    streams: Mapping[str, Tensor]
    present: Mapping[str, Tensor]


@dataclass(frozen=True)
class Output:
    """The result of a forward pass.

    Attributes:
        prediction: [B] sentiment in the corpus's label range.
        embedding: Vectors of the clips.
        unimodal: [B, 3] sentiment from text, audio and vision alone; None from a network that does not predict it.
        auxiliary: Name -> float or bool tensor [B, ...] that `Network.auxiliary_loss` reads.
    """

    prediction: Tensor
    embedding: Embedding
    unimodal: Tensor | None = None
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StepAttention:
    """Attention between the steps of the text and those of each other modality, for inspection.

    Attributes:
        weights: Other modality -> [B, K, T + 1], where the first entry is the modality's [CLS].
        anchors: [B, M] weight of each modality as the anchor; None unless these differ between clips.
    """

    weights: Mapping[str, Tensor]
    anchors: Tensor | None = None


@dataclass(frozen=True)
class NoOptions:
    """Options of a network that has none of its own."""


class Network(nn.Module):
    """Base class of the networks.

    A network maps a padded batch of raw features to one sentiment per clip. Masked steps must not change a result, and
    any modality of a clip may be missing. With a `text` backbone the network reads tokens in place of text features.
    The class attributes describe the network to configuration, model cards and comparisons.

    Attributes:
        options_class: Dataclass of the network's own hyperparameters, the fields of `model.options`; it checks its
            values on construction.
        source: Authors, title, year and address of the publication.
        paper: Published settings that differ from the defaults: dotted key (`train.learning_rate`,
            `model.options.rank`) -> value.
        search_space: Dotted key -> values to try when the network is tuned.
        reads: Modalities that the network reads.
        fixed: Fields of `ModelConfig` that the network does not have; they must keep their defaults. Sizes of parts
            that it lacks are ignored instead, because presets set them.
        contrastive: Whether the network has the streams that contrastive learning compares.
        config: Configuration of the network.
        info: Description of the training dataset.
        text: Tokenizer and encoder of a network that reads tokens; None: text features.
        options: Instance of `options_class`.

    Raises:
        ValueError: The text encoder's weights cannot be loaded, or do not fit `config.text`; or a value of
            `config.options` is invalid.
    """

    options_class: ClassVar[type] = NoOptions
    source: ClassVar[str] = ""
    paper: ClassVar[Mapping[str, Any]] = {}
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {}
    reads: ClassVar[tuple[str, ...]] = MODALITIES
    fixed: ClassVar[tuple[str, ...]] = ("anchor", "alignment", "fusion", "unimodal_heads")
    contrastive: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__()
        self.config, self.info, self.text = config, info, text
        self.options: Any = self.options_class(**config.options)

    def forward(self, batch: Batch) -> Output:
        """Return predictions and embedding. `len(batch)` is unknown in an exported graph: use the tensors' shapes."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> Embedding:
        """Return the embedding only; overridden where that takes less than a forward pass."""
        return self(batch).embedding  # type: ignore[no-any-return]  # torch types calls of modules as Any

    def auxiliary_loss(self, clips: ClipTable) -> AuxiliaryLoss | None:
        """Create the network's own loss for a training run on these clips; None if it has none."""
        return None

    def is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether weight decay applies to a parameter: not to biases, norms and learned vectors."""
        return parameter.ndim > 1

    def attention(self, batch: Batch) -> StepAttention:
        """Return the attention of an explanation; only called if `no_attention_reason` is empty."""
        raise NotImplementedError(self.no_attention_reason)

    @property
    def no_attention_reason(self) -> str:
        """Why the network has no attention to show; empty if it has."""
        return f"the network {self.config.name} has no attention between words and steps (model.name)"

    @property
    def text_padding(self) -> int:
        """Masked steps to append to the text of an exported graph, where a layer needs that many to compile."""
        return 0

    @property
    def token_encoder(self) -> TokenEncoder:
        """The text encoder that is trained with the network; only where the network reads tokens."""
        return next(module for module in self.modules() if isinstance(module, TokenEncoder))
