"""The DashFusion network.

Wen et al., "DashFusion: Dual-stream Alignment with Hierarchical Bottleneck Fusion for Multimodal Sentiment Analysis",
IEEE TNNLS 36(10), 2025, arXiv 2512.05515.

Shapes: B clips, T steps, D raw features, d model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from model.network.alignment import build_alignment
from model.network.composed import ComposedNetwork, modality_encoders, unimodal_heads
from model.network.fusion import build_fusion

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone

PAPER = (
    'Wen et al., "DashFusion: Dual-stream Alignment with Hierarchical Bottleneck Fusion for Multimodal Sentiment '
    'Analysis", IEEE TNNLS 36(10), 2025, https://arxiv.org/abs/2512.05515'
)


class DashFusion(ComposedNetwork):
    """Modality encoders, alignment, fusion and predictor, as chosen by `config`.

    The network normalises audio and vision with the dataset's training statistics. A modality that a clip lacks becomes
    a learned embedding, one step long; if it is the anchor, another modality of the clip is the anchor instead.

    Raises:
        ValueError: the text encoder's weights cannot be loaded, or do not fit `config.text`.
    """

    fixed = ()
    contrastive = True
    source = PAPER
    search_space = {
        "train.learning_rate": (2e-4, 5e-4, 1e-3),
        "train.contrastive.weight": (0.05, 0.1, 0.2, 0.4),
        "model.dropout": (0.1, 0.2, 0.3),
        "model.bottleneck_tokens": (4, 8, 16),
        "model.encoder_layers": (1, 2, 4),
        "model.fusion_layers": (1, 2, 3),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        self.encoders = modality_encoders(config, info, text)
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
        self.unimodal_heads = unimodal_heads(config)
