"""Networks against MMSA's modules with the same weights, on clips that need no padding."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bench.baselines import MMSA as MODULES
from bench.baselines import GivenFeatures, mmsa_module, mmsa_settings
from bench.shapes import SHAPES, table
from model.config import MODALITIES, ModelConfig
from model.network.registry import build_network, find_network
from tests.support.mmsa import EINOPS, MMSA, add_almt, download_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from model.data.batch import Batch
    from model.network.base import Network

pytestmark = pytest.mark.e2e

LETTER = {"text": "l", "audio": "a", "vision": "v"}
LSTM = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
STEPS = {"text": 14, "audio": 37, "vision": 52}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The folder of MMSA's package."""
    return download_wheel(MMSA, tmp_path_factory.mktemp("mmsa")) / "MMSA"


@pytest.fixture(scope="module")
def einops(tmp_path_factory) -> Iterator[None]:
    """The library that ALMT needs, for the time of the tests."""
    folder = str(download_wheel(EINOPS, tmp_path_factory.mktemp("einops")))
    sys.path.append(folder)
    yield
    sys.path.remove(folder)


def clips() -> Batch:
    """Random clips of one length, with MOSI's features."""
    shape = SHAPES["mosi"]
    shape = replace(shape, dims={**shape.dims, "text": 768}, min_steps=STEPS, max_steps=STEPS)
    split = table(shape, 5)
    batch = split.batch(np.arange(5))
    return replace(batch, values={m: values.float() for m, values in batch.values.items()})


def randomised(module: torch.nn.Module) -> Any:
    """In evaluation mode, with other values than the first ones, such as zeros."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:  # the others are constants, such as the range of TFN's output
            parameter.data += 0.05 * torch.randn_like(parameter)
    return module.eval()


def theirs(package: Path, name: str, settings: Any) -> Any:
    """MMSA's module."""
    module = MODULES[name]
    torch.manual_seed(3)  # its first weights, whatever ran before
    return randomised(getattr(mmsa_module(package, f"models.{module}"), module.partition(".")[2])(settings))


def ours(name: str, weights: Mapping[str, Tensor], **options) -> Network:
    """The network with MMSA's settings and weights; an embedding of a missing modality is none of them."""
    model = {key: value for key, value in find_network(name).paper.items() if key.startswith("model.")}
    model = {key.removeprefix("model."): value for key, value in model.items()}
    shape = SHAPES["mosi"]
    info = table(replace(shape, dims={**shape.dims, "text": 768}), 1).info
    config = ModelConfig(name=name, normalise=False, max_positions=500, options=options, **model)
    network = build_network(config, info).eval()
    missing = {key for key in network.state_dict() if key.endswith("missing_embedding")}
    unset = network.load_state_dict(weights, strict=False)
    assert set(unset.missing_keys) == missing and not unset.unexpected_keys
    return network


def mult_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = {
        "attention_norm.": "layer_norms.0.", "query_key_value.": "self_attn.in_proj_", "out.": "self_attn.out_proj.",
        "feed_forward_norm.": "layer_norms.1.", "feed_forward.0.": "fc1.", "feed_forward.3.": "fc2.",
    }  # fmt: skip
    stacks = {f"memory.{m}": f"trans_{LETTER[m]}_mem" for m in MODALITIES}
    for m in MODALITIES:
        for other in MODALITIES:
            if other != m:
                stacks[f"crossmodal.{m}_{other}"] = f"trans_{LETTER[m]}_with_{LETTER[other]}"
    names = {f"convolutions.{m}.": f"proj_{letter}." for m, letter in LETTER.items()}
    names |= {"hidden.0.": "proj1.", "hidden.3.": "proj2.", "predictor.": "out_layer."}
    for stack, other in stacks.items():
        names[f"{stack}.norm."] = f"{other}.layer_norm."
        for layer in range(4):
            names |= {f"{stack}.layers.{layer}.{a}": f"{other}.layers.{layer}.{b}" for a, b in parts.items()}
    return renamed(state, names)


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights and biases of `names`, which map our prefixes to theirs."""
    kinds = ("weight", "bias")
    return {a + kind: state[b + kind] for a, b in names.items() for kind in kinds if b + kind in state}


def almt_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = {
        "query_norm.": "0.norm_q.", "key_norm.": "0.norm_k.", "value_norm.": "0.norm_v.", "query.": "0.fn.to_q.",
        "key.": "0.fn.to_k.", "value.": "0.fn.to_v.", "out.": "0.fn.to_out.0.", "feed_forward_norm.": "1.norm.",
        "feed_forward.0.": "1.fn.net.0.", "feed_forward.2.": "1.fn.net.3.",
    }  # fmt: skip
    stacks = {
        f"embeddings.{m}.stack.layers.0": f"embedding_{letter}.1.encoder.layers.0" for m, letter in LETTER.items()
    }
    for layer in range(2):
        stacks[f"text_layers.{layer}"] = f"l_encoder.encoder.layers.{layer}"
        stacks[f"fusion.layers.{layer}"] = f"fusion_layer.CrossTransformerEncoder.layers.{layer}"
    names = {f"{a}.{x}": f"{b}.{y}" for a, b in stacks.items() for x, y in parts.items()}
    names |= {f"embeddings.{m}.project.": f"embedding_{letter}.0." for m, letter in LETTER.items()}
    names["predictor."] = "regression_head."
    for layer in range(3):
        a, b = f"hyper_layers.{layer}", f"h_hyper_layer.layers.{layer}.0"
        norms = {"text": 1, "audio": 2, "vision": 3, "hyper": 4}
        names |= {f"{a}.norms.{name}.": f"{b}.norm{number}." for name, number in norms.items()}
        names |= {f"{a}.attention.query.": f"{b}.fn.to_q.", f"{a}.out.": f"{b}.fn.to_out.0."}
    weights = renamed(state, names)
    # A bias of the keys' norm adds the same to all scores of a query, which changes no weight of its attention
    weights = {name: value for name, value in weights.items() if not name.endswith("key_norm.bias")}
    for layer in range(3):
        for m, source in (("audio", "ta"), ("vision", "tv")):
            parts = [state[f"h_hyper_layer.layers.{layer}.0.fn.to_{kind}_{source}.weight"] for kind in "kv"]
            weights[f"hyper_layers.{layer}.attention.key_value.{m}.weight"] = torch.cat(parts)

    # A token and its position are one parameter
    for m, letter in LETTER.items():
        positions = state[f"embedding_{letter}.1.pos_embedding"][0].clone()
        positions[:8] += state[f"embedding_{letter}.1.extra_token"][0]
        weights[f"embeddings.{m}.positions"] = torch.cat([positions, torch.zeros(508 - len(positions), 128)])
    for side in ("source", "target"):
        positions = state[f"fusion_layer.pos_embedding_{side[0]}"][0].clone()
        positions[:1] += state["fusion_layer.extra_token"][0]
        weights[f"{side}_positions"] = positions
    return weights | {"hyper": state["h_hyper"][0], "text_positions": state["l_encoder.pos_embedding"][0]}


def subnetwork_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensor fusion network, which low-rank fusion has as well."""
    of = "subnetworks.of"
    names = {f"{of}.text.out.": "text_subnet.linear_1."}
    weights = {f"{of}.text.lstm.directions.0.{key}": state[f"text_subnet.rnn.{key}"] for key in LSTM}
    for m, other in {"audio": "audio_subnet", "vision": "video_subnet"}.items():
        names |= {f"{of}.{m}.layers.{2 * layer}.": f"{other}.linear_{layer + 1}." for layer in range(3)}
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        weights |= {f"{of}.{m}.norm.{key}": state[f"{other}.norm.{key}"] for key in norm}
    return weights | renamed(state, names)


