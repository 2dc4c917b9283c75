"""From features to results: many clips and windows through the network together, and what their scores mean."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from model.config import MODALITIES
from model.data.clips import ClipTable
from model.evaluation.calibration import subset_name
from model.evaluation.inference import predict
from model.evaluation.metrics import WIDE, class_names, to_classes
from model.prediction.protocol import Failed, Made, Part, is_made
from model.prediction.results import SENTIMENTS, Failure, Interval, Notice, Prediction, Result, Score, Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from model.checkpoint.io import CheckpointInfo
    from model.network.dashfusion import DashFusion

LONG = 2.0
"""A video so many times longer than the longest training clip is scored by its windows."""

MISSING = {"text": "a transcript", "audio": "sound", "vision": "a face"}


def score_videos(
    batch: Sequence[tuple[str, Made | Failed]],
    network: DashFusion,
    info: CheckpointInfo,
    level: float,
    notices: Sequence[Notice] = (),
) -> list[Result]:
    """The result of each video, by name; all their clips and windows go through the network together.

    Args:
        level: of the intervals.
        notices: what holds for all of them, if they have no text.
    """
    began = time.perf_counter()
    videos = [(name, made) for name, made in batch if is_made(made)]
    pieces = [[*made.windows] if _by_windows(made, info) else [made.whole, *made.windows] for _, made in videos]
    scores = iter(score_parts([part for parts in pieces for part in parts], network, info, level))
    of_video = [[next(scores) for _ in parts] for parts in pieces]
    spent = (time.perf_counter() - began) / max(len(videos), 1)
    results = iter(
        _result(name, made, found, network, info, {"model": spent}, () if made.text_source else notices)
        for (name, made), found in zip(videos, of_video, strict=True)
    )
    return [next(results) if is_made(made) else Failure(name, made.error, made.message) for name, made in batch]


def score_parts(parts: Sequence[Part], network: DashFusion, info: CheckpointInfo, level: float) -> list[Score | None]:
    """The score of each clip or window; None where it has nothing to go by.

    Raises:
        ValueError: features of another width than the training's, or that are not finite.
    """
    if not parts:
        return []
    shown = info.train.modalities
    table = ClipTable.from_clips(
        info.dataset,
        [f"{part.start:g} to {part.end:g} s" for part in parts],
        [{m: (steps.values, steps.mask) for m, steps in part.steps.items()} for part in parts],
        [part.text for part in parts],
        info.model.max_positions,
        network.text,
    )
    visible = {m: _visible(table, m) for m in shown}
    raw = predict(network, table, shown)
    without = {m: predict(network, table, [other for other in shown if other != m]) for m in shown if len(shown) > 1}
    scores = []
    for row in range(len(parts)):
        used = tuple(m for m in MODALITIES if m in shown and visible[m][row])
        shares = {m: float(raw[row] - without[m][row]) for m in used if len(used) > 1}
        scores.append(_score(float(raw[row]), used, shares, info, level) if used else None)
    return scores


def _visible(table: ClipTable, modality: str) -> list[bool]:
    """Whether the network may look at any step of each clip."""
    sequences = table.sequences[modality]
    spans = zip(sequences.starts, sequences.lengths, strict=True)
    return [bool(sequences.visible[start : start + length].any()) for start, length in spans]


def _score(
    raw: float, used: tuple[str, ...], contributions: Mapping[str, float], info: CheckpointInfo, level: float
) -> Score:
    """What a number of the network's means in the corpus's range."""
    label_range = info.dataset.label_range
    low, high = label_range
    value = float(np.clip(raw, low, high))
    finest = 7 if label_range == WIDE else 5
    sentiment = SENTIMENTS[to_classes(np.array([value]), label_range, 3)[0]]
    label_class = class_names(label_range, finest)[to_classes(np.array([value]), label_range, finest)[0]]
    known = info.calibration.get(subset_name(used), {})
    half, interval = known.get(f"{level:g}"), None
    if half is not None:
        interval = Interval(level, max(low, value - half), min(high, value + half), int(known["n"] or 0))
    return Score(value, raw, sentiment, label_class, interval, used, contributions)


def _mean(scores: Sequence[Score | None], info: CheckpointInfo, level: float) -> Score | None:
    """The mean of the windows' scores; how far off it is nobody has measured."""
    known = [score for score in scores if score]
    if not known:
        return None
    used = tuple(m for m in MODALITIES if any(m in score.used for score in known))
    shares = {m: float(np.mean([score.contributions.get(m, 0.0) for score in known])) for m in used if len(used) > 1}
    mean = _score(float(np.mean([score.raw for score in known])), used, shares, info, level)
    return Score(mean.value, mean.raw, mean.sentiment, mean.label_class, None, used, shares)


