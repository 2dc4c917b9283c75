"""Resumable extraction of one modality, clip by clip.

Each clip's result is one file in a scratch folder, `<scratch>/<signature>/<key[:2]>/<key>.npz`, keyed by everything
that the extractor reads; `assemble` streams the results into the feature store. Tracebacks of failed clips are in
`<scratch>/tracebacks/<reference>.txt`. Work units can run in any process: they take paths and plain values.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from corpora.files import sha256_of, tag_scratch
from corpora.problems import Problem
from extractors.base import (
    ExtractionError,
    Extractor,
    FeatureSequence,
    MissingModalityError,
    Source,
    identity_of,
)
from extractors.execution import cache
from extractors.execution.cache import load_sequence, save_sequence, save_traceback, scratch_path
from extractors.registry import create
from extractors.store import FeatureMeta, FeatureWriter, StoreError, Summary, check_sequence
from media.container import MediaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from corpora.manifest import Clip
    from extractors.base import MediaCondition

Item = TypeVar("Item")
Result = TypeVar("Result")
FailureT = TypeVar("FailureT", bound=Exception)

logger = logging.getLogger(__name__)

BATCH_CLIPS = 32
"""Clips passed to an extractor with `batched` at a time. A killed work unit loses at most this many."""

CORRUPTED = ".corrupted-"
"""Name prefix of the folders in scratch with corrupted media; a killed process leaves its own behind."""

THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
"""Environment variables from which numeric libraries read their number of threads when they are loaded."""


@dataclass(frozen=True, slots=True)
class UnitReport:
    """Outcome of one work unit.

    Attributes:
        meta: Description of the extractor.
        extracted: Clips extracted now.
        reused: Clips with a result in scratch already.
        missing: Clips among both that lack the modality.
        problems: One row per failed clip.
        seconds: Total duration of the clips extracted now.
    """

    meta: FeatureMeta
    extracted: int
    reused: int
    missing: int
    problems: tuple[Problem, ...]
    seconds: float = 0.0


def work_units(clips: Sequence[Clip], size: int) -> list[list[Clip]]:
    """Split clips into units of at most `size` clips and similar total duration, each in the clips' order.

    Longest-processing-time scheduling: the longest clips are assigned first, each to the unit with the least total
    duration. With 50 to 200 clips per unit the cost of starting a unit is negligible.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}: a work unit holds at least 1 clip")
    if not clips:
        return []
    known = [clip.duration for clip in clips if clip.duration is not None]
    mean = sum(known) / len(known) if known else 1.0
    seconds = [mean if clip.duration is None else clip.duration for clip in clips]
    units: list[list[int]] = [[] for _ in range(math.ceil(len(clips) / size))]
    load = [0.0] * len(units)
    for index in sorted(range(len(clips)), key=lambda i: -seconds[i]):
        free = (u for u in range(len(units)) if len(units[u]) < size)
        unit = min(free, key=lambda u: (load[u], len(units[u])))
        units[unit].append(index)
        load[unit] += seconds[index]
    return [[clips[i] for i in sorted(unit)] for unit in units if unit]


def limit_threads(threads: int) -> None:
    """Limit the threads of this process's numeric libraries.

    Libraries that are loaded already are configured directly, the others by environment variables.
    """
    os.environ.update(dict.fromkeys(THREAD_LIMITS, str(threads)))
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@functools.lru_cache(maxsize=4)
def _cached_extractor(name: str, options: str) -> Extractor:
    return create(name, json.loads(options))


def shared_extractor(name: str, options: Mapping[str, Any]) -> tuple[Extractor, FeatureMeta]:
    """Return the extractor, which is built once per process, and the description of its features.

    Raises:
        ValueError: Unknown extractor or option.
    """
    extractor = _cached_extractor(name, json.dumps(dict(options), sort_keys=True))
    return extractor, feature_meta(extractor, name, options)


def feature_meta(extractor: Extractor, name: str, options: Mapping[str, Any]) -> FeatureMeta:
    """Return the description of the features of an extractor registered as `name` and built with `options`."""
    names, identity = tuple(extractor.feature_names), identity_of(extractor)
    versions = identity.library_versions() if identity else {}
    return FeatureMeta(extractor.modality, name, dict(options), extractor.signature, names, versions)


def describe(extractor_name: str, options: Mapping[str, Any]) -> FeatureMeta:
    """Return the description of an extractor's features; builds the extractor, once per process.

    Raises:
        ValueError: Unknown extractor or option.
    """
    return shared_extractor(extractor_name, options)[1]


def adopt_results(extractor_name: str, options: Mapping[str, Any], scratch: Path) -> None:
    """Take over the extractor's results in scratch that have an earlier signature, see `cache.adopt_results`.

    Raises:
        ValueError: Unknown extractor or option.
    """
    if identity := identity_of(shared_extractor(extractor_name, options)[0]):
        cache.adopt_results(scratch, identity)


