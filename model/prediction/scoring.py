"""From features to results: one batched forward pass over clips and windows, and the interpretation of its scores."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from model.checkpoint.description import GENERATED_NOTICE
from model.config import MODALITIES
from model.data.clips import ClipTable
from model.evaluation.inference import infer, predict
from model.evaluation.intervals import subset_name
from model.evaluation.metrics import WIDE, class_names, to_classes
from model.evaluation.outliers import OutlierTest, clip_vectors, detect_outliers
from model.prediction.protocol import FeatureFailure, Note, Segment, VideoFeatures
from model.prediction.results import (
    GENERATED_TRAINING,
    SENTIMENTS,
    UNLIKE_TRAINING,
    Failure,
    Interval,
    Prediction,
    Result,
    Score,
    Window,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from model.checkpoint.io import CheckpointInfo
    from model.evaluation.cv_plus import FoldNetworks
    from model.network.base import Network

WINDOWED_FROM = 2.0
"""A video more than this many times as long as the longest training clip is scored by its windows."""

MAX_INTERVAL_SHARE = 0.5
"""Share of the label range from which an interval is called wide."""

SOURCE_OF = {"text": "a transcript", "audio": "sound", "vision": "a face"}
"""Modality -> what a video must have for it, for messages."""


def score_videos(
    batch: Sequence[tuple[str, VideoFeatures | FeatureFailure]],
    network: Network,
    info: CheckpointInfo,
    level: float,
    notes: Sequence[Note] = (),
    notes_without_text: Sequence[Note] = (),
    folds: FoldNetworks | None = None,
) -> list[Result]:
    """Return one result per video; all their clips and windows go through the network together.

    Args:
        batch: Name and features of each video.
        network: The network, in eval mode.
        info: Description of its checkpoint.
        level: Coverage of the prediction intervals.
        notes: Warnings for every video.
        notes_without_text: Warnings for every video without a text.
        folds: Networks of cross-validation, of a checkpoint with CV+ intervals.
    """
    began = time.perf_counter()
    videos = [features for _, features in batch if isinstance(features, VideoFeatures)]
    segments = [[*v.windows] if _scored_by_windows(v, info) else [v.whole, *v.windows] for v in videos]
    scores = iter(score_segments([one for several in segments for one in several], network, info, level, folds))
    scores_by_video = iter([[next(scores) for _ in several] for several in segments])
    seconds = {"model": (time.perf_counter() - began) / max(len(videos), 1)}
    results: list[Result] = []
    for name, features in batch:
        if isinstance(features, FeatureFailure):
            results.append(Failure(name, features.error, features.message))
        else:
            more = [*notes, *(() if features.text_source else notes_without_text)]
            results.append(_result(name, features, next(scores_by_video), network, info, seconds, more))
    return results


def score_segments(
    segments: Sequence[Segment],
    network: Network,
    info: CheckpointInfo,
    level: float,
    folds: FoldNetworks | None = None,
) -> list[Score | None]:
    """Return the score of each segment; None for a segment without a usable modality.

    Raises:
        ValueError: Features of another width than the training features, or not finite.
    """
    if not segments:
        return []
    shown: tuple[str, ...] = info.train.modalities
    table = ClipTable.from_clips(
        info.dataset,
        [f"{segment.start:g} to {segment.end:g} s" for segment in segments],
        [{m: (steps.values, steps.mask) for m, steps in segment.steps.items()} for segment in segments],
        [segment.text for segment in segments],
        info.model.max_positions,
        network.text,
    )
    visible = {m: _has_visible_steps(table, m) for m in shown}
    outputs = infer(network, table, shown)
    raw = outputs.prediction_N
    tests = detect_outliers(info.density, clip_vectors(table, outputs.pooled))
    without = {m: predict(network, table, [other for other in shown if other != m]) for m in shown if len(shown) > 1}
    used_by_row = [tuple(m for m in MODALITIES if m in shown and visible[m][row]) for row in range(len(segments))]
    subset_N = [subset_name(used) for used in used_by_row]
    ends = folds.bounds(table, shown, subset_N, [level])[level] if folds else None
    scores = []
    for row, used in enumerate(used_by_row):
        contributions = {m: float(raw[row] - without[m][row]) for m in used if len(used) > 1}
        interval, test = (
            _interval(float(raw[row]), used, info, level, ends and (ends[0][row], ends[1][row])),
            tests[row],
        )
        if test and test.modalities:
            interval = None  # calibration covers clips like the training clips
        scores.append(_score(float(raw[row]), used, contributions, info, interval, test) if used else None)
    return scores


def _has_visible_steps(table: ClipTable, modality: str) -> list[bool]:
    """Return for each clip whether any step of the modality is unmasked."""
    sequences = table.sequences[modality]
    spans = zip(sequences.starts, sequences.lengths, strict=True)
    return [bool(sequences.visible[start : start + length].any()) for start, length in spans]


def _interval(
    raw: float, used: tuple[str, ...], info: CheckpointInfo, level: float, ends: tuple[float, float] | None
) -> Interval | None:
    """Return the prediction interval; None if there are too few calibration clips for the level.

    `ends` are those of CV+. It is widened to the score, from which the networks of the folds may be far.
    """
    low, high = info.dataset.label_range
    value = float(np.clip(raw, low, high))
    widths = info.calibration.get(subset_name(used), {})
    half = widths.get(f"{level:g}")
    if half is None:
        return None
    lower, upper = (value - half, value + half) if ends is None else (min(ends[0], value), max(ends[1], value))
    return Interval(level, max(low, float(lower)), min(high, float(upper)), int(widths["n"] or 0))


def _score(
    raw: float,
    used: tuple[str, ...],
    contributions: Mapping[str, float],
    info: CheckpointInfo,
    interval: Interval | None,
    test: OutlierTest | None = None,
) -> Score:
    """Interpret an output of the network in the corpus's label range."""
    label_range = info.dataset.label_range
    value = float(np.clip(raw, *label_range))
    finest = 7 if label_range == WIDE else 5
    sentiment = SENTIMENTS[to_classes(np.array([value]), label_range, 3)[0]]
    label_class = class_names(label_range, finest)[to_classes(np.array([value]), label_range, finest)[0]]
    return Score(value, raw, sentiment, label_class, interval, used, contributions, test)


