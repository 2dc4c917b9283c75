"""Parameter groups and learning-rate schedule of AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.config import TrainConfig
    from model.network.base import Network


def parameter_groups(network: Network, config: TrainConfig) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups, with weight decay on the parameters that the network names (`is_decayed`).

    A trained text encoder has two further groups with its own learning rate; frozen parameters are in none.
    """
    of_text = {id(p) for p in network.token_encoder.encoder.parameters()} if network.text else set()
    groups = []
    for is_text, rate in ((False, config.learning_rate), (True, config.text_learning_rate or config.learning_rate)):
        trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        trained = [(name, p) for name, p in trained if (id(p) in of_text) == is_text]
        for is_decayed in (True, False):
            parameters = [p for name, p in trained if network.is_decayed(name, p) == is_decayed]
            decay = config.weight_decay if is_decayed else 0.0
            groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
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
