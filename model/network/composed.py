"""Networks of four exchangeable parts: modality encoders, alignment, fusion and predictor.

Shapes: B clips, T steps, d model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MODALITIES
from model.data.info import NORMALISED
from model.network.alignment import AdaptiveAlignment, NoAlignment, SymmetricAlignment, TemporalAlignment
from model.network.base import Embedding, Network, Output, StepAttention
from model.network.encoders import SequenceEncoder
from model.network.layers import at_least_float32, masked_mean
from model.network.text_encoder import build_text_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone
    from model.network.layers import MaskedSequence


class ComposedNetwork(Network):
    """A network of four parts, which the constructors of its subclasses set.

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

    @property
    def no_attention_reason(self) -> str:
        """Why the network has no attention to show; empty if it has."""
        if isinstance(self.alignment, NoAlignment):
            return "the network has no temporal alignment (model.name, model.alignment)"
        return ""

    def attention(self, batch: Batch) -> StepAttention:
        """Return the attention of the temporal alignment between the text and each other modality.

        With text as the anchor, or as one of several, text attends to the modality. With another anchor, that modality
        attends to text; clips that lack it have no attention.
        """
        sequences, alignment = self.encode(batch), self.alignment
        if isinstance(alignment, SymmetricAlignment):
            is_adaptive = isinstance(alignment, AdaptiveAlignment)
            of_text = alignment.anchors[MODALITIES.index("text")]
            assert isinstance(of_text, TemporalAlignment)
            anchors_BM = alignment.anchor_weights(sequences, batch.missing()) if is_adaptive else None
            return StepAttention(of_text.weights(sequences, {}), anchors_BM)
        assert isinstance(alignment, TemporalAlignment)
        weights = alignment.weights(sequences, batch.missing())
        if alignment.anchor == "text":
            return StepAttention(weights)
        steps = sequences[alignment.anchor].values.shape[1]
        return StepAttention({alignment.anchor: weights["text"][:, :steps].mT})

    @property
    def text_padding(self) -> int:
        """Masked steps of an exported graph's text, so that the fusion always finds enough tokens to keep."""
        return self.config.bottleneck_tokens

    def _embedding(self, batch: Batch, sequences: Mapping[str, MaskedSequence], aligned: MaskedSequence) -> Embedding:
        streams = {m: self.pool(m, sequence, batch) for m, sequence in sequences.items()}
        present = {m: batch.masks[m].any(dim=1) for m in sequences}
        return Embedding(
            {**streams, "aligned": at_least_float32(aligned.values[:, 0])},
            {**present, "aligned": aligned.mask.new_ones(aligned.mask.shape[0])},
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