def _mean_score(scores: Sequence[Score | None], info: CheckpointInfo) -> Score | None:
    """Return the mean of the windows' scores, without an interval: calibration covers single clips only."""
    known = [score for score in scores if score]
    if not known:
        return None
    used = tuple(m for m in MODALITIES if any(m in score.used for score in known))
    contributions = {
        m: float(np.mean([score.contributions.get(m, 0.0) for score in known])) for m in used if len(used) > 1
    }
    return _score(float(np.mean([score.raw for score in known])), used, contributions, info, None)


def _longest_training_clip(info: CheckpointInfo) -> float | None:
    """Return the duration of the longest training clip in seconds, if the checkpoint says."""
    longest: float | None = info.dataset.training.get("seconds", {}).get("longest")
    return longest


def _scored_by_windows(features: VideoFeatures, info: CheckpointInfo) -> bool:
    longest = _longest_training_clip(info)
    return bool(features.windows and longest and features.duration and features.duration > WINDOWED_FROM * longest)


def _result(
    name: str,
    features: VideoFeatures,
    scores: Sequence[Score | None],
    network: Network,
    info: CheckpointInfo,
    seconds: Mapping[str, float],
    notes: Sequence[Note],
) -> Result:
    """Combine a video's scores, times and warnings. `scores`: of the whole (if scored as one clip), then of windows."""
    by_windows = _scored_by_windows(features, info)
    score = _mean_score(scores, info) if by_windows else scores[0]
    if score is None:
        found = "; ".join(note.message for note in features.notes) or "no modality that the network was trained with"
        return Failure(name, "NoModality", f"nothing to score it by: {found}")
    window_scores = scores if by_windows else scores[1:]
    windows = tuple(
        Window(segment.start, segment.end, segment.text, one)
        for segment, one in zip(features.windows, window_scores, strict=True)
    )
    return Prediction(
        name=name,
        score=score,
        scored_by="windows" if by_windows else "clip",
        duration=features.duration,
        text=features.whole.text,
        text_source=features.text_source,
        windows=windows,
        warnings=(
            *_foreign_notes(score, window_scores if by_windows else (), info),
            *features.notes,
            *notes,
            *_notes(features, score, by_windows, network, info),
        ),
        seconds={**features.seconds, **seconds},
    )


