"""The networks by name (`model.name`): built in, or registered by installed packages.

Networks are imported when they are asked for, so that reading the configuration does not import torch.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from model.config import ModelConfig, TrainConfig
from model.config_blocks import require

if TYPE_CHECKING:
    from model.data.info import DatasetInfo
    from model.data.tokens import TextBackbone
    from model.network.base import Network

ENTRY_POINT_GROUP = "dashfusion.networks"

DEFAULT = "dashfusion"

BUILT_IN = {
    DEFAULT: "model.network.dashfusion:DashFusion",
    "dashfusion_published": "model.network.baselines.published:DashFusionPublished",
    "text": "model.network.baselines.text:TextNetwork",
    "late_fusion": "model.network.baselines.late_fusion:LateFusion",
    "tfn": "model.network.baselines.tfn:TFN",
    "lmf": "model.network.baselines.lmf:LMF",
    "mult": "model.network.baselines.mult:MulT",
    "almt": "model.network.baselines.almt:ALMT",
    "misa": "model.network.baselines.misa:Misa",
    "self_mm": "model.network.baselines.self_mm:SelfMM",
    "mag_bert": "model.network.baselines.mag_bert:MagBert",
}


def network_names() -> list[str]:
    """Return the names of all networks: the built-in ones, then those of installed packages."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)} - BUILT_IN.keys())]


def find_network(name: str) -> type[Network]:
    """Return the class of the network called `name`.

    Raises:
        ValueError: No network has that name (the message lists the known ones), or several packages, or the package
            that registers it is broken.
    """
    points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name]
    owners = [*(["DashFusion itself"] if name in BUILT_IN else []), *map(_package, points)]
    require(
        len(owners) < 2,
        "model.name",
        name,
        f"the name is registered by {' and by '.join(owners)}",
        "uninstall one of the packages, or rename the network in its entry point",
    )
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: type[Network] = getattr(importlib.import_module(module), attribute)
        return built_in
    if not points:
        near = difflib.get_close_matches(name, network_names(), n=1)
        raise ValueError(
            f"model.name is {name!r}: there is no such network; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"There are {', '.join(network_names())}, and those of packages that you install"
        )
    return _load(points[0])


def check_network(model: ModelConfig, train: TrainConfig) -> None:
    """Check the configuration against the network that it names.

    Raises:
        ValueError: The network does not exist, has no such option, cannot take a value, or cannot be trained as
            `train` says; the message states the rule and the way out.
    """
    if model.name == DEFAULT and not model.options:
        return  # it has all parts, and no options: no need to import torch
    network = find_network(model.name)
    for item in fields(ModelConfig):
        value = getattr(model, item.name)
        require(
            item.name not in network.fixed or value == item.default,
            f"model.{item.name}",
            value,
            f"model.name {model.name} does not have this option",
            f"leave it at {item.default}, or set model.name to dashfusion",
        )
    _check_options(model.name, network.options_class, model.options)
    reads = ", ".join(network.reads)
    require(
        set(train.modalities) <= set(network.reads),
        "train.modalities",
        tuple(train.modalities),
        f"the network {model.name} reads nothing but {reads}",
        f"set it to [{reads}], or model.name to late_fusion or dashfusion",
    )
    require(
        network.contrastive or train.contrastive.weight == 0,
        "train.contrastive.weight",
        train.contrastive.weight,
        f"model.name {model.name} has no alignment for contrastive learning to train",
        "set it to 0",
    )


def build_network(config: ModelConfig, info: DatasetInfo, text: TextBackbone | None = None) -> Network:
    """Build the network that `config.name` names, for features as in `info`.

    Args:
        config: of the network.
        info: of the dataset.
        text: tokenizer and encoder of a network that reads transcripts; None: text features.

    Raises:
        ValueError: there is no such network, it has no such option, or the text encoder's weights cannot be loaded, or
            do not fit `config.text`.
    """
    network = find_network(config.name)
    _check_options(config.name, network.options_class, config.options)
    return network(config, info, text)


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name if point.dist else 'of ' + point.value}"


def _load(point: EntryPoint) -> type[Network]:
    """Import the network of a package."""
    from model.network.base import Network

    place = f"model.name is {point.name!r}: {_package(point)} registers {point.value}"
    try:
        network = point.load()
    except Exception as error:  # whatever its code raises
        raise ValueError(
            f"{place}, which cannot be imported ({type(error).__name__}: {error}); install or mend it, or choose "
            f"another of {', '.join(network_names())}"
        ) from error
    if not (isinstance(network, type) and issubclass(network, Network)):
        raise ValueError(f"{place}, which is no subclass of model.network.base.Network; derive it from that class")
    return network


def _check_options(name: str, options_class: type, options: Any) -> None:
    """Check `model.options` against the fields of the network's dataclass, which checks the values itself."""
    known = get_type_hints(options_class)
    for key, value in options.items():
        near = difflib.get_close_matches(str(key), known, n=1)
        require(
            key in known,
            f"model.options.{key}",
            value,
            f"model.name {name} has {'the options ' + ', '.join(known) if known else 'no options'}",
            f"did you mean {near[0]!r}?" if near else "remove it",
        )
        require(
            _is_of_type(value, known[key]),
            f"model.options.{key}",
            value,
            f"it must be {_type_name(known[key])}",
            f"the default is {getattr(options_class(), key)!r}",
        )
    options_class(**options)


def _is_of_type(value: object, kind: Any) -> bool:
    """Return whether a value of YAML or JSON has the annotated type of a field."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_is_of_type(value, argument) for argument in arguments)
    if origin in (tuple, list):
        return isinstance(value, (tuple, list)) and all(_is_of_type(item, arguments[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_type_name, get_args(kind)))
    if get_origin(kind) in (tuple, list):
        return f"a list, each entry of which is {_type_name(get_args(kind)[0])}"
    return names.get(kind, str(kind))
