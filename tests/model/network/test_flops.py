"""What a network costs, counted on the real modules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import MODALITIES, ModelConfig
from model.data.clips import ClipTable
from model.network.dashfusion import DashFusion
from model.network.flops import count_multiply_adds, network_costs

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=64)


def test_products_are_counted_and_attention_with_them():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_multiply_adds(lambda: a @ b) == 3 * 5 * 7
    q = torch.randn(1, 2, 4, 8)
    attention = count_multiply_adds(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert attention == 2 * (2 * 4 * 4 * 8)


def test_the_costs_are_of_the_clip_of_middling_length(dataset):
    clips = ClipTable.read(dataset, "train", 64)
    torch.manual_seed(0)
    network = DashFusion(SMALL, clips.info)
    lengths = clips.lengths()
    whole = np.flatnonzero((lengths > 0).all(axis=1))
    middle = whole[np.argsort(lengths[whole].sum(axis=1), kind="stable")[len(whole) // 2]]
    with torch.no_grad():
        batch = clips.batch(np.array([middle]))
        expected = count_multiply_adds(lambda: network.eval()(batch)) / 1e6
    network.train()
    costs = network_costs(network, clips, MODALITIES)
    assert costs["madds"] == pytest.approx(expected) and network.training
    assert costs["parameters"] == sum(p.numel() for p in network.parameters())
    plain = network_costs(DashFusion(replace(SMALL, fusion="concat"), clips.info), clips, MODALITIES)
    assert (
        plain["fusion_madds"]
        == 0
        < plain["madds"]
        < costs["madds"]
        == pytest.approx(plain["madds"] + costs["fusion_madds"])
    )


def test_fewer_modalities_cost_less(dataset):
    clips = ClipTable.read(dataset, "train", 64)
    network = DashFusion(SMALL, clips.info)
    all_three, text = network_costs(network, clips, MODALITIES), network_costs(network, clips, ("text",))
    assert text["madds"] < 0.6 * all_three["madds"]
