"""DashFusion: "Dual-stream Alignment with Hierarchical Bottleneck Fusion for Multimodal Sentiment Analysis",
Wen et al., IEEE TNNLS 36(10), 2025, arXiv 2512.05515.

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
from model.network.layers import at_least_float32, masked_mean
from model.network.text_encoder import TokenEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.data.batch import Batch
    from model.data.tokens import TextBackbone

STREAMS = (*MODALITIES, "aligned")
"""A clip's vectors that contrastive learning compares: one a modality, and the aligned sequence's first position."""


@dataclass(frozen=True)
class Embedding:
    """A clip as contrastive learning and mining see it.

    Attributes:
        streams: text, audio, vision (the masked mean of X_m) and aligned (the first position of H),
            each [B, d], in float32 at least.
        present: the same names -> [B] bool, False where the clip lacks the modality; aligned is always there.
    """

    streams: Mapping[str, Tensor]
    present: Mapping[str, Tensor]


@dataclass(frozen=True)
class Output:
    """A forward pass: the sentiment [B] in the corpus's range, and the clips' embedding.

    Attributes:
        unimodal: [B, 3] the sentiment by text, audio and vision alone; None without `unimodal_heads`.
    """

    prediction: Tensor
    embedding: Embedding
    unimodal: Tensor | None = None


class DashFusion(nn.Module):
    """The network: modality encoders, alignment, fusion, predictor; `config` says which of them.

    Audio and vision are normalised inside by the dataset's training statistics, so that batches hold raw
    features. A modality that a clip lacks is a learned stand-in, one step long; where it is the anchor, another that
    the clip has takes its place. With a `text` the network takes token ids in place of text features.

    Raises:
        ValueError: the text encoder's weights cannot be had, or do not fit `config.text`.
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
        """Predict, and give the embedding on the way."""
        sequences, masks = self.encode(batch)
        aligned_BTd, aligned_mask_BT = self.alignment(sequences, masks, batch.missing())
        fused_B4d = self.fusion(aligned_BTd, aligned_mask_BT, sequences, masks)
        embedding = _embedding(batch, sequences, masks, aligned_BTd)
        prediction = at_least_float32(self.predictor(fused_B4d)).squeeze(-1)
        alone = [head(embedding.streams[m]) for m, head in self.unimodal_heads.items()]
        return Output(prediction, embedding, at_least_float32(torch.cat(alone, dim=1)) if alone else None)

    def embed(self, batch: Batch) -> Embedding:
        """The embedding alone: no fusion, and the alignment for the first position only."""
        sequences, masks = self.encode(batch)
        aligned_B1d, _ = self.alignment(sequences, masks, batch.missing(), steps=1)
        return _embedding(batch, sequences, masks, aligned_B1d)

    def encode(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Modality -> X_m [B, T_m, d] and its mask [B, T_m]; position 0 is [CLS], or the stand-in."""
        encoded = {m: encoder(batch.values[m], batch.masks[m]) for m, encoder in self.encoders.items()}
        return {m: x for m, (x, _) in encoded.items()}, {m: mask for m, (_, mask) in encoded.items()}


def _unimodal_head(config: ModelConfig) -> nn.Module:
    return nn.Sequential(
        nn.Linear(config.dim, config.dim), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.dim, 1)
    )


def _embedding(
    batch: Batch, sequences: Mapping[str, Tensor], masks: Mapping[str, Tensor], aligned_BTd: Tensor
) -> Embedding:
    streams = {m: masked_mean(sequences[m], masks[m]) for m in MODALITIES}
    present = {m: batch.masks[m].any(dim=1) for m in MODALITIES}
    return Embedding(
        {**streams, "aligned": at_least_float32(aligned_BTd[:, 0])},
        {**present, "aligned": present["text"].new_ones(len(batch))},
    )