def tfn_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {"fusion.layers.0.": "post_fusion_layer_1.", "fusion.layers.2.": "post_fusion_layer_2."}
    weights = renamed(state, names | {"predictor.": "post_fusion_layer_3."})
    # Its product has the order audio, vision, text
    product = torch.unflatten(weights["fusion.layers.0.weight"], 1, (33, 129, 33)).permute(0, 3, 1, 2)
    return subnetwork_weights(state) | weights | {"fusion.layers.0.weight": product.flatten(1)}


def lmf_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {"fusion.out.weight": state["fusion_weights"], "fusion.out.bias": state["fusion_bias"][0]}
    for m, other in {"text": "text", "audio": "audio", "vision": "video"}.items():
        weights[f"fusion.factors.{m}"] = state[f"{other}_factor"][:, :, 0]
    return subnetwork_weights(state) | weights


@pytest.mark.parametrize(("name", "weights"), [("tfn", tfn_weights), ("lmf", lmf_weights)])
@torch.no_grad()
def test_tensor_fusion_equals_mmsa(package, name, weights):
    module, batch = theirs(package, name, mmsa_settings(package, name)), clips()
    for subnet in (module.audio_subnet, module.video_subnet):  # the statistics of some batches
        subnet.norm.running_mean.normal_(std=0.1)
        subnet.norm.running_var.uniform_(0.8, 1.2)
    network = ours(name, weights(module.state_dict()))
    text, *others = (batch.values[m] for m in MODALITIES)
    expected = module(text, *(values.mean(dim=1, keepdim=True) for values in others))["M"][:, 0]
    assert (network(batch).prediction - expected).abs().max() < 1e-5
    assert 0.01 < expected.std() < 10


@torch.no_grad()
def test_mult_equals_mmsa(package):
    module, batch = theirs(package, "mult", mmsa_settings(package, "mult")), clips()
    network = ours("mult", mult_weights(module.state_dict()), positions=False)
    expected = module(*(batch.values[m] for m in MODALITIES))["M"][:, 0]
    assert (network(batch).prediction - expected).abs().max() < 1e-5
    assert expected.std() > 0.01


@torch.no_grad()
def test_almt_equals_mmsa(package, einops):
    add_almt(package)
    settings = mmsa_settings(package, "mult")
    vars(settings).update(
        feature_length=[50, 375, 500], dst_feature_dims=128, dst_feature_hidden_dims=128, dst_embedding_length=8,
        embedding_depth=[1, 1, 1], embedding_heads=[8, 8, 8], l_encoder_heads=8, AHL_depth=3, h_hyper_layer_heads=8,
        fusion_hidden_d=128, fusion_heads=8, fusion_layer_depth=2, use_bert=True, use_finetune=True,
    )  # fmt: skip
    module, batch = theirs(package, "almt", settings), clips()
    network = ours("almt", almt_weights(module.state_dict()))
    GivenFeatures.features = batch.values["text"]
    expected = module(*(batch.values[m] for m in MODALITIES))[:, 0]
    assert (network(batch).prediction - expected).abs().max() < 1e-5
    assert expected.std() > 0.01
