"""Extraction of one modality, clip by clip, so that a run that was stopped goes on where it was.

Each clip's result is one file in a scratch folder, `<scratch>/<signature>/<key[:2]>/<key>.npz`, keyed by what
the extractor was shown; `assemble` then streams them into the feature store. What a clip failed with lies beside
them, `<scratch>/tracebacks/<reference>.txt`. Work units run in any process: they take paths and plain values.
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
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import sha256_of
from corpora.problems import Problem
from extractors.base import ExtractionError, Extractor, FeatureSequence, MissingModalityError, Source
from extractors.execution.cache import TRACEBACKS, _load, _save, keep_traceback, scratch_path, tag_scratch
from extractors.registry import create
from extractors.store import FeatureMeta, FeatureWriter, StoreError, check_sequence
from media.container import MediaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from corpora.manifest import Clip
    from extractors.base import MediaCondition

logger = logging.getLogger(__name__)

BATCH_CLIPS = 32
"""Clips that an extractor which is `batched` is given at a time, and the most that a kill can cost a work unit."""

CORRUPTED = ".corrupted-"
"""How folders in scratch begin that hold corrupted media; a killed process leaves its own behind."""

THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
"""Where the numeric libraries look for the number of their threads, each as it is loaded."""


class TooManyFailuresError(RuntimeError):
    """More clips failed than the parameters allow. The message sums up what failed and what to do."""


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What became of one work unit.

    Attributes:
        meta: of the extractor that ran.
        extracted: clips that were extracted now.
        reused: clips whose result lay in scratch already.
        missing: of both, those that have no such modality.
        problems: one row for each clip that failed.
        seconds: of media that were extracted now, by the clips' durations.
    """

    meta: FeatureMeta
    extracted: int
    reused: int
    missing: int
    problems: tuple[Problem, ...]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """What a feature store holds: rows (`missing` of them with T = 0), steps in all, clips that failed."""

    rows: int
    missing: int
    steps: int
    failed: int


def work_units(clips: Sequence[Clip], size: int) -> list[list[Clip]]:
    """Split clips into units of at most `size`, of about the same duration, each in the clips' order.

    The longest clips are dealt out first, each to the unit with the least to do. 50 to 200 clips a unit keep
    the cost of starting one small beside its work.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}: a work unit holds at least 1 clip")
    if not clips:
        return []
    known = [clip.duration for clip in clips if clip.duration is not None]
    usual = sum(known) / len(known) if known else 1.0
    seconds = [usual if clip.duration is None else clip.duration for clip in clips]
    units: list[list[int]] = [[] for _ in range(math.ceil(len(clips) / size))]
    load = [0.0] * len(units)
    for index in sorted(range(len(clips)), key=lambda i: -seconds[i]):
        free = (u for u in range(len(units)) if len(units[u]) < size)
        unit = min(free, key=lambda u: (load[u], len(units[u])))
        units[unit].append(index)
        load[unit] += seconds[index]
    return [[clips[i] for i in sorted(unit)] for unit in units if unit]


def limit_threads(threads: int) -> None:
    """Let this process's numeric libraries use so many threads. The initializer of a worker process.

    Libraries that are loaded already are told, the others find it in the environment.
    """
    os.environ.update(dict.fromkeys(THREAD_LIMITS, str(threads)))
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@functools.lru_cache(maxsize=4)
def _built(name: str, options: str) -> Extractor:
    return create(name, json.loads(options))


def built(name: str, options: Mapping[str, Any]) -> tuple[Extractor, FeatureMeta]:
    """The extractor, built once a process and shared, and what a store made with it says of itself.

    Raises:
        ValueError: no such extractor or option.
    """
    extractor = _built(name, json.dumps(dict(options), sort_keys=True))
    return extractor, meta_of(extractor, name, options)


def meta_of(extractor: Extractor, name: str, options: Mapping[str, Any]) -> FeatureMeta:
    """What a store made with the extractor, called `name` and built with `options`, says of itself."""
    names = tuple(extractor.feature_names)
    return FeatureMeta(extractor.modality, name, dict(options), extractor.signature, names)


def describe(extractor_name: str, options: Mapping[str, Any]) -> FeatureMeta:
    """What a store made with this extractor says of itself; the extractor is built once a process.

    Raises:
        ValueError: no such extractor or option.
    """
    return built(extractor_name, options)[1]


def clips_at_a_time(extractor_name: str, options: Mapping[str, Any]) -> int:
    """How many clips the extractor should be given: one, so that a kill costs no more, unless it gains from several.

    Raises:
        ValueError: no such extractor or option.
    """
    return BATCH_CLIPS if getattr(built(extractor_name, options)[0], "batched", False) else 1


def _empty(meta: FeatureMeta) -> FeatureSequence:
    """T = 0: the clip has no such modality."""
    none, integers = np.empty(0, np.float32), np.empty(0, np.int32)
    tokens = (integers, integers) if meta.modality == "text" else (None, None)
    return FeatureSequence(np.empty((0, len(meta.feature_names)), np.float32), none, none, none.astype(bool), *tokens)


def source_of(clip: Clip, root: Path, modality: str) -> Source:
    """What the extractor is shown. It sees no more than `scratch_path`'s key covers."""
    if modality == "text":
        return Source(clip.clip_id, None, clip.text, clip.language, clip.duration)
    return Source(clip.clip_id, root / clip.media if clip.media else None, "", clip.language, clip.duration)


