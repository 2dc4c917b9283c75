"""MAG-BERT: a gate in the text encoder shifts the tokens' embeddings by what audio and vision show beside them.

Rahman et al., "Integrating Multimodal Information in Large Pretrained Transformers", ACL 2020, arXiv 1908.05787. What
the paper leaves out follows MMSA.

Shapes: B clips, K tokens, S steps of audio or vision, D features, E width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.config import MODALITIES
from model.config_blocks import require, require_probability
from model.data.info import NORMALISED
from model.network.base import Embedding, Network, Output
from model.network.inputs import FeatureInput, FeatureInputs
from model.network.layers import MaskedSequence, at_least_float32, masked_mean
from model.network.text_encoder import TokenEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone


@dataclass(frozen=True)
class Options:
    """Hyperparameters; the defaults are MMSA's for MOSI.

    Attributes:
        shift: beta, the maximum length of a token's shift in lengths of its embedding.
        gate_dropout: Dropout probability of the shifted embeddings; `model.dropout` is that before the predictor.
    """

    shift: float = 1.0
    gate_dropout: float = 0.3

    def __post_init__(self) -> None:
        require(
            self.shift > 0,
            "model.options.shift",
            self.shift,
            "it must be positive",
            "set it between 0.1 and 2, or to 1",
        )
        require_probability("model.options.gate_dropout", self.gate_dropout)


class AdaptationGate(nn.Module):
    """The multimodal adaptation gate.

    With the embedding e of a token and the features x_m of audio and vision beside it:

        h = sum over m of relu(W_gm [x_m; e] + b_gm) * (W_m x_m + b_m)
        result = dropout(LayerNorm(e + min(1, beta |e| / |h|) h))
    """

    def __init__(self, dim: int, dims: Mapping[str, int], options: Options) -> None:
        super().__init__()
        self.limit = options.shift
        self.gates = nn.ModuleDict({m: nn.Linear(width + dim, dim) for m, width in dims.items()})
        self.shifts = nn.ModuleDict({m: nn.Linear(width, dim) for m, width in dims.items()})
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(options.gate_dropout)

    def forward(self, text_BKE: Tensor, others: Mapping[str, Tensor]) -> Tensor:
        """Return [B, K, E]; `others` maps audio and vision to their features [B, K, D] beside the tokens."""
        terms = [
            self.gates[m](torch.cat([x_BKD, text_BKE], dim=2)).relu() * self.shifts[m](x_BKD)
            for m, x_BKD in others.items()
        ]
        shift_BKE = torch.stack(terms).sum(dim=0)
        text_BK1, length_BK1 = (torch.linalg.vector_norm(x, dim=2, keepdim=True) for x in (text_BKE, shift_BKE))
        scale_BK1 = (self.limit * text_BK1 / (length_BK1 + 1e-6)).clamp(max=1)
        shifted_BKE: Tensor = self.dropout(self.norm(text_BKE + scale_BK1 * shift_BKE))
        return shifted_BKE


def align_steps(sequence: MaskedSequence, token_mask_BK: Tensor) -> Tensor:
    """Average the steps of a modality that lie beside each token, [B, K, D]; zeros beside masked tokens.

    The V real steps and the K real tokens of a clip are both spread evenly over its duration: token k overlaps the
    steps from k V / K to (k + 1) V / K, and averages them with the overlaps as weights. With as many steps as tokens,
    as in a dataset that is aligned to them, each token has its own step.
    """
    step_BS, steps_B = _ranks(sequence.mask)
    token_BK, tokens_B = _ranks(token_mask_BK)
    # In units of 1 / (K V) all bounds are integers, so that equal lengths give exactly the identity
    first_BKS = torch.maximum((token_BK * steps_B)[:, :, None], (step_BS * tokens_B)[:, None, :])
    last_BKS = torch.minimum(((token_BK + 1) * steps_B)[:, :, None], ((step_BS + 1) * tokens_B)[:, None, :])
    overlap_BKS = (last_BKS - first_BKS).clamp(min=0) * token_mask_BK[:, :, None] * sequence.mask[:, None, :]
    weight_BKS = overlap_BKS.to(sequence.values.dtype) / steps_B[:, :, None].clamp(min=1)
    return weight_BKS @ sequence.values


def _ranks(mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of real steps before each step [B, T], and of all real steps [B, 1]."""
    count_BT = mask_BT.long().cumsum(dim=1)
    return count_BT - mask_BT.long(), count_BT[:, -1:]


