"""Text encoders that are trained with the network: fine-tuned from a checkpoint, or from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.network.encoders import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.config import ModelConfig
    from model.data.tokens import TextBackbone


class TokenEncoder(nn.Module):
    """Hidden states of a trained encoder, then what `TextEncoder` makes of hidden states."""

    def __init__(self, text: TextBackbone, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = text.build()
        _freeze(self.encoder, config.text.freeze_layers)
        self.head = TextEncoder(self.encoder.config.hidden_size, config)

    def forward(self, values: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Sequence [B, max(T, 1), d] and its mask, True at position 0.

        Args:
            values: token ids [B, T], or what `hidden` made of them.
        """
        hidden_BTD = values if values.is_floating_point() else self.hidden([values], [mask_BT])[0]
        return self.head(hidden_BTD, _one_step_at_least(mask_BT))

    def hidden(self, ids: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states [B, max(T, 1), D] of each chunk of clips, [B, T].

        The tokens of all chunks are looked up together: the gradient of the word vectors is as large as the
        vocabulary, and made once for each time that they are looked up.
        """
        ids, masks = ([_one_step_at_least(chunk_BT) for chunk_BT in chunks] for chunks in (ids, masks))
        words_SD = self.encoder.get_input_embeddings()(torch.cat([ids_BT.flatten() for ids_BT in ids]))
        words = words_SD.split([ids_BT.numel() for ids_BT in ids])
        hidden = []
        for chunk_SD, mask_BT in zip(words, masks, strict=True):
            # Attention to nothing is NaN in some kernels: a clip without text shows the encoder one token, whose place
            # the stand-in takes.
            first_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
            chunk_BTD, attended_BT = chunk_SD.unflatten(0, mask_BT.shape), (mask_BT | first_T).long()
            hidden.append(self.encoder(inputs_embeds=chunk_BTD, attention_mask=attended_BT).last_hidden_state)
        return hidden


def _one_step_at_least(tokens_BT: Tensor) -> Tensor:
    return tokens_BT if tokens_BT.shape[1] else tokens_BT.new_zeros(len(tokens_BT), 1)


def _freeze(encoder: nn.Module, layers: int) -> None:
    """Keep the embeddings and the first `layers` layers as they are; 0: all is trained."""
    if layers == 0:
        return
    count = getattr(encoder.config, "num_hidden_layers", 0)
    stack = next((m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    embeddings = getattr(encoder, "embeddings", None)
    if stack is None or embeddings is None:
        raise ValueError(
            f"model.text.freeze_layers is {layers}: a {encoder.config.model_type} has no list of layers to count in; "
            "set it to 0, or choose another encoder"
        )
    if layers > count:
        raise ValueError(
            f"model.text.freeze_layers is {layers}: the encoder has {count} layers; set it to {count} or less, or "
            "model.text.mode to frozen"
        )
    for part in (embeddings, *stack[:layers]):
        part.requires_grad_(False)