def check_media(clip: Clip, root: Path) -> None:
    """Refuse a file that is not the one in the manifest: what comes of it would be kept under a wrong key.

    Raises:
        MediaError: no such file, or another one than when the manifest was made.
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


def extract_alone(extractor: Extractor, source: Source) -> FeatureSequence | Exception:
    """What the extractor makes of one clip, or raises; an error where it gives another number of results."""
    try:
        results = list(extractor.extract([source]))
        if len(results) != 1:
            raise RuntimeError(f"the extractor gave {len(results)} results for one clip")
        return results[0]
    except Exception as error:  # becomes the clip's row in the problems table
        return error


def extract_all(extractor: Extractor, sources: Sequence[Source]) -> list[FeatureSequence | Exception]:
    """One result a source, whatever the extractor does.

    Where it raises instead of yielding the error, or gives another number of results, nothing tells which
    clip they belong to: then the clips go through one by one, and only the one at fault fails.
    """
    try:
        results = list(extractor.extract(sources))
    except Exception as error:  # raised again, and then reported, for the clip at fault
        logger.warning("%r among %d clips, going through them one by one", error, len(sources))
    else:
        if len(results) == len(sources):
            return results
        logger.warning("%d results for %d clips, going through them one by one", len(results), len(sources))
    return [extract_alone(extractor, source) for source in sources]


def checked(result: FeatureSequence | Exception, meta: FeatureMeta) -> FeatureSequence | Exception:
    """The clip's features, an empty sequence where it has no such modality; or what is wrong."""
    if isinstance(result, MissingModalityError):
        return _empty(meta)
    if isinstance(result, FeatureSequence):
        try:
            check_sequence(result, meta)
        except ExtractionError as error:
            return error
    return result