class Embedded(nn.Module):
    """Stands for the embeddings of a Hugging Face encoder, so that the encoder reads embeddings that are changed first.

    Attributes:
        embeddings: the encoder's own: word embeddings, positions, LayerNorm and dropout.
    """

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, input_ids: None = None, inputs_embeds: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """Return the encoder's `inputs_embeds` unchanged."""
        assert inputs_embeds is not None, "the network passes embeddings, not ids"
        return inputs_embeds

    def __getattr__(self, name: str) -> Any:
        """Return what encoders look up in their embeddings, such as the table of words."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("embeddings"), name)


class ShiftedTokenEncoder(TokenEncoder):
    """A text encoder in two parts: `hidden` returns the tokens' embeddings, `encode` runs the layers on shifted ones.

    Raises:
        ValueError: the encoder has no embeddings of its own module, as BERT and its relatives have.
    """

    def __init__(self, text: TextBackbone, config: ModelConfig) -> None:
        width = text.config.hidden_size
        super().__init__(text, config, lambda: FeatureInput(width))
        embeddings = getattr(self.encoder, "embeddings", None)
        if not isinstance(embeddings, nn.Module) or self.encoder.get_input_embeddings().embedding_dim != width:
            raise ValueError(
                f"model.text.encoder is a {text.config.model_type}: mag_bert shifts the embeddings of an encoder like "
                "BERT or RoBERTa, in a module of their own and as wide as its layers; choose such an encoder, or set "
                "model.text.mode to frozen"
            )
        self.encoder.embeddings = Embedded(embeddings)

    def hidden(self, ids: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """Return the embeddings [B, max(K, 1), E] of each batch, with positions and LayerNorm."""
        embedded = self.encoder.embeddings
        assert isinstance(embedded, Embedded)
        return [embedded.embeddings(inputs_embeds=words_BKE) for words_BKE in self.look_up(ids)]


class MagBert(Network):
    """A text encoder whose embeddings are shifted by audio and vision, a pooler and a linear predictor.

    With tokens (`model.text.mode` finetune or scratch) the gate is behind the encoder's embedding layer, and the pooler
    reads the first token, [CLS]. It starts from random weights, MMSA's from BERT's own. With text features (frozen) no
    layers of an encoder are left behind the gate: it shifts the features, and the pooler reads their mean.

    A token reads the steps of audio and vision at its relative position in the clip, averaged. In a dataset with
    `align.mode: aligned`, whose steps were pooled by the words' times, these are the token's own steps, provided that
    the network reads the dataset's tokens (mode frozen, or finetune with the encoder of the text features). A clip's
    missing modality is a learned embedding.

    The published learning rate is for fine-tuning BERT; with text features try 5e-4.
    """

    options_class = Options
    options: Options
    source = (
        'Rahman et al., "Integrating Multimodal Information in Large Pretrained Transformers", ACL 2020, '
        "https://arxiv.org/abs/1908.05787"
    )
    paper = {
        "model.dropout": 0.1,
        "train.batch_size": 32,
        "train.learning_rate": 2e-5,
        "train.weight_decay": 0.0,
        "train.clip_norm": 0.0,
        "train.patience": 8,
        "train.contrastive.weight": 0.0,
    }
    search_space = {
        "train.learning_rate": (1e-5, 2e-5, 5e-5, 5e-4, 1e-3),  # the last ones for features of a frozen encoder
        "train.batch_size": (16, 32, 64),
        "model.dropout": (0.1, 0.3),
        "model.options.shift": (0.5, 1.0, 2.0),
        "model.options.gate_dropout": (0.1, 0.3, 0.5),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        self.inputs = FeatureInputs(config, info, modalities=NORMALISED)
        width = text.config.hidden_size if text else info.modalities["text"].dim
        self.text_input = ShiftedTokenEncoder(text, config) if text else FeatureInput(width)
        self.gate = AdaptationGate(width, self.inputs.dims, self.options)
        self.pooler = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(config.dropout))
        self.predictor = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Output:
        """Return predictions and the means of the text's embeddings and of the features of audio and vision."""
        sequences = {"text": self.text_input(batch.values["text"], batch.masks["text"]), **self.inputs(batch)}
        text = sequences["text"]
        beside = {m: align_steps(sequences[m], text.mask) for m in NORMALISED}
        shifted_BKE = self.gate(text.values, beside)
        if isinstance(self.text_input, ShiftedTokenEncoder):
            clip_BE = self.text_input.encode(shifted_BKE, text.mask)[:, 0]
        else:
            clip_BE = masked_mean(shifted_BKE, text.mask)
        prediction_B = at_least_float32(self.predictor(self.pooler(clip_BE))).squeeze(-1)
        streams = {m: masked_mean(sequence.values, sequence.mask) for m, sequence in sequences.items()}
        present = {m: batch.masks[m].any(dim=1) for m in MODALITIES}
        return Output(prediction_B, Embedding(streams, present))
