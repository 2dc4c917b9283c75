"""The clip explorer: which clips it holds, their rows in the table, and the data of a clip that is opened.

Data are as fine as a screen shows them: a clip's time is divided into `COLUMNS`, and a value is one of 64 levels,
written as one character (`LEVELS`), so that hundreds of clips are a page of a few megabytes.

Shapes: N clips, T steps, C columns, W words, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.manifest import MODALITIES, Clip

if TYPE_CHECKING:
    from model.evaluation.explain import Attention, ClipView, Explanation, Track
    from model.evaluation.subgroups import Subgroup

MAX_CLIPS = 300
"""Of larger splits, half are the clips with the largest error and half a sample of the others."""

COLUMNS = 64
MAX_WORDS = 80
"""Words of a clip with attention: the first ones."""

LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
BLANK = " "

DEVIATIONS = 2.0
"""Sparklines reach from so many standard deviations below the training split's mean to as many above."""

SHOWN, INVALID, HIDDEN, ABSENT = "0123"
"""States of a column: a step that the network sees; one that it sees although it is not valid (unvoiced, no face); one
that is masked; no step."""


@dataclass(frozen=True, slots=True)
class ClipRow:
    """A clip's row in the table; `clip` is None if the manifest does not contain it."""

    clip_id: str
    clip: Clip | None
    seconds: float | None
    label: float | None
    prediction: float
    missing: Sequence[str]

    @property
    def error(self) -> float | None:
        """Prediction minus label; None without a label."""
        return None if self.label is None else self.prediction - self.label


@dataclass(frozen=True, slots=True)
class ExplorerInput:
    """Data of the clips beyond their predictions.

    Attributes:
        explanation: Views of some clips.
        words: Clip id -> words of its transcript.
        valid: Modality -> clip id -> which of its steps are valid, [T] bool.
        missing: Clip id -> modalities that it lacks.
        subgroups: Subgroups of the split, their rows in the order of the predictions.
    """

    explanation: Explanation | None = None
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    valid: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    subgroups: Sequence[Subgroup] = ()


@dataclass(frozen=True, slots=True)
class Explorer:
    """The table and its data.

    Attributes:
        rows: Largest error first; without labels, in the order of the predictions.
        total: Number of clips of the split.
        subgroups: (group, name) to filter by.
        data: JSON that can stand in a script element.
        has_views: Whether clips have more to show than their row.
        no_attention_reason: Why no attention is shown; empty where it is.
    """

    rows: Sequence[ClipRow]
    total: int
    subgroups: Sequence[tuple[str, str]]
    data: str
    has_views: bool
    no_attention_reason: str


