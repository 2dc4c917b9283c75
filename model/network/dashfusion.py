"""The DashFusion network.

Wen et al., "DashFusion: Dual-stream Alignment with Hierarchical Bottleneck Fusion for Multimodal Sentiment Analysis",
IEEE TNNLS 36(10), 2025, arXiv 2512.05515.

Shapes: B clips, T steps, D raw features, d model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.data.info import NORMALISED, DatasetInfo
from model.network.alignment import build_alignment
from model.network.encoders import SequenceEncoder, TextEncoder
from model.network.fusion import build_fusion
from model.network.layers import MaskedSequence, at_least_float32, masked_mean
from model.network.text_encoder import TokenEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.data.batch import Batch
    from model.data.tokens import TextBackbone

STREAMS = (*MODALITIES, "aligned")
"""The vectors of a clip that contrastive learning compares: one per modality and one of the aligned sequence."""


@dataclass(frozen=True)
class Embedding:
    """Clip vectors for contrastive learning and mining.

    Attributes:
        streams: text, audio, vision (the masked mean of X_m) and aligned (position 0 of H) -> [B, d], in at least
            float32.
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


class DashFusion(nn.Module):
    """Modality encoders, alignment, fusion and predictor, as chosen by `config`.

    Batches hold raw features: the network normalises audio and vision with the dataset's training statistics. A
    modality that a clip lacks becomes a learned embedding, one step long; if it is the anchor, another modality of the
    clip is the anchor instead. With a `text` backbone the network reads token ids in place of text features.

    Raises:
        ValueError: the text encoder's weights cannot be loaded, or do not fit `config.text`.
    """

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.text = text
        encoders: dict[str, nn.Module] = {
            "text": TokenEncoder(text, config) if text else TextEncoder(info.modalities["text"].dim, config)
        }
        for m in NORMALISED:
            encoders[m] = SequenceEncoder(info.modalities[m].dim, info.statistics[m], config)
        self.encoders = nn.ModuleDict(encoders)
        self.alignment = build_alignment(config)
        self.fusion = build_fusion(config)
        self.predictor = nn.Sequential(
            nn.Linear(4 * config.dim, 2 * config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * config.dim, config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, 1),
        )
        self.unimodal_heads = nn.ModuleDict(
            {m: _unimodal_head(config) for m in MODALITIES} if config.unimodal_heads else {}
        )

    def forward(self, batch: Batch) -> Output:
        """Return predictions and embedding."""
        sequences = self.encode(batch)
        aligned = self.alignment(sequences, batch.missing())
        fused_B4d = self.fusion(aligned, sequences)
        embedding = _embedding(batch, sequences, aligned)
        prediction = at_least_float32(self.predictor(fused_B4d)).squeeze(-1)
        unimodal = [head(embedding.streams[m]) for m, head in self.unimodal_heads.items()]
        return Output(prediction, embedding, at_least_float32(torch.cat(unimodal, dim=1)) if unimodal else None)

    def embed(self, batch: Batch) -> Embedding:
        """Return the embedding only, without fusion and with the alignment of position 0 alone."""
        sequences = self.encode(batch)
        return _embedding(batch, sequences, self.alignment(sequences, batch.missing(), steps=1))

    def encode(self, batch: Batch) -> dict[str, MaskedSequence]:
        """Return modality -> X_m; position 0 is [CLS], or the embedding of a missing modality."""
        return {m: encoder(batch.values[m], batch.masks[m]) for m, encoder in self.encoders.items()}

    @property
    def token_encoder(self) -> TokenEncoder:
        """The text encoder that is trained with the network; only where the network reads tokens."""
        encoder = self.encoders["text"]
        assert isinstance(encoder, TokenEncoder)
        return encoder


def _unimodal_head(config: ModelConfig) -> nn.Module:
    return nn.Sequential(
        nn.Linear(config.dim, config.dim), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.dim, 1)
    )


def _embedding(batch: Batch, sequences: Mapping[str, MaskedSequence], aligned: MaskedSequence) -> Embedding:
    streams = {m: masked_mean(sequences[m].values, sequences[m].mask) for m in MODALITIES}
    present = {m: batch.masks[m].any(dim=1) for m in MODALITIES}
    return Embedding(
        {**streams, "aligned": at_least_float32(aligned.values[:, 0])},
        {**present, "aligned": present["text"].new_ones(len(batch))},
    )
