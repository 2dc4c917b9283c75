"""What every network to compare with can do: masks, missing modalities, training, resumption, text modes, export."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.checkpoint.description import read_description
from model.checkpoint.io import load_checkpoint
from model.checkpoint.model_card import card_lines
from model.checkpoint.onnx import export_onnx
from model.config import ContrastiveConfig, ModelConfig, TextConfig, TrainConfig
from model.data.clips import ClipTable
from model.data.info import read_info
from model.data.tokens import prepare_text
from model.evaluation.explain import explain
from model.evaluation.inference import infer, predict
from model.network.flops import network_costs
from model.network.registry import build_network, check_network, find_network
from model.train import train

if TYPE_CHECKING:
    from model.data.batch import Batch

OPTIONS = {
    "text": {},
    "late_fusion": {},
    "mult": {
        "layers": 1,
        "text_kernel": 3,
        "audio_kernel": 2,
        "vision_kernel": 1,
        "text_dropout": 0.1,
        "output_dropout": 0.1,
    },
    "almt": {"tokens": 3, "hyper_layers": 2, "head_dim": 4, "hidden": 8},
    "tfn": {"text_hidden": 8, "text_dim": 4, "audio_dim": 3, "vision_dim": 5, "fusion_dim": 6},
    "lmf": {"text_hidden": 8, "text_dim": 4, "audio_dim": 3, "vision_dim": 5},
    "misa": {"feed_forward": 32},
    "self_mm": {"text_features": 8},
    "mag_bert": {},
}
"""Networks, with options that make them small."""

POSITIONAL = {"text", "late_fusion"}
"""Networks to which position 0 is the first step of a clip, as every batch has it; others find it behind padding."""

TEXT_MODES = {
    "scratch": TextConfig(mode="scratch", vocabulary=64, max_tokens=16, layers=1, width=16, heads=2),
    "finetune": TextConfig(mode="finetune"),
}


def config_of(name: str, **model) -> ModelConfig:
    small = {"dim": 16, "heads": 4, "encoder_layers": 1, "max_positions": 64}
    return ModelConfig(name=name, options=OPTIONS[name], **small | model)


def training_of(name: str, **changes) -> TrainConfig:
    small = {"epochs": 3, "warmup_epochs": 0, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"}
    contrastive = ContrastiveConfig(weight=0)
    return TrainConfig(modalities=find_network(name).reads, contrastive=contrastive, **small | changes)


def randomise(network):
    """Change initial values such as zeros, which would hide mistakes."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


@pytest.fixture(scope="module")
def clips(dataset) -> ClipTable:
    return ClipTable.read(dataset, "train", 64)


@pytest.fixture(scope="module", params=OPTIONS)
def network(request, clips):
    torch.manual_seed(0)
    return randomise(build_network(config_of(request.param), clips.info).eval())


def with_padding(batch: Batch, front: int, back: int) -> Batch:
    """The batch with further masked steps, which hold garbage."""

    def pad(tensor, value):
        return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (front, back), value=value)

    return replace(
        batch,
        values={m: pad(values, 7.0) for m, values in batch.values.items()},
        masks={m: pad(mask, False) for m, mask in batch.masks.items()},
    )


@torch.inference_mode()
def test_padding_and_neighbours_never_change_a_clip(clips, network):
    batch = clips.batch(np.arange(len(clips)))
    together = network(batch)
    for row in range(0, len(clips), 2):
        alone = network(clips.batch(np.array([row])))
        assert (together.prediction[row] - alone.prediction).abs() < 1e-5
        for m in network.reads:
            assert (together.embedding.streams[m][row] - alone.embedding.streams[m]).abs().max() < 1e-5
    for front, back in ((0, 5), *(() if network.config.name in POSITIONAL else ((3, 2),))):
        padded = network(with_padding(batch, front, back))
        assert (together.prediction - padded.prediction).abs().max() < 1e-5


@pytest.mark.parametrize("shown", [(), ("text",), ("audio",), ("vision",), ("text", "vision")])
def test_any_modalities_may_be_missing(clips, network, shown):
    output = network(clips.batch(np.arange(7, 14), shown))
    network.zero_grad()
    output.prediction.square().mean().backward()
    assert torch.isfinite(output.prediction).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())
    for m in network.reads:
        assert output.embedding.present[m].any() == (m in shown)


def test_gradient_reaches_every_parameter(clips, network):
    network.zero_grad()
    output = network(clips.batch(np.arange(len(clips))))
    trained = [output.prediction, *(x for x in output.auxiliary.values() if x.is_floating_point())]
    sum(x.square().sum() for x in trained).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_its_vectors_and_costs_are_measured(clips, network):
    found = infer(network, clips, network.reads)
    for m in network.reads:
        missing_N = clips.lengths((m,))[:, 0] == 0
        assert (np.isnan(found.pooled[m]).all(axis=1) == missing_N).all() and missing_N.any()
    costs = network_costs(network, clips, network.reads)
    assert costs["madds"] > costs["fusion_madds"] >= 0 and costs["parameters"] > 100


class StopError(Exception):
    """Stands for the end of a process."""


