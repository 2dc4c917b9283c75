"""ALMT: text of three scales guides what a few learned tokens take from audio and vision.

Zhang et al., "Learning Language-guided Adaptive Hyper-modality Representation for Multimodal Sentiment Analysis",
EMNLP 2023, https://aclanthology.org/2023.emnlp-main.49. What the paper leaves out follows the authors' code: pre-norm
layers, with LayerNorms of their own for queries, keys and values; normally distributed positions.

Steps of a clip that are hidden, wherever they stand, are removed before anything is computed.

Shapes: B clips, T query steps, S source steps, D features, K tokens, d model width, h heads of width e, I = h * e.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MODALITIES
from model.config_blocks import require_at_least
from model.network.base import Embedding, Network, Output
from model.network.inputs import FeatureInputs
from model.network.layers import (
    FeedForward,
    MaskedSequence,
    SharedQueryAttention,
    at_least_float32,
    project_and_attend,
)
from model.network.recurrent import move_to_front

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone


@dataclass(frozen=True)
class Options:
    """Hyperparameters of ALMT; the defaults are the authors'.

    Attributes:
        tokens: K, into which each modality is compressed.
        embedding_layers: Layers that compress a modality into tokens.
        hyper_layers: Layers, and scales of the text, that build the hyper-modality from audio and vision.
        head_dim: Width of a head, except in the hyper-modality's layers, where it is `model.dim / model.heads`.
        hidden: Width of the feed-forward parts.
    """

    tokens: int = 8
    embedding_layers: int = 1
    hyper_layers: int = 3
    head_dim: int = 64
    hidden: int = 128

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            require_at_least(f"model.options.{name}", getattr(self, name), 1)


class PreNormLayer(nn.Module):
    """`x = x + W_o Attention(LN_q(x), LN_k(source), LN_v(source)); x = x + FFN(LN(x))`.

    The norms' scales are part of the projections of keys and values, so that a few tokens can attend to many steps
    without projecting any. A bias of the keys' norm would not change the attention.
    """

    def __init__(self, config: ModelConfig, options: Options) -> None:
        super().__init__()
        dim, inner = config.dim, config.heads * options.head_dim
        self.heads = config.heads
        self.query_norm, self.value_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.key_norm = nn.LayerNorm(dim, bias=False)
        self.query, self.key, self.value = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, options.hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTd: Tensor, source: MaskedSequence) -> Tensor:
        """Return [B, T, d]; each clip of the source has a real step."""
        standardised = MaskedSequence(F.layer_norm(source.values, source.values.shape[-1:]), source.mask)
        key_value = torch.cat([self.key.weight * self.key_norm.weight, self.value.weight * self.value_norm.weight])
        attended_BTI = project_and_attend(self.query(self.query_norm(x_BTd)), standardised, key_value, self.heads)
        # The weights of the steps sum to 1
        attended_BTI = attended_BTI + F.linear(self.value_norm.bias, self.value.weight)
        x_BTd = x_BTd + self.dropout(self.out(attended_BTI))
        result_BTd: Tensor = x_BTd + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTd)))
        return result_BTd


class Stack(nn.Module):
    """Layers of self-attention or cross-attention of which only the first steps of the result are needed."""

    def __init__(self, layers: int, config: ModelConfig, options: Options) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PreNormLayer(config, options) for _ in range(layers))

    def forward(self, x: MaskedSequence, steps: int, source: MaskedSequence | None = None) -> Tensor:
        """Return the first `steps` steps [B, steps, d], to which the last layer is limited; no source: of itself."""
        values_BTd = x.values
        for layer in self.layers[:-1]:
            values_BTd = layer(values_BTd, source or MaskedSequence(values_BTd, x.mask))
        result_BTd: Tensor = self.layers[-1](values_BTd[:, :steps], source or MaskedSequence(values_BTd, x.mask))
        return result_BTd


class TokenEmbedding(nn.Module):
    """Compress a modality into K tokens, which stand in front of its steps.

    Attributes:
        positions: [K + max_positions, d], of which the first K are the tokens.
    """

    def __init__(self, dim_in: int, config: ModelConfig, options: Options) -> None:
        super().__init__()
        self.tokens = options.tokens
        self.project = nn.Linear(dim_in, config.dim)
        self.positions = nn.Parameter(torch.randn(options.tokens + config.max_positions, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(options.embedding_layers, config, options)

    def forward(self, sequence: MaskedSequence) -> Tensor:
        """Return [B, K, d].

        Raises:
            ValueError: The sequence has more steps than the network has positions.
        """
        sequence = move_to_front(sequence)
        steps = self.tokens + sequence.values.shape[1]
        if steps > len(self.positions):
            raise ValueError(
                f"a sequence of {steps - self.tokens} steps, but the network has {len(self.positions) - self.tokens} "
                "positions; read the clips with its model.max_positions"
            )
        x_BTd = F.pad(self.project(sequence.values), (0, 0, self.tokens, 0)) + self.positions[:steps]
        mask_BT = F.pad(sequence.mask, (self.tokens, 0), value=True)
        tokens_BKd: Tensor = self.stack(MaskedSequence(self.dropout(x_BTd), mask_BT), self.tokens)
        return tokens_BKd


class HyperLayer(nn.Module):
    """`hyper = LN(hyper) + W_o(CA(LN(text), LN(audio)) + CA(LN(text), LN(vision)))`, with one Q for both."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.dim) for name in ("hyper", *MODALITIES)})
        self.attention = SharedQueryAttention(config.dim, config.heads, config.dim // config.heads, MODALITIES[1:])
        self.out = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hyper_BKd: Tensor, text_BKd: Tensor, others: Mapping[str, Tensor]) -> Tensor:
        """Return the hyper-modality [B, K, d]."""
        sources = {m: _all_real(self.norms[m](tokens_BKd)) for m, tokens_BKd in others.items()}
        read_BKd = self.attention(self.norms["text"](text_BKd), sources)
        result_BKd: Tensor = self.norms["hyper"](hyper_BKd) + self.dropout(self.out(read_BKd))
        return result_BKd


