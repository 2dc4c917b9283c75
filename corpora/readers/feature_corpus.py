"""What a corpus whose features are extracted already comes as: the manifest, and the steps of each modality.

T steps of a clip, D features. Times are seconds; where a file knows none, the steps share the clip's time evenly
(`even_times`), and the clip, whose length nobody knows, counts as one second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from corpora.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from corpora.manifest import Manifest


@dataclass(frozen=True, slots=True)
class ImportedSteps:
    """One modality of one clip.

    Attributes:
        values: [T, D] float32, finite; T = 0 means that the modality is missing.
        start, end: [T] float32 seconds in the clip, half-open.
        valid: [T] bool; False where a value was not finite, or all of them are zero: padding, or nothing measured.
        replaced: values that were NaN or infinite and are 0 now.
        token_ids: [T] int32, text only; -1 where unknown.
    """

    values: np.ndarray
    start: np.ndarray
    end: np.ndarray
    valid: np.ndarray
    replaced: int
    token_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class ImportedCorpus:
    """A corpus of features, whose values are read only as `read` goes through them.

    Attributes:
        manifest: clips without media; their `sha256` is the file's.
        problems: rows of it that cannot be used.
        sha256: of the file, or of several together.
        remarks: lines to show: what the file is known as, what it lacks.
        feature_names: D names by modality, of the modalities that it has.
        read: the steps of a modality, one result a clip of the manifest, in its order; with them what is wrong.
    """

    manifest: Manifest
    problems: Sequence[Problem]
    sha256: str
    remarks: Sequence[str]
    feature_names: Mapping[str, tuple[str, ...]]
    read: Callable[[str], Iterator[tuple[str, ImportedSteps, Problem | None]]]


def even_times(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end, [T] float32, of steps that share one second evenly."""
    edges = (np.arange(steps + 1) / max(steps, 1)).astype(np.float32)
    return edges[:-1], edges[1:]


def clean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Values [T, D] as finite float32, which of the T steps are valid, and how many values were replaced by 0."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and so is replaced
        values = values.astype(np.float32)
    finite = np.isfinite(values)
    replaced = values.size - int(np.count_nonzero(finite))
    if replaced:
        values[~finite] = 0
    return values, finite.all(axis=1) & values.any(axis=1), replaced


def not_finite(clip_id: str, modality: str, steps: ImportedSteps) -> Problem | None:
    """What the problems table says of a clip whose values had to be replaced."""
    if not steps.replaced:
        return None
    message = (
        f"{steps.replaced} of {steps.values.size} values were NaN or infinite; they are 0 now, and their steps not "
        "valid: nothing to do, unless you can extract them again"
    )
    return Problem(clip_id, "prepare", modality, "NotFinite", message)
