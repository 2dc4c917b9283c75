"""Text encoders that are trained with the network, fine-tuned or from scratch.

Shapes: B clips, T tokens, S tokens of several batches together, D width of the text encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.network.encoders import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from model.config import ModelConfig
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone
    from model.network.layers import MaskedSequence


class TokenEncoder(nn.Module):
    """A Hugging Face text encoder, and what a network makes of its hidden states.

    Args:
        text: Tokenizer and encoder.
        config: Configuration of the network.
        head: Builds the module from (hidden states [B, T, D], mask) to a `MaskedSequence`, where T is at least 1. It is
            called after the encoder is built, so that a seed gives the initial weights that it always gave.
    """

    def __init__(self, text: TextBackbone, config: ModelConfig, head: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.encoder = text.build()
        _freeze(self.encoder, config.text.freeze_layers)
        self.head = head()

    def forward(self, values: Tensor, mask_BT: Tensor) -> MaskedSequence:
        """Return a sequence of max(T, 1) steps whose position 0 is real.

        Args:
            values: token ids [B, T], or the hidden states that `hidden` returned for them.
            mask_BT: bool, True where a token is real.
        """
        hidden_BTD = values if values.is_floating_point() else self.hidden([values], [mask_BT])[0]
        sequence: MaskedSequence = self.head(hidden_BTD, _at_least_one_step(mask_BT))
        return sequence

    def hidden(self, ids: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """Return the hidden states [B, max(T, 1), D] of each batch.

        Args:
            ids: token ids [B, T] of each batch.
            masks: [B, T] bool of each batch, True where a token is real.
        """
        return [
            self.encode(words_BTD, _at_least_one_step(mask_BT))
            for words_BTD, mask_BT in zip(self.look_up(ids), masks, strict=True)
        ]

    def look_up(self, ids: Sequence[Tensor]) -> list[Tensor]:
        """Return the word embeddings [B, max(T, 1), D] of each batch.

        The tokens of all batches are looked up at once: each lookup allocates a gradient as large as the vocabulary.
        """
        ids = [_at_least_one_step(ids_BT) for ids_BT in ids]
        words_SD = self.encoder.get_input_embeddings()(torch.cat([ids_BT.flatten() for ids_BT in ids]))
        words = torch.split(words_SD, [ids_BT.numel() for ids_BT in ids])
        return [torch.unflatten(batch_SD, 0, ids_BT.shape) for batch_SD, ids_BT in zip(words, ids, strict=True)]

    def encode(self, words_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the hidden states [B, T, D] of word embeddings."""
        # Attention to no steps is NaN in some kernels, so a clip without text has one token unmasked. The embedding of
        # a missing modality replaces it.
        first_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
        hidden_BTD: Tensor = self.encoder(
            inputs_embeds=words_BTD, attention_mask=(mask_BT | first_T).long()
        ).last_hidden_state
        return hidden_BTD


def build_text_encoder(config: ModelConfig, info: DatasetInfo, text: TextBackbone | None) -> TokenEncoder | TextEncoder:
    """Build DashFusion's encoder of tokens, or without a backbone that of the dataset's text features.

    Raises:
        ValueError: the backbone's weights cannot be loaded, or do not fit `config.text`.
    """
    if text:
        return TokenEncoder(text, config, lambda: TextEncoder(text.config.hidden_size, config))
    return TextEncoder(info.modalities["text"].dim, config)


def _at_least_one_step(tokens_BT: Tensor) -> Tensor:
    return tokens_BT if tokens_BT.shape[1] else tokens_BT.new_zeros(len(tokens_BT), 1)


def _freeze(encoder: PreTrainedModel, layers: int) -> None:
    """Freeze the embeddings and the first `layers` layers; 0 freezes nothing."""
    if layers == 0:
        return
    count = getattr(encoder.config, "num_hidden_layers", 0)
    stack = next((m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    embeddings = getattr(encoder, "embeddings", None)
    if stack is None or embeddings is None:
        raise ValueError(
            f"model.text.freeze_layers is {layers}: {encoder.config.model_type} has no list of layers that can be "
            "frozen; set it to 0, or choose another encoder"
        )
    if layers > count:
        raise ValueError(
            f"model.text.freeze_layers is {layers}: the encoder has {count} layers; set it to {count} or less, or "
            "model.text.mode to frozen"
        )
    for part in (embeddings, *stack[:layers]):
        part.requires_grad_(False)
