"""The settings that a comparison tries of each network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flows.config.params import CompareParams, Params, load_params
from flows.studies import search
from flows.studies.search import compared_networks, plan_settings
from model.config import TextConfig
from model.network.base import Network
from model.network.registry import find_network, network_names

ROOT = Path(__file__).parents[3]


class Tuned(Network):
    """A network with settings of every kind."""

    reads = ("text", "audio")
    contrastive = False
    paper: ClassVar[dict[str, Any]] = {
        "train.learning_rate": 1e-3,
        "train.epochs": 100,
        "train.text_learning_rate": 5e-5,
        "model.dim": 64,
    }
    search_space: ClassVar[dict[str, Any]] = {
        "train.learning_rate": (1e-3, 2e-3, 5e-3),
        "model.dim": (64, 100),  # 100 is no multiple of the 8 heads
        "train.batch_size": (16, 32),
        "train.patience": (1, 2),
    }


@pytest.fixture
def params(monkeypatch) -> Params:
    """The project's parameters, set for another network and as no network's publication has them."""
    registered = {"tuned": Tuned, "plain": Network}
    monkeypatch.setattr(search, "find_network", lambda name: registered.get(name) or find_network(name))
    monkeypatch.setattr("flows.config.params.check_network", lambda model, train: None)
    monkeypatch.setattr("flows.config.params.network_names", lambda: [*registered, "text"])
    monkeypatch.setattr(search, "network_names", lambda: [*registered, "text"])
    params = load_params(ROOT / "params.yaml")
    model = replace(params.model, dim=32, max_positions=77)
    train = replace(params.train, learning_rate=0.1, device="cpu", epochs=3)
    return replace(params, model=model, train=train, compare=CompareParams(models=("tuned", "text")))


def settings_of(params, **changes):
    return plan_settings(replace(params, compare=replace(params.compare, **changes)))[0]["tuned"]


def test_published_settings_come_with_the_budget_and_what_belongs_to_the_corpus(params):
    (published,) = settings_of(params)
    assert published.changes == {
        "train.learning_rate": 1e-3, "model.dim": 64, "model.name": "tuned", "train.modalities": ["text", "audio"],
        "train.contrastive.weight": 0.0,
    }, "neither epochs of the publication nor, of frozen text, the encoder's rate"  # fmt: skip
    model, train = published.params.model, published.params.train
    assert (model.name, model.dim, model.max_positions) == ("tuned", 64, 77)
    assert (train.epochs, train.patience, train.device) == (30, 10, "cpu")
    assert (train.modalities, train.contrastive.weight) == (("text", "audio"), 0)
    assert train.batch_size == 16, "the default, and not what params.yaml has for its own network"


def test_the_encoders_rate_is_published_where_an_encoder_is_trained(params):
    finetuned = replace(params, model=replace(params.model, text=TextConfig(mode="finetune")))
    assert settings_of(finetuned)[0].params.train.text_learning_rate == 5e-5


def test_draws_are_distinct_valid_and_begin_with_the_published_settings(params):
    found = settings_of(params, trials=4)
    changes = [one.changes for one in found]
    assert changes[0] == settings_of(params)[0].changes
    assert len({repr(sorted(one.items())) for one in changes}) == 4
    assert {one.params.model.dim for one in found} == {64}
    assert {one.params.train.patience for one in found} == {10}, "the budget is not searched"


def test_a_larger_budget_goes_on_from_a_smaller_one(params):
    changes = [one.changes for one in settings_of(params, trials=6)]
    assert [one.changes for one in settings_of(params, trials=3)] == changes[:3]
    assert [one.changes for one in settings_of(params, trials=1000)][:6] == changes


def test_a_space_that_is_smaller_than_the_budget_is_tried_as_a_whole(params):
    found = settings_of(params, trials=100)
    assert len(found) == 7, "three rates, two sizes of batches, and the published settings, which have no size"
    assert len({(one.params.train.learning_rate, one.params.train.batch_size) for one in found}) == 6


def test_modalities_that_the_project_hides_stay_hidden(params):
    hidden = replace(params, train=replace(params.train, modalities=("text", "vision")))
    assert settings_of(hidden)[0].params.train.modalities == ("text",)
    alone = replace(params, train=replace(params.train, modalities=("vision",)))
    planned, left_out = plan_settings(alone)
    assert not planned and left_out["text"] == "it reads text only, which train.modalities leaves out"


def test_a_network_that_reads_less_hides_nothing_from_others(params):
    own = replace(params, model=replace(params.model, name="text"), train=replace(params.train, modalities=("text",)))
    assert settings_of(own)[0].params.train.modalities == ("text", "audio")


def test_settings_that_are_refused_leave_the_network_out_with_the_reason(params, monkeypatch):
    monkeypatch.setattr(Tuned, "paper", {"model.dim": 100})
    planned, left_out = plan_settings(params)
    assert list(planned) == ["text"]
    assert "heads" in left_out["tuned"] and "it must divide model.dim (100)" in left_out["tuned"]


def test_networks_are_named_or_all(params):
    assert compared_networks(["text", "tuned"]) == ["tuned", "text"], "in the order of the registry"
    assert compared_networks([]) == ["tuned", "plain", "text"]
    with pytest.raises(ValueError, match="text alone cannot be compared: name another network as well"):
        compared_networks(["text"])


@pytest.mark.parametrize("name", network_names())
def test_every_network_has_published_settings_and_a_space_that_can_be_drawn_from(name):
    params = load_params(ROOT / "params.yaml")
    other = "text" if name != "text" else "late_fusion"
    compared = replace(params, compare=CompareParams(models=(name, other), trials=4))
    planned, left_out = plan_settings(compared)
    assert not left_out and len(planned[name]) == 4
    for one in planned[name]:
        assert one.params.model.name == name and set(one.params.train.modalities) <= set(find_network(name).reads)
