"""A corpus that comes with extracted features: its manifest, and the steps of each modality.

T steps of a clip, D features. Times are seconds. Where a file has no times, a clip counts as one second long and its
steps share it evenly (`even_times`).
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
        valid: [T] bool; False for steps with a value that was not finite, and for all-zero steps (padding, or nothing
            was measured).
        replaced: number of NaN or infinite values, which are now 0.
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
    """A corpus of features, whose values are read lazily by `read`.

    Attributes:
        manifest: clips without media; their `sha256` is that of the corpus.
        problems: rows that cannot be used.
        sha256: hash of the file, or of several files together.
        remarks: messages for the user: whether the file is a published one, and what it lacks.
        feature_names: D names for each modality that the corpus has.
        read: yields (clip_id, steps, problem or None) of a modality for each clip, in the manifest's order.
    """

    manifest: Manifest
    problems: Sequence[Problem]
    sha256: str
    remarks: Sequence[str]
    feature_names: Mapping[str, tuple[str, ...]]
    read: Callable[[str], Iterator[tuple[str, ImportedSteps, Problem | None]]]


def even_times(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end, [T] float32, of steps that share one second evenly."""
    edges = (np.arange(steps + 1) / max(steps, 1)).astype(np.float32)
    return edges[:-1], edges[1:]


def clean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Replace values that are not finite by 0.

    Returns:
        Values [T, D] as finite float32, validity of the steps [T], number of replaced values.
    """
    with np.errstate(over="ignore"):  # values beyond float32's range become infinite, and so are replaced
        values = values.astype(np.float32)
    finite = np.isfinite(values)
    replaced = values.size - int(np.count_nonzero(finite))
    if replaced:
        values[~finite] = 0
    return values, finite.all(axis=1) & values.any(axis=1), replaced


def not_finite(clip_id: str, modality: str, steps: ImportedSteps) -> Problem | None:
    """Return the problem of a clip with replaced values, None for a clip without."""
    if not steps.replaced:
        return None
    message = (
        f"{steps.replaced} of {steps.values.size} values were NaN or infinite; they are 0 now, and their steps not "
        "valid: nothing to do, unless you can extract them again"
    )
    return Problem(clip_id, "prepare", modality, "NotFinite", message)
