"""What an extractor takes and gives, and the registry that finds one by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

ENTRY_POINT_GROUP = "dashfusion.extractors"

BUILT_IN = {
    "text.transformer": "extractors.text:TransformerText",
    "text.words": "extractors.text_words:WordsText",
    "audio.librosa": "extractors.audio:LibrosaAudio",
    "audio.opensmile": "extractors.audio_opensmile:OpenSmileAudio",
    "audio.transformer": "extractors.audio_transformer:TransformerAudio",
    "vision.face_mesh": "extractors.vision:FaceMeshVision",
    "vision.face_landmarker": "extractors.face_landmarker:FaceLandmarkerVision",
    "vision.transformer": "extractors.vision_transformer:TransformerVision",
}


class ExtractionError(Exception):
    """A clip's modality cannot be extracted. The message names what was found and what to do."""


class MissingModality(ExtractionError):
    """The clip simply has no such modality: no audio stream, no video stream, an empty transcript.

    Not a failure: the clip keeps a row with T = 0, and it does not count against `max_failed_fraction`.
    """


@dataclass(frozen=True, slots=True)
class Source:
    """What an extractor may look at: one clip's media file and transcript."""

    clip_id: str
    media: Path | None
    text: str
    language: str
    duration: float | None


@dataclass(frozen=True, slots=True)
class FeatureSequence:
    """Features of one modality of one clip.

    Attributes:
        values: [T, D] float32, finite; T = 0 means that the modality is missing.
        start, end: [T] float32, seconds from the clip's start, half-open.
        valid: [T] bool; False where measured but not usable (no face in the frame, unvoiced).
        token_ids: [T] int32, text only.
        word_index: [T] int32, text only: index of the transcript's word, -1 for special tokens.

    Raises:
        ExtractionError: shapes disagree, or a value is not finite (the message names the first one).
    """

    values: np.ndarray
    start: np.ndarray
    end: np.ndarray
    valid: np.ndarray
    token_ids: np.ndarray | None = None
    word_index: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ExtractionError(f"values must be [T, D], found shape {self.values.shape}")
        steps = len(self.values)
        for name in ("start", "end", "valid", "token_ids", "word_index"):
            array = getattr(self, name)
            if array is not None and array.shape != (steps,):
                raise ExtractionError(f"{name} must be [{steps}] like values, found shape {array.shape}")
        finite = np.isfinite(self.values)
        if not finite.all():
            bad = np.argwhere(~finite)
            step, dim = bad[0]
            raise ExtractionError(
                f"{len(bad)} values are NaN or infinite, the first at step {step} "
                f"({self.start[step]:.2f} s), feature {dim}"
            )

    def __len__(self) -> int:
        return len(self.values)


@runtime_checkable
class Extractor(Protocol):
    """One modality's features from clips.

    Attributes:
        modality: text, audio or vision.
        feature_names: D names, in the order of the values' columns.
        signature: changes whenever the output could: name, version, options, and what the weights are.

    One that is faster with several clips at a time says so by an attribute `batched`; the others get them one by one.
    """

    modality: str
    feature_names: tuple[str, ...]
    signature: str

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order; a clip that fails yields its error and never stops the others."""
        ...


def make_signature(name: str, version: int, options: Mapping[str, Any], weights: str = "") -> str:
    """`<name>-v<version>-<12 hex digits>` over everything that the output depends on.

    `version` is raised by hand when an extractor's code changes its output; `weights` identifies model files
    (a hash, or a library version that carries them).
    """
    payload = json.dumps([name, version, dict(options), weights], sort_keys=True, default=str)
    return f"{name}-v{version}-{hashlib.sha256(payload.encode()).hexdigest()[:12]}"


def available() -> dict[str, str]:
    """Registered extractors: name -> `module:attribute`, ours and those of installed packages."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)} | BUILT_IN


def create(name: str, options: Mapping[str, Any]) -> Extractor:
    """Build the extractor called `name` with keyword `options`.

    Raises:
        ValueError: no such extractor, or an option that it does not take; the message lists what there is.
    """
    import difflib
    import importlib

    known = available()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no extractor is called {name!r}{hint} Known: {', '.join(sorted(known))}")
    module, _, attribute = known[name].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    try:
        return factory(**options)
    except TypeError as error:
        raise ValueError(f"extractor {name!r}: {error}") from error
