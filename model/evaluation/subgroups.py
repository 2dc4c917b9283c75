"""Metrics of parts of a split: for which clips is a network good, and for which is it not?

Shapes: N clips, S seeds.
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
"""The modality's own label (label_text and so on) and the clip's are of opposite sign."""

MIN_VIDEO_CLIPS = 5
"""Labelled clips from which a video is measured."""


@dataclass(frozen=True, slots=True)
class ClipAttributes:
    """What clips are told apart by.

    Attributes:
        seconds_N: lengths, NaN where unknown.
        video_N: of which recording each is.
        steps: modality -> [N] its steps, 0 where the clip lacks it.
        valid: modality -> [N] the share of them that can be used (voiced, with a face); NaN where that is not known.
        label_N: NaN where unlabelled.
        own_label: modality -> [N] what it says alone, NaN where unlabelled.
    """

    seconds_N: np.ndarray
    video_N: np.ndarray
    steps: Mapping[str, np.ndarray]
    valid: Mapping[str, np.ndarray]
    label_N: np.ndarray
    own_label: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Subgroup:
    """Some of the clips: `rows_N` bool; `group` is what they are told apart by, such as Length."""

    group: str
    name: str
    rows_N: np.ndarray


@dataclass(frozen=True, slots=True)
class SubgroupMetrics:
    """Metrics of a part's labelled clips, mean over the seeds, with 95 % intervals; None where undefined.

    Attributes:
        accuracy: acc2_np for labels in [-3, 3], acc2 for [-1, 1].
    """

    group: str
    name: str
    clips: int
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    mae: float | None
    mae_interval: tuple[float, float] | None


def accuracy_key(label_range: tuple[float, float]) -> str:
    """The metric that `SubgroupMetrics.accuracy` is."""
    return "acc2_np" if tuple(label_range) == WIDE else "acc2"


def split_into_subgroups(facts: ClipAttributes) -> list[Subgroup]:
    """All parts that tell clips apart, in groups; those without a clip are left out, and so are groups of one part."""
    groups = {
        "Length": _thirds(facts.seconds_N, ".1f", " s"),
        "Modalities": _by_modalities(facts.steps),
        "Voiced steps of audio": _thirds(100 * facts.valid.get("audio", _nothing(facts)), ".0f", "%"),
        "Frames with a face": _by_face(facts.valid.get("vision", _nothing(facts))),
        "Polarity": _by_sign(facts.label_N),
        "Conflict": _by_conflict(facts.label_N, facts.own_label),
    }
    parts = {
        group: [Subgroup(group, name, rows_N) for name, rows_N in rows if rows_N.any()] for group, rows in groups.items()
    }
    return [part for found in parts.values() if len(found) > 1 for part in found]


def slice_rows(clips: ClipTable, name: str) -> np.ndarray:
    """Which clips [N] belong to one of `SLICES`, bool; none where the corpus has no labels to tell by."""
    return _misleads(clips.unimodal_labels[:, SLICES.index(name)], clips.labels)


def measure_subgroups(
    parts: Sequence[Subgroup], prediction_SN: np.ndarray, label_N: np.ndarray, label_range: tuple[float, float]
) -> list[SubgroupMetrics]:
    """Metrics of the labelled clips of each part."""
    labelled_N = np.isfinite(label_N)
    found = []
    for part in parts:
        rows = np.flatnonzero(part.rows_N & labelled_N)
        prediction_Sn, label_n = prediction_SN[:, rows], label_N[rows]
        runs = [evaluate_metrics(prediction_n, label_n, label_range) for prediction_n in prediction_Sn]
        draws = resampled_metrics(prediction_Sn, label_n, label_range)
        accuracy = accuracy_key(label_range)
        found.append(
            SubgroupMetrics(
                group=part.group,
                name=part.name,
                clips=len(rows),
                accuracy=_mean([run[accuracy] for run in runs]),
                accuracy_interval=percentile_interval(draws[accuracy]),
                mae=_mean([run["mae"] for run in runs]),
                mae_interval=percentile_interval(draws["mae"]),
            )
        )
    return found


def measure_videos(
    facts: ClipAttributes, prediction_SN: np.ndarray, label_range: tuple[float, float], most: int
) -> tuple[list[SubgroupMetrics], int]:
    """Metrics of the videos with enough labelled clips, the greatest error first, and how many such videos there are.

    Args:
        most: of more than so many, half are those with the greatest error and half those with the least.
    """
    labelled_N = np.isfinite(facts.label_N)
    videos, index_N = np.unique(facts.video_N, return_inverse=True)
    clips_V = np.bincount(index_N, weights=labelled_N, minlength=len(videos))
    error_N = np.abs(within(prediction_SN, label_range) - facts.label_N).mean(axis=0)
    error_N = np.where(labelled_N, error_N, 0)
    error_V = np.bincount(index_N, weights=error_N, minlength=len(videos)) / np.maximum(clips_V, 1)
    enough = np.flatnonzero(clips_V >= MIN_VIDEO_CLIPS)
    ordered = enough[np.argsort(-error_V[enough], kind="stable")]
    shown = ordered if len(ordered) <= most else np.r_[ordered[: most // 2], ordered[-(most // 2) :]]
    parts = [Subgroup("Video", str(videos[video]), index_N == video) for video in shown]
    return measure_subgroups(parts, prediction_SN, facts.label_N, label_range), len(ordered)


def _nothing(facts: ClipAttributes) -> np.ndarray:
    return np.full(len(facts.label_N), np.nan)


def _thirds(value_N: np.ndarray, form: str, unit: str) -> Iterator[tuple[str, np.ndarray]]:
    """Terciles of a value, named by their edges; fewer parts where edges fall together."""
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
    return np.nan_to_num(own_N) * np.nan_to_num(label_N) < 0


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))
