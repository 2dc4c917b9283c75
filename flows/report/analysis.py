"""The analysis behind the report: subgroups, calibration, metric intervals and explained clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.manifest import MODALITIES, Manifest
from extractors.store import FeatureReader
from extractors.transcripts.table import Transcript
from flows.config.params import Params
from flows.report import CalibrationInput, ExplorerInput, SubgroupAnalysis
from flows.report.explorer import choose_clips
from model.evaluation.bootstrap import percentile_interval, resampled_metrics
from model.evaluation.predictions import ClipPredictions
from model.evaluation.subgroups import (
    ClipAttributes,
    Subgroup,
    accuracy_key,
    measure_speakers,
    measure_subgroups,
    split_into_subgroups,
)

CROSS_VALIDATED = ("grouped_cv", "cv_plus")
"""Methods of intervals whose errors are on clips of the training split too."""

MAX_SPEAKERS = 12
"""Rows of the table of speakers; of more speakers, the worst and the best are shown."""


def checkpoints(params: Params) -> list[Path]:
    """Return the folder of the best checkpoint of each seed."""
    return [params.paths.models / f"seed-{seed}" / "best" for seed in params.train.seeds]


PARTS = ("explorer", "intervals", "subgroups", "calibration")
"""Results of `analyse`."""


def analyse(
    params: Params,
    result: Any,
    manifest: Manifest,
    transcripts: Mapping[str, Transcript],
    progress: Callable[[str], None] = lambda part: None,
) -> dict[str, Any]:
    """Return the parts of `ReportInput` that only the report needs: the explorer and, with labels, the other three.

    Args:
        params: parameters.
        result: evaluation of the checkpoints.
        manifest: manifest of the corpus.
        transcripts: transcripts by clip_id.
        progress: called with the name of each of `PARTS` before it is computed.
    """
    clips = ClipPredictions.of(result.predictions)
    valid = {m: FeatureReader(params.paths.features / m, m).valid_steps() for m in ("audio", "vision")}
    attributes = clip_attributes(clips, result.steps, manifest, valid)
    subgroups = split_into_subgroups(attributes)
    labelled = clips.labelled()
    speaker_n = attributes.speaker_N[np.isfinite(clips.label_N)]
    compute: dict[str, Callable[[], Any]] = {
        "explorer": lambda: explorer_input(params, clips, result.steps, subgroups, transcripts, valid),
        "intervals": lambda: metric_intervals(labelled, manifest.label_range, speaker_n),
        "subgroups": lambda: subgroup_analysis(clips, subgroups, attributes, manifest.label_range),
        "calibration": lambda: calibration(params, clips, result.steps, attributes.speaker_N),
    }
    found = {}
    for part in PARTS if labelled.clip_ids else PARTS[:1]:
        progress(part)
        found[part] = compute[part]()
    return found


def clip_attributes(
    clips: ClipPredictions,
    steps: Mapping[str, np.ndarray],
    manifest: Manifest,
    valid: Mapping[str, Mapping[str, np.ndarray]],
) -> ClipAttributes:
    """Return the attributes that define the subgroups, in the order of the predictions."""
    by_id = {clip.clip_id: clip for clip in manifest.clips}
    rows = [by_id[clip_id] for clip_id in clips.clip_ids]
    shares = {
        m: [masks[c].mean() if len(masks.get(c, ())) else np.nan for c in clips.clip_ids] for m, masks in valid.items()
    }
    return ClipAttributes(
        seconds_N=_to_array(clip.duration for clip in rows),
        speaker_N=np.array([clip.speaker_or_video for clip in rows], object),
        gender_N=np.array([clip.gender for clip in rows], object),
        steps=steps,
        valid={m: np.array(share_N, np.float64) for m, share_N in shares.items()},
        label_N=clips.label_N,
        own_label={m: _to_array(getattr(clip, f"label_{m}") for clip in rows) for m in MODALITIES},
    )


def _to_array(values: Iterable[float | None]) -> np.ndarray:
    """Return an array with NaN for None."""
    return np.array(list(values), np.float64)


def metric_intervals(
    labelled: ClipPredictions, label_range: tuple[float, float], speaker_N: np.ndarray
) -> dict[str, Any]:
    """Return a 95 % interval of each metric of the split, for other speakers."""
    draws = resampled_metrics(labelled.prediction_SN, labelled.label_N, label_range, speaker_N=speaker_N)
    return {key: percentile_interval(values_R) for key, values_R in draws.items()}


def subgroup_analysis(
    clips: ClipPredictions, subgroups: Sequence[Subgroup], attributes: ClipAttributes, label_range: tuple[float, float]
) -> SubgroupAnalysis:
    """Measure the whole split, its subgroups and its speakers."""
    whole = Subgroup("", "all clips", np.ones(len(clips.clip_ids), bool))
    speaker_N = attributes.speaker_N
    measured = measure_subgroups([whole, *subgroups], clips.prediction_SN, clips.label_N, speaker_N, label_range)
    speakers, count = measure_speakers(attributes, clips.prediction_SN, label_range, MAX_SPEAKERS)
    return SubgroupAnalysis(measured[0], measured[1:], speakers, count, accuracy_key(label_range))


def calibration(
    params: Params, clips: ClipPredictions, steps: Mapping[str, np.ndarray], speaker_N: np.ndarray
) -> CalibrationInput:
    """Measure the calibration of the predictions and the coverage of the checkpoints' prediction intervals.

    Args:
        params: parameters that locate the checkpoints.
        clips: predictions of the split; clips without a label are left out.
        steps: number of steps of each clip by modality; 0 where the modality is missing.
        speaker_N: speaker of each clip.
    """
    from model.checkpoint.io import read_checkpoint_info
    from model.evaluation.calibration import coverage, mean_widths, reliability, symmetric_bounds
    from model.evaluation.cv_plus import cv_plus_intervals
    from model.evaluation.intervals import subset_name

    folders = checkpoints(params)
    infos = [read_checkpoint_info(folder) for folder in folders]
    modalities = infos[0].train.modalities
    # Modalities that each labelled clip has, such as "text+audio"
    labelled, rows = clips.labelled(), np.flatnonzero(np.isfinite(clips.label_N))
    subsets = [subset_name([m for m in modalities if steps[m][row]]) for row in rows]
    calibrations = [info.calibration for info in infos]
    bounds = symmetric_bounds(calibrations, subsets, labelled.prediction_SN)
    if infos[0].calibrated_by.get("method") == "cv_plus":  # all seeds have the same intervals
        split = params.paths.dataset, params.evaluate.split
        found = cv_plus_intervals(folders[0], *split, labelled.clip_ids, subsets, params.train.device)
        bounds = {level: (low_N[None], high_N[None]) for level, (low_N, high_N) in found.items()}
    return CalibrationInput(
        bins=reliability(labelled.mean_N, labelled.label_N),
        coverage=coverage(bounds, labelled.label_N, speaker_N[rows]),
        widths=mean_widths(calibrations),
        source="train and valid" if infos[0].calibrated_by.get("method") in CROSS_VALIDATED else "valid",
    )


def explorer_input(
    params: Params,
    clips: ClipPredictions,
    steps: Mapping[str, np.ndarray],
    subgroups: Sequence[Subgroup],
    transcripts: Mapping[str, Transcript],
    valid: Mapping[str, Mapping[str, np.ndarray]],
) -> ExplorerInput:
    """Collect the data of the explorer's clips; the attention is that of the first seed's network."""
    from model.data.info import read_info
    from model.evaluation.explain import explain

    chosen = [clips.clip_ids[n] for n in choose_clips(clips.label_N, clips.mean_N)]
    words = {clip_id: transcripts[clip_id].words for clip_id in chosen}
    missing = {
        clip_id: lacks for n, clip_id in enumerate(clips.clip_ids) if (lacks := [m for m in steps if not steps[m][n]])
    }
    unaligned = read_info(params.paths.dataset).mode == "unaligned"  # aligned steps are pooled: no valid steps known
    return ExplorerInput(
        explanation=explain(
            params.paths.dataset, checkpoints(params)[0], params.evaluate.split, words, params.train.device
        ),
        words=words,
        valid=valid if unaligned else {},
        missing=missing,
        subgroups=subgroups,
    )