def choose_clips(label_N: np.ndarray, prediction_N: np.ndarray, count: int = MAX_CLIPS, seed: int = 0) -> np.ndarray:
    """Return the indices of the explorer's clips, largest error first.

    These are all clips or, of more than `count`, the worst half of `count` and a random sample of the others.
    """
    error_N = np.nan_to_num(np.abs(prediction_N - label_N), nan=-1.0)
    order_N: np.ndarray = np.argsort(-error_N, kind="stable")
    if len(order_N) <= count:
        return order_N
    worst = order_N[: min(count // 2, int((error_N >= 0).sum()))]
    others = order_N[len(worst) :]
    sample = np.random.default_rng(seed).choice(len(others), count - len(worst), replace=False)
    return np.concatenate([worst, others[np.sort(sample)]])


def explorer(
    clip_ids: Sequence[str],
    label_N: np.ndarray,
    prediction_N: np.ndarray,
    without: Mapping[str, np.ndarray],
    clips: Mapping[str, Clip],
    known: ExplorerInput,
) -> Explorer:
    """Return the explorer of a split.

    Args:
        clip_ids: Ids of the predicted clips.
        label_N: Labels, NaN where unlabelled.
        prediction_N: Predictions.
        without: Modality -> predictions [N] without it, NaN where undefined.
        clips: Clip id -> its row of the manifest.
        known: Further data of the clips.
    """
    chosen = choose_clips(label_N, prediction_N)
    subgroups = [subgroup for subgroup in known.subgroups if subgroup.rows_N[chosen].any()]
    explanation = known.explanation
    rows, details = [], []
    for n in chosen.tolist():
        clip_id, clip = clip_ids[n], clips.get(clip_ids[n])
        view = explanation.views.get(clip_id) if explanation else None
        label = float(label_N[n]) if np.isfinite(label_N[n]) else None
        missing = known.missing.get(clip_id, ())
        row = ClipRow(clip_id, clip, _seconds(clip, view), label, float(prediction_N[n]), missing)
        contributions = {
            m: row.prediction - float(values_N[n]) for m, values_N in without.items() if np.isfinite(values_N[n])
        }
        members = [i for i, subgroup in enumerate(subgroups) if subgroup.rows_N[n]]
        rows.append(row)
        details.append(_detail(row, contributions, members, view, known))
    features = explanation.features if explanation else {}
    data = {
        "features": {
            m: [[f.name, None if f.correlation is None else round(f.correlation, 2)] for f in shown]
            for m, shown in features.items()
        },
        "anchor": explanation.anchor if explanation else "",
        "clips": details,
    }
    return Explorer(
        rows=rows,
        total=len(clip_ids),
        subgroups=[(subgroup.group, subgroup.name) for subgroup in subgroups],
        data=to_script(data),
        has_views=bool(explanation and explanation.views),
        no_attention_reason=explanation.no_attention_reason if explanation else "",
    )


def to_script(data: Any) -> str:
    """Return JSON without characters that could end its script element, or a line of JavaScript."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def _seconds(clip: Clip | None, view: ClipView | None) -> float | None:
    """Return the clip's duration from the manifest, or else the end of its last step."""
    if clip is not None and clip.duration is not None:
        return clip.duration
    ends = [float(track.end_T.max()) for track in view.tracks.values()] if view else []
    return max(ends, default=0.0) or None


def _detail(
    row: ClipRow,
    contributions: Mapping[str, float],
    subgroups: Sequence[int],
    view: ClipView | None,
    known: ExplorerInput,
) -> dict[str, Any]:
    """Return a clip's data for the script, without what is unknown."""
    clip = row.clip
    detail: dict[str, Any] = {
        "id": row.clip_id,
        "text": clip.text if clip else "",
        "lang": clip.language if clip else "",
        "label": None if row.label is None else round(row.label, 4),
        "prediction": round(row.prediction, 4),
        "seconds": row.seconds,
        "missing": list(row.missing),
        "subgroups": list(subgroups),
        "contributions": {m: round(value, 3) for m, value in contributions.items()},
    }
    own = {m: getattr(clip, f"label_{m}") for m in MODALITIES} if clip else {}
    detail["own_labels"] = {m: round(value, 3) for m, value in own.items() if value is not None}
    if view is not None and row.seconds:
        if np.isfinite(view.word_times_W2).any() or view.attention:
            detail["words"] = [
                [word, *(round(float(t), 2) if np.isfinite(t) else None for t in times)]
                for word, times in zip(known.words.get(row.clip_id, ()), view.word_times_W2, strict=False)
            ]
        detail["tracks"] = {
            m: _track(track, known.valid.get(m, {}).get(row.clip_id), row.seconds) for m, track in view.tracks.items()
        }
        detail["attention"] = {
            m: _attention(attention, view.tracks[m], row.seconds)
            for m, attention in view.attention.items()
            if m in view.tracks and len(attention.steps_WT)
        }
        detail["anchors"] = {m: round(share, 3) for m, share in view.anchors.items()}
    return {key: value for key, value in detail.items() if value not in ({}, [])}


def _track(track: Track, valid_T: np.ndarray | None, seconds: float) -> dict[str, Any]:
    """Return the sparkline of each feature of a modality, and the state of each column."""
    overlap_CT = _overlap(track, seconds)
    seen_CT = overlap_CT & track.visible_T
    if valid_T is None or len(valid_T) < len(track.visible_T):
        valid_T = np.ones(len(track.visible_T), bool)
    valid_CT = seen_CT & valid_T[: len(track.visible_T)]
    states = np.select(
        [valid_CT.any(axis=1), seen_CT.any(axis=1), overlap_CT.any(axis=1)], [SHOWN, INVALID, HIDDEN], ABSENT
    )
    level_CF = (_means(seen_CT, track.values_TF) + DEVIATIONS) / (2 * DEVIATIONS)
    return {"states": "".join(states.tolist()), "lines": [to_levels(level_C) for level_C in level_CF.T]}


def _attention(attention: Attention, track: Track, seconds: float) -> dict[str, Any]:
    """Return a string for each word: its weights as multiples of uniform attention, up to `max`; and those of [CLS]."""
    seen_CT = _overlap(track, seconds) & track.visible_T
    steps_WT, cls_W = attention.steps_WT[:MAX_WORDS], attention.cls_W[:MAX_WORDS]
    used_W = (steps_WT.sum(axis=1) + cls_W) > 0
    uniform = float(steps_WT[used_W][:, track.visible_T].mean()) if used_W.any() and track.visible_T.any() else 0.0
    multiples_WT = steps_WT / uniform if uniform > 0 else np.zeros_like(steps_WT)
    multiples_CW = _means(seen_CT, multiples_WT.T)
    maximum = float(max(2.0, np.nanmax(multiples_CW, initial=0.0)))
    rows = [to_levels(column) if used else "" for column, used in zip(multiples_CW.T / maximum, used_W, strict=True)]
    return {"max": round(maximum, 2), "rows": rows, "cls": [round(float(value), 3) for value in cls_W]}


def _overlap(track: Track, seconds: float) -> np.ndarray:
    """Return which steps overlap each column of the clip's time, [C, T] bool."""
    edges = np.linspace(0, seconds, COLUMNS + 1)
    overlap_CT: np.ndarray = (track.start_T < edges[1:, None]) & (track.end_T > edges[:-1, None])
    return overlap_CT


def _means(member_CT: np.ndarray, values_TF: np.ndarray) -> np.ndarray:
    """Return the mean over each column's steps, [C, F]; NaN for a column without steps."""
    count_C1 = member_CT.sum(axis=1)[:, None].astype(np.float64)
    total_CF = member_CT.astype(np.float64) @ values_TF.astype(np.float64)
    return np.divide(total_CF, count_C1, out=np.full(total_CF.shape, np.nan), where=count_C1 > 0)


def to_levels(values: np.ndarray) -> str:
    """Return a character for each value: 64 levels from 0 to 1, other values clipped; a blank for NaN."""
    levels = np.rint(np.clip(np.nan_to_num(values), 0, 1) * (len(LEVELS) - 1)).astype(int)
    known = np.isfinite(values)
    return "".join(LEVELS[level] if good else BLANK for level, good in zip(levels, known, strict=True))
