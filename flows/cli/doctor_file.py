"""`dashfusion doctor` of a media file or a checkpoint: whether it can be used here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from extractors.base import FeatureSequence
from extractors.execution.workers import MEMORY_LIMIT, Worker, WorkerLostError
from extractors.inference.feature_maker import load_extractor
from extractors.inference.media_features import ExtractorSettings, MediaFeatures, extract_media
from flows.display.console import console
from media.audio import read_audio
from media.container import MediaError, MediaInfo, MissingStreamError, probe
from media.video import read_frames
from model.checkpoint.description import read_description
from model.data.info import format_versions
from model.prediction.reference import LIMIT, compare

TIMEOUT = 300.0
"""Seconds that reading the file may take."""

FRAMES_PER_SECOND = 10.0
SAMPLE_RATE = 16_000
"""Rates at which frames and samples are decoded and counted."""


def doctor_file(path: Path, model: Path | None) -> bool:
    """Inspect a media file, print the findings, and return whether it can be used.

    Args:
        path: The file.
        model: Checkpoint whose extractors look at the file; None: it is only decoded.

    Raises:
        FileNotFoundError: No checkpoint there.
        ValueError: An extractor of the checkpoint is not available here.
    """
    worker = Worker(memory=MEMORY_LIMIT)  # a damaged file may hang or crash a decoder
    try:
        with console.status(f"reading {path}"):
            info, decoded = worker.call(TIMEOUT, _decode, path)
            features = worker.call(TIMEOUT, extract_media, path, _extractors(model), "", False) if model else None
    except MediaError as error:
        console.print(str(error), style="bold red", markup=False)
        return False
    except WorkerLostError as lost:
        console.print(lost.explain(str(path), "cut it"), style="bold red", markup=False)
        return False
    finally:
        worker.close(grace=0)
    table = Table(title=str(path), title_justify="left", title_style="bold", box=None, show_header=False)
    for name, value in (_header(info) | decoded | (_findings(features) if features else {})).items():
        table.add_row(name, value)
    console.print(table)
    return True


def doctor_checkpoint(folder: Path) -> bool:
    """Compare the extractors here with those of a checkpoint's training, and return whether they fit.

    Raises:
        FileNotFoundError: No checkpoint there.
        ValueError: An extractor is not available here, or would extract other features than those of the training.
    """
    from model.predict import Predictor

    predictor = Predictor(folder, recogniser="", allow_different_features=True)
    maker: Any = predictor.maker()
    differences = compare(folder, predictor.description, maker)
    table = Table(title=str(folder), title_justify="left", title_style="bold", box=None)
    for name in ("", "extractor", "trained with", "here", "difference, std"):
        table.add_column(name, overflow="fold")
    for m, here in maker.versions.items():
        entry = predictor.description["dataset"]["modalities"][m]
        found = f"{differences[m]:.2g}" if m in differences else "no reference clip"
        versions = (format_versions(entry.get("versions", {})), format_versions(here))
        table.add_row(m, entry["extractor"], *versions, found)
    console.print(table)
    fit = max(differences.values(), default=0.0) <= LIMIT
    verdict = "can be used here" if fit else "would be given other features than in training; see docs/predict.md"
    console.print(f"{folder}: {verdict}", style=None if fit else "bold red", markup=False)
    return fit


def _decode(path: Path) -> tuple[MediaInfo, dict[str, str]]:
    """Return the headers, and what decoding the whole file gave: stream -> finding."""
    info = probe(path)
    readers = {
        "audio decoded": (lambda: f"{len(read_audio(path, SAMPLE_RATE)) / SAMPLE_RATE:.1f} s"),
        "video decoded": (lambda: f"{sum(1 for _ in read_frames(path, FRAMES_PER_SECOND)) / FRAMES_PER_SECOND:.1f} s"),
    }
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except MissingStreamError:
            found[name] = "no such stream"
    return info, found


def _extractors(model: Path) -> dict[str, ExtractorSettings]:
    """Return the checkpoint's extractors of audio and vision, out of the modalities that its network uses."""
    description = read_description(model)
    entries: Mapping[str, Any] = description["dataset"]["modalities"]
    used = [m for m in ("audio", "vision") if m in description["train"]["modalities"]]
    metas = {m: load_extractor(m, entries[m])[1] for m in used}
    return {m: (meta.extractor, meta.options) for m, meta in metas.items()}


def _header(info: MediaInfo) -> dict[str, str]:
    def shown(value: object, unit: str) -> str:
        return "unknown" if value is None else f"{value:g} {unit}" if isinstance(value, float) else f"{value} {unit}"

    rows = {"container": info.container, "duration": shown(info.duration, "s")}
    if info.has_video:
        size = f"{info.width} x {info.height} pixels"
        rows["video"] = f"{info.video_codec}, {size}, {shown(info.fps, 'frames per second')}"
    if info.has_audio:
        rows["audio"] = f"{info.audio_codec}, {shown(info.sample_rate, 'Hz')}"
    return rows


def _findings(features: MediaFeatures) -> dict[str, str]:
    """Return what the extractors found: modality -> finding."""
    usable = {"audio": "voiced", "vision": "with a face"}

    def describe(modality: str, sequence: FeatureSequence) -> str:
        if not len(sequence):
            return "no such stream"
        return f"{len(sequence)} steps, {sequence.valid.mean():.0%} {usable[modality]}"

    found = {f"{m} features": describe(m, sequence) for m, sequence in features.sequences.items()}
    return found | {f"{m} features": f"failed: {reason}" for m, reason in features.failures.items()}