def _longest(info: CheckpointInfo) -> float | None:
    """Seconds of the longest training clip, where that is known."""
    return info.dataset.training.get("seconds", {}).get("longest")


def _by_windows(made: Made, info: CheckpointInfo) -> bool:
    longest = _longest(info)
    return bool(made.windows and longest and made.duration and made.duration > LONG * longest)


def _result(
    name: str,
    made: Made,
    scores: Sequence[Score | None],
    network: DashFusion,
    info: CheckpointInfo,
    seconds: Mapping[str, float],
    notices: Sequence[Notice],
) -> Result:
    """A video's scores with all that there is to say of them."""
    by_windows = _by_windows(made, info)
    of_windows = scores if by_windows else scores[1:]
    score = _mean(scores, info, 0.0) if by_windows else scores[0]
    if score is None:
        found = "; ".join(note.message for note in made.notes) or "no modality that the network was trained with"
        return Failure(name, "NoModality", f"nothing to score it by: {found}")
    windows = tuple(
        Window(part.start, part.end, part.text, one) for part, one in zip(made.windows, of_windows, strict=True)
    )
    notes = (Notice(note.code, note.message) for note in made.notes)
    return Prediction(
        name=name,
        score=score,
        scored_by="windows" if by_windows else "clip",
        duration=made.duration,
        text=made.whole.text,
        text_source=made.text_source,
        windows=windows,
        warnings=(*notes, *notices, *_notices(made, score, by_windows, network, info)),
        seconds={**made.seconds, **seconds},
    )


def _notices(made: Made, score: Score, by_windows: bool, network: DashFusion, info: CheckpointInfo) -> Iterator[Notice]:
    """Where the video is other than what the network was trained on."""
    lacking = info.dataset.training.get("missing", {})
    for m in info.train.modalities:
        if m not in score.used and not info.train.modality_dropout and lacking.get(m) == 0:
            yield Notice("never_without", f"in training no clip was without {MISSING[m]}: the score is a guess")
    longest = _longest(info)
    if longest and made.duration and made.duration > longest:
        message = f"it lasts {made.duration:.0f} s, the longest training clip {longest:.0f} s"
        yield Notice("longer_than_trained", message)
    if by_windows:
        yield Notice(
            "scored_by_windows", f"far longer than the training clips: the mean of {len(made.windows)} windows"
        )
    else:
        yield from _cut(made.whole, network, info)
    if score.interval is None:
        reason = "a mean of windows has none" if by_windows else _why_no_interval(score, info)
        yield Notice("no_interval", f"how far off the score is, is not known: {reason}")


def _cut(whole: Part, network: DashFusion, info: CheckpointInfo) -> Iterator[Notice]:
    """Modalities of which the network does not see the end."""
    most = info.model.max_positions
    for m in info.train.modalities:
        if m == "text" and network.text:
            _, cut = network.text.sequences([whole.text])
            steps, limit = "tokens", network.text.limit
        else:
            length = len(whole.steps[m].mask) if m in whole.steps else 0
            cut, steps, limit = length > most, f"{length} steps", most
        if cut:
            yield Notice("cut", f"the network sees the first {limit} of {m}'s {steps} only")


def _why_no_interval(score: Score, info: CheckpointInfo) -> str:
    if not info.calibration:
        return "the checkpoint was saved without calibration"
    count = info.calibration.get(subset_name(score.used), {}).get("n", 0)
    return f"only {count} validation clips have {' and '.join(score.used)}"
