"""Features as the baselines read them: normalised and masked, without a projection.

Shapes: B clips, T steps, D features.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MODALITIES
from model.data.info import NORMALISED
from model.network.layers import MaskedSequence
from model.network.text_encoder import TokenEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.info import DatasetInfo, Statistics
    from model.data.tokens import TextBackbone


class FeatureInput(nn.Module):
    """Normalise and mask the features of one modality.

    A clip that lacks the modality has one real step, a learned embedding.

    Args:
        dim: D.
        statistics: of the features in the training split; None: not normalised.

    Attributes:
        dim: D.
        mean: [D] means of the training split; with `std` a buffer outside the state dict, because the dataset
            description in the checkpoint already holds both.
        std: [D] standard deviations.
        missing_embedding: [D] of a missing modality.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, statistics: Statistics | None = None) -> None:
        super().__init__()
        self.dim = dim
        self._is_normalised = statistics is not None
        mean, std = (statistics.mean, statistics.std) if statistics else ((0.0,) * dim, (1.0,) * dim)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)
        self.missing_embedding = nn.Parameter(torch.randn(dim) * 0.02)

    def forward(self, values_BTD: Tensor, mask_BT: Tensor) -> MaskedSequence:
        """Return a sequence of max(T, 1) steps, at least one of them real; masked steps are zeros."""
        if values_BTD.shape[1] == 0:
            values_BTD = values_BTD.new_zeros(values_BTD.shape[0], 1, self.dim)
            mask_BT = mask_BT.new_zeros(mask_BT.shape[0], 1)
        if self._is_normalised:
            values_BTD = (values_BTD - self.mean) / self.std
        values_BTD = values_BTD * mask_BT[:, :, None]
        # Only the first step has a gradient, as only there an embedding may stand
        missing_B = ~mask_BT.any(dim=1)
        first_B1D = torch.where(missing_B[:, None, None], self.missing_embedding, values_BTD[:, :1])
        first_B1 = mask_BT[:, :1] | missing_B[:, None]
        values_BTD = torch.cat([first_B1D, values_BTD[:, 1:]], dim=1)
        return MaskedSequence(values_BTD, torch.cat([first_B1, mask_BT[:, 1:]], dim=1))


class FeatureInputs(nn.Module):
    """The features of several modalities; text may be the hidden states of an encoder that is trained.

    Args:
        config: of the network.
        info: of the dataset.
        text: tokenizer and encoder of a network that reads tokens; None: text features.
        modalities: those that the network reads.

    Attributes:
        dims: modality -> D, for text the width of its features or hidden states.

    Raises:
        ValueError: the text encoder's weights cannot be loaded, or do not fit `config.text`.
    """

    def __init__(
        self,
        config: ModelConfig,
        info: DatasetInfo,
        text: TextBackbone | None = None,
        modalities: Sequence[str] = MODALITIES,
    ) -> None:
        super().__init__()
        self.dims = {m: info.modalities[m].dim for m in modalities}
        if text and "text" in modalities:
            self.dims["text"] = text.config.hidden_size
        self.of = nn.ModuleDict()
        for m, dim in self.dims.items():
            is_normalised = m in NORMALISED and config.normalise
            features = partial(FeatureInput, dim, info.statistics[m] if is_normalised else None)
            self.of[m] = TokenEncoder(text, config, features) if text and m == "text" else features()

    def forward(self, batch: Batch) -> dict[str, MaskedSequence]:
        """Return modality -> its sequence of max(T, 1) steps, at least one of them real; masked steps are zeros."""
        return {m: features(batch.values[m], batch.masks[m]) for m, features in self.of.items()}
