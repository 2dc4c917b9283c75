"""The clips that can be looked at one by one: which, what their rows say, and what a row that is opened shows.

What is drawn is so fine as a screen shows it and no finer: a clip's time is cut into `COLUMNS`, a value is one of 64
levels and one character (`LEVELS`), so that hundreds of clips are a page of a few megabytes.

Shapes: N clips, T steps, C columns, W words.
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

MOST_CLIPS = 300
"""Of larger splits: half of them the worst, half drawn from the others."""

COLUMNS = 64
MOST_WORDS = 80
"""Words of a clip whose attention is kept: the first ones."""

LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
BLANK = " "

DEVIATIONS = 2.0
"""Sparklines reach from so many standard deviations below the training split's mean to so many above it."""

SHOWN, INVALID, HIDDEN, ABSENT = "0123"
"""States of a column: a step that the network sees; one that is not valid (unvoiced, no face) but is seen; one that is
hidden from it; no step at all."""


@dataclass(frozen=True, slots=True)
class ClipRow:
    """A clip's line in the table; `clip` is None where the manifest does not know it."""

    clip_id: str
    clip: Clip | None
    seconds: float | None
    label: float | None
    prediction: float
    missing: Sequence[str]

    @property
    def error(self) -> float | None:
        return None if self.label is None else self.prediction - self.label


@dataclass(frozen=True, slots=True)
class ExplorerInput:
    """What is known of the clips beyond their predictions.

    Attributes:
        explanation: views of some of them.
        words: clip id -> the words of its transcript.
        valid: modality -> clip id -> which of its steps are valid [T].
        missing: clip id -> modalities that it lacks.
        parts: of the split, their rows in the order of the predictions.
    """

    explanation: Explanation | None = None
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    valid: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parts: Sequence[Subgroup] = ()


@dataclass(frozen=True, slots=True)
class Explorer:
    """The table and the data behind it.

    Attributes:
        rows: worst first; where nothing is labelled, in the order of the predictions.
        total: clips of the split.
        parts: (group, name) by which rows can be filtered.
        data: JSON that may stand within a script element.
        has_views: whether clips can be looked into.
        no_attention_reason: why no attention is shown; empty where it is.
    """

    rows: Sequence[ClipRow]
    total: int
    parts: Sequence[tuple[str, str]]
    data: str
    has_views: bool
    no_attention_reason: str


