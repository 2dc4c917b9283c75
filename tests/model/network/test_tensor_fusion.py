"""The networks `tfn` and `lmf` against plain twins, and their subnetworks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.config import MODALITIES, ModelConfig
from model.data.clips import ClipTable
from model.network.baselines.subnetworks import ClipNorm
from model.network.registry import build_network

DIMS = {"text_hidden": 6, "text_dim": 3, "audio_dim": 2, "vision_dim": 4}


@pytest.fixture(scope="module")
def clips(dataset) -> ClipTable:
    return ClipTable.read(dataset, "train", 64)


def network_of(name: str, clips: ClipTable, **options):
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=name, options=DIMS | options), clips.info).eval()
    for norm in (network.subnetworks.of[m].norm for m in ("audio", "vision")):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    return network


def vectors(network, batch) -> dict[str, torch.Tensor]:
    """The vectors of one clip, computed step by step."""
    found = {}
    for m in MODALITIES:
        inputs, subnetwork = network.subnetworks.inputs.of[m], network.subnetworks.of[m]
        steps = (batch.values[m][batch.masks[m]] - inputs.mean) / inputs.std
        if not len(steps):
            steps = inputs.missing_embedding[None]
        if m == "text":
            found[m] = subnetwork.out(subnetwork.lstm.directions[0](steps)[0][-1])
            continue
        norm, (first, _, second, _, third, _) = subnetwork.norm, subnetwork.layers
        x = (steps.mean(dim=0) - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
        found[m] = F.relu(third(F.relu(second(F.relu(first(x))))))
    return found


@torch.inference_mode()
def test_a_prediction_comes_from_all_products_of_the_modalities(clips):
    network = network_of("tfn", clips, fusion_dim=5)
    for row in range(8):
        batch = clips.batch(np.array([row]))
        one = {m: [1.0, *vector.tolist()] for m, vector in vectors(network, batch).items()}
        products = [t * a * v for t in one["text"] for a in one["audio"] for v in one["vision"]]
        first, _, second, _ = network.fusion.layers
        fused = F.relu(second(F.relu(first(torch.tensor(products)))))
        expected = 6 * torch.sigmoid(network.predictor(fused)) - 3
        torch.testing.assert_close(network(batch).prediction, expected)


@torch.inference_mode()
def test_low_rank_fusion_is_tensor_fusion_whose_weights_are_outer_products(clips):
    network = network_of("lmf", clips, rank=3)
    factors = network.fusion.factors
    weights = torch.einsum("r,rt,ra,rv->tav", network.fusion.out.weight[0], *(factors[m] for m in MODALITIES))
    for row in range(8):
        batch = clips.batch(np.array([row]))
        text, audio, vision = (F.pad(vector, (1, 0), value=1.0) for vector in vectors(network, batch).values())
        expected = torch.einsum("tav,t,a,v->", weights, text, audio, vision) + network.fusion.out.bias
        torch.testing.assert_close(network(batch).prediction, expected)


def test_predictions_stay_in_the_label_range(dataset_writer, tmp_path):
    clips = ClipTable.read(dataset_writer(tmp_path, label_range=(-1, 1)), "train", 64)
    network = network_of("tfn", clips)
    network.predictor.weight.data *= 1e4
    assert network(clips.batch(np.arange(8))).prediction.abs().max() <= 1


def test_a_batch_of_one_clip_is_normalised_by_the_running_statistics():
    norm = ClipNorm(3)
    norm(torch.randn(9, 3))
    one = torch.randn(1, 3)
    trained = norm(one)
    torch.testing.assert_close(trained, norm.eval()(one))
    assert norm.num_batches_tracked == 1
