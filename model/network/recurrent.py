"""LSTMs over masked sequences.

Padding never changes a clip, wherever it stands: the real steps are moved to the front, the LSTM runs over them, and
states of padding are not used. This needs no packed sequences, which sort the clips and cannot be exported.

Shapes: B clips, T steps, D input width, d hidden width of a direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.network.layers import MaskedSequence


@dataclass(frozen=True)
class RecurrentOutput:
    """Hidden states of an LSTM.

    Attributes:
        steps: Hidden states [B, T, d] (bidirectional: [B, T, 2d], forward first), real steps first; masked ones are
            zeros.
        last: Hidden state after the last real step of each direction, [B, d] or [B, 2d]; zeros for a clip without one.
    """

    steps: MaskedSequence
    last: Tensor


class MaskedLSTM(nn.Module):
    """One layer of LSTM over the real steps of each clip.

    Args:
        dim_in: D.
        dim: d.
        bidirectional: Whether a second LSTM reads the steps from the last to the first.
    """

    def __init__(self, dim_in: int, dim: int, bidirectional: bool = False) -> None:
        super().__init__()
        self.directions = nn.ModuleList(nn.LSTM(dim_in, dim, batch_first=True) for _ in range(1 + bidirectional))

    def forward(self, sequence: MaskedSequence, is_compact: bool = False) -> RecurrentOutput:
        """Return the hidden states of the steps and the last ones; `is_compact`: the real steps come first already."""
        compact = sequence if is_compact else move_to_front(sequence)
        lengths_B = compact.mask.sum(dim=1)
        states = []
        for number, lstm in enumerate(self.directions):
            if number == 0:
                states.append(lstm(compact.values)[0])
            else:
                backward_BTD = reverse_steps(compact.values, lengths_B)
                states.append(reverse_steps(lstm(backward_BTD)[0], lengths_B))
        steps = [state_BTd * compact.mask[:, :, None] for state_BTd in states]
        last_step_B = (lengths_B - 1).clamp(min=0)
        last = [_gather(steps[0], last_step_B[:, None])[:, 0], *(state_BTd[:, 0] for state_BTd in steps[1:])]
        return RecurrentOutput(MaskedSequence(torch.cat(steps, dim=2), compact.mask), torch.cat(last, dim=1))


def move_to_front(sequence: MaskedSequence) -> MaskedSequence:
    """Move the real steps of each clip to its front, in their order; the steps after them are zeros."""
    values_BTD, mask_BT = sequence.values, sequence.mask
    # Most batches are in this order already; not asked on a GPU, which would wait
    can_ask = mask_BT.device.type == "cpu" and not torch.compiler.is_exporting()
    if can_ask and bool((mask_BT[:, 1:] <= mask_BT[:, :-1]).all()):
        return MaskedSequence(values_BTD * mask_BT[:, :, None], mask_BT)
    position_BT = mask_BT.long().cumsum(dim=1) - 1
    # Masked steps, which are zeros, go to one position beyond the end
    target_BT = torch.where(mask_BT, position_BT, mask_BT.shape[1])
    target_BTD = target_BT[:, :, None].expand_as(values_BTD)
    zeros = values_BTD.new_zeros(values_BTD.shape[0], values_BTD.shape[1] + 1, values_BTD.shape[2])
    moved_BTD = zeros.scatter(1, target_BTD, values_BTD * mask_BT[:, :, None])[:, :-1]
    steps_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return MaskedSequence(moved_BTD, steps_T < mask_BT.sum(dim=1, keepdim=True))


def reverse_steps(values_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """Reverse the first `lengths` steps of each clip; those after them are in any order."""
    steps_T = torch.arange(values_BTD.shape[1], device=values_BTD.device)
    return _gather(values_BTD, (lengths_B[:, None] - 1 - steps_T).clamp(min=0))


def _gather(values_BTD: Tensor, steps_BS: Tensor) -> Tensor:
    """Return the given steps [B, S, D] of each clip."""
    return values_BTD.gather(1, steps_BS[:, :, None].expand(-1, -1, values_BTD.shape[2]))
