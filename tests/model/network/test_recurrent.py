"""LSTMs over masked sequences: against PyTorch's packed sequences, with padding and gaps anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.network.layers import MaskedSequence
from model.network.recurrent import MaskedLSTM, move_to_front

LENGTHS = (5, 1, 0, 3)


def clips() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 3, generator=generator) for length in LENGTHS]


def padded(where: str) -> MaskedSequence:
    """The clips in nine steps, with garbage at the masked ones."""
    generator = torch.Generator().manual_seed(1)
    values, mask = 9 * torch.randn(len(LENGTHS), 9, 3, generator=generator), torch.zeros(len(LENGTHS), 9, dtype=bool)
    for row, clip in enumerate(clips()):
        free = torch.randperm(9, generator=generator)[: len(clip)].sort().values
        start = {"back": 0, "front": 9 - len(clip)}.get(where)
        steps = free if start is None else torch.arange(start, start + len(clip))
        values[row, steps], mask[row, steps] = clip, True
    return MaskedSequence(values, mask)


@pytest.mark.parametrize("where", ["back", "front", "inside"])
def test_real_steps_move_to_the_front_in_their_order(where):
    compact = move_to_front(padded(where))
    for row, clip in enumerate(clips()):
        assert torch.equal(compact.values[row, : len(clip)], clip) and not compact.values[row, len(clip) :].any()
        assert compact.mask[row].tolist() == [True] * len(clip) + [False] * (9 - len(clip))


@pytest.mark.parametrize("where", ["back", "front", "inside"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_states_are_those_of_packed_sequences(where, bidirectional):
    torch.manual_seed(0)
    masked = MaskedLSTM(3, 4, bidirectional)
    plain = nn.LSTM(3, 4, batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for suffix, lstm in zip(("", "_reverse"), masked.directions, strict=False):
            for name, parameter in lstm.named_parameters():
                getattr(plain, name + suffix).copy_(parameter)
        output = masked(padded(where))
        for row, clip in enumerate(clips()):
            steps, last = output.steps.values[row], output.last[row]
            if not len(clip):
                assert not steps.any() and not last.any()
                continue
            expected, (states, _) = plain(clip)
            torch.testing.assert_close(steps[: len(clip)], expected)
            torch.testing.assert_close(last, states.flatten())
            assert not steps[len(clip) :].any()


def test_gradient_reaches_real_steps_only():
    sequence = padded("inside")
    sequence.values.requires_grad_()
    MaskedLSTM(3, 4, bidirectional=True)(sequence).last.square().sum().backward()
    assert torch.equal(sequence.values.grad.abs().sum(dim=2) > 0, sequence.mask)