def clips_per_call(extractor_name: str, options: Mapping[str, Any]) -> int:
    """Return how many clips to pass to a worker at a time: one, unless the extractor is faster with batches.

    Raises:
        ValueError: Unknown extractor or option.
    """
    return BATCH_CLIPS if getattr(shared_extractor(extractor_name, options)[0], "batched", False) else 1


def _missing_modality(meta: FeatureMeta) -> FeatureSequence:
    """Return a sequence with T = 0."""
    none, integers = np.empty(0, np.float32), np.empty(0, np.int32)
    tokens = (integers, integers) if meta.modality == "text" else (None, None)
    return FeatureSequence(np.empty((0, len(meta.feature_names)), np.float32), none, none, none.astype(bool), *tokens)


def source_of(clip: Clip, root: Path, modality: str) -> Source:
    """Return the extractor's input: no more than the key of `scratch_path` covers."""
    if modality == "text":
        return Source(clip.clip_id, None, clip.text, clip.language, clip.duration)
    return Source(clip.clip_id, root / clip.media if clip.media else None, "", clip.language, clip.duration)


def check_media(clip: Clip, root: Path) -> None:
    """Check that the media file is the one in the manifest; otherwise its result would be cached under a wrong key.

    Raises:
        MediaError: The file is missing, or has changed since the manifest was made.
    """
    if not clip.media:
        return
    if not (root / clip.media).is_file():
        raise MediaError(f"{root / clip.media}: no such file; restore it, or run the prepare stage again")
    found = sha256_of(root / clip.media)
    if clip.sha256 and found != clip.sha256:
        raise MediaError(
            f"{root / clip.media}: changed since the manifest was made (SHA-256 {clip.sha256[:12]}... then, "
            f"{found[:12]}... now); run the prepare stage again"
        )


def isolate_failures(
    process: Callable[[Sequence[Item]], Result], items: Sequence[Item], errors: type[FailureT]
) -> Iterator[tuple[Sequence[Item], Result | FailureT]]:
    """Process items together or, if that fails, one by one, so that only the items at fault fail.

    Args:
        process: Called with all items, then perhaps with each one; may repeat the work of a failed call.
        items: Items to process.
        errors: Exceptions that count as a failure of an item; others pass through.

    Yields:
        The items of each call that was not repeated, with its result or error.
    """
    try:
        result = process(items)
    except errors as error:
        if len(items) == 1:
            yield items, error
            return
        logger.warning("%r among %d clips, going through them one by one", error, len(items))
    else:
        yield items, result
        return
    for item in items:
        yield from isolate_failures(process, [item], errors)


def extract_all(extractor: Extractor, sources: Sequence[Source]) -> list[FeatureSequence | Exception]:
    """Return one result per source, even if the extractor raises or returns another number of results."""

    def extract(batch: Sequence[Source]) -> list[FeatureSequence | ExtractionError]:
        results = list(extractor.extract(batch))
        if len(results) != len(batch):
            raise RuntimeError(f"the extractor gave {len(results)} results for {len(batch)} clip(s)")
        return results

    results: list[FeatureSequence | Exception] = []
    for _, outcome in isolate_failures(extract, sources, Exception):
        results += [outcome] if isinstance(outcome, Exception) else outcome
    return results


def checked(result: FeatureSequence | Exception, meta: FeatureMeta) -> FeatureSequence | Exception:
    """Return valid features, with T = 0 for a missing modality, or the error."""
    if isinstance(result, MissingModalityError):
        return _missing_modality(meta)
    if isinstance(result, FeatureSequence):
        try:
            check_sequence(result, meta)
        except ExtractionError as error:
            return error
    return result


def _sequence_or_problem(
    clip: Clip, result: FeatureSequence | Exception, meta: FeatureMeta, key: str, scratch: Path
) -> FeatureSequence | Problem:
    """Return what to store for a result: a sequence for scratch, or a row for the problems table."""
    result = checked(result, meta)
    if isinstance(result, FeatureSequence):
        return result
    if not isinstance(result, (ExtractionError, MediaError)):
        logger.error("clip %s, %s: %r", clip.clip_id, meta.modality, result, exc_info=result)
    reference = save_traceback(result, clip, meta.signature, key, scratch)
    message = str(result) or repr(result)
    return Problem(clip.clip_id, "extract", meta.modality, type(result).__name__, message, reference)


