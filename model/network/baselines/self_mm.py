"""Self-MM: a multimodal task and three unimodal tasks, whose labels are generated during training.

Yu, Xu, Yuan and Wu, "Learning Modality-Specific Representations with Self-Supervised Multi-Task Learning for Multimodal
Sentiment Analysis", AAAI 2021, arXiv 2102.04830. What the paper leaves out follows the authors' code, as MMSA has it.

Shapes: B clips of a batch, N training clips, T steps, M modalities, S streams (fusion and the modalities), w width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from model.config import MODALITIES
from model.config_blocks import require_at_least, require_choice, require_probability
from model.data.info import NORMALISED
from model.network.auxiliary import AuxiliaryLoss
from model.network.base import Embedding, Network, Output
from model.network.inputs import FeatureInputs
from model.network.layers import at_least_float32, masked_mean
from model.network.recurrent import MaskedLSTM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig
    from model.data.batch import Batch
    from model.data.clips import ClipTable
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone
    from model.network.layers import MaskedSequence

Pooling = Literal["first", "mean"]

STREAMS = ("fusion", *MODALITIES)

EPSILON = 1e-8


@dataclass(frozen=True)
class Options:
    """Hyperparameters; the defaults are MMSA's for MOSI.

    Attributes:
        text_pooling: first, the hidden state of the first token, [CLS]; mean, that over the tokens, for text features
            without [CLS].
        audio_width: Width of the LSTM of audio, and of its vector.
        vision_width: Width of the LSTM of vision, and of its vector.
        text_features: Width of the unimodal representation of text.
        audio_features: Width of the unimodal representation of audio.
        vision_features: Width of the unimodal representation of vision.
        fusion_dropout: Dropout probability of the modalities' vectors before the fusion; `model.dropout` is that
            before the unimodal heads.
    """

    text_pooling: Pooling = "first"
    audio_width: int = 16
    vision_width: int = 32
    text_features: int = 32
    audio_features: int = 16
    vision_features: int = 32
    fusion_dropout: float = 0.0

    def __post_init__(self) -> None:
        require_choice("model.options.text_pooling", self.text_pooling, Pooling)
        for name in ("audio_width", "vision_width", *(f"{m}_features" for m in MODALITIES)):
            require_at_least(f"model.options.{name}", getattr(self, name), 1)
        require_probability("model.options.fusion_dropout", self.fusion_dropout)


class Head(nn.Module):
    """Map a vector to the features of a task, ReLU(Linear), and these to a sentiment by a further hidden layer."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, width), nn.ReLU())
        self.predictor = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x_Bd: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, w] and sentiment [B]."""
        features_Bw = self.features(x_Bd)
        return at_least_float32(features_Bw), at_least_float32(self.predictor(features_Bw)).squeeze(-1)


class SelfMM(Network):
    """The first hidden state of the text and the final LSTM states of audio and vision, concatenated, through an MLP.

    Each modality has a head of its own, whose predictions are reported as those of unimodal heads. A clip's missing
    modality is a learned embedding.

    The heads learn from unimodal labels that are generated during training: by where a clip's features of a modality
    lie between the centres of the positive and the negative clips, compared with its fused features. Labels and
    features of the training clips are part of the training state, not of the checkpoint. Unimodal labels of the corpus,
    such as those of CH-SIMS, are not used for training: the method is to do without them.
    """

    options_class = Options
    options: Options
    source = (
        'Yu et al., "Learning Modality-Specific Representations with Self-Supervised Multi-Task Learning for '
        'Multimodal Sentiment Analysis", AAAI 2021, https://arxiv.org/abs/2102.04830'
    )
    paper = {
        "model.dim": 128,
        "model.dropout": 0.1,
        "train.batch_size": 16,
        "train.accumulate": 4,
        "train.learning_rate": 1e-3,
        "train.text_learning_rate": 5e-5,
        "train.weight_decay": 1e-3,
        "train.clip_norm": 0.0,
        "train.patience": 8,
        "train.regression_loss": "mae",
        "train.contrastive.weight": 0.0,
    }
    search_space = {
        "train.learning_rate": (5e-4, 1e-3, 5e-3),
        "train.batch_size": (16, 32),
        "model.dim": (64, 128, 256),
        "model.dropout": (0.0, 0.1),
        "model.options.audio_width": (16, 32),
        "model.options.vision_width": (16, 32, 64),
        "model.options.text_features": (32, 64),
        "model.options.fusion_dropout": (0.0, 0.1),
    }

    def __init__(self, config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> None:
        super().__init__(config, info, text)
        options = self.options
        self.inputs = FeatureInputs(config, info, text)
        widths = {m: getattr(options, f"{m}_width") for m in NORMALISED}
        self.recurrent = nn.ModuleDict({m: MaskedLSTM(self.inputs.dims[m], width) for m, width in widths.items()})
        self.project = nn.ModuleDict({m: nn.Linear(width, width) for m, width in widths.items()})
        widths = {"text": self.inputs.dims["text"], **widths}
        self.fusion = Head(sum(widths.values()), config.dim, options.fusion_dropout)
        self.heads = nn.ModuleDict(
            {m: Head(widths[m], getattr(options, f"{m}_features"), config.dropout) for m in MODALITIES}
        )

    def forward(self, batch: Batch) -> Output:
        """Return predictions, also of each modality alone, and the features of the tasks."""
        sequences = self.inputs(batch)
        vectors = {"text": self._text_vector(sequences["text"])}
        for m in NORMALISED:
            vectors[m] = self.project[m](self.recurrent[m](sequences[m]).last)
        fusion_Bw, prediction_B = self.fusion(torch.cat([vectors[m] for m in MODALITIES], dim=1))
        heads = {m: self.heads[m](vectors[m]) for m in MODALITIES}
        features = {m: features_Bw for m, (features_Bw, _) in heads.items()}
        unimodal_BM = torch.stack([heads[m][1] for m in MODALITIES], dim=1)
        present = {m: batch.masks[m].any(dim=1) for m in MODALITIES}
        present_BM = torch.stack([present[m] for m in MODALITIES], dim=1)
        auxiliary = {"fusion": fusion_Bw, **features, "unimodal": unimodal_BM, "present": present_BM}
        return Output(prediction_B, Embedding(features, present), unimodal_BM, auxiliary)

    def _text_vector(self, text: MaskedSequence) -> Tensor:
        is_read_BT = text.mask
        if self.options.text_pooling == "first":
            is_read_BT = is_read_BT & (is_read_BT.cumsum(dim=1) == 1)
        return masked_mean(text.values, is_read_BT)

    def auxiliary_loss(self, clips: ClipTable) -> SelfMMLoss:
        """Create the unimodal tasks' loss, with the labels of the clips as the first unimodal labels."""
        widths = {"fusion": self.config.dim} | {m: getattr(self.options, f"{m}_features") for m in MODALITIES}
        return SelfMMLoss(torch.from_numpy(clips.labels), clips.info.label_range[1], widths)