def _settle(
    clip: Clip, result: FeatureSequence | Exception, meta: FeatureMeta, key: str, scratch: Path
) -> FeatureSequence | Problem:
    """What goes into scratch for a result, or into the problems table."""
    result = checked(result, meta)
    if isinstance(result, FeatureSequence):
        return result
    if not isinstance(result, (ExtractionError, MediaError)):
        logger.error("clip %s, %s: %r", clip.clip_id, meta.modality, result, exc_info=result)
    reference = keep_traceback(result, clip, meta.signature, key, scratch)
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
    """Extract one modality of the clips into scratch, except where scratch has the result already.

    A clip without the modality gets an empty result. A clip that fails gets a problem and no result, so that
    the next run tries it again; it never stops the others.

    Args:
        root: the folder that the clips' `media` start from.
        extractor_name, options: as in the parameters; the extractor is built once a process.
        condition: how the media are corrupted before the extractor sees them; None: not at all.

    Raises:
        ValueError: no such extractor or option.
        OSError: scratch cannot be written.
    """
    root, scratch = Path(root), Path(scratch)
    extractor, meta = built(extractor_name, options)
    tag_scratch(scratch)
    pending: list[tuple[Clip, Path]] = []
    missing = 0
    for clip in clips:
        path = scratch_path(scratch, meta, clip, root, condition)
        known = _load(path)
        if known is None:
            pending.append((clip, path))
        else:
            missing += not len(known)
    problems: list[Problem] = []
    seconds = 0.0
    for batch in (pending[i : i + BATCH_CLIPS] for i in range(0, len(pending), BATCH_CLIPS)):
        with tempfile.TemporaryDirectory(prefix=CORRUPTED, dir=scratch) if condition else nullcontext("") as folder:
            show = functools.partial(_show, root=root, modality=meta.modality, condition=condition, folder=Path(folder))
            for clip, path, result in _extract_batch(extractor, batch, show):
                settled = _settle(clip, result, meta, path.stem, scratch)
                if isinstance(settled, Problem):
                    problems.append(settled)
                else:
                    _save(path, settled)
                    missing += not len(settled)
                    seconds += clip.duration or 0.0
    extracted, reused = len(pending) - len(problems), len(clips) - len(pending)
    return UnitReport(meta, extracted, reused, missing, tuple(problems), seconds)


def _show(clip: Clip, root: Path, modality: str, condition: MediaCondition | None, folder: Path) -> Source:
    """What the extractor is shown; corrupted media are written to `folder`.

    Raises:
        MediaError, ExtractionError: the clip's media cannot be used, or have nothing to corrupt.
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
    extractor: Extractor, batch: Sequence[tuple[Clip, Path]], show: Callable[[Clip], Source]
) -> Iterator[tuple[Clip, Path, FeatureSequence | Exception]]:
    fit = []
    for clip, path in batch:
        try:
            fit.append((clip, path, show(clip)))
        except OSError:  # of the disk, not of the clip
            raise
        except Exception as error:  # becomes the clip's row in the problems table
            yield clip, path, error
    if fit:
        results = extract_all(extractor, [source for *_, source in fit])
        yield from ((clip, path, result) for (clip, path, _), result in zip(fit, results, strict=True))


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
        meta: from the units' reports, or from `describe`.
        problems: of the units; their clips get no row.
        condition: as the units were given.

    Raises:
        StoreError: a clip has neither a result nor a problem.
    """
    failed = {problem.clip_id for problem in problems}
    rows = missing = steps = 0
    with FeatureWriter(out_folder, meta) as writer:
        for clip in clips:
            if clip.clip_id in failed:
                continue
            path = scratch_path(Path(scratch), meta, clip, Path(root), condition)
            sequence = _load(path)
            if sequence is None:
                raise StoreError(
                    f"clip {clip.clip_id}: no {meta.modality} result at {path}; run the extract stage again, "
                    "only what is absent is extracted"
                )
            writer.write(clip.clip_id, sequence)
            rows, missing, steps = rows + 1, missing + (len(sequence) == 0), steps + len(sequence)
    return Summary(rows, missing, steps, len(failed))


def check_failures(
    problems: Sequence[Problem], total: int, max_failed_fraction: float, table: Path, scratch: Path
) -> None:
    """Stop where more than `max_failed_fraction` of `total` clips failed.

    Args:
        table, scratch: where the problems and their tracebacks were written, for the message.

    Raises:
        TooManyFailuresError: with the counts by error, the first clips, and what to do.
    """
    failed = len({problem.clip_id for problem in problems})
    if failed <= max_failed_fraction * total:
        return
    counts = ", ".join(f"{error} {count}" for error, count in Counter(p.error for p in problems).most_common())
    first = "\n".join(f"  {p.clip_id} ({p.modality}): {p.error}: {p.message}" for p in problems[:5])
    raise TooManyFailuresError(
        f"{failed} of {total} clips failed, {failed / total:.1%}; max_failed_fraction allows "
        f"{max_failed_fraction:.1%}.\nBy error: {counts}\nThe first:\n{first}\n"
        f"All of them are in {table}; its column `traceback` names the files in {scratch / TRACEBACKS}, one a trace. "
        "Repair or remove these clips and run the stage again (what was extracted is kept), or raise "
        "extract.max_failed_fraction."
    )
