"""The extractor registry: built-in extractors and those of installed packages, by name."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from extractors.base import Extractor

ENTRY_POINT_GROUP = "dashfusion.extractors"

BUILT_IN = {
    "text.transformer": "extractors.text.transformer:TransformerText",
    "text.words": "extractors.text.words:WordsText",
    "audio.librosa": "extractors.audio.librosa:LibrosaAudio",
    "audio.opensmile": "extractors.audio.opensmile:OpenSmileAudio",
    "audio.sims_33": "extractors.audio.sims_33:Sims33Audio",
    "audio.transformer": "extractors.audio.transformer:TransformerAudio",
    "vision.face_landmarker": "extractors.vision.face_landmarker:FaceLandmarkerVision",
    "vision.transformer": "extractors.vision.transformer:TransformerVision",
}

REPLACED = {"vision.face_mesh": "vision.face_landmarker"}
"""Names of extractors that are gone -> the extractor to use instead."""


def available() -> dict[str, str]:
    """Return the registered extractors as name -> `module:attribute`, built in or from entry points."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)} | BUILT_IN


def create(name: str, options: Mapping[str, Any]) -> Extractor:
    """Construct the extractor registered as `name` with the keyword arguments `options`.

    Raises:
        ValueError: the name is not registered (the message lists those that are), or an option is unknown or invalid.
    """
    try:
        extractor: Extractor = find(name)(**options)
    except TypeError as error:
        raise ValueError(f"extractor {name!r}: {error}") from error
    return extractor


def find(name: str) -> Callable[..., Extractor]:
    """Return the class of the extractor registered as `name`.

    Raises:
        ValueError: the name is not registered; the message lists those that are.
    """
    import difflib
    import importlib

    known = available()
    if name in REPLACED and name not in known:
        modality, new = name.partition(".")[0], REPLACED[name]
        raise ValueError(
            f"extractor {name!r} was replaced by {new!r}, whose features are close but not the same: set "
            f"extract.{modality}.extractor to {new} in params.yaml, extract again, and train again"
        )
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no extractor is called {name!r}{hint} Known: {', '.join(sorted(known))}")
    module, _, attribute = known[name].partition(":")
    factory: Callable[..., Extractor] = getattr(importlib.import_module(module), attribute)
    return factory
