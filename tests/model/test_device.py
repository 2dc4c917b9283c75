"""Batches that are ready before they are asked for, and the ways into Fabric."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import torch

from model.device import flush_denormals, peak_megabytes, prefetch, start_fabric


def test_prefetch_keeps_the_order_and_stays_a_little_ahead():
    made = []

    def make(number: int) -> int:
        made.append((number, threading.current_thread() is threading.main_thread()))
        return number * number

    found = []
    for result in prefetch(make, range(8), ahead=2):
        found.append(result)
        for _ in range(200):
            if len(made) >= min(8, len(found) + 2):
                break
            time.sleep(0.005)
        assert min(8, len(found) + 2) <= len(made) <= len(found) + 3
    assert found == [n * n for n in range(8)]
    assert not any(in_main for _, in_main in made)
    assert list(prefetch(make, [])) == []


def test_what_goes_wrong_in_the_thread_comes_out_and_the_rest_is_not_made():
    made = []

    def make(number: int) -> int:
        made.append(number)
        return 1 // (number - 3)

    results = prefetch(make, range(100))
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert max(made) < 8
    started = prefetch(made.append, range(50, 90))
    next(started)
    started.close()
    assert max(made) < 56


def test_training_without_fabric_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ModuleNotFoundError, match="pip install lightning-fabric"):
        start_fabric(torch.device("cpu"), "auto")


@pytest.mark.parametrize(
    ("precision", "expected"), [("auto", torch.float32), (32, torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_that_of_the_matrix_products(precision, expected):
    fabric = start_fabric(torch.device("cpu"), precision)
    with fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    assert (fabric.world_size, fabric.device.type) == (1, "cpu")


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot")
def test_denormals_are_zeros_inside_alone():
    smallest = torch.tensor([1e-40])
    with flush_denormals():
        assert (smallest * 1).item() == 0
    assert (smallest * 1).item() > 0


def test_peak_memory_counts_what_was_used():
    before = peak_megabytes(torch.device("cpu"))
    held = torch.ones(int((before + 100) * 2**20 / 4))
    assert peak_megabytes(torch.device("cpu")) > before + 50
    del held
