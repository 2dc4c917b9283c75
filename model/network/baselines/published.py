"""DashFusion as its authors' code computes it (ultramarineX/DashFusion), which differs from the paper.

Each clip gets what that code computes for it alone: docs/equations.md lists every difference from
`model.network.dashfusion`. Text is not padded, because there a clip's result depends on the longest text of its batch.

Shapes: B clips, T query steps, S source steps, K bottleneck tokens, d model width, h heads of width e.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MODALITIES, ModelConfig
from model.data.info import NORMALISED, DatasetInfo, Statistics
from model.network.alignment import TemporalAlignment, max_length, pad_steps
from model.network.composed import ComposedNetwork
from model.network.dashfusion import PAPER
from model.network.encoders import SequenceEncoder
from model.network.fusion import first_positions
from model.network.layers import FeedForward, MaskedSequence, SharedQueryAttention, attend, masked_mean
from model.network.text_encoder import build_text_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.data.batch import Batch
    from model.data.tokens import TextBackbone

EMBEDDING_DROPOUT, LAYER_DROPOUT = 0.1, 0.5
"""Dropout of the audio and vision encoders; all other parts have none."""


class EncoderLayer(nn.Module):
    """`torch.nn.TransformerEncoderLayer` as the audio and vision encoders have it: post-norm, GELU, dropout 0.5.

    Unlike `model.network.layers.AttentionLayer` it has biases in Q, K and V, and dropout on the attention weights and
    inside the feed-forward part too.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(LAYER_DROPOUT), nn.Linear(2 * dim, dim)
        )
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(LAYER_DROPOUT)
        nn.init.xavier_uniform_(self.query_key_value.weight)
        nn.init.zeros_(self.query_key_value.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BTd: Tensor, source: MaskedSequence) -> Tensor:
        """Return [B, T, d]; `source` holds the same steps, with their mask."""
        split = torch.unflatten(self.query_key_value(x_BTd), -1, (3, self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in split.unbind(dim=2))
        attended_BhTe = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=source.mask[:, None, None, :],
            dropout_p=LAYER_DROPOUT if self.training else 0.0,
        )
        x_BTd = self.attention_norm(x_BTd + self.dropout(self.out(attended_BhTe.transpose(1, 2).flatten(2))))
        result_BTd: Tensor = self.feed_forward_norm(x_BTd + self.dropout(self.feed_forward(x_BTd)))
        return result_BTd


class PublishedEncoder(SequenceEncoder):
    """Encode audio or vision; steps without a measurement become zeros, to which the later parts attend.

    Args:
        dim_in: D.
        statistics: of the features, used with `config.normalise`.
        config: of the network.
        padding: the clip's length with padding; steps from there on are masked unless they hold a measurement.
    """

    def __init__(self, dim_in: int, statistics: Statistics, config: ModelConfig, padding: int) -> None:
        super().__init__(dim_in, statistics, replace(config, name="dashfusion", dropout=EMBEDDING_DROPOUT))
        self.padding = padding
        layer = EncoderLayer(config.dim, config.heads)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(config.encoder_layers))  # as torch's stack
        nn.init.ones_(self.cls)
        nn.init.zeros_(self.positions)

    def forward(self, values_BTD: Tensor, mask_BT: Tensor) -> MaskedSequence:
        """Return a sequence of max(T, padding) + 1 steps whose mask is true where alignment and fusion attend."""
        encoded = super().forward(values_BTD, mask_BT)
        steps = max_length(encoded.mask.shape[1], self.padding + 1)
        values_BTd = pad_steps(encoded.values * encoded.mask[:, :, None], steps)
        is_padded_T = torch.arange(steps, device=values_BTd.device) <= self.padding
        return MaskedSequence(values_BTd, pad_steps(encoded.mask, steps) | is_padded_T)


