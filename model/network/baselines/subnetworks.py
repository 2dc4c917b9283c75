"""The subnetworks of the tensor fusion network, with which other baselines encode the modalities too.

Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment Analysis", EMNLP 2017, section 4.1. As in MMSA 2.2.1,
audio and vision are batch-normalised, and the text's LSTM is followed by one linear layer.

Shapes: B clips, D features, d width of a clip's vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from model.network.base import Embedding
from model.network.inputs import FeatureInputs
from model.network.layers import MaskedSequence, at_least_float32, masked_mean
from model.network.recurrent import MaskedLSTM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone


class ClipNorm(nn.BatchNorm1d):
    """Batch normalisation of clips; a batch of one, which has no variance, is normalised by the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, D]."""
        if self.training and input.shape[0] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class MeanSubnetwork(nn.Module):
    """The mean over a clip's steps, normalised, through three layers with ReLU."""

    def __init__(self, dim_in: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = ClipNorm(dim_in)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            nn.Linear(dim_in, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()
        )

    def forward(self, sequence: MaskedSequence) -> Tensor:
        """Return [B, d]."""
        vector_Bd: Tensor = self.layers(self.dropout(self.norm(masked_mean(sequence.values, sequence.mask))))
        return at_least_float32(vector_Bd)


class RecurrentSubnetwork(nn.Module):
    """The last state of an LSTM, through a linear layer."""

    def __init__(self, dim_in: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.lstm = MaskedLSTM(dim_in, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, sequence: MaskedSequence) -> Tensor:
        """Return [B, d]."""
        return at_least_float32(self.out(self.lstm(sequence).last))


class Subnetworks(nn.Module):
    """One vector per clip and modality: an LSTM of the text, means of audio and vision.

    A modality that a clip lacks is one step with a learned embedding.

    Args:
        config: Configuration of the network.
        info: Description of the dataset.
        text: Tokenizer and encoder of a network that reads tokens; None: text features.
        text_hidden: Width of the LSTM.
        dims: Modality -> d.
        dropout: Dropout probability of the means of audio and vision.

    Raises:
        ValueError: The text encoder's weights cannot be loaded, or do not fit `config.text`.
    """

    def __init__(
        self,
        config: ModelConfig,
        info: DatasetInfo,
        text: TextBackbone | None,
        text_hidden: int,
        dims: Mapping[str, int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.inputs = FeatureInputs(config, info, text)
        dims_in = self.inputs.dims
        self.of = nn.ModuleDict(
            {
                "text": RecurrentSubnetwork(dims_in["text"], text_hidden, dims["text"]),
                "audio": MeanSubnetwork(dims_in["audio"], dims["audio"], dropout),
                "vision": MeanSubnetwork(dims_in["vision"], dims["vision"], dropout),
            }
        )

    def forward(self, batch: Batch) -> Embedding:
        """Return the modalities' vectors."""
        sequences = self.inputs(batch)
        streams = {m: subnetwork(sequences[m]) for m, subnetwork in self.of.items()}
        return Embedding(streams, {m: batch.masks[m].any(dim=1) for m in streams})
