"""Features of a generated clip of a second, by which an environment is compared with that of a training.

Extraction computes them with the corpus's features, and they go with the features into dataset and checkpoint: one
file of safetensors a modality, with the clip itself. So an extractor can be run on the same clip elsewhere and later,
with other versions of its libraries. `clip.mp4` and `clip.txt` are package data: an avatar of the demo corpus that says
the first sentence of `clip.txt`.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import atomic_file
from extractors.base import FeatureSequence, Source
from extractors.execution.cache import reference_path
from extractors.execution.units import checked, extract_all, shared_extractor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extractors.base import Extractor
    from extractors.store import FeatureMeta

logger = logging.getLogger(__name__)

LANGUAGE = "en"
_PACKAGE = Path(__file__).parent


def save_reference(extractor_name: str, options: Mapping[str, Any], scratch: Path) -> None:
    """Extract the clip into scratch, unless it was before. A failure is logged: it must not stop an extraction."""
    from safetensors.numpy import save_file

    extractor, meta = shared_extractor(extractor_name, options)
    path = reference_path(scratch, meta)
    if path is None or path.is_file():
        return
    text, clip = (_PACKAGE / "clip.txt").read_text(encoding="utf-8"), (_PACKAGE / "clip.mp4").read_bytes()
    result = _extract(extractor, meta, text, clip)
    if isinstance(result, Exception):
        logger.warning("%s fails on the reference clip: %s", extractor_name, result)
        return
    content = text.encode() if meta.modality == "text" else clip
    values = np.ascontiguousarray(result.values)  # save_file ignores strides
    with atomic_file(path) as temporary:
        save_file({"values": values, "clip": np.frombuffer(content, np.uint8)}, temporary)


def reproduce_reference(extractor_name: str, options: Mapping[str, Any], path: Path) -> np.ndarray:
    """Return the features [T, D] that the extractor computes here of the clip in `path`, a file of `save_reference`.

    Raises:
        ValueError: The file is damaged, or the extractor fails on the clip.
    """
    return reproduce_with(*shared_extractor(extractor_name, options), path)


def reproduce_with(extractor: Extractor, meta: FeatureMeta, path: Path) -> np.ndarray:
    """Return what `reproduce_reference` does, by this extractor."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        content = load_file(path)["clip"].tobytes()
        text = content.decode() if meta.modality == "text" else ""
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); copy the checkpoint again") from error
    result = _extract(extractor, meta, text, content)
    if isinstance(result, Exception):
        raise ValueError(f"{meta.extractor} fails on the reference clip of {path}: {result}") from result
    return result.values


def _extract(extractor: Extractor, meta: FeatureMeta, text: str, clip: bytes) -> FeatureSequence | Exception:
    with tempfile.TemporaryDirectory() as folder:
        media = None
        if meta.modality != "text":
            text, media = "", Path(folder) / "clip.mp4"
            media.write_bytes(clip)
        (result,) = extract_all(extractor, [Source("reference clip", media, text, LANGUAGE, None)])
    return checked(result, meta)
