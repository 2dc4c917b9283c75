"""The scratch cache: one file a clip and extractor, keyed by everything that decides its content."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import traceback
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpora.files import atomic_file, sha256_of
from extractors.base import ExtractionError, FeatureSequence, MediaCondition

if TYPE_CHECKING:
    from collections.abc import Collection

    from corpora.manifest import Clip
    from extractors.store import FeatureMeta

logger = logging.getLogger(__name__)

CACHE_TAG = "CACHEDIR.TAG"
CACHE_TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Features of clips; safe to delete.\n"
"""Backups skip a folder with this file (https://bford.info/cachedir/), `prune` touches no other."""

TRACEBACKS = "tracebacks"


def scratch_path(
    scratch: Path, meta: FeatureMeta, clip: Clip, root: Path, condition: MediaCondition | None = None
) -> Path:
    """Where the clip's result lies in scratch: its key covers all that the extractor is shown.

    Text: transcript, language, duration. Audio and vision: the media file's content, language, duration, and where the
    media are corrupted, how, and the clip's id, on which that hangs. A clip without a hash in the manifest has its file
    hashed.

    Raises:
        ValueError: the extractor's signature cannot name a folder.
    """
    if Path(meta.signature).name != meta.signature:
        raise ValueError(f"extractor {meta.extractor}: signature {meta.signature!r} is no plain file name")
    if meta.modality == "text":
        content = clip.text
    elif clip.sha256 or not clip.media:
        content = clip.sha256
    else:
        media = root / clip.media
        content = sha256_of(media) if media.is_file() else "absent"
    shown = [content, clip.language, clip.duration]
    shown += [condition.signature, clip.clip_id] if condition is not None else []
    payload = json.dumps(shown)
    key = hashlib.sha256(payload.encode()).hexdigest()
    return scratch / meta.signature / key[:2] / f"{key}.npz"


def _save(path: Path, sequence: FeatureSequence) -> None:
    arrays = {name: getattr(sequence, name) for name in FeatureSequence.__dataclass_fields__}
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **{name: array for name, array in arrays.items() if array is not None})


def _load(path: Path) -> FeatureSequence | None:
    """The result in scratch; None where there is none, or only a damaged file, which is removed."""
    try:
        with np.load(path) as arrays:  # the zip container checks every array's CRC
            return FeatureSequence(**arrays)
    except FileNotFoundError:
        return None
    except (
        zipfile.BadZipFile,
        NotImplementedError,  # zipfile's word for a compression that it does not know: a header with wrong bytes
        ValueError,
        EOFError,
        TypeError,
        ExtractionError,
    ) as error:
        logger.warning("%s is damaged (%s) and will be made again", path, error)
        path.unlink()
        return None


def traceback_path(scratch: Path, reference: str) -> Path:
    """Where the full trace of a problem lies, by the reference in its row."""
    return scratch / TRACEBACKS / f"{reference}.txt"


def keep_traceback(error: Exception, clip: Clip, signature: str, key: str, scratch: Path) -> str:
    """Write the error's trace, with its causes and notes, into scratch: its reference, empty where it has no trace.

    The reference covers what failed and how, and nothing of the machine: neither folders nor line numbers, so that
    the same failures give the same problems table everywhere. The latest trace is the one that is kept.

    Args:
        signature, key: the names of the folder and of the file that the result would have had in scratch.
    """
    if error.__traceback__ is None and error.__cause__ is None:
        return ""
    payload = json.dumps([signature, key, clip.clip_id, type(error).__name__])
    reference = hashlib.sha256(payload.encode()).hexdigest()[:12]
    with atomic_file(traceback_path(scratch, reference)) as temporary:
        head = f"{clip.clip_id}, {signature}\n"
        temporary.write_text(head + "".join(traceback.format_exception(error)), encoding="utf-8")
    return reference


def tag_scratch(scratch: Path) -> None:
    """Mark a folder as one of ours, which backups skip and `prune` may clean."""
    if not (scratch / CACHE_TAG).exists():
        with atomic_file(scratch / CACHE_TAG) as temporary:
            temporary.write_text(CACHE_TAG_TEXT)


def prune(scratch: Path, keep: Collection[str]) -> tuple[int, int]:
    """Remove the results of all extractor signatures but those in `keep`: (folders removed, bytes freed).

    So are the tracebacks, but those whose reference is in `keep`.

    Raises:
        ValueError: the folder is not a scratch folder of ours.
    """
    scratch = Path(scratch)
    if not scratch.exists():
        return 0, 0
    if not (scratch / CACHE_TAG).is_file():
        raise ValueError(f"{scratch}: no {CACHE_TAG} here, so this is no scratch folder; nothing was removed")
    old = sorted(path for path in scratch.iterdir() if path.is_dir() and path.name not in {*keep, TRACEBACKS})
    traces = [path for path in (scratch / TRACEBACKS).glob("*.txt") if path.stem not in keep]
    results = [path for folder in old for path in folder.rglob("*") if path.is_file()]
    freed = sum(path.stat().st_size for path in (*results, *traces))
    for folder in old:
        shutil.rmtree(folder)
    for path in traces:
        path.unlink()
    return len(old), freed