class StopAt:
    """An observer that ends the run at a batch."""

    def __init__(self, epoch: int, done: int) -> None:
        self.at = epoch, done

    def on_batch(self, epoch, done, total):
        if (epoch, done) == self.at:
            raise StopError

    def on_epoch(self, epoch, metrics):
        pass


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_trained_kept_resumed_and_predicts_again(dataset, tmp_path, name):
    model, config = config_of(name), training_of(name, batch_size=9, modality_dropout=0.2, checkpoint_minutes=0)
    trained = train(dataset, tmp_path / "a", model, config, seed=0)
    assert trained.history[-1]["train_regression"] < trained.history[0]["train_regression"]

    # Resume
    with pytest.raises(StopError):
        train(dataset, tmp_path / "b", model, config, 0, StopAt(2, 2), tmp_path / "scratch")
    resumed = train(dataset, tmp_path / "b", model, config, 0, scratch=tmp_path / "scratch")
    assert resumed.resumed == (2, 2)
    for key in ("train_loss", "valid_mae"):
        assert [epoch[key] for epoch in resumed.history] == [epoch[key] for epoch in trained.history]

    # Predict again
    network, info = load_checkpoint(trained.last)
    assert info.model == model
    valid = ClipTable.read(dataset, "valid", 64)
    found = predict(network, valid, config.modalities)
    assert np.abs(found - valid.labels).mean() == pytest.approx(trained.history[-1]["valid_mae"], abs=1e-4)
    assert (found == predict(load_checkpoint(resumed.last)[0], valid, config.modalities)).all()

    # Explain and describe
    explained = explain(dataset, trained.last, "valid", {valid.clip_ids[0]: ["words"]})
    assert explained.no_attention_reason == network.no_attention_reason
    assert network.no_attention_reason or any(view.attention for view in explained.views.values())
    card = "\n".join(card_lines(read_description(trained.best)))
    assert f"Network: `{name}` ({find_network(name).source})" in card and "Wen et al." not in card
    assert all(f"{key} {value}" in card for key, value in OPTIONS[name].items())


@pytest.mark.parametrize("mode", TEXT_MODES)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_text_encoder_is_trained_with_it(dataset, bert, name, mode):
    text = replace(TEXT_MODES[mode], encoder=str(bert) if mode == "finetune" else "")
    model = config_of(name, text=text)
    check_network(model, training_of(name))
    backbone = prepare_text(model, dataset)
    torch.manual_seed(0)
    network = randomise(build_network(model, read_info(dataset), backbone).eval())
    clips = ClipTable.read(dataset, "train", 64, text=backbone)
    together = network(clips.batch(np.arange(8)))
    together.prediction.pow(2).sum().backward()
    unused = {"pooler.dense.weight", "pooler.dense.bias"}
    parameters = dict(network.token_encoder.encoder.named_parameters())
    assert [key for key, p in parameters.items() if p.grad is None and key not in unused] == []
    for row in (0, 3):  # the first has no text
        alone = network(clips.batch(np.array([row])))
        assert (together.prediction[row] - alone.prediction).abs() < 1e-5
    batch = clips.batch(np.arange(8))
    (hidden,) = network.token_encoder.hidden([batch.values["text"]], [batch.masks["text"]])
    again = network(batch.with_values("text", hidden))
    torch.testing.assert_close(again.prediction, together.prediction)


@pytest.mark.e2e
@pytest.mark.parametrize("name", OPTIONS)
def test_the_graph_predicts_what_the_network_predicts(dataset, tmp_path, name):
    pytest.importorskip("onnxscript")
    trained = train(dataset, tmp_path, config_of(name), training_of(name, epochs=1), seed=0)
    written = export_onnx(trained.best, tmp_path / "network.onnx")
    assert written.difference < 1e-5 and written.clips == 8


@pytest.mark.parametrize("name", OPTIONS)
def test_settings_that_do_not_fit_are_refused_with_the_way_out(name):
    network, fitting = find_network(name), training_of(name)
    check_network(config_of(name), fitting)
    with pytest.raises(ValueError, match=r"train\.contrastive\.weight is 0\.2: .*set it to 0"):
        check_network(config_of(name), replace(fitting, contrastive=ContrastiveConfig()))
    for option in {"anchor": "audio", "fusion": "concat"}.items():
        with pytest.raises(ValueError, match=rf"model\.{option[0]} .*does not have this option; leave it at"):
            check_network(config_of(name, **dict([option])), fitting)
    with pytest.raises(ValueError, match=rf"model\.options\.nonsense is 1: model\.name {name} has "):
        check_network(replace(config_of(name), options={"nonsense": 1}), fitting)
    for field in fields(network.options_class):
        with pytest.raises(ValueError, match=rf"model\.options\.{field.name} is \(\): it must be "):
            check_network(replace(config_of(name), options={field.name: ()}), fitting)


def test_a_network_of_text_alone_is_shown_nothing_else():
    config = replace(training_of("text"), modalities=("text", "audio"))
    with pytest.raises(ValueError, match=r"train\.modalities .*reads nothing but text; set it to \[text\]"):
        check_network(config_of("text"), config)
