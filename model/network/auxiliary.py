"""The interface of a network's own training loss, such as Self-MM's unimodal tasks.

Shapes: B clips of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping


class AuxiliaryLoss(nn.Module):
    """A loss that is added to that of the prediction, and reported as `train_auxiliary`.

    `Network.auxiliary_loss` creates it before training, which calls it once for each batch, in training mode. Its own
    weights are part of it. State, such as a value for each training clip, is kept in buffers: they are stored with the
    training state, so that a resumed run continues exactly, but not in the checkpoint. Parameters are not trained here;
    they belong to the network.
    """

    def forward(self, tensors: Mapping[str, Tensor], rows_B: Tensor, epoch: int) -> Tensor:
        """Return the loss of a batch, a scalar.

        With several processes, each of them computes it from the whole batch, so that state stays equal on all.

        Args:
            tensors: `Output.auxiliary` of the batch: bool, or in at least float32 (also under autocast).
            rows_B: position of each clip among the training clips.
            epoch: counted from 1.
        """
        raise NotImplementedError
