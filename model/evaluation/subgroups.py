"""Metrics of subgroups of a split, by length, modalities, voicing, faces, polarity, conflict, gender and speaker.

Shapes: N clips, n labelled clips of a subgroup, S seeds, G speakers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.config import MODALITIES
from model.evaluation.bootstrap import percentile_interval, resampled_metrics
from model.evaluation.metrics import WIDE, evaluate_metrics, within

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from model.data.clips import ClipTable

SLICES = tuple(f"{m} misleads" for m in MODALITIES)
"""Clips in which the modality's own label (label_text, ...) and the clip's label have opposite signs."""

MIN_SPEAKER_CLIPS = 5
"""Minimum labelled clips of a speaker that is measured."""


@dataclass(frozen=True, slots=True)
class ClipAttributes:
    """Attributes that define subgroups.

    Attributes:
        seconds_N: durations, NaN where unknown.
        speaker_N: speaker of each clip, or where unknown the video that it is from.
        gender_N: gender of the speaker, empty where unknown.
        steps: modality -> [N] steps, 0 where the clip lacks the modality.
        valid: modality -> [N] fraction of valid steps (voiced, with a face), NaN where unknown.
        label_N: NaN where unlabelled.
        own_label: modality -> [N] label of the modality alone, NaN where unlabelled.
    """

    seconds_N: np.ndarray
    speaker_N: np.ndarray
    gender_N: np.ndarray
    steps: Mapping[str, np.ndarray]
    valid: Mapping[str, np.ndarray]
    label_N: np.ndarray
    own_label: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Subgroup:
    """A subgroup of the clips.

    Attributes:
        group: the attribute that defines it, such as Length.
        name: of the subgroup within the group.
        rows_N: bool, True for its clips.
    """

    group: str
    name: str
    rows_N: np.ndarray


@dataclass(frozen=True, slots=True)
class SubgroupMetrics:
    """Metrics of a subgroup's labelled clips, averaged over the seeds; None where undefined.

    Attributes:
        group: see `Subgroup`.
        name: see `Subgroup`.
        clips: number of labelled clips.
        accuracy: acc2_np for labels in [-3, 3], acc2 for [-1, 1].
        accuracy_interval: its 95 % bootstrap interval.
        mae: mean absolute error.
        mae_interval: its 95 % bootstrap interval.
    """

    group: str
    name: str
    clips: int
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    mae: float | None
    mae_interval: tuple[float, float] | None


def accuracy_key(label_range: tuple[float, float]) -> str:
    """Return the name of the metric in `SubgroupMetrics.accuracy`."""
    return "acc2_np" if tuple(label_range) == WIDE else "acc2"


def split_into_subgroups(attributes: ClipAttributes) -> list[Subgroup]:
    """Return all subgroups without the empty ones, and without groups of a single subgroup."""
    unknown_N = np.full(len(attributes.label_N), np.nan)
    groups = {
        "Length": _thirds(attributes.seconds_N, ".1f", " s"),
        "Modalities": _by_modalities(attributes.steps),
        "Voiced steps of audio": _thirds(100 * attributes.valid.get("audio", unknown_N), ".0f", "%"),
        "Frames with a face": _by_face(attributes.valid.get("vision", unknown_N)),
        "Polarity": _by_sign(attributes.label_N),
        "Conflict": _by_conflict(attributes.label_N, attributes.own_label),
        "Gender": ((name, attributes.gender_N == name) for name in sorted({*attributes.gender_N.tolist()} - {""})),
    }
    nonempty = [
        [Subgroup(group, name, rows_N) for name, rows_N in members if rows_N.any()] for group, members in groups.items()
    ]
    return [subgroup for subgroups in nonempty if len(subgroups) > 1 for subgroup in subgroups]


def slice_rows(clips: ClipTable, name: str) -> np.ndarray:
    """Return which clips belong to one of `SLICES`, [N] bool; none in a corpus without labels of the modalities."""
    return _misleads(clips.unimodal_labels[:, SLICES.index(name)], clips.labels)


def measure_subgroups(
    subgroups: Sequence[Subgroup],
    prediction_SN: np.ndarray,
    label_N: np.ndarray,
    speaker_N: np.ndarray,
    label_range: tuple[float, float],
) -> list[SubgroupMetrics]:
    """Measure the labelled clips of each subgroup; intervals are for other speakers, or other clips of a single one."""
    labelled_N = np.isfinite(label_N)
    accuracy = accuracy_key(label_range)
    results = []
    for subgroup in subgroups:
        rows = np.flatnonzero(subgroup.rows_N & labelled_N)
        prediction_Sn, label_n = prediction_SN[:, rows], label_N[rows]
        runs = [evaluate_metrics(prediction_n, label_n, label_range) for prediction_n in prediction_Sn]
        resampled = resampled_metrics(prediction_Sn, label_n, label_range, speaker_N=speaker_N[rows])
        results.append(
            SubgroupMetrics(
                group=subgroup.group,
                name=subgroup.name,
                clips=len(rows),
                accuracy=_mean([run[accuracy] for run in runs]),
                accuracy_interval=percentile_interval(resampled[accuracy]),
                mae=_mean([run["mae"] for run in runs]),
                mae_interval=percentile_interval(resampled["mae"]),
            )
        )
    return results


def measure_speakers(
    attributes: ClipAttributes, prediction_SN: np.ndarray, label_range: tuple[float, float], max_speakers: int
) -> tuple[list[SubgroupMetrics], int]:
    """Measure the speakers, or videos of unknown speakers, with at least `MIN_SPEAKER_CLIPS` labelled clips.

    Args:
        attributes: of the clips.
        prediction_SN: predictions of each seed's network.
        label_range: (-3, 3) or (-1, 1).
        max_speakers: maximum speakers to return: of more, the half with the greatest error and the half with the least.

    Returns:
        Metrics of the speakers, the greatest error first, and the number of speakers with enough clips.
    """
    labelled_N = np.isfinite(attributes.label_N)
    speakers, index_N = np.unique(attributes.speaker_N, return_inverse=True)
    clips_G = np.bincount(index_N, weights=labelled_N, minlength=len(speakers))
    error_N = np.abs(within(prediction_SN, label_range) - attributes.label_N).mean(axis=0)
    error_N = np.where(labelled_N, error_N, 0)
    error_G = np.bincount(index_N, weights=error_N, minlength=len(speakers)) / np.maximum(clips_G, 1)
    enough = np.flatnonzero(clips_G >= MIN_SPEAKER_CLIPS)
    ordered = enough[np.argsort(-error_G[enough], kind="stable")]
    half = max_speakers // 2
    shown = ordered if len(ordered) <= max_speakers else np.r_[ordered[:half], ordered[-half:]]
    subgroups = [Subgroup("Speaker", str(speakers[speaker]), index_N == speaker) for speaker in shown]
    measured = measure_subgroups(subgroups, prediction_SN, attributes.label_N, attributes.speaker_N, label_range)
    return measured, len(ordered)


def _thirds(value_N: np.ndarray, form: str, unit: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the terciles of a value, named by their edges; empty ones where edges coincide."""
    known = value_N[np.isfinite(value_N)]
    if not len(known):
        return
    edges = np.quantile(known, [1 / 3, 2 / 3])
    low, high = (format(edge, form) for edge in edges)
    yield f"up to {low}{unit}", value_N <= edges[0]
    yield f"{low} to {high}{unit}", (value_N > edges[0]) & (value_N <= edges[1])
    yield f"more than {high}{unit}", value_N > edges[1]


def _by_modalities(steps: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    yield "all there", np.logical_and.reduce([steps_N > 0 for steps_N in steps.values()])
    for m, steps_N in steps.items():
        yield f"without {m}", steps_N == 0


def _by_face(share_N: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "in all", share_N == 1
    yield "in half or more", (share_N >= 0.5) & (share_N < 1)
    yield "in less than half", share_N < 0.5


def _by_sign(label_N: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "negative", label_N < 0
    yield "neutral (0)", label_N == 0
    yield "positive", label_N > 0


def _by_conflict(label_N: np.ndarray, own_label: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    if not any(np.isfinite(own_N).any() for own_N in own_label.values()):
        return
    names = dict(zip(MODALITIES, SLICES, strict=True))
    slices = {name: _misleads(own_label[m], label_N) for m, name in names.items() if m in own_label}
    yield "no modality misleads", np.isfinite(label_N) & ~np.logical_or.reduce([*slices.values()])
    yield from slices.items()


def _misleads(own_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    misleads_N: np.ndarray = np.nan_to_num(own_N) * np.nan_to_num(label_N) < 0
    return misleads_N


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if len(defined) == len(values) else None
