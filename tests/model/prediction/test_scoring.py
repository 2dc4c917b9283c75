"""Warnings about a score that depend on the score alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from model.prediction.results import Interval, Score
from model.prediction.scoring import _notes


def codes(label_range: tuple[float, float], interval: Interval) -> list[str]:
    info: Any = SimpleNamespace(
        dataset=SimpleNamespace(label_range=label_range, training={}), train=SimpleNamespace(modalities=())
    )
    features: Any = SimpleNamespace(duration=None, whole=None)
    score = Score(0.5, 0.5, "positive", "1", interval, ("audio",), {})
    network: Any = None
    return [note.code for note in _notes(features, score, by_windows=False, network=network, info=info)]


@pytest.mark.parametrize(("label_range", "half"), [((-3.0, 3.0), 1.5), ((-1.0, 1.0), 0.5)])
def test_an_interval_over_more_than_half_of_the_range_is_called_wide(label_range, half):
    assert codes(label_range, Interval(0.9, 0.5 - half, 0.5 + half, 70)) == []
    assert codes(label_range, Interval(0.9, 0.4 - half, 0.5 + half, 70)) == ["wide_interval"]
