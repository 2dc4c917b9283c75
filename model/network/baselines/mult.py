"""MulT: each modality attends to each other one along stacks of crossmodal Transformers.

Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019,
https://aclanthology.org/P19-1656. What the paper leaves out follows MMSA: pre-norm layers, sequences scaled by the root
of their width, a mask of future steps, the last step as the summary of a sequence.

Steps of a clip that are hidden, wherever they stand, are removed before anything is computed. A convolution of width k
then yields L - k + 1 real steps for a clip of L steps, and one for a shorter clip.

Shapes: B clips, T steps of the target, S steps of the source, D features, d model width, h heads of width e, k width of
a convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MODALITIES
from model.config_blocks import require_at_least, require_probability
from model.network.base import Embedding, Network, Output
from model.network.inputs import FeatureInputs
from model.network.layers import MaskedSequence, at_least_float32, attend_visible
from model.network.recurrent import move_to_front

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone

MIN_MEMORY_LAYERS = 3
"""Of the self-attention behind the crossmodal Transformers."""

OTHERS = {m: tuple(other for other in MODALITIES if other != m) for m in MODALITIES}


@dataclass(frozen=True)
class Options:
    """Hyperparameters of MulT; the defaults are MMSA's for MOSI.

    Attributes:
        layers: Layers of each crossmodal Transformer. Those of the self-attention after them are as many, at least 3.
        text_kernel: Width of the convolution over the steps of text.
        audio_kernel: Width of the convolution over the steps of audio.
        vision_kernel: Width of the convolution over the steps of vision.
        causal: Whether a step of a target sees no later step of a source. Where lengths differ, it sees as many more
            as they differ by.
        positions: Whether sinusoidal positions are added, as the paper describes; MMSA's copy lacks them.
        text_dropout: Dropout probability of the features of text.
        text_attention_dropout: Dropout probability of the attention weights where text is the target.
        audio_attention_dropout: Dropout probability of the attention weights where audio is the target.
        vision_attention_dropout: Dropout probability of the attention weights where vision is the target.
        relu_dropout: Dropout probability inside the feed-forward parts.
        residual_dropout: Dropout probability of each sub-layer's output.
        output_dropout: Dropout probability inside the predictor.
    """

    layers: int = 4
    text_kernel: int = 5
    audio_kernel: int = 5
    vision_kernel: int = 5
    causal: bool = True
    positions: bool = True
    text_dropout: float = 0.5
    text_attention_dropout: float = 0.3
    audio_attention_dropout: float = 0.2
    vision_attention_dropout: float = 0.0
    relu_dropout: float = 0.0
    residual_dropout: float = 0.0
    output_dropout: float = 0.5

    def __post_init__(self) -> None:
        for name in ("layers", "text_kernel", "audio_kernel", "vision_kernel"):
            require_at_least(f"model.options.{name}", getattr(self, name), 1)
        for name in self.__dataclass_fields__:
            if name.endswith("_dropout"):
                require_probability(f"model.options.{name}", getattr(self, name))


class PreNormLayer(nn.Module):
    """`x = x + W_o Attention(LN(x), LN(source)); x = x + FFN(LN(x))`, with one LayerNorm for x and the source."""

    def __init__(self, dim: int, heads: int, attention_dropout: float, options: Options) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(options.relu_dropout), nn.Linear(4 * dim, dim)
        )
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(options.residual_dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x_BTd: Tensor, source_BSd: Tensor, visible_BTS: Tensor) -> Tensor:
        """Return [B, T, d]; `visible_BTS` is the mask of `model.network.layers.attend_visible`."""
        dim = x_BTd.shape[-1]
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        query_BTd = F.linear(self.attention_norm(x_BTd), weight[:dim], bias[:dim])
        key_value = F.linear(self.attention_norm(source_BSd), weight[dim:], bias[dim:])
        key_BSd, value_BSd = key_value.chunk(2, dim=-1)
        attended_BTd = attend_visible(query_BTd, key_BSd, self._drop(value_BSd), visible_BTS, self.heads)
        x_BTd = x_BTd + self.dropout(self.out(attended_BTd))
        result_BTd: Tensor = x_BTd + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTd)))
        return result_BTd

    def _drop(self, value_BSd: Tensor) -> Tensor:
        """Drop values of whole steps per head, which is dropout of the attention weights alike for all queries."""
        if not self.training or self.attention_dropout == 0:
            return value_BSd
        kept_BSh = F.dropout(value_BSd.new_ones(*value_BSd.shape[:2], self.heads), self.attention_dropout)
        return value_BSd * kept_BSh.repeat_interleave(value_BSd.shape[2] // self.heads, dim=2)


class Transformer(nn.Module):
    """Layers that attend to a source sequence, and a LayerNorm behind them.

    Args:
        dim: d.
        layers: number of layers.
        attention_dropout: dropout probability of the attention weights.
        config: of the network.
        options: of MulT.
    """

    def __init__(self, dim: int, layers: int, attention_dropout: float, config: ModelConfig, options: Options) -> None:
        super().__init__()
        self.positions = options.positions
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(PreNormLayer(dim, config.heads, attention_dropout, options) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def embed(self, x_BTd: Tensor) -> Tensor:
        """Scale the sequence by the root of its width, add positions, and apply dropout."""
        _, steps, dim = x_BTd.shape
        x_BTd = x_BTd * math.sqrt(dim)
        if self.positions:
            x_BTd = x_BTd + sinusoidal_positions(steps, dim, x_BTd)
        embedded_BTd: Tensor = self.dropout(x_BTd)
        return embedded_BTd

    def forward(self, x_BTd: Tensor, source_BSd: Tensor, visible_BTS: Tensor) -> Tensor:
        """Return [B, T, d]."""
        x_BTd, source_BSd = self.embed(x_BTd), self.embed(source_BSd)
        for layer in self.layers:
            x_BTd = layer(x_BTd, source_BSd, visible_BTS)
        result_BTd: Tensor = self.norm(x_BTd)
        return result_BTd


class SelfTransformer(Transformer):
    """Layers of self-attention of which one step of the result is needed; of the last layer only that is computed."""

    def forward(self, x_BTd: Tensor, visible_BTT: Tensor, step_B: Tensor) -> Tensor:
        """Return the step `step_B` of each clip, [B, d]."""
        x_BTd = self.embed(x_BTd)
        for layer in self.layers[:-1]:
            x_BTd = layer(x_BTd, x_BTd, visible_BTT)
        step_B1d, visible_B1T = (
            y.gather(1, step_B[:, None, None].expand(-1, -1, y.shape[2])) for y in (x_BTd, visible_BTT)
        )
        result_Bd: Tensor = self.norm(self.layers[-1](step_B1d, x_BTd, visible_B1T))[:, 0]
        return result_Bd


def sinusoidal_positions(steps: int, dim: int, like: Tensor) -> Tensor:
    """Return [steps, dim]: `sin(t / 10000^(2j/d))` at 2j and the cosine at 2j + 1 (Vaswani et al., 2017; t from 1)."""
    exact = torch.promote_types(like.dtype, torch.float32)  # bfloat16 cannot tell step 257 from 256
    time_T1 = torch.arange(1, steps + 1, dtype=exact, device=like.device)[:, None]
    even_j = torch.arange(0, dim, 2, dtype=exact, device=like.device)
    angle_Tj = time_T1 * torch.exp(even_j * (-math.log(10000) / dim))
    return torch.stack([angle_Tj.sin(), angle_Tj.cos()], dim=-1).flatten(1)[:, :dim].to(like.dtype)


def visible_steps(target_BT: Tensor, source_BS: Tensor, causal: bool) -> Tensor:
    """Return the steps of the source that each step of the target attends to, [B, T, S] bool.

    Args:
        target_BT: [B, T] bool, the real steps of the target, which are its first.
        source_BS: [B, S] bool, those of the source.
        causal: Hide what is later: step t sees the steps up to t + |S - T|, in the lengths of the clip alone.
    """
    if not causal:
        return source_BS[:, None].expand(-1, target_BT.shape[1], -1)
    more_B = (source_BS.sum(dim=1) - target_BT.sum(dim=1)).abs()
    time_T, time_S = (torch.arange(mask.shape[1], device=mask.device) for mask in (target_BT, source_BS))
    return (time_S <= time_T[:, None] + more_B[:, None, None]) & source_BS[:, None]


class MulT(Network):
    """Crossmodal Transformers between each two modalities, self-attention over the two results of each, and an MLP.

    `model.dropout` is that of the embedded sequences. Dropout of attention weights draws one mask for all queries of a
    head: each of them is affected as by a mask of its own, and fused kernels serve training too. A modality that a clip
    lacks is one step with a learned embedding.

    Raises:
        ValueError: The text encoder's weights cannot be loaded, or do not fit `config.text`.
    """

    options_class = Options
    options: Options
    source = (
        'Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019, '
        "https://aclanthology.org/P19-1656"
    )
    paper = {
        "model.dim": 50,
        "model.heads": 10,
        "model.dropout": 0.2,
        "train.batch_size": 16,
        "train.accumulate": 8,
        "train.learning_rate": 2e-3,
        "train.weight_decay": 0.0,
        "train.clip_norm": 0.6,
        "train.regression_loss": "mae",
        "train.contrastive.weight": 0.0,
    }
    search_space = {
        "train.learning_rate": (5e-4, 1e-3, 2e-3, 5e-3),
        "train.batch_size": (4, 8, 16),
        "train.accumulate": (1, 8),
        "model.dim": (30, 40, 50),
        "model.heads": (5, 10),
        "model.dropout": (0.0, 0.1, 0.2),
        "model.options.layers": (2, 4, 6),
        "model.options.text_kernel": (1, 3, 5),
        "model.options.audio_kernel": (1, 3, 5),
        "model.options.vision_kernel": (1, 3, 5),
        "model.options.text_attention_dropout": (0.1, 0.2, 0.3, 0.4, 0.5),
        "model.options.text_dropout": (0.1, 0.2, 0.3, 0.4, 0.5),
        "model.options.output_dropout": (0.1, 0.2, 0.3, 0.4, 0.5),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        options = self.options
        self.inputs = FeatureInputs(config, info, text)
        self.text_dropout = nn.Dropout(options.text_dropout)
        self.kernels = {"text": options.text_kernel, "audio": options.audio_kernel, "vision": options.vision_kernel}
        self.convolutions = nn.ModuleDict(
            {m: nn.Conv1d(self.inputs.dims[m], config.dim, self.kernels[m], bias=False) for m in MODALITIES}
        )
        dropouts = (options.text_attention_dropout, options.audio_attention_dropout, options.vision_attention_dropout)
        self.crossmodal, self.memory = nn.ModuleDict(), nn.ModuleDict()
        for m, dropout in zip(MODALITIES, dropouts, strict=True):
            for source in OTHERS[m]:
                self.crossmodal[f"{m}_{source}"] = Transformer(config.dim, options.layers, dropout, config, options)
            layers = max(options.layers, MIN_MEMORY_LAYERS)
            self.memory[m] = SelfTransformer(2 * config.dim, layers, dropout, config, options)
        width = 2 * len(MODALITIES) * config.dim
        self.hidden = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(options.output_dropout), nn.Linear(width, width)
        )
        self.predictor = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Output:
        """Return predictions, and the summaries of the modalities as the embedding."""
        sequences = {m: self._convolve(m, sequence) for m, sequence in self.inputs(batch).items()}
        summaries = {m: self._summary(m, sequences) for m in MODALITIES}
        all_BD = torch.cat(list(summaries.values()), dim=1)
        prediction_B = at_least_float32(self.predictor(all_BD + self.hidden(all_BD))).squeeze(-1)
        streams = {m: at_least_float32(summary_Bd) for m, summary_Bd in summaries.items()}
        return Output(prediction_B, Embedding(streams, {m: batch.masks[m].any(dim=1) for m in MODALITIES}))

    @property
    def no_attention_reason(self) -> str:
        """Why there is no attention to show."""
        return "the network mult attends in several layers and in both directions: no weight of a step stands out"

    def _convolve(self, modality: str, sequence: MaskedSequence) -> MaskedSequence:
        """Return a sequence of width d, whose real steps are its first."""
        width, sequence = self.kernels[modality], move_to_front(sequence)
        x_BDT = sequence.values.mT
        if modality == "text":
            x_BDT = self.text_dropout(x_BDT)
        x_BTd = self.convolutions[modality](F.pad(x_BDT, (0, width - 1))).mT
        lengths_B1 = (sequence.mask.sum(dim=1, keepdim=True) - width + 1).clamp(min=1)
        return MaskedSequence(x_BTd, torch.arange(x_BTd.shape[1], device=x_BTd.device) < lengths_B1)

    def _summary(self, modality: str, sequences: Mapping[str, MaskedSequence]) -> Tensor:
        """Return the last step [B, 2d] of what a modality finds in the other two."""
        target, found = sequences[modality], []
        for m in OTHERS[modality]:
            visible_BTS = visible_steps(target.mask, sequences[m].mask, self.options.causal)
            found.append(self.crossmodal[f"{modality}_{m}"](target.values, sequences[m].values, visible_BTS))
        visible_BTT = visible_steps(target.mask, target.mask, self.options.causal)
        summary_Bd: Tensor = self.memory[modality](torch.cat(found, dim=-1), visible_BTT, target.mask.sum(dim=1) - 1)
        return summary_Bd
