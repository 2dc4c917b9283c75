"""From raw features to sequences of width d: DashFusion, section "Modality encoders".

Shapes: B clips, T steps, D raw features, d model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.network.layers import AttentionLayer

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.data.info import Statistics


class TextEncoder(nn.Module):
    """Projects an encoder's hidden states: Linear, GELU, Linear, GELU, LayerNorm.

    Where position 0 is hidden, as in a clip without text, it holds a learned stand-in vector, so that the
    anchor of the alignment and of the prediction always exists.
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

    def forward(self, values_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Sequence [B, max(T, 1), d] and its mask, True at position 0."""
        if values_BTD.shape[1] == 0:
            values_BTD = values_BTD.new_zeros(len(values_BTD), 1, values_BTD.shape[2])
            mask_BT = mask_BT.new_zeros(len(mask_BT), 1)
        first_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
        stand_in_BT = first_T & ~mask_BT
        text_BTd = torch.where(stand_in_BT[:, :, None], self.stand_in, self.project(values_BTD))
        return text_BTd, mask_BT | stand_in_BT


class SequenceEncoder(nn.Module):
    """Audio or vision: normalise, project, put [CLS] in front, add positions, Transformer layers, LayerNorm.

    Of a clip that lacks the modality there is position 0 alone, and in place of [CLS] it holds a learned stand-in.
    The statistics are buffers outside the state dict: they belong to the dataset, and the checkpoint keeps
    them with its description.
    """

    def __init__(self, dim_in: int, statistics: Statistics, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(statistics.mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(statistics.std, dtype=torch.float32), persistent=False)
        self.project = nn.Linear(dim_in, config.dim)
        self.cls = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.stand_in = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_positions + 1, config.dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            AttentionLayer(config.dim, config.heads, config.dropout) for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, values_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Sequence [B, T + 1, d] and its mask [B, T + 1], True at position 0.

        Raises:
            ValueError: T is greater than the positions that the network has.
        """
        clips, steps, _ = values_BTD.shape
        if steps >= len(self.positions):
            raise ValueError(
                f"a sequence of {steps} steps, but the network has {len(self.positions) - 1} positions; "
                "read the clips with its model.max_positions"
            )
        normal_BTD = ((values_BTD - self.mean) / self.std) * mask_BT[:, :, None]
        first_B1d = torch.where(mask_BT.any(dim=1)[:, None, None], self.cls, self.stand_in)
        x = torch.cat([first_B1d, self.project(normal_BTD)], dim=1)
        x = self.dropout(x + self.positions[: steps + 1])
        mask = torch.cat([mask_BT.new_ones(clips, 1), mask_BT], dim=1)
        for layer in self.layers:
            x = layer(x, x, mask)
        return self.norm(x), mask
