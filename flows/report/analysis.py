"""The analysis behind the report: subgroups, calibration, metric intervals and explained clips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.manifest import MODALITIES, Manifest
from extractors.store import FeatureReader
from extractors.transcripts.table import Transcript
from flows.config.params import Params
from flows.report import Breakdown, CalibrationInput, ExplorerInput
from flows.report.explorer import choose_clips
from model.evaluation.predictions import ClipPredictions
from model.evaluation.subgroups import ClipAttributes, Subgroup

MOST_VIDEOS = 12
"""In the report's table; of more, the worst and the best."""


def checkpoints(params: Params) -> list[Path]:
    """The best checkpoint of each seed."""
    return [params.paths.models / f"seed-{seed}" / "best" for seed in params.train.seeds]


def analysed(params: Params, result: Any, manifest: Manifest, transcripts: Mapping[str, Transcript]) -> dict[str, Any]:
    """What is measured for the report alone: `ReportInput`'s explorer and, where there are labels, the other three."""
    from model.evaluation.predictions import ClipPredictions
    from model.evaluation.subgroups import split_into_subgroups

    clips = ClipPredictions.of(result.predictions)
    valid = {m: FeatureReader(params.paths.features / m, m).valid_steps() for m in ("audio", "vision")}
    facts = clip_facts(clips, result.steps, manifest, valid)
    parts = split_into_subgroups(facts)
    labelled = clips.labelled()
    found = {"explorer": explorer_input(params, clips, result.steps, parts, transcripts, valid)}
    if not labelled.clip_ids:
        return found
    return found | {
        "intervals": metric_intervals(labelled, manifest.label_range),
        "breakdown": breakdown(clips, parts, facts, manifest.label_range),
        "calibration": calibration(params, clips, result.steps),
    }


def clip_facts(
    clips: ClipPredictions,
    steps: Mapping[str, np.ndarray],
    manifest: Manifest,
    valid: Mapping[str, Mapping[str, np.ndarray]],
) -> ClipAttributes:
    """What the predicted clips are told apart by, in their order."""
    from model.evaluation.subgroups import ClipAttributes

    by_id = {clip.clip_id: clip for clip in manifest.clips}
    rows = [by_id[clip_id] for clip_id in clips.clip_ids]
    shares = {m: [of[c].mean() if len(of.get(c, ())) else np.nan for c in clips.clip_ids] for m, of in valid.items()}
    return ClipAttributes(
        seconds_N=_numbers(clip.duration for clip in rows),
        video_N=np.array([clip.video_id for clip in rows], object),
        steps=steps,
        valid={m: np.array(share_N, np.float64) for m, share_N in shares.items()},
        label_N=clips.label_N,
        own_label={m: _numbers(getattr(clip, f"label_{m}") for clip in rows) for m in MODALITIES},
    )


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def metric_intervals(labelled: ClipPredictions, label_range: tuple[float, float]) -> dict[str, Any]:
    """A 95 % interval of each metric of the split."""
    from model.evaluation.bootstrap import percentile_interval, resampled_metrics

    draws = resampled_metrics(labelled.prediction_SN, labelled.label_N, label_range)
    return {key: percentile_interval(values_R) for key, values_R in draws.items()}


def breakdown(
    clips: ClipPredictions, parts: Sequence[Subgroup], facts: ClipAttributes, label_range: tuple[float, float]
) -> Breakdown:
    """Metrics of the whole split, its parts and its videos."""
    from model.evaluation.subgroups import Subgroup, accuracy_key, measure_subgroups, measure_videos

    whole = Subgroup("", "all clips", np.ones(len(clips.clip_ids), bool))
    measured = measure_subgroups([whole, *parts], clips.prediction_SN, clips.label_N, label_range)
    videos, count = measure_videos(facts, clips.prediction_SN, label_range, MOST_VIDEOS)
    return Breakdown(measured[0], measured[1:], videos, count, accuracy_key(label_range))


def calibration(params: Params, clips: ClipPredictions, steps: Mapping[str, np.ndarray]) -> CalibrationInput:
    """How far the predictions of the split, and the checkpoints' intervals, can be trusted there."""
    from model.checkpoint.io import read_checkpoint_info
    from model.evaluation.calibration import coverage, mean_widths, reliability, subset_name

    infos = [read_checkpoint_info(folder) for folder in checkpoints(params)]
    shown = infos[0].train.modalities
    subset_N = [subset_name([m for m in shown if steps[m][n]]) for n in range(len(clips.clip_ids))]
    labelled, known = clips.labelled(), np.isfinite(clips.label_N)
    subset_n = [subset for subset, keep in zip(subset_N, known, strict=True) if keep]
    calibrations = [info.calibration for info in infos]
    return CalibrationInput(
        bins=reliability(labelled.mean_N, labelled.label_N),
        coverage=coverage(calibrations, subset_n, labelled.prediction_SN, labelled.label_N),
        widths=mean_widths(calibrations),
    )


def explorer_input(
    params: Params,
    clips: ClipPredictions,
    steps: Mapping[str, np.ndarray],
    parts: Sequence[Subgroup],
    transcripts: Mapping[str, Transcript],
    valid: Mapping[str, Mapping[str, np.ndarray]],
) -> ExplorerInput:
    """What can be looked at in the clips that the explorer holds; attention by the first seed's network."""
    from model.data.info import read_info
    from model.evaluation.explain import explain

    chosen = [clips.clip_ids[n] for n in choose_clips(clips.label_N, clips.mean_N)]
    words = {clip_id: transcripts[clip_id].words for clip_id in chosen}
    missing = {
        clip_id: lacks for n, clip_id in enumerate(clips.clip_ids) if (lacks := [m for m in steps if not steps[m][n]])
    }
    whole_steps = read_info(params.paths.dataset).mode == "unaligned"  # else pooled: not the steps that were measured
    return ExplorerInput(
        explanation=explain(
            params.paths.dataset, checkpoints(params)[0], params.evaluate.split, words, params.train.device
        ),
        words=words,
        valid=valid if whole_steps else {},
        missing=missing,
        parts=parts,
    )
