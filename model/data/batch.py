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
        unimodal_labels: [B, 3] float32, of text, audio and vision alone, NaN where there is none.
        values: modality -> [B, T, D] float32, raw (not normalised), zeros where padded; text as tokens: [B, T]
            int64, or their hidden states.
        masks: modality -> [B, T] bool, True where the network may look. T = 0: no clip has the modality.
        lacking: modalities that a clip of the batch lacks. Known before the tensors go to a GPU, so that nothing waits
            there for it; of tensors that are there already, all may be lacking.
    """

    clip_ids: tuple[str, ...]
    labels: Tensor
    unimodal_labels: Tensor
    values: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    incomplete: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        unsure = {m for m, mask_BT in self.masks.items() if mask_BT.device.type != "cpu" or not _all_have(mask_BT)}
        object.__setattr__(self, "incomplete", frozenset(unsure))

    def __len__(self) -> int:
        return len(self.clip_ids)

    def missing(self) -> dict[str, Tensor]:
        """Each of `lacking` -> [B] bool, True where the clip lacks it."""
        return {m: ~self.masks[m].any(dim=1) for m in MODALITIES if m in self.incomplete}

    def with_values(self, modality: str, values: Tensor) -> Batch:
        """The same clips with other values of a modality, such as what an encoder makes of their tokens."""
        return self._known(replace(self, values={**self.values, modality: values}))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; from pinned memory without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return self._known(
            replace(
                self,
                labels=change(self.labels),
                unimodal_labels=change(self.unimodal_labels),
                values={m: change(value) for m, value in self.values.items()},
                masks={m: change(mask) for m, mask in self.masks.items()},
            )
        )

    def _known(self, same_masks: Batch) -> Batch:
        object.__setattr__(same_masks, "incomplete", self.incomplete)
        return same_masks


def _all_have(mask_BT: Tensor) -> bool:
    return bool(mask_BT.any(dim=1).all())
