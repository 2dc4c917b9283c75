"""The networks `text` and `late_fusion` against plain twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.data.clips import ClipTable
from model.network.registry import build_network


@pytest.mark.parametrize("name", ["text", "late_fusion"])
@torch.inference_mode()
def test_a_clip_is_predicted_from_the_means_of_its_visible_steps(dataset, name):
    clips = ClipTable.read(dataset, "train", 64)
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=name, dim=16, heads=4, encoder_layers=1, max_positions=64), clips.info)
    network.eval()
    for row in range(8):  # each modality is missing once
        batch = clips.batch(np.array([row]))
        means = []
        for m in network.reads:
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
