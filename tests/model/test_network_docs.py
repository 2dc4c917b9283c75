"""The page of networks, and the network of a package that it shows."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint.io import load_checkpoint
from model.config import ContrastiveConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluation.inference import predict
from model.network import registry
from model.network_docs import networks_page
from model.train import train
from model.training.resume import run_signature

PAGE = Path(__file__).parents[2] / "docs/networks.md"


def test_the_page_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert text == networks_page(), "run: python -m model.network_docs > docs/networks.md"
    assert all(f"\n## {name}\n" in text for name in registry.BUILT_IN)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The page's package, installed: its module."""
    ((example,), (registration,)) = (
        re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        for language in ("python", "toml")
    )
    assert len(example.strip().splitlines()) < 45
    name, value = re.search(r'^(\w+) = "(.+)"$', registration, re.MULTILINE).groups()
    module = tmp_path / Path(*value.partition(":")[0].split(".")).with_suffix(".py")
    module.parent.mkdir()
    module.write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    points = EntryPoints([EntryPoint(name, value, registry.ENTRY_POINT_GROUP)])
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    yield module
    for imported in [imported for imported in sys.modules if imported.startswith("my_package")]:
        del sys.modules[imported]


def test_the_network_of_a_package_is_trained_and_predicts_again(package, dataset, tmp_path):
    model = ModelConfig(name="mean", options={"width": 8})
    contrastive = ContrastiveConfig(weight=0)
    config = TrainConfig(epochs=3, warmup_epochs=0, batch_size=8, device="cpu", contrastive=contrastive)
    trained = train(dataset, tmp_path / "out", model, config, seed=0)
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]
    network, info = load_checkpoint(trained.last)
    valid = ClipTable.read(dataset, "valid", 64)
    error = np.abs(predict(network, valid, config.modalities) - valid.labels).mean()
    assert info.model == model and error == pytest.approx(trained.history[-1]["valid_mae"], abs=1e-4)
    assert "Network: `mean` (my own: " in (trained.best / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.options\.width is 0: it must be at least 1"):
        train(dataset, tmp_path / "out", ModelConfig(name="mean", options={"width": 0}), config, seed=0)
    signature = run_signature(dataset, model, config)
    package.write_text(package.read_text() + "\n# changed\n")
    assert run_signature(dataset, model, config) != signature