def extract_unit(
    clips: Sequence[Clip],
    root: Path,
    extractor_name: str,
    options: Mapping[str, Any],
    scratch: Path,
    condition: MediaCondition | None = None,
) -> UnitReport:
    """Extract one modality of the clips into scratch, except for clips with a result there already.

    A clip without the modality gets an empty result. A clip that fails gets a problem and no result, so that the next
    run tries it again; it never stops the others.

    Args:
        clips: Clips of the unit.
        root: Folder that the clips' `media` are relative to.
        extractor_name: Registered name; the extractor is built once per process.
        options: The extractor's options.
        scratch: Scratch folder.
        condition: Corruption applied to the media first; None: none.

    Raises:
        ValueError: Unknown extractor or option.
        OSError: Scratch is not writable.
    """
    root, scratch = Path(root), Path(scratch)
    extractor, meta = shared_extractor(extractor_name, options)
    tag_scratch(scratch)
    # Reuse
    pending: list[tuple[Clip, Path]] = []
    missing = 0
    for clip in clips:
        path = scratch_path(scratch, meta, clip, root, condition)
        cached = load_sequence(path, meta)
        if cached is None:
            pending.append((clip, path))
        else:
            missing += not len(cached)
    # Extract
    problems: list[Problem] = []
    seconds = 0.0
    for batch in (pending[i : i + BATCH_CLIPS] for i in range(0, len(pending), BATCH_CLIPS)):
        with tempfile.TemporaryDirectory(prefix=CORRUPTED, dir=scratch) if condition else nullcontext("") as folder:
            prepare = functools.partial(
                _prepared_source, root=root, modality=meta.modality, condition=condition, folder=Path(folder)
            )
            for clip, path, result in _extract_batch(extractor, batch, prepare):
                outcome = _sequence_or_problem(clip, result, meta, path.stem, scratch)
                if isinstance(outcome, Problem):
                    problems.append(outcome)
                else:
                    save_sequence(path, outcome)
                    missing += not len(outcome)
                    seconds += clip.duration or 0.0
    extracted, reused = len(pending) - len(problems), len(clips) - len(pending)
    return UnitReport(meta, extracted, reused, missing, tuple(problems), seconds)


def _prepared_source(clip: Clip, root: Path, modality: str, condition: MediaCondition | None, folder: Path) -> Source:
    """Return the extractor's input after checking its media; corrupted media are written to `folder`.

    Raises:
        MediaError, ExtractionError: The clip's media are unusable, or have nothing to corrupt.
    """
    source = source_of(clip, root, modality)
    if source.media is None:
        return source
    check_media(clip, root)
    if condition is None:
        return source
    out = folder / hashlib.sha256(clip.clip_id.encode()).hexdigest()
    return replace(source, media=condition.write_media(source.media, clip.clip_id, out))


def _extract_batch(
    extractor: Extractor, batch: Sequence[tuple[Clip, Path]], prepare: Callable[[Clip], Source]
) -> Iterator[tuple[Clip, Path, FeatureSequence | Exception]]:
    ready = []
    for clip, path in batch:
        try:
            ready.append((clip, path, prepare(clip)))
        except OSError:  # a fault of the disk, not of the clip
            raise
        except Exception as error:  # becomes the clip's row in the problems table
            yield clip, path, error
    if ready:
        results = extract_all(extractor, [source for *_, source in ready])
        yield from ((clip, path, result) for (clip, path, _), result in zip(ready, results, strict=True))


def assemble(
    clips: Iterable[Clip],
    root: Path,
    meta: FeatureMeta,
    scratch: Path,
    out_folder: Path,
    problems: Sequence[Problem] = (),
    condition: MediaCondition | None = None,
) -> Summary:
    """Stream the clips' results from scratch into the feature store `out_folder`, in the order of `clips`.

    Args:
        clips: All clips of the manifest.
        root: Folder that the clips' `media` are relative to.
        meta: Description of the features, from the units' reports or from `describe`.
        scratch: Scratch folder.
        out_folder: Folder of the feature store.
        problems: Problems of the units; their clips are left out.
        condition: Corruption that was applied to the media.

    Raises:
        StoreError: A clip has neither a result nor a problem; the message names it.
    """
    failed = {problem.clip_id for problem in problems}
    rows = missing = steps = 0
    reference = cache.reference_path(Path(scratch), meta) if condition is None else None
    with FeatureWriter(out_folder, meta, reference=reference if reference and reference.is_file() else None) as writer:
        for clip in clips:
            if clip.clip_id in failed:
                continue
            path = scratch_path(Path(scratch), meta, clip, Path(root), condition)
            sequence = load_sequence(path, meta)
            if sequence is None:
                raise StoreError(
                    f"clip {clip.clip_id}: no {meta.modality} result at {path}; run the extract stage again, "
                    "only what is absent is extracted"
                )
            writer.write(clip.clip_id, sequence)
            rows, missing, steps = rows + 1, missing + (len(sequence) == 0), steps + len(sequence)
    return Summary(rows, missing, steps, len(failed))
