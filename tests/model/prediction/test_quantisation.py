"""Linear layers in int8: nearly the same, a quarter of the size, and nothing else touched."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from model.prediction.quantisation import quantise_linear


def size(module: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return file.tell()


def test_layers_give_nearly_the_same_from_a_quarter_of_the_bytes():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 64)).eval()
    quantised = quantise_linear(plain)
    x = torch.randn(8, 256)
    difference = (quantised(x) - plain(x)).abs().max()
    assert 0 < difference < 0.05 * plain(x).abs().max()
    assert size(quantised) < 0.3 * size(plain)
    assert type(plain[0]) is nn.Linear and type(quantised[2]) is nn.LayerNorm


def test_a_row_of_small_weights_keeps_its_own_range():
    plain = nn.Linear(64, 2, bias=False).eval()
    with torch.no_grad():
        plain.weight[0] *= 1000
    x = torch.randn(16, 64)
    difference = (quantise_linear(nn.Sequential(plain))(x) - plain(x)).abs().max(dim=0).values
    assert difference[1] < 0.1 * plain(x)[:, 1].abs().max()


def test_a_module_on_a_gpu_is_refused():
    with torch.device("meta"):
        elsewhere = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="on the CPU"):
        quantise_linear(elsewhere)
