"""Audio and vision features of one media file outside any corpus, extracted in parallel. Shapes: N audio samples."""

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
from extractors.execution.units import checked, extract_all, shared_extractor, source_of
from extractors.transcripts.asr import SAMPLE_RATE
from media.audio import read_audio
from media.container import MediaError, decoding_seconds, probe

logger = logging.getLogger(__name__)

MEDIA_MODALITIES = ("audio", "vision")

ExtractorSettings = tuple[str, Mapping[str, Any]]
"""Registered name and options of an extractor."""

_extractor_locks = {m: threading.Lock() for m in MEDIA_MODALITIES}
"""Extractors are shared within a process and stateful, so each processes one video at a time."""


@dataclass(frozen=True, slots=True)
class MediaFeatures:
    """Features of one media file.

    Attributes:
        duration: Seconds, from the file's header; None if it does not say.
        sequences: By modality; T = 0 if the file has no such stream.
        failures: Modality -> why it could not be extracted.
        waveform: [N] mono audio for the speech recogniser; None if not needed or not present.
        seconds: Time spent on `decode` and `features`.
    """

    duration: float | None
    sequences: Mapping[str, FeatureSequence]
    failures: Mapping[str, str]
    waveform: np.ndarray | None
    seconds: Mapping[str, float]


def extract_media(
    media: Path, extractors: Mapping[str, ExtractorSettings], language: str, need_waveform: bool
) -> MediaFeatures:
    """Extract the modalities of one file in parallel threads.

    Args:
        media: Path of the file.
        extractors: Extractor of each modality to extract.
        language: ISO 639-1 code of the spoken language.
        need_waveform: Whether to decode the audio for speech recognition as well.

    Raises:
        MediaError: The file, or everything in it, is unusable.
    """
    if not media.is_file():
        kind = "a folder, not a media file" if media.is_dir() else "no such file"
        raise MediaError(f"{media}: {kind}; check the path")
    info = probe(media)
    clip = Clip(media.name, "", "test", language, str(media.absolute()), "", duration=_as_stored(info.duration))
    sequences: dict[str, FeatureSequence] = {}
    failures: dict[str, str] = {}
    seconds = dict.fromkeys(("decode", "features"), 0.0)
    with ThreadPoolExecutor(len(MEDIA_MODALITIES) + 1) as pool:
        extractions = {m: pool.submit(_extract, m, *settings, clip) for m, settings in extractors.items()}
        decoding = pool.submit(_read_waveform, media) if need_waveform and info.has_audio else None
        for m, extraction in extractions.items():
            result, decoded, spent = extraction.result()
            seconds["decode"] += decoded
            seconds["features"] += spent - decoded
            if isinstance(result, FeatureSequence):
                sequences[m] = result
            else:
                failures[m] = str(result) or repr(result)
        waveform = decoding.result() if decoding else None
    if failures and not any(map(len, sequences.values())):
        raise MediaError("; ".join(dict.fromkeys(failures.values())))
    return MediaFeatures(clip.duration, sequences, failures, waveform, seconds)


def _as_stored(duration: float | None) -> float | None:
    """Round a duration to the manifest's float32."""
    return None if duration is None else float(np.float32(duration))


def _extract(
    modality: str, name: str, options: Mapping[str, Any], clip: Clip
) -> tuple[FeatureSequence | Exception, float, float]:
    """Return features or an error, the seconds spent on decoding, and all seconds."""
    with _extractor_locks[modality]:
        extractor, meta = shared_extractor(name, options)
        began, before = time.perf_counter(), decoding_seconds()
        (result,) = extract_all(extractor, [source_of(clip, Path(), modality)])
        result = checked(result, meta)
        spent, decoded = time.perf_counter() - began, decoding_seconds() - before
    if isinstance(result, Exception) and not isinstance(result, (ExtractionError, MediaError)):
        logger.error("%s, %s: %r", clip.clip_id, modality, result, exc_info=result)
    return result, decoded, spent


def _read_waveform(media: Path) -> np.ndarray | None:
    try:
        return read_audio(media, SAMPLE_RATE)
    except (MediaError, ExtractionError):  # reported by the audio features as well
        return None
