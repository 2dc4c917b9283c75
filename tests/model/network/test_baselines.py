"""The baselines `text` and `late_fusion`: plain twins, masks, missing modalities, and the whole way of a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.checkpoint.description import read_description
from model.checkpoint.io import load_checkpoint
from model.checkpoint.model_card import card_lines
from model.config import MODALITIES, ContrastiveConfig, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluation.explain import explain
from model.evaluation.inference import predict
from model.network.registry import build_network, check_network
from model.train import train

SMALL = {"dim": 16, "heads": 4, "encoder_layers": 1, "max_positions": 64}
READS = {"text": ("text",), "late_fusion": MODALITIES}


@pytest.fixture(scope="module")
def clips(dataset) -> ClipTable:
    return ClipTable.read(dataset, "train", 64)


@pytest.fixture(scope="module", params=READS)
def network(request, clips):
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=request.param, **SMALL), clips.info).eval()
    for parameter in network.parameters():  # initial values such as zeros would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


@torch.inference_mode()
def test_a_clip_is_predicted_from_the_means_of_its_visible_steps(clips, network):
    for row in range(len(clips)):
        batch = clips.batch(np.array([row]))
        means = []
        for m in READS[network.config.name]:
            encoder, values, mask = network.encoders[m], batch.values[m], batch.masks[m]
            if not mask.any():
                stand_in = encoder.stand_in[None, None]
                sequence = stand_in if m == "text" else encoder(values[:, :0], mask[:, :0]).values
            elif m == "text":
                sequence = encoder.project(values[mask][None])
            else:
                sequence = encoder(values, mask).values[:, torch.cat([torch.tensor([True]), mask[0]])]
            means.append(sequence.mean(dim=1))
        torch.testing.assert_close(network(batch).prediction, network.predictor(torch.cat(means, dim=1))[:, 0])


@torch.inference_mode()
def test_padding_and_neighbours_never_change_a_clip(clips, network):
    together = network(clips.batch(np.arange(len(clips))))
    for row in range(len(clips)):
        alone = network(clips.batch(np.array([row])))
        assert (together.prediction[row] - alone.prediction).abs() < 1e-5
        for m in READS[network.config.name]:
            assert (together.embedding.streams[m][row] - alone.embedding.streams[m]).abs().max() < 1e-5


@pytest.mark.parametrize("shown", [(), ("text",), ("audio",), ("vision",), ("text", "vision")])
def test_any_modalities_may_be_missing(clips, network, shown):
    output = network(clips.batch(np.arange(7, 14), shown))
    network.zero_grad()
    output.prediction.square().mean().backward()
    assert torch.isfinite(output.prediction).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


def test_gradient_reaches_every_parameter(clips, network):
    network.zero_grad()
    network(clips.batch(np.arange(8))).prediction.pow(2).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("name", READS)
def test_a_baseline_is_trained_kept_and_predicts_again(dataset, tmp_path, name):
    model = ModelConfig(name=name, **SMALL)
    config = TrainConfig(
        modalities=READS[name],
        epochs=3,
        warmup_epochs=0,
        batch_size=8,
        learning_rate=5e-3,
        device="cpu",
        contrastive=ContrastiveConfig(weight=0),
    )
    trained = train(dataset, tmp_path, model, config, seed=0)
    assert trained.history[-1]["train_regression"] < trained.history[0]["train_regression"]
    network, info = load_checkpoint(trained.last)
    assert info.model == model
    valid = ClipTable.read(dataset, "valid", 64)
    found = np.abs(predict(network, valid, config.modalities) - valid.labels).mean()
    assert found == pytest.approx(trained.history[-1]["valid_mae"], abs=1e-4)
    assert (
        "no temporal alignment"
        in explain(dataset, trained.last, "valid", {valid.clip_ids[0]: ["words"]}).no_attention_reason
    )
    card = "\n".join(card_lines(read_description(trained.best)))
    assert "Wen et al." not in card and f"`{name}`" in card


@pytest.mark.parametrize(
    ("model", "train", "way_out"),
    [
        ({"name": "text"}, {"contrastive": ContrastiveConfig(weight=0)}, r"train\.modalities .*set it to \[text\]"),
        ({"name": "late_fusion"}, {}, r"train\.contrastive\.weight .*set it to 0"),
        ({"name": "text"}, {"modalities": ("text",)}, r"train\.contrastive\.weight .*set it to 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_way_out(model, train, way_out):
    with pytest.raises(ValueError, match=way_out):
        check_network(ModelConfig(**model), TrainConfig(**train))


@pytest.mark.parametrize("option", [{"fusion": "concat"}, {"anchor": "audio"}])
@pytest.mark.parametrize("name", READS)
def test_options_that_a_baseline_does_not_have_are_refused(name, option):
    with pytest.raises(ValueError, match=rf"model\.{next(iter(option))} .*does not have this option"):
        check_network(ModelConfig(name=name, **option), TrainConfig())