def choose_clips(label_N: np.ndarray, prediction_N: np.ndarray, most: int = MOST_CLIPS, seed: int = 0) -> np.ndarray:
    """Which clips the explorer holds, the worst first: all, or of many the worst half of `most` and a sample of the
    others."""
    error_N = np.nan_to_num(np.abs(prediction_N - label_N), nan=-1.0)
    order = np.argsort(-error_N, kind="stable")
    if len(order) <= most:
        return order
    worst = order[: min(most // 2, int((error_N >= 0).sum()))]
    others = order[len(worst) :]
    sample = np.random.default_rng(seed).choice(len(others), most - len(worst), replace=False)
    return np.r_[worst, others[np.sort(sample)]]


def explorer(
    clip_ids: Sequence[str],
    label_N: np.ndarray,
    prediction_N: np.ndarray,
    without: Mapping[str, np.ndarray],
    clips: Mapping[str, Clip],
    known: ExplorerInput,
) -> Explorer:
    """The explorer of a split.

    Args:
        label_N: NaN where unlabelled.
        without: modality -> predictions [N] without it, NaN where undefined.
    """
    chosen = choose_clips(label_N, prediction_N)
    parts = [part for part in known.parts if part.rows_N[chosen].any()]
    rows, details = [], []
    for n in chosen.tolist():
        clip_id, clip = clip_ids[n], clips.get(clip_ids[n])
        view = known.explanation.views.get(clip_id) if known.explanation else None
        seconds = _seconds(clip, view)
        label = float(label_N[n]) if np.isfinite(label_N[n]) else None
        row = ClipRow(clip_id, clip, seconds, label, float(prediction_N[n]), known.missing.get(clip_id, ()))
        moves = {m: row.prediction - float(values_N[n]) for m, values_N in without.items() if np.isfinite(values_N[n])}
        rows.append(row)
        details.append(_detail(row, moves, [i for i, part in enumerate(parts) if part.rows_N[n]], view, known))
    features = known.explanation.features if known.explanation else {}
    data = {
        "features": {
            m: [[f.name, None if f.correlation is None else round(f.correlation, 2)] for f in found]
            for m, found in features.items()
        },
        "anchor": known.explanation.anchor if known.explanation else "",
        "clips": details,
    }
    return Explorer(
        rows=rows,
        total=len(clip_ids),
        parts=[(part.group, part.name) for part in parts],
        data=to_script(data),
        has_views=bool(known.explanation and known.explanation.views),
        no_attention_reason=known.explanation.no_attention_reason if known.explanation else "",
    )


def to_script(data: Any) -> str:
    """JSON without a character by which it could leave its script element, or end a line of JavaScript."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def _seconds(clip: Clip | None, view: ClipView | None) -> float | None:
    """The clip's length: as probed, or else as far as its steps reach."""
    if clip is not None and clip.duration is not None:
        return clip.duration
    ends = [float(track.end_T.max()) for track in view.tracks.values()] if view else []
    return max(ends, default=0.0) or None


def _detail(
    row: ClipRow,
    moves: Mapping[str, float],
    parts: Sequence[int],
    view: ClipView | None,
    known: ExplorerInput,
) -> dict[str, Any]:
    """What script needs of a clip; what is not known is left out."""
    text = row.clip.text if row.clip else ""
    found: dict[str, Any] = {"id": row.clip_id, "text": text, "lang": row.clip.language if row.clip else ""}
    label = None if row.label is None else round(row.label, 4)
    found |= {"label": label, "prediction": round(row.prediction, 4), "seconds": row.seconds}
    found |= {"missing": list(row.missing), "parts": list(parts)}
    found["moves"] = {m: round(value, 3) for m, value in moves.items()}
    own = {m: getattr(row.clip, f"label_{m}") for m in MODALITIES} if row.clip else {}
    found["own"] = {m: round(value, 3) for m, value in own.items() if value is not None}
    if view is None or not row.seconds:
        return {key: value for key, value in found.items() if value not in ({}, [])}
    if np.isfinite(view.word_times_W2).any() or view.attention:
        found["words"] = [
            [word, *(round(float(t), 2) if np.isfinite(t) else None for t in times)]
            for word, times in zip(known.words.get(row.clip_id, ()), view.word_times_W2, strict=False)
        ]
    found["tracks"] = {
        m: _track(track, known.valid.get(m, {}).get(row.clip_id), row.seconds) for m, track in view.tracks.items()
    }
    found["attention"] = {
        m: _attention(attention, view.tracks[m], row.seconds)
        for m, attention in view.attention.items()
        if m in view.tracks and len(attention.steps_WT)
    }
    found["anchors"] = {m: round(share, 3) for m, share in view.anchors.items()}
    return {key: value for key, value in found.items() if value not in ({}, [])}


def _track(track: Track, valid_T: np.ndarray | None, seconds: float) -> dict[str, Any]:
    """Sparklines of a modality, a string a feature, and the state of each column."""
    overlap_CT = _overlap(track, seconds)
    seen_CT = overlap_CT & track.visible_T
    if valid_T is None or len(valid_T) < len(track.visible_T):
        valid_T = np.ones(len(track.visible_T), bool)
    valid_CT = seen_CT & valid_T[: len(track.visible_T)]
    states = np.select(
        [valid_CT.any(axis=1), seen_CT.any(axis=1), overlap_CT.any(axis=1)], [SHOWN, INVALID, HIDDEN], ABSENT
    )
    mean_CF = _means(seen_CT, track.values_TF)
    place_CF = (mean_CF + DEVIATIONS) / (2 * DEVIATIONS)
    return {"states": "".join(states.tolist()), "lines": [to_levels(column) for column in place_CF.T]}


def _attention(attention: Attention, track: Track, seconds: float) -> dict[str, Any]:
    """A string a word: its weights as multiples of an even spread, up to `most`; and what goes to no moment."""
    seen_CT = _overlap(track, seconds) & track.visible_T
    steps_WT = attention.steps_WT[:MOST_WORDS]
    used_W = (steps_WT.sum(axis=1) + attention.cls_W[:MOST_WORDS]) > 0
    even = float(steps_WT[used_W][:, track.visible_T].mean()) if used_W.any() and track.visible_T.any() else 0.0
    times_WT = steps_WT / even if even > 0 else np.zeros_like(steps_WT)
    times_CW = _means(seen_CT, times_WT.T)
    most = float(max(2.0, np.nanmax(times_CW, initial=0.0)))
    rows = [to_levels(column) if used else "" for column, used in zip(times_CW.T / most, used_W, strict=True)]
    aside = [round(float(value), 3) for value in attention.cls_W[:MOST_WORDS]]
    return {"most": round(most, 2), "rows": rows, "aside": aside}


def _overlap(track: Track, seconds: float) -> np.ndarray:
    """[C, T] which steps lie, in part at least, in each column of the clip's time."""
    edges = np.linspace(0, seconds, COLUMNS + 1)
    return (track.start_T < edges[1:, None]) & (track.end_T > edges[:-1, None])


def _means(member_CT: np.ndarray, values_TF: np.ndarray) -> np.ndarray:
    """[C, F] mean over a column's steps, NaN where it has none."""
    count_C1 = member_CT.sum(axis=1)[:, None].astype(np.float64)
    total_CF = member_CT.astype(np.float64) @ values_TF.astype(np.float64)
    return np.divide(total_CF, count_C1, out=np.full(total_CF.shape, np.nan), where=count_C1 > 0)


def to_levels(values: np.ndarray) -> str:
    """A character a value: from 0 to 1 in 64 levels, others cut to these; a blank where it is NaN."""
    levels = np.rint(np.clip(np.nan_to_num(values), 0, 1) * (len(LEVELS) - 1)).astype(int)
    known = np.isfinite(values)
    return "".join(LEVELS[level] if good else BLANK for level, good in zip(levels, known, strict=True))