class SelfMMLoss(AuxiliaryLoss):
    """The unimodal tasks, with labels from the unimodal label generation module of the paper.

    Each training clip has a label y_s of each modality, at first its own label y. The loss is the sum over the
    modalities of the batch's mean of `tanh(|y_s - y|) |ŷ_s - y_s|`. From the second epoch on each batch moves its
    labels, after its loss: `alpha = (D_n - D_p) / (D_p + eps)` compares the distances of a clip's features from the
    centres of all negative and all positive clips, in the fusion (alpha_m) and in the modality (alpha_s);
    `y + (alpha_s - alpha_m) / 2 * (y + alpha_m) / alpha_m`, limited to the label range, is the new label, of which the
    n-th epoch takes 2 / (n + 1) and of the old one (n - 1) / (n + 1).

    A clip that lacks a modality has no part in its loss, labels and centres. Distances are Euclidean, as in MMSA.

    Args:
        labels_N: of the training clips.
        limit: maximum of the label range.
        widths: stream -> width of its features.

    Attributes:
        labels_SN: labels of the streams; those of the fusion are the clips' own and stay.
        seen_SN: bool, True where the clip's features of a stream are known.
    """

    labels_SN: Tensor
    seen_SN: Tensor

    def __init__(self, labels_N: Tensor, limit: float, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("labels_SN", labels_N.repeat(len(STREAMS), 1))
        self.register_buffer("seen_SN", torch.zeros(len(STREAMS), len(labels_N), dtype=torch.bool))
        for stream in STREAMS:
            self.register_buffer(f"{stream}_Nw", torch.zeros(len(labels_N), widths[stream]))

    def forward(self, tensors: Mapping[str, Tensor], rows_B: Tensor, epoch: int) -> Tensor:
        """Return the loss of a batch, and move its labels in training mode."""
        own_B, labels_MB = self.labels_SN[0, rows_B], self.labels_SN[1:, rows_B]
        weight_MB = (labels_MB - own_B).abs().tanh() * tensors["present"].T
        loss: Tensor = (weight_MB * (tensors["unimodal"].T - labels_MB).abs()).sum() / len(rows_B)
        if self.training:
            self._update(tensors, rows_B, epoch)
        return loss

    @torch.no_grad()
    def _update(self, tensors: Mapping[str, Tensor], rows_B: Tensor, epoch: int) -> None:
        present_MB = tensors["present"].T
        present_SB = torch.cat([present_MB.new_ones(1, len(rows_B)), present_MB])
        if epoch > 1:
            self._update_labels(tensors, rows_B, present_SB, epoch)
        for stream, present_B in zip(STREAMS, present_SB, strict=True):
            stored_Nw = self.get_buffer(f"{stream}_Nw")
            stored_Nw[rows_B] = torch.where(present_B[:, None], tensors[stream].to(stored_Nw.dtype), stored_Nw[rows_B])
        self.seen_SN[:, rows_B] |= present_SB

    def _update_labels(self, tensors: Mapping[str, Tensor], rows_B: Tensor, present_SB: Tensor, epoch: int) -> None:
        alpha_SB = torch.stack([self._alpha(s, tensors[stream]) for s, stream in enumerate(STREAMS)])
        own_B, labels_MB = self.labels_SN[0, rows_B], self.labels_SN[1:, rows_B]
        alpha_B, alpha_MB = alpha_SB[0], alpha_SB[1:]
        found_MB = (own_B * alpha_MB / (alpha_B + EPSILON) + own_B + alpha_MB - alpha_B) / 2
        moved_MB = ((epoch - 1) * labels_MB + 2 * found_MB.clamp(-self.limit, self.limit)) / (epoch + 1)
        # Without positive or negative clips a centre is NaN: the label stays
        self.labels_SN[1:, rows_B] = torch.where(present_SB[1:] & moved_MB.isfinite(), moved_MB, labels_MB)

    def _alpha(self, stream: int, features_Bw: Tensor) -> Tensor:
        """Return (D_n - D_p) / (D_p + eps) [B], NaN if no clip is positive or none negative."""
        labels_N, seen_N = self.labels_SN[stream], self.seen_SN[stream]
        stored_Nw = self.get_buffer(f"{STREAMS[stream]}_Nw")
        sides_2N = torch.stack([labels_N > 0, labels_N < 0]) & seen_N
        centres_2w = sides_2N.to(stored_Nw.dtype) @ stored_Nw / sides_2N.sum(dim=1, keepdim=True)
        positive_B, negative_B = torch.linalg.vector_norm(features_Bw - centres_2w[:, None], dim=2)
        alpha_B: Tensor = (negative_B - positive_B) / (positive_B + EPSILON)
        return alpha_B