class ALMT(Network):
    """Compress each modality into tokens, build the hyper-modality under the text's guidance, and let the text read it.

    `model.fusion_layers` is the number of layers of the final cross-attention: 2 for MOSI, 4 for MOSEI and CH-SIMS. A
    modality that a clip lacks is one step with a learned embedding.

    Raises:
        ValueError: The text encoder's weights cannot be loaded, or do not fit `config.text`.
    """

    options_class = Options
    options: Options
    source = (
        'Zhang et al., "Learning Language-guided Adaptive Hyper-modality Representation for Multimodal Sentiment '
        'Analysis", EMNLP 2023, https://aclanthology.org/2023.emnlp-main.49'
    )
    paper = {
        "model.dim": 128,
        "model.heads": 8,
        "model.fusion_layers": 2,
        "model.dropout": 0.0,
        "train.batch_size": 64,
        "train.learning_rate": 1e-4,
        "train.weight_decay": 1e-4,
        "train.clip_norm": 0.0,
        "train.contrastive.weight": 0.0,
    }
    search_space = {
        "train.learning_rate": (5e-5, 1e-4, 5e-4, 1e-3),
        "train.batch_size": (16, 32, 64),
        "train.weight_decay": (1e-4, 1e-3),
        "model.dim": (64, 128),
        "model.dropout": (0.0, 0.1, 0.3),
        "model.fusion_layers": (1, 2, 4),
        "model.options.tokens": (4, 8, 16),
        "model.options.embedding_layers": (1, 2),
        "model.options.hyper_layers": (2, 3, 4),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        options, dim = self.options, config.dim
        self.inputs = FeatureInputs(config, info, text)
        self.embeddings = nn.ModuleDict({m: TokenEmbedding(self.inputs.dims[m], config, options) for m in MODALITIES})
        self.text_positions = nn.Parameter(torch.randn(options.tokens, dim))
        self.text_layers = nn.ModuleList(PreNormLayer(config, options) for _ in range(options.hyper_layers - 1))
        self.hyper = nn.Parameter(torch.ones(options.tokens, dim))
        self.hyper_layers = nn.ModuleList(HyperLayer(config) for _ in range(options.hyper_layers))
        self.source_positions = nn.Parameter(torch.randn(1 + options.tokens, dim))  # the first is a token
        self.target_positions = nn.Parameter(torch.randn(1 + options.tokens, dim))
        self.dropout = nn.Dropout(config.dropout)
        self.fusion = Stack(config.fusion_layers, config, options)
        self.predictor = nn.Linear(dim, 1)

    def forward(self, batch: Batch) -> Output:
        """Return predictions, and the means of each modality's tokens as the embedding."""
        tokens = {m: self.embeddings[m](sequence) for m, sequence in self.inputs(batch).items()}
        others = {m: tokens[m] for m in MODALITIES[1:]}

        # Hyper-modality
        text_BKd = self.dropout(tokens["text"] + self.text_positions)
        hyper_BKd = self.hyper_layers[0](self.hyper + torch.zeros_like(text_BKd), text_BKd, others)
        for text_layer, hyper_layer in zip(self.text_layers, self.hyper_layers[1:], strict=True):
            text_BKd = text_layer(text_BKd, _all_real(text_BKd))
            hyper_BKd = hyper_layer(hyper_BKd, text_BKd, others)

        # Fusion
        source_BKd, target_BKd = (
            self.dropout(F.pad(x_BKd, (0, 0, 1, 0)) + positions)
            for x_BKd, positions in ((hyper_BKd, self.source_positions), (text_BKd, self.target_positions))
        )
        fused_Bd = self.fusion(_all_real(target_BKd), 1, _all_real(source_BKd))[:, 0]
        prediction_B = at_least_float32(self.predictor(fused_Bd)).squeeze(-1)
        streams = {m: at_least_float32(tokens_BKd).mean(dim=1) for m, tokens_BKd in tokens.items()}
        return Output(prediction_B, Embedding(streams, {m: batch.masks[m].any(dim=1) for m in MODALITIES}))


def _all_real(values_BTd: Tensor) -> MaskedSequence:
    return MaskedSequence(values_BTd, values_BTd.new_ones(values_BTd.shape[:2], dtype=torch.bool))
