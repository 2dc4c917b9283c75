"""Networks by name: those of packages, and configurations that do not fit a network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from model.config import ContrastiveConfig, ModelConfig, TrainConfig
from model.config_blocks import require_at_least
from model.network import registry
from model.network.base import Network
from model.network.registry import BUILT_IN, DEFAULT, ENTRY_POINT_GROUP, check_network, find_network, network_names

WITHOUT_CONTRAST = TrainConfig(contrastive=ContrastiveConfig(weight=0))


@dataclass(frozen=True)
class Options:
    rank: int = 4
    rate: float = 0.1
    widths: tuple[int, ...] = (8, 4)
    kind: Literal["sum", "mean"] = "sum"
    deep: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        require_at_least("model.options.rank", self.rank, 1)


class Mine(Network):
    options_class = Options


def register(monkeypatch, *points: tuple[str, str, str]) -> None:
    """Register (name, value, package) in place of what is installed."""
    found = EntryPoints(
        EntryPoint(name, value, ENTRY_POINT_GROUP)._for(SimpleNamespace(name=package))
        for name, value, package in points
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: found.select(group=group))


@pytest.fixture
def mine(monkeypatch):
    register(monkeypatch, ("mine", f"{__name__}:Mine", "my-package"))
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or SimpleNamespace(Mine=Mine))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_network_says_what_it_is(name):
    network = find_network(name)
    assert network.source and network.search_space and set(network.fixed) <= set(ModelConfig.__dataclass_fields__)
    network.options_class()
    assert all(key.startswith(("model.", "train.")) for key in (*network.paper, *network.search_space))
    assert network.contrastive or network.paper["train.contrastive.weight"] == 0


def test_the_default_has_nothing_to_check():
    network = find_network(DEFAULT)
    assert network.contrastive and not network.fixed and set(network.reads) == {"text", "audio", "vision"}
    assert not network.options_class.__dataclass_fields__


def test_reading_the_configuration_does_not_import_torch():
    code = "import sys, flows.config.params as p; p.load_params(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_a_network_of_a_package_is_found_by_its_name(mine):
    assert find_network("mine") is Mine and network_names() == [*BUILT_IN, "mine"]
    check_network(ModelConfig(name="mine", options={"rank": 2, "widths": [1, 2], "rate": 1}), WITHOUT_CONTRAST)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], r"model\.name is 'mine': there is no such network.* There are dashfusion, .*packages that you"),
        ([("mine", "gone_module:X", "broken")], r"package broken registers gone_module:X, which cannot be imported "
         r"\(ModuleNotFoundError.*install or mend it"),
        ([("mine", "json:JSONDecoder", "other")], r"package other registers json:JSONDecoder, which is no subclass"),
        ([("mine", "a:A", "one"), ("mine", "b:B", "two")], r"registered by the package one and by the package two"),
    ],
)  # fmt: skip
def test_a_broken_registration_names_the_package(monkeypatch, points, message):
    register(monkeypatch, *points)
    with pytest.raises(ValueError, match=message):
        find_network("mine")


def test_a_package_does_not_replace_a_built_in_network(monkeypatch):
    register(monkeypatch, ("text", "json:JSONDecoder", "sly"))
    with pytest.raises(ValueError, match="registered by DashFusion itself and by the package sly"):
        find_network("text")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnk": 3}, r"model\.options\.rnk is 3: model\.name mine has the options rank, .*; did you mean 'rank'\?"),
        ({"rank": "8"}, r"model\.options\.rank is '8': it must be an integer; the default is 4"),
        ({"rank": True}, r"model\.options\.rank is True: it must be an integer"),
        ({"rank": 0}, r"model\.options\.rank is 0: it must be at least 1"),
        ({"rate": None}, r"model\.options\.rate is None: it must be a number"),
        ({"widths": [8, "4"]}, r"model\.options\.widths .*it must be a list, each entry of which is an integer"),
        ({"kind": "max"}, r"model\.options\.kind is 'max': it must be one of sum, mean"),
        ({"limit": 0.5}, r"model\.options\.limit is 0\.5: it must be an integer or null"),
    ],
)
def test_wrong_options_are_refused_with_the_rule_and_the_way_out(mine, options, message):
    with pytest.raises(ValueError, match=message):
        check_network(ModelConfig(name="mine", options=options), WITHOUT_CONTRAST)


def test_a_network_without_options_says_so():
    with pytest.raises(ValueError, match=r"model\.options\.rank is 8: model\.name dashfusion has no options; remove"):
        check_network(ModelConfig(options={"rank": 8}), TrainConfig())


def test_a_misspelt_name_is_recognised():
    with pytest.raises(ValueError, match=r"model\.name is 'late_fusoin'.*did you mean 'late_fusion'\?"):
        check_network(ModelConfig(name="late_fusoin"), TrainConfig())
