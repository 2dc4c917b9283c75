"""Sound and picture of one media file that is in no corpus, looked at side by side. T steps, N samples of the sound."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpora.manifest import Clip
from extractors.base import ExtractionError, FeatureSequence
from extractors.execution.units import built, checked, extract_alone, source_of
from extractors.transcripts.asr import SAMPLE_RATE
from media.audio import read_audio
from media.container import MediaError, decoding_seconds, probe

logger = logging.getLogger(__name__)

MEDIA_MODALITIES = ("audio", "vision")

Settings = tuple[str, Mapping[str, Any]]
"""An extractor's registered name and its options."""

_busy = {m: threading.Lock() for m in MEDIA_MODALITIES}
"""An extractor is built once a process and keeps state: one video at a time."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found in one media file.

    Attributes:
        duration: seconds, as the header says.
        found: of audio and vision, T = 0 where the file has none.
        failures: modality -> why it could not be read.
        sound: [N] for the recogniser; None where it was not asked for or there is none.
        seconds: see `Made`.
    """

    duration: float | None
    found: Mapping[str, FeatureSequence]
    failures: Mapping[str, str]
    sound: np.ndarray | None
    seconds: Mapping[str, float]


def look(media: Path, extractors: Mapping[str, Settings], language: str, hear: bool) -> Looked:
    """Audio and vision of one file, side by side; in this process.

    Args:
        extractors: of those that are wanted.
        hear: give the sound as well.

    Raises:
        MediaError: the file cannot be used, or nothing in it can.
    """
    if not media.is_file():
        kind = "a folder, not a media file" if media.is_dir() else "no such file"
        raise MediaError(f"{media}: {kind}; check the path")
    info = probe(media)
    clip = Clip(media.name, "", "test", language, str(media.absolute()), "", duration=_as_stored(info.duration))
    found: dict[str, FeatureSequence] = {}
    failures: dict[str, str] = {}
    seconds = dict.fromkeys(("decode", "features"), 0.0)
    with ThreadPoolExecutor(len(MEDIA_MODALITIES) + 1) as pool:
        waiting = {m: pool.submit(_extract, m, *settings, clip) for m, settings in extractors.items()}
        sound = pool.submit(_hear, media) if hear and info.has_audio else None
        for m, extraction in waiting.items():
            result, decoded, spent = extraction.result()
            seconds["decode"] += decoded
            seconds["features"] += spent - decoded
            if isinstance(result, FeatureSequence):
                found[m] = result
            else:
                failures[m] = str(result) or repr(result)
        heard = sound.result() if sound else None
    if failures and not any(map(len, found.values())):
        raise MediaError("; ".join(dict.fromkeys(failures.values())))
    return Looked(clip.duration, found, failures, heard, seconds)


def _as_stored(duration: float | None) -> float | None:
    """As exact as the manifest keeps it."""
    return None if duration is None else float(np.float32(duration))


def _extract(
    modality: str, name: str, options: Mapping[str, Any], clip: Clip
) -> tuple[FeatureSequence | Exception, float, float]:
    """Features or an error, the seconds that went into decoding, and all seconds."""
    with _busy[modality]:
        extractor, meta = built(name, options)
        began, before = time.perf_counter(), decoding_seconds()
        result = checked(extract_alone(extractor, source_of(clip, Path(), modality)), meta)
        spent, decoded = time.perf_counter() - began, decoding_seconds() - before
    if isinstance(result, Exception) and not isinstance(result, (ExtractionError, MediaError)):
        logger.error("%s, %s: %r", clip.clip_id, modality, result, exc_info=result)
    return result, decoded, spent


def _hear(media: Path) -> np.ndarray | None:
    try:
        return read_audio(media, SAMPLE_RATE)
    except (MediaError, ExtractionError):  # which audio's features will tell of as well
        return None
