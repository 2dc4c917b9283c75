"""Modality encoders: from raw features to sequences of width d (DashFusion, section "Modality encoders").

Shapes: B clips, T steps, D raw features, d model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.network.layers import AttentionLayer, MaskedSequence

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.data.info import Statistics


class TextEncoder(nn.Module):
    """Project hidden states of a text encoder: Linear, GELU, Linear, GELU, LayerNorm.

    Where position 0 is masked out, as in a clip without text, it holds a learned embedding, so that the anchor of the
    alignment and of the prediction always exists.

    Attributes:
        stand_in: the embedding of a missing modality; the name is part of the checkpoint format.
    """

    def __init__(self, dim_in: int, config: ModelConfig) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(dim_in, config.dim, bias=False),
            nn.GELU(),
            nn.Linear(config.dim, config.dim, bias=False),
            nn.GELU(),
            nn.LayerNorm(config.dim),
        )
        self.stand_in = nn.Parameter(torch.randn(config.dim) * 0.02)

    def forward(self, values_BTD: Tensor, mask_BT: Tensor) -> MaskedSequence:
        """Return a sequence of max(T, 1) steps whose position 0 is real."""
        if values_BTD.shape[1] == 0:
            values_BTD = values_BTD.new_zeros(len(values_BTD), 1, values_BTD.shape[2])
            mask_BT = mask_BT.new_zeros(len(mask_BT), 1)
        first_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
        replaced_BT = first_T & ~mask_BT
        text_BTd = torch.where(replaced_BT[:, :, None], self.stand_in, self.project(values_BTD))
        return MaskedSequence(text_BTd, mask_BT | replaced_BT)


class SequenceEncoder(nn.Module):
    """Encode audio or vision: normalise, project, prepend [CLS], add positions, Transformer layers, LayerNorm.

    Without `config.normalise` the features are used as they are.

    A clip that lacks the modality has position 0 only, with a learned embedding in place of [CLS].

    Attributes:
        mean: [D] means of the training split; with `std` a buffer outside the state dict, because the dataset
            description in the checkpoint already holds both.
        std: [D] standard deviations.
        stand_in: the embedding of a missing modality; the name is part of the checkpoint format.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim_in: int, statistics: Statistics, config: ModelConfig) -> None:
        super().__init__()
        mean, std = (statistics.mean, statistics.std) if config.normalise else ((0.0,) * dim_in, (1.0,) * dim_in)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)
        self.project = nn.Linear(dim_in, config.dim)
        self.cls = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.stand_in = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_positions + 1, config.dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            AttentionLayer(config.dim, config.heads, config.dropout) for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, values_BTD: Tensor, mask_BT: Tensor) -> MaskedSequence:
        """Return a sequence of T + 1 steps whose position 0 is real.

        Raises:
            ValueError: T exceeds the network's positions.
        """
        clips, steps, _ = values_BTD.shape
        if steps >= len(self.positions):
            raise ValueError(
                f"a sequence of {steps} steps, but the network has {len(self.positions) - 1} positions; "
                "read the clips with its model.max_positions"
            )
        normalised_BTD = ((values_BTD - self.mean) / self.std) * mask_BT[:, :, None]
        first_B1d = torch.where(mask_BT.any(dim=1)[:, None, None], self.cls, self.stand_in)
        x_BTd = torch.cat([first_B1d, self.project(normalised_BTD)], dim=1)
        x_BTd = self.dropout(x_BTd + self.positions[: steps + 1])
        mask_BT = torch.cat([mask_BT.new_ones(clips, 1), mask_BT], dim=1)
        for layer in self.layers:
            x_BTd = layer(x_BTd, MaskedSequence(x_BTd, mask_BT))
        return MaskedSequence(self.norm(x_BTd), mask_BT)
