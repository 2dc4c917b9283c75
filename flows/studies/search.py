"""What a comparison trains of each network: its published settings, and others drawn from its search space.

The settings start from the defaults of `ModelConfig` and `TrainConfig`: params.yaml is set for one network. Of
params.yaml they keep what belongs to the corpus and the machine, and the budget of the block `compare`.

Settings are drawn at random, without replacement (Bergstra and Bengio, "Random Search for Hyper-Parameter
Optimization", JMLR 13, 2012), and not by a sampler that learns from earlier trials. All trainings of a search can so
run beside each other, on any number of workers and with the same result, a larger budget contains a smaller one and its
trainings, and with the few tens of trials that a comparison can afford such samplers begin with random trials as well.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from flows.config.params import Params, ParamsError
from flows.studies.spec import changed_params
from model.config import MODALITIES, ModelConfig, TrainConfig
from model.network.registry import find_network, network_names

if TYPE_CHECKING:
    from model.network.base import Network

KEPT_MODEL = ("text", "max_positions")
KEPT_TRAIN = ("device", "precision", "batch_tokens", "checkpoint_minutes", "text_learning_rate")
"""Keys of the blocks model and train that belong to the corpus and the machine, and not to a network."""

BUDGET = ("train.epochs", "train.patience")
"""Keys that publications set and a comparison does not take from them: every network has the same."""

ENCODER_RATE = "train.text_learning_rate"
"""Without effect, and refused, where no text encoder is trained."""

MIN_NETWORKS = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a network.

    Attributes:
        changes: Dotted keys of the blocks model and train -> values, as the network's publication or a draw has them.
        params: The whole parameters of a training.
    """

    changes: Mapping[str, Any]
    params: Params


def compared_networks(names: Sequence[str]) -> list[str]:
    """Return the networks to compare, by default all, in the order of the registry.

    Raises:
        ValueError: a single network.
    """
    chosen = [name for name in network_names() if name in names or not names]
    if len(chosen) < MIN_NETWORKS:
        raise ValueError(
            f"{chosen[0]} alone cannot be compared: name another network as well, such as text, or none for all"
        )
    return chosen


def plan_settings(params: Params) -> tuple[dict[str, list[Settings]], dict[str, str]]:
    """Return the settings to try of each network, the published ones first, and why other networks are left out.

    Raises:
        ValueError: `compare.models` names a single network.
    """
    planned, left_out = {}, {}
    for name in compared_networks(params.compare.models):
        try:
            planned[name] = _network_settings(params, name)
        except ValueError as error:  # of an installed package that is broken, or of settings that the text mode refuses
            left_out[name] = str(error)
    return planned, left_out


def _network_settings(params: Params, name: str) -> list[Settings]:
    """Return the published settings of a network, and as many drawn ones as the budget has beside them.

    Raises:
        ValueError: the network cannot be loaded, or its published settings do not work with the kept parameters.
    """
    network, start = find_network(name), _start(params)
    fixed: dict[str, Any] = {"model.name": name, "train.modalities": _modalities(params, network)}
    fixed |= {} if network.contrastive else {"train.contrastive.weight": 0.0}
    published = _applicable(network.paper, start) | fixed
    found = [Settings(published, changed_params(start, published, name))]
    for drawn in _draws(_applicable(network.search_space, start), name):
        if len(found) >= params.compare.trials:
            break
        changes = published | drawn
        if any(changes == one.changes for one in found):
            continue
        try:
            found.append(Settings(changes, changed_params(start, changes, name)))
        except ParamsError:  # values that are valid alone, such as of model.dim and model.heads, but not together
            continue
    return found


def _start(params: Params) -> Params:
    """Return the parameters that a comparison's settings change: defaults, what is kept, and the budget."""
    budget = params.compare
    model = ModelConfig(**{key: getattr(params.model, key) for key in KEPT_MODEL})
    train = TrainConfig(
        **{key: getattr(params.train, key) for key in KEPT_TRAIN},
        epochs=budget.epochs,
        patience=budget.patience,
        warmup_epochs=min(TrainConfig().warmup_epochs, budget.epochs),
    )
    return replace(params, model=model, train=train)


def _applicable(values: Mapping[str, Any], start: Params) -> dict[str, Any]:
    """Return the values without those of the budget, and without the encoder's rate where none is trained."""
    without = {*BUDGET, *([ENCODER_RATE] if start.model.text.mode == "frozen" else [])}
    return {key: value for key, value in values.items() if key not in without}


def _modalities(params: Params, network: type[Network]) -> list[str]:
    """Return the modalities that a network reads, without those that params.yaml hides from its own network.

    Raises:
        ValueError: none is left.
    """
    hidden = set(find_network(params.model.name).reads) - set(params.train.modalities)
    left = [m for m in MODALITIES if m in network.reads and m not in hidden]
    if not left:
        raise ValueError(f"it reads {', '.join(network.reads)} only, which train.modalities leaves out")
    return left


def _draws(space: Mapping[str, Sequence[Any]], name: str) -> Iterator[dict[str, Any]]:
    """Yield the points of a search space in random order, each once; a network's order is always the same."""
    size, generator = prod(map(len, space.values())), random.Random(name)
    seen: set[int] = set()
    while space and len(seen) < size:
        number = rest = generator.randrange(size)
        if number not in seen:
            seen.add(number)
            point = {}
            for key, values in space.items():
                rest, place = divmod(rest, len(values))
                point[key] = values[place]
            yield point
