"""A padded batch of clips."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Batch:
    """Clips padded to the longest among them.

    Attributes:
        clip_ids: B ids.
        labels: [B] float32, NaN where unlabelled.
        unimodal_labels: [B, 3] float32, labels of text, audio and vision alone, NaN where unlabelled.
        values: modality -> [B, T, D] float32, not normalised, zero-padded. Text tokens are [B, T] int64, or their
            hidden states.
        masks: modality -> [B, T] bool, True where a step is visible to the network; T = 0 if no clip has the modality.
        incomplete: modalities that some clip of the batch lacks. Computed on the CPU, because a GPU would have to
            synchronise; for a batch built from GPU tensors it conservatively holds every modality.
    """

    clip_ids: tuple[str, ...]
    labels: Tensor
    unimodal_labels: Tensor
    values: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    incomplete: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        incomplete = {
            m for m, mask_BT in self.masks.items() if mask_BT.device.type != "cpu" or not mask_BT.any(dim=1).all()
        }
        object.__setattr__(self, "incomplete", frozenset(incomplete))

    def __len__(self) -> int:
        return len(self.clip_ids)

    def missing(self) -> dict[str, Tensor]:
        """Return, for each of `incomplete`, [B] bool, True where the clip lacks the modality."""
        return {m: ~self.masks[m].any(dim=1) for m in MODALITIES if m in self.incomplete}

    def with_values(self, modality: str, values: Tensor) -> Batch:
        """Return the batch with other values of a modality, such as the hidden states of its tokens."""
        return self._copy_incomplete(replace(self, values={**self.values, modality: values}))

    def to(self, device: torch.device | str) -> Batch:
        """Move the batch to `device`; from pinned memory the copy is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Copy the batch to page-locked memory, from which a GPU copies while it computes."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return self._copy_incomplete(
            replace(
                self,
                labels=change(self.labels),
                unimodal_labels=change(self.unimodal_labels),
                values={m: change(value) for m, value in self.values.items()},
                masks={m: change(mask) for m, mask in self.masks.items()},
            )
        )

    def _copy_incomplete(self, other: Batch) -> Batch:
        """Set `incomplete` of a batch with the same masks."""
        object.__setattr__(other, "incomplete", self.incomplete)
        return other