class PublishedLayer(nn.Module):
    """`x = x + LN(Attention(x, source)); x = x + LN(FFN(x))`, attention with logits scaled by the model width.

    Q, K and V have biases, and the heads' results are not projected.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.feed_forward = FeedForward(dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)

    def forward(self, x_BTd: Tensor, source: MaskedSequence) -> Tensor:
        """Return [B, T, d]."""
        key_BSd, value_BSd = self.key_value(source.values).chunk(2, dim=-1)
        # `attend` scales by 1 / sqrt(e); 1 / sqrt(d) is 1 / sqrt(h) of that
        query_BTd = self.query(x_BTd) * self.heads**-0.5
        x_BTd = x_BTd + self.attention_norm(attend(query_BTd, key_BSd, value_BSd, source.mask, self.heads))
        result_BTd: Tensor = x_BTd + self.feed_forward_norm(self.feed_forward(x_BTd))
        return result_BTd


class PublishedFusionLayer(nn.Module):
    """One layer of hierarchical bottleneck fusion: encode and shorten the bottleneck, read, spread."""

    def __init__(self, config: ModelConfig, keep: int) -> None:
        super().__init__()
        self.keep = keep
        self.encode = PublishedLayer(config.dim, config.heads)
        self.read = SharedQueryAttention(config.dim, config.heads, config.dim // config.heads, MODALITIES)
        self.read_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.spread = nn.ModuleDict({m: PublishedLayer(config.dim, config.heads) for m in MODALITIES})

    def forward(
        self, bottleneck: MaskedSequence, sequences: Mapping[str, MaskedSequence]
    ) -> tuple[MaskedSequence, dict[str, MaskedSequence]]:
        """Return the bottleneck, of at most `keep` tokens, and the modalities after reading it."""
        kept = bottleneck.head(self.keep)  # a token's result depends on no other query
        x_BKd = self.encode(kept.values, bottleneck)
        x_BKd = self.read_norm(x_BKd + self.read(x_BKd, sequences))
        x_BKd = self.feed_forward_norm(x_BKd + self.feed_forward(x_BKd))
        bottleneck = MaskedSequence(x_BKd, kept.mask)
        return bottleneck, {
            m: MaskedSequence(layer(sequences[m].values, bottleneck), sequences[m].mask)
            for m, layer in self.spread.items()
        }


class PublishedFusion(nn.Module):
    """`fusion_layers` layers; layer l keeps `max(1, p / 2^(l-1))` bottleneck tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PublishedFusionLayer(config, max(1, config.bottleneck_tokens >> level))
            for level in range(config.fusion_layers)
        )

    def forward(self, aligned: MaskedSequence, sequences: Mapping[str, MaskedSequence]) -> Tensor:
        """Return position 0 of the bottleneck, text, audio and vision, [B, 4d]."""
        for layer in self.layers:
            aligned, sequences = layer(aligned, sequences)
        return first_positions(aligned, sequences)


class DashFusionPublished(ComposedNetwork):
    """The network of the authors' code.

    A clip that lacks audio or vision has a learned embedding in place of [CLS], followed by padding.
    """

    fixed = ("anchor", "alignment", "fusion", "dropout", "unimodal_heads")
    contrastive = True
    source = f"{PAPER}, as the code of its authors computes it, https://github.com/ultramarineX/DashFusion"
    paper = {
        "model.normalise": False,
        "train.batching": "shuffled",
        "train.clip_norm": 0.0,
        "train.best_epoch": "last",
        "train.precision": 32,
        "train.contrastive.semantic_negatives": "anchor",
        "train.contrastive.reduction": "published",
        "train.mining.index": "rank",
        "train.mining.class_rounding": "even",
    }
    search_space = {
        "train.learning_rate": (2e-4, 5e-4, 1e-3),
        "train.contrastive.weight": (0.05, 0.1, 0.2, 0.4),
        "model.bottleneck_tokens": (4, 8, 16),
        "model.encoder_layers": (1, 2, 4),
        "model.fusion_layers": (1, 2, 3),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        encoders: dict[str, nn.Module] = {"text": build_text_encoder(config, info, text)}
        for m in NORMALISED:
            padding = getattr(config.padding, m)
            encoders[m] = PublishedEncoder(info.modalities[m].dim, info.statistics[m], config, padding)
        self.encoders = nn.ModuleDict(encoders)
        self.alignment = TemporalAlignment(replace(config, name="dashfusion", dropout=0.0), "text")
        self.fusion = PublishedFusion(config)
        self.predictor = nn.Sequential(
            nn.Linear(4 * config.dim, 2 * config.dim),
            nn.GELU(),
            nn.Linear(2 * config.dim, config.dim),
            nn.GELU(),
            nn.Linear(config.dim, 1),
        )
        self.unimodal_heads = nn.ModuleDict()

    def pool(self, modality: str, sequence: MaskedSequence, batch: Batch) -> Tensor:
        """Return the mean [B, d] over [CLS] and the steps with a measurement; padding does not count."""
        if modality == "text":
            return super().pool(modality, sequence, batch)
        mask_BT = batch.masks[modality]
        steps = sequence.mask.shape[1]
        return masked_mean(sequence.values, pad_steps(F.pad(mask_BT, (1, 0), value=True), steps))

    def is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether weight decay applies: to all but biases and the text encoder's LayerNorms."""
        return not name.endswith("bias") and "LayerNorm.weight" not in name
