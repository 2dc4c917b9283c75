"""The interface of networks to training, evaluation, checkpoints and export, and the forward pass that they share.

Shapes: B clips, T steps, d model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.data.info import NORMALISED
from model.network.encoders import SequenceEncoder
from model.network.layers import MaskedSequence, at_least_float32, masked_mean
from model.network.text_encoder import TokenEncoder, build_text_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.data.batch import Batch
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone

STREAMS = (*MODALITIES, "aligned")
"""The vectors of a clip that contrastive learning compares: one per modality and one of the aligned sequence."""


@dataclass(frozen=True)
class Embedding:
    """Clip vectors for contrastive learning and mining.

    Attributes:
        streams: text, audio, vision (the masked mean of X_m; those that the network reads) and aligned (position 0 of
            H) -> [B, d], in at least float32.
        present: the same names -> [B] bool, False where the clip lacks the modality; always True for aligned.
    """

    streams: Mapping[str, Tensor]
    present: Mapping[str, Tensor]


@dataclass(frozen=True)
class Output:
    """The result of a forward pass.

    Attributes:
        prediction: [B] sentiment in the corpus's label range.
        embedding: of the clips.
        unimodal: [B, 3] sentiment from text, audio and vision alone; None without `unimodal_heads`.
    """

    prediction: Tensor
    embedding: Embedding
    unimodal: Tensor | None = None


class Network(nn.Module):
    """A network of four parts, which the constructors of its subclasses set.

    Batches hold raw features. With a `text` backbone the network reads token ids in place of text features.

    Attributes:
        encoders: modality -> module from (values, mask) to a `MaskedSequence` of width d whose position 0 is real; only
            of the modalities that the network reads.
        alignment: module from (sequences, missing, steps) to the aligned sequence H, see `model.network.alignment`.
        fusion: module from (H, sequences) to the predictor's input.
        predictor: module to [B, 1].
        unimodal_heads: modality -> module from the pooled vector to [B, 1]; may be empty.
    """

    encoders: nn.ModuleDict
    alignment: nn.Module
    fusion: nn.Module
    predictor: nn.Module
    unimodal_heads: nn.ModuleDict

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__()
        self.config, self.info, self.text = config, info, text

    def forward(self, batch: Batch) -> Output:
        """Return predictions and embedding."""
        sequences = self.encode(batch)
        aligned = self.alignment(sequences, batch.missing())
        fused = self.fusion(aligned, sequences)
        embedding = self._embedding(batch, sequences, aligned)
        prediction = at_least_float32(self.predictor(fused)).squeeze(-1)
        unimodal = [head(embedding.streams[m]) for m, head in self.unimodal_heads.items()]
        return Output(prediction, embedding, at_least_float32(torch.cat(unimodal, dim=1)) if unimodal else None)

    def embed(self, batch: Batch) -> Embedding:
        """Return the embedding only, without fusion and with the alignment of position 0 alone."""
        sequences = self.encode(batch)
        return self._embedding(batch, sequences, self.alignment(sequences, batch.missing(), steps=1))

    def encode(self, batch: Batch) -> dict[str, MaskedSequence]:
        """Return modality -> X_m; position 0 is [CLS], or the embedding of a missing modality."""
        return {m: encoder(batch.values[m], batch.masks[m]) for m, encoder in self.encoders.items()}

    def pool(self, modality: str, sequence: MaskedSequence, batch: Batch) -> Tensor:
        """Return the pooled vector [B, d] of a modality's sequence."""
        return masked_mean(sequence.values, sequence.mask)

    def is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether weight decay applies to a parameter: not to biases, LayerNorms and learned vectors."""
        return parameter.ndim > 1

    @property
    def token_encoder(self) -> TokenEncoder:
        """The text encoder that is trained with the network; only where the network reads tokens."""
        encoder = self.encoders["text"]
        assert isinstance(encoder, TokenEncoder)
        return encoder

    def _embedding(self, batch: Batch, sequences: Mapping[str, MaskedSequence], aligned: MaskedSequence) -> Embedding:
        streams = {m: self.pool(m, sequence, batch) for m, sequence in sequences.items()}
        present = {m: batch.masks[m].any(dim=1) for m in sequences}
        return Embedding(
            {**streams, "aligned": at_least_float32(aligned.values[:, 0])},
            {**present, "aligned": aligned.mask.new_ones(len(batch))},
        )


def modality_encoders(config: ModelConfig, info: DatasetInfo, text: TextBackbone | None) -> nn.ModuleDict:
    """Build DashFusion's encoders of text, audio and vision.

    Raises:
        ValueError: the text encoder's weights cannot be loaded, or do not fit `config.text`.
    """
    encoders: dict[str, nn.Module] = {"text": build_text_encoder(config, info, text)}
    for m in NORMALISED:
        encoders[m] = SequenceEncoder(info.modalities[m].dim, info.statistics[m], config)
    return nn.ModuleDict(encoders)


def unimodal_heads(config: ModelConfig) -> nn.ModuleDict:
    """Build a head for each modality's pooled vector; none without `config.unimodal_heads`."""
    return nn.ModuleDict(
        {
            m: nn.Sequential(
                nn.Linear(config.dim, config.dim), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.dim, 1)
            )
            for m in (MODALITIES if config.unimodal_heads else ())
        }
    )
