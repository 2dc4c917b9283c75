"""Cutting a clip's samples into stretches that see some of each other."""

from __future__ import annotations

import numpy as np
import pytest

from media.audio import cut_overlapping


@pytest.mark.parametrize("count", [1, 7, 99, 100, 101, 160, 161, 220, 1000, 1234])
@pytest.mark.parametrize("block", [1, 13, 100, 5000])
def test_stretches_keep_every_sample_once_and_see_their_neighbours(count, block):
    whole = np.arange(count)
    blocks = (whole[i : i + block] for i in range(0, count, block))
    kept, stretches = [], list(cut_overlapping(blocks, 100, 20))
    for number, (samples, inside) in enumerate(stretches):
        assert len(samples) <= 100
        assert np.array_equal(samples, np.arange(samples[0], samples[0] + len(samples)))
        assert inside.start == (20 if number else 0)
        assert len(samples) - inside.stop == (20 if number < len(stretches) - 1 else 0)
        assert (samples[0] + inside.start) % 20 == 0
        kept.extend(samples[inside])
    assert kept == whole.tolist()
    assert len(stretches) == max(1, -(-(count - 40) // 60))


def test_a_stretch_is_given_as_soon_as_it_is_whole():
    read = []
    blocks = (read.append(number) or np.zeros(10) for number in range(1000))
    samples, _ = next(cut_overlapping(blocks, 100, 20))
    assert len(samples) == 100
    assert len(read) == 11
