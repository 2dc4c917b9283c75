"""ONNX: the same numbers without PyTorch, for any number of clips and steps, with any modalities missing."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from model.checkpoint import onnx
from model.checkpoint.io import load_checkpoint, save_checkpoint
from model.checkpoint.onnx import export_onnx
from model.config import ModelConfig, PaddingConfig, TextConfig, TrainConfig
from model.data.clips import ClipTable
from model.data.info import read_info
from model.data.tokens import prepare_text
from model.evaluation.inference import predict
from model.network.dashfusion import DashFusion
from model.train import train

if TYPE_CHECKING:
    from pathlib import Path

SHORT = TrainConfig(epochs=1, warmup_epochs=0, batch_size=8, device="cpu")
VARIANTS = {  # of few layers, as the export takes seconds a layer
    "the paper's": {"fusion_layers": 1},
    "an adaptive anchor": {"anchor": "adaptive", "fusion": "concat_attention", "fusion_layers": 1},
    "audio as the anchor": {"anchor": "audio", "fusion": "concat", "bottleneck_tokens": 2, "fusion_layers": 1},
    "the authors'": {
        "name": "dashfusion_published", "fusion_layers": 1, "normalise": False,
        "padding": PaddingConfig(audio=30, vision=12),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def onnxruntime():
    """The runtime; the tests skip where the extra `onnx` is not installed, or does not fit."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except (ImportError, AttributeError) as error:
        pytest.skip(f"pip install -e '.[onnx]' ({error})")
    return onnxruntime


def trained(dataset: Path, out: Path, **model) -> Path:
    config = ModelConfig(**{"dim": 16, "heads": 4, "encoder_layers": 1, "max_positions": 64} | model)
    return train(dataset, out, config, SHORT, seed=0).best


@pytest.fixture(scope="module")
def export(onnxruntime, dataset, tmp_path_factory):
    """Trains and exports a variant, once: the checkpoint, the file, what the export tells, and the graph."""

    @functools.cache
    def run(variant):
        folder = tmp_path_factory.mktemp("export")
        best, graphs, make = trained(dataset, folder, **VARIANTS[variant]), [], onnx._export
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx, "_export", lambda *arguments: graphs.append(make(*arguments)) or graphs[0])
            written = export_onnx(best, folder / "network.onnx")
        return best, folder / "network.onnx", written, graphs[0]

    return run


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.e2e] if n else []) for n, name in enumerate(VARIANTS)]
)
def test_the_graph_predicts_what_the_network_predicts(onnxruntime, dataset, export, variant):
    best, path, written, _ = export(variant)
    assert written.difference < 1e-5 and written.clips == 8
    assert written.inputs["audio"] == ("clips", "audio_steps", 5) and written.inputs["text_mask"] == (
        "clips",
        "text_steps",
    )
    session = onnxruntime.InferenceSession(path)
    network, info = load_checkpoint(best)
    table = ClipTable.read(dataset, "train", 64)  # some clips lack a modality
    expected = predict(network, table, info.train.modalities)
    for rows in (np.arange(24), np.array([5]), np.array([0, 1])):
        batch = table.batch(rows)
        inputs = {m: x.numpy() for m, x in batch.values.items()} | {
            f"{m}_mask": x.numpy() for m, x in batch.masks.items()
        }
        for name, array in inputs.items():  # the graph wants a step at least
            inputs[name] = np.pad(array, [(0, 0), (0, array.shape[1] == 0), *[(0, 0)] * (array.ndim - 2)])
        np.testing.assert_allclose(session.run(None, inputs)[0], expected[rows], atol=1e-5)
    told = json.loads(session.get_modelmeta().custom_metadata_map["dashfusion"])
    assert told["label_range"] == [-3, 3] and told["modalities"]["audio"]["feature_names"][0] == "audio0"


def test_a_network_that_reads_transcripts_is_refused(onnxruntime, dataset, tmp_path):
    text = TextConfig(mode="scratch", vocabulary=64, max_tokens=24, layers=1, width=16, heads=2)
    config, info = ModelConfig(dim=16, heads=4, encoder_layers=1, text=text), read_info(dataset)
    network = DashFusion(config, info, prepare_text(config, dataset))
    save_checkpoint(tmp_path / "best", network, SHORT, seed=0, epoch=1, metrics={})
    with pytest.raises(ValueError, match=r"train with model\.text\.mode frozen"):
        export_onnx(tmp_path / "best", tmp_path / "network.onnx")


def test_a_graph_that_predicts_otherwise_is_not_written(export, tmp_path, monkeypatch):
    best, _, _, graph = export("the paper's")
    network, info = load_checkpoint(best)
    with torch.no_grad():
        network.predictor[-1].bias += 0.01
    monkeypatch.setattr(onnx, "_export", lambda *_: graph)
    monkeypatch.setattr(onnx, "load_checkpoint", lambda _: (network, info))
    with pytest.raises(ValueError, match=r"differ from PyTorch's by up to 1\.0e-02.*nothing was written"):
        export_onnx(best, tmp_path / "network.onnx")
    assert not (tmp_path / "network.onnx").exists()


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[onnx\]'"):
        export_onnx(tmp_path, tmp_path / "network.onnx")
