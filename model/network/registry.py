"""The networks by name (`model.name`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.network.baselines.late_fusion import LateFusion
from model.network.baselines.published import DashFusionPublished
from model.network.baselines.text import TextNetwork
from model.network.dashfusion import DashFusion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone
    from model.network.base import Network

NETWORKS: Mapping[str, type[Network]] = {
    "dashfusion": DashFusion,
    "dashfusion_published": DashFusionPublished,
    "text": TextNetwork,
    "late_fusion": LateFusion,
}


def build_network(config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> Network:
    """Build the network that `config.name` names, for features as in `info`.

    Args:
        config: of the network.
        info: of the dataset.
        text: tokenizer and encoder of a network that reads transcripts; None: text features.

    Raises:
        ValueError: the text encoder's weights cannot be loaded, or do not fit `config.text`.
    """
    return NETWORKS[config.name](config, info, text)
