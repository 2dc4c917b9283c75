"""Scratch cache: one file per clip and extractor, keyed by everything that determines its content."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpora.files import CACHE_TAG, atomic_file, sha256_of
from extractors.base import FeatureSequence, MediaCondition
from extractors.store import check_sequence

if TYPE_CHECKING:
    from collections.abc import Collection

    from corpora.manifest import Clip
    from extractors.base import Identity
    from extractors.store import FeatureMeta

logger = logging.getLogger(__name__)

TRACEBACKS = "tracebacks"
REFERENCE = "reference"
"""Folder in scratch with features of the reference clip."""


def scratch_path(
    scratch: Path, meta: FeatureMeta, clip: Clip, root: Path, condition: MediaCondition | None = None
) -> Path:
    """Return the scratch path of a clip's result. The key covers everything that the extractor reads.

    Text: transcript, language and duration. Audio and vision: content of the media file, language and duration; for
    corrupted media also the condition and the clip's id, which seeds it. A media file without a hash in the manifest is
    hashed here.

    Raises:
        ValueError: The extractor's signature is not a plain file name.
    """
    if Path(meta.signature).name != meta.signature:
        raise ValueError(f"extractor {meta.extractor}: signature {meta.signature!r} is not a plain file name")
    if meta.modality == "text":
        content = clip.text
    elif clip.sha256 or not clip.media:
        content = clip.sha256
    else:
        media = root / clip.media
        content = sha256_of(media) if media.is_file() else "absent"
    inputs = [content, clip.language, clip.duration]
    inputs += [condition.signature, clip.clip_id] if condition is not None else []
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    return scratch / meta.signature / key[:2] / f"{key}.npz"


def save_sequence(path: Path, sequence: FeatureSequence) -> None:
    """Write a result into scratch as .npz."""
    arrays = {name: getattr(sequence, name) for name in FeatureSequence.__dataclass_fields__}
    with atomic_file(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **{name: array for name, array in arrays.items() if array is not None})


def load_sequence(path: Path, meta: FeatureMeta) -> FeatureSequence | None:
    """Read a result from scratch; None if there is none, or only a damaged file, which is removed."""
    try:
        with np.load(path) as arrays:  # zipfile checks every array's CRC
            sequence = FeatureSequence(**arrays)
        check_sequence(sequence, meta)  # whether an array is missing
        return sequence
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes raise nearly anything, such as "File is encrypted"
        logger.warning("%s is damaged (%s) and will be extracted again", path, error)
        path.unlink(missing_ok=True)
        return None


def adopt_results(scratch: Path, identity: Identity) -> None:
    """Move results with an earlier signature of the same extractor into its folder, the newest first.

    Earlier signatures covered the version of a library, and changed with each of its releases.
    """
    scratch = Path(scratch)
    folders = [path for path in scratch.glob(f"{identity.name}-v*") if path.name in identity.earlier_signatures]
    target = scratch / identity.signature
    for folder in sorted(folders, key=lambda path: -path.stat().st_mtime):
        logger.info("%s was made with %s and is reused", folder, identity.earlier_signatures[folder.name])
        if not target.exists():
            folder.rename(target)
            continue
        for path in folder.glob("*/*"):
            adopted = target / path.relative_to(folder)
            if not adopted.exists():
                adopted.parent.mkdir(exist_ok=True)
                path.rename(adopted)
        shutil.rmtree(folder)


def reference_path(scratch: Path, meta: FeatureMeta) -> Path | None:
    """Return the file in scratch with the extractor's features of the clip, as its libraries' versions make them.

    None without recorded versions, by which the features could differ.
    """
    if not meta.versions:
        return None
    versions = "-".join(f"{name}{version}" for name, version in sorted(meta.versions.items()))
    return Path(scratch) / REFERENCE / f"{meta.signature}-{versions}.safetensors"


def traceback_path(scratch: Path, reference: str) -> Path:
    """Return the file with the traceback of a problem, given the reference in its row."""
    return scratch / TRACEBACKS / f"{reference}.txt"


def save_traceback(error: Exception, clip: Clip, signature: str, key: str, scratch: Path) -> str:
    """Write the error's traceback, with its causes and notes, into scratch and return a reference to it.

    The reference depends on what failed and how, not on folders or line numbers, so that the same failures give the
    same problems table on every machine. A later traceback with the same reference replaces the earlier one.

    Args:
        error: Error of the clip.
        clip: The clip that failed.
        signature: Folder name of the clip's result in scratch.
        key: File name of the clip's result in scratch, without suffix.
        scratch: Scratch folder.

    Returns:
        The reference; empty if the error was never raised and so has no traceback.
    """
    if error.__traceback__ is None and error.__cause__ is None:
        return ""
    payload = json.dumps([signature, key, clip.clip_id, type(error).__name__])
    reference = hashlib.sha256(payload.encode()).hexdigest()[:12]
    with atomic_file(traceback_path(scratch, reference)) as temporary:
        head = f"{clip.clip_id}, {signature}\n"
        temporary.write_text(head + "".join(traceback.format_exception(error)), encoding="utf-8")
    return reference


def prune(scratch: Path, keep: Collection[str]) -> tuple[int, int]:
    """Remove the results of all extractor signatures, and all tracebacks, that are not in `keep`.

    Args:
        scratch: Scratch folder.
        keep: Extractor signatures and traceback references.

    Returns:
        Number of folders removed and bytes freed.

    Raises:
        ValueError: The folder is not marked as scratch.
    """
    scratch = Path(scratch)
    if not scratch.exists():
        return 0, 0
    if not (scratch / CACHE_TAG).is_file():
        raise ValueError(f"{scratch}: no {CACHE_TAG} here, so this is not a scratch folder; nothing was removed")
    old = sorted(
        path for path in scratch.iterdir() if path.is_dir() and path.name not in {*keep, TRACEBACKS, REFERENCE}
    )
    tracebacks = [path for path in (scratch / TRACEBACKS).glob("*.txt") if path.stem not in keep]
    results = [path for folder in old for path in folder.rglob("*") if path.is_file()]
    freed = sum(path.stat().st_size for path in (*results, *tracebacks))
    for folder in old:
        shutil.rmtree(folder)
    for path in tracebacks:
        path.unlink()
    return len(old), freed