def _foreign_notes(score: Score, windows: Sequence[Score | None], info: CheckpointInfo) -> Iterator[Note]:
    """Yield what puts the score as such in question; `windows`: that it is the mean of, if any."""
    if info.dataset.generated:
        yield Note(GENERATED_TRAINING, GENERATED_NOTICE)
    tests = [one.outlier_test for one in windows if one] or [score.outlier_test]
    outliers = [test for test in tests if test and test.modalities]
    if 2 * len(outliers) > len(tests):
        modalities = " and ".join(m for m in MODALITIES if any(m in test.modalities for test in outliers))
        if windows:
            found = f"{len(outliers)} of {len(tests)} windows are unlike the training clips in {modalities}"
        else:
            found = (
                f"unlike the training clips in {modalities} (p = {outliers[0].p_value:.2g}, {outliers[0].clips} clips)"
            )
        yield Note(UNLIKE_TRAINING, f"{found}: the score may mean nothing")


def _notes(
    features: VideoFeatures, score: Score, by_windows: bool, network: Network, info: CheckpointInfo
) -> Iterator[Note]:
    """Yield how the video differs from the training clips."""
    missing_clips = info.dataset.training.get("missing", {})
    for m in info.train.modalities:
        if m not in score.used and not info.train.modality_dropout and missing_clips.get(m) == 0:
            yield Note("never_without", f"no training clip was without {SOURCE_OF[m]}: the score is a guess")
    longest = _longest_training_clip(info)
    if longest and features.duration and features.duration > longest:
        message = f"it lasts {features.duration:.0f} s, the longest training clip {longest:.0f} s"
        yield Note("longer_than_trained", message)
    if by_windows:
        message = f"far longer than the training clips: the score is the mean of {len(features.windows)} windows"
        yield Note("scored_by_windows", message)
    else:
        yield from _truncations(features.whole, network, info)
    if score.interval is None:
        reason = "the mean of windows has none" if by_windows else _why_no_interval(score, info)
        yield Note("no_interval", f"no prediction interval: {reason}")
    elif (width := score.interval.high - score.interval.low) > MAX_INTERVAL_SHARE * np.ptp(info.dataset.label_range):
        span = f"{width:.1f} of the scale's {np.ptp(info.dataset.label_range):g}"
        yield Note("wide_interval", f"the {score.interval.level:.0%} interval spans {span}: the score says little")


def _truncations(whole: Segment, network: Network, info: CheckpointInfo) -> Iterator[Note]:
    """Yield the modalities that are cut to the network's longest sequence."""
    for m in info.train.modalities:
        if m == "text" and network.text:
            _, cut = network.text.sequences([whole.text])
            steps, limit = "tokens", network.text.limit
        else:
            length = len(whole.steps[m].mask) if m in whole.steps else 0
            steps, limit = f"{length} steps", info.model.max_positions
            cut = length > limit
        if cut:
            yield Note("cut", f"the network sees the first {limit} of {m}'s {steps} only")


def _why_no_interval(score: Score, info: CheckpointInfo) -> str:
    if score.outlier_test and score.outlier_test.modalities:
        return "it would hold for clips like the validation clips only"
    if not info.calibration:
        return "the checkpoint was saved without calibration"
    count = info.calibration.get(subset_name(score.used), {}).get("n", 0)
    return f"only {count} of the clips that calibrate it have {' and '.join(score.used)}"
