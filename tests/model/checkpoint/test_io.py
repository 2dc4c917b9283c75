"""Checkpoints that are damaged, incomplete or hostile are refused in one line that names the file and the way out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.io import load_checkpoint, save_checkpoint
from model.config import ModelConfig, TextConfig, TrainConfig
from model.data.info import read_info
from model.data.tokens import prepare_text
from model.network.dashfusion import DashFusion
from model.predict import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
SCRATCH = replace(SMALL, text=TextConfig(mode="scratch", width=16, heads=2, layers=1, vocabulary=64))
WEIGHTS, DESCRIPTION = "model.safetensors", "checkpoint.json"


def save(dataset: Path, folder: Path, config: ModelConfig = SMALL) -> Path:
    torch.manual_seed(0)
    network = DashFusion(config, read_info(dataset), prepare_text(config, dataset)).eval()
    save_checkpoint(folder, network, TrainConfig(), 0, epoch=1, metrics={"valid_mae": 1.5})
    return folder


@pytest.fixture
def folder(dataset, tmp_path) -> Path:
    return save(dataset, tmp_path / "best")


def describe(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    change(description)
    (folder / DESCRIPTION).write_text(json.dumps(description))


def without_hashes(folder: Path) -> None:
    """Make a checkpoint as the first version wrote it."""
    describe(folder, lambda d: d.pop("sha256"))


def refused(folder: Path, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message and "copy the checkpoint again, or" in message
    return message


def overwrite(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def test_a_checkpoint_without_hashes_loads(folder):
    expected = load_checkpoint(folder)[0].state_dict()
    without_hashes(folder)
    assert all(torch.equal(value, expected[name]) for name, value in load_checkpoint(folder)[0].state_dict().items())


def test_a_checkpoint_from_before_networks_had_options_loads(folder):
    expected = load_checkpoint(folder)[1]
    describe(folder, lambda d: d["model"].pop("options"))
    assert load_checkpoint(folder)[1] == expected and expected.model.options == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "theirs"}, r"model\.name is 'theirs': there is no such network.*packages that you install"),
        ({"options": {"rank": 3}}, r"model\.options\.rank is 3: model\.name dashfusion has no options"),
    ],
)
def test_a_network_that_is_not_installed_is_named_with_the_checkpoint(folder, change, message):
    describe(folder, lambda d: d["model"].update(change))
    with pytest.raises(ValueError, match=rf"checkpoint\.json: {message}"):
        load_checkpoint(folder)


def test_weights_that_were_overwritten_are_noticed(folder):
    path = folder / WEIGHTS
    overwrite(path, path.stat().st_size // 2, bytes(2000))
    assert "model.safetensors: damaged or replaced (SHA-256" in refused(folder)


@pytest.mark.parametrize("name", ["text/tokenizer.json", "text/config.json", WEIGHTS])
def test_a_file_of_a_text_checkpoint_that_changed_or_is_gone_is_named(dataset, tmp_path, name):
    folder = save(dataset, tmp_path / "best", SCRATCH)
    load_checkpoint(folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert f"{name}: damaged or replaced" in refused(folder)
    (folder / name).unlink()
    assert f"{name}: the checkpoint is incomplete" in refused(folder, FileNotFoundError)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_tokenizer_of_an_older_checkpoint_is_named(dataset, tmp_path, name, content):
    folder = save(dataset, tmp_path / "best", SCRATCH)
    without_hashes(folder)
    if content is None:
        (folder / "text" / name).unlink()
    else:
        (folder / "text" / name).write_bytes(content)
    assert f"{folder / 'text'}: no usable config.json and tokenizer.json" in refused(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_truncated_weights_of_an_older_checkpoint_are_named(folder, keep):
    without_hashes(folder)
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors: not a complete safetensors file" in refused(folder)


def test_random_weights_of_an_older_checkpoint_are_named(folder):
    without_hashes(folder)
    path = folder / WEIGHTS
    path.write_bytes(b"\xa5\x13\x7e" * (path.stat().st_size // 3))
    assert "model.safetensors: not a complete safetensors file" in refused(folder)
    path.unlink()
    assert "incomplete without its weights" in refused(folder, FileNotFoundError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, name: w.pop(name), "lacks the network's tensor"),
        (lambda w, name: w.update(more=torch.zeros(1)), "has no tensor more"),
        (lambda w, name: w.update({name: torch.zeros(3, 2, 1)}), r"is [3, 2, 1], checkpoint.json describes ["),
    ],
)
def test_weights_of_another_network_are_named(folder, change, message):
    without_hashes(folder)
    weights = load_file(folder / WEIGHTS)
    change(weights, sorted(weights)[3])
    save_file(weights, folder / WEIGHTS)
    assert message in refused(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_description_that_is_not_one_is_named(folder, content):
    (folder / DESCRIPTION).write_bytes(content)
    assert "checkpoint.json: " in refused(folder)
    with pytest.raises(ValueError, match=r"checkpoint\.json: .*copy the checkpoint again"):
        Predictor(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("train"),
        lambda d: d.update(dataset=[]),
        lambda d: d["dataset"].pop("mode"),
        lambda d: d["dataset"]["modalities"]["audio"].pop("dim"),
        lambda d: d["dataset"]["modalities"].update(audio=3),
        lambda d: d["dataset"].update(statistics=None),
        lambda d: d["train"].pop("modalities"),
        lambda d: d.update(seed="zero"),
    ],
)
def test_a_description_with_a_damaged_entry_is_named_before_anything_is_made_of_it(folder, change):
    describe(folder, change)
    assert "checkpoint.json: " in refused(folder)
    with pytest.raises(ValueError, match=r"checkpoint\.json: .*copy the checkpoint again"):
        Predictor(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["model"].update(dims=3),
        lambda d: d["model"].update(heads=0),
        lambda d: d["train"].update(augment=None),
        lambda d: d["train"].pop("mining"),
    ],
)
def test_settings_that_are_no_networks_are_named(folder, change):
    describe(folder, change)
    assert "checkpoint.json: not the settings of a network" in refused(folder)


@pytest.mark.parametrize("kind", ["hostile", "bert"])
def test_python_code_beside_a_text_encoder_is_not_run(dataset, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = save(dataset, tmp_path / "best", SCRATCH), tmp_path / "marker"
    without_hashes(folder)
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import BertConfig as C, BertModel as M\n"
    (folder / "text" / "hostile.py").write_text(code)
    path = folder / "text" / "config.json"
    changes = {"model_type": kind, "auto_map": {"AutoConfig": "hostile.C", "AutoModel": "hostile.M"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    if kind == "hostile":
        refused(folder)
    else:
        load_checkpoint(folder)
    assert not marker.exists()


def test_hashes_are_those_of_the_files_wherever_the_folder_is(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_checkpoint(tmp_path / "elsewhere")[1].epoch == 1
