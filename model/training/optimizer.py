"""Parameter groups and learning-rate schedule of AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from model.config import TrainConfig
    from model.network.dashfusion import DashFusion


def parameter_groups(network: DashFusion, config: TrainConfig) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: no decay on biases, LayerNorms and learned vectors, all of one dimension.

    A trained text encoder has two further groups with its own learning rate; frozen parameters are in none.
    """
    text_encoder: Any = network.encoders["text"]
    text: list[nn.Parameter] = list(text_encoder.encoder.parameters()) if network.text else []
    of_text = {id(p) for p in text}
    others = [p for p in network.parameters() if id(p) not in of_text]
    groups = []
    for parameters, rate in ((others, config.learning_rate), (text, config.text_learning_rate or config.learning_rate)):
        trained = [p for p in parameters if p.requires_grad]
        groups += [
            {"params": [p for p in trained if p.ndim > 1], "lr": rate, "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
        ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(done: float, update: float, config: TrainConfig) -> float:
    """Return the factor of the peak learning rate: linear warm-up to 1, then linear decay to 0 at the end.

    Args:
        done: Epochs before this update, including fractions.
        update: Fraction of an epoch that one update takes.
        config: Configuration of the training.
    """
    if done < config.warmup_epochs:
        return min(1.0, (done + update) / config.warmup_epochs)
    return (config.epochs - done) / max(update, config.epochs - config.warmup_epochs)
