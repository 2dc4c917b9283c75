"""The transcribe stage: a transcript with word times for each clip.

Texts come from the corpus or a speech recogniser, word times from the corpus, a forced aligner or the recogniser.
A model's result for a clip is cached in extraction's scratch folder as `<scratch>/<signature>/<key[:2]>/<key>.json`;
the key covers the media file's content, the language and the words to align. W words of a clip; times are seconds from
the clip's start.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from corpora.files import atomic_file, sha256_of, tag_scratch
from corpora.manifest import Clip, Manifest, read_manifest
from corpora.problems import Problem
from extractors.base import ExtractionError, Identity
from extractors.execution.cache import adopt_results, save_traceback
from extractors.execution.units import check_media, isolate_failures
from extractors.execution.workers import Worker, WorkerLostError
from extractors.transcripts.asr import SAMPLE_RATE, Recogniser, Speech
from extractors.transcripts.forced_alignment import CtcAligner
from extractors.transcripts.table import PROPORTIONAL, Transcript, write_transcripts
from extractors.transcripts.tiny_whisper import TinyWhisper, create_recogniser
from extractors.transcripts.word_timings import read_word_files
from extractors.transcripts.words import Word, match_words, split_words
from media.audio import read_audio
from media.container import MediaError, MissingStreamError

logger = logging.getLogger(__name__)

WARNINGS = ("OtherWords", "NotAligned")
"""Problems that are not failures: the clip keeps its transcript, and another method times it."""

Kind = Literal["asr", "ctc"]

Progress = Callable[[str, int, int], None]
"""Called with the current task, the clips done so far and their total."""


@dataclass(frozen=True, slots=True)
class TranscribeConfig:
    """Sources of transcripts and word times besides the corpus's own transcripts.

    Attributes:
        model: speech recogniser for clips without a transcript: tiny, a folder or a hub id; None leaves them without
            text.
        word_times: word times of the corpus: a CSV file, a folder of TextGrids or a .csd file.
        segments: for a .csd of word times, the .csd with the clips' starts and ends in their videos.
        aligner: CTC model that times words without times in `word_times`, a folder or a hub id.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: str | None = None
    word_times: str | None = None
    segments: str | None = None
    aligner: str | None = None

    def __post_init__(self) -> None:
        for option in fields(self):
            if getattr(self, option.name) == "":
                raise ValueError(f"transcribe.{option.name} is empty: give a path or an id, or null for none")
        if self.segments is not None and self.word_times is None:
            raise ValueError("transcribe.segments belongs to a .csd of words: name it as transcribe.word_times")


@dataclass(frozen=True, slots=True)
class TranscribeSummary:
    """Summary of a transcribe run.

    Attributes:
        texts: source of the text -> clips; `none` for those without text.
        methods: timing method -> clips with text; `proportional` for those that `align` will time.
        processed: clips that a model processed in this run; cached results do not count.
        problems: clips that failed, and `WARNINGS`.
    """

    texts: Mapping[str, int]
    methods: Mapping[str, int]
    processed: int
    problems: tuple[Problem, ...]

    @property
    def failures(self) -> list[Problem]:
        """Problems other than `WARNINGS`."""
        return [problem for problem in self.problems if problem.error not in WARNINGS]


@dataclass(slots=True)
class _ModelResults:
    """Results of a model.

    Attributes:
        speech: result by clip id, for the clips that succeeded.
        problems: one for each clip that failed.
        processed: clips that were processed in this run, not cached.
        signature: the model's signature; empty without a model or clips.
    """

    speech: dict[str, Speech] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    processed: int = 0
    signature: str = ""


def transcribe(
    manifest_path: Path,
    out: Path,
    config: TranscribeConfig,
    scratch: Path,
    clip_timeout: float,
    progress: Progress = lambda task, done, total: None,
    fresh: bool = False,
) -> TranscribeSummary:
    """Write the transcripts of a manifest's clips, in its order.

    A clip keeps the corpus's transcript; without one, it gets the recogniser's. Its word times are the corpus's, else
    the forced aligner's, else the recogniser's own, whichever first has the words of the transcript. A clip without
    any stays without word times.

    Args:
        manifest_path: the corpus's manifest.
        out: the table to write, see `write_transcripts`.
        config: sources of transcripts and word times.
        scratch: extraction's scratch folder, for cached results.
        clip_timeout: seconds per call of a model, which processes one clip or one batch. After that its process is
            killed; the clips of a batch are tried one by one, and a single clip becomes a problem.
        progress: called after each batch.
        fresh: process clips with a cached result again.

    Raises:
        FileNotFoundError: no manifest, or no word times where `config` says.
        ValueError: unreadable word times, or an unavailable or unsuitable model.
        OSError: scratch cannot be written.
    """
    manifest = read_manifest(manifest_path)
    files = _read_files(config, manifest.clips)
    # Recognise clips without a transcript
    untranscribed = [clip for clip in manifest.clips if not clip.text.strip() and clip.media]
    asr = _run_model("asr", config.model, untranscribed, manifest, scratch, clip_timeout, progress, fresh)
    clips = [_with_text(clip, asr.speech) for clip in manifest.clips]
    # Align clips without word times of the corpus
    file_times = {clip.clip_id: match_words(_words(clip), files.get(clip.clip_id, ())) for clip in clips}
    untimed = [clip for clip in clips if clip.text and clip.media and file_times[clip.clip_id] is None]
    ctc = _run_model("ctc", config.aligner, untimed, manifest, scratch, clip_timeout, progress, fresh)
    # Write
    rows = []
    for clip, original in zip(clips, manifest.clips, strict=True):
        source = "" if not clip.text else "corpus" if original.text.strip() else "asr"
        rows.append(_transcript(clip, source, file_times[clip.clip_id], ctc.speech, asr.speech))
    models = {kind: results.signature for kind, results in (("asr", asr), ("ctc", ctc)) if results.signature}
    write_transcripts(rows, out, models, sha256_of(manifest_path), config.model or "")
    mismatched = [clip for clip in clips if clip.text and clip.clip_id in files and file_times[clip.clip_id] is None]
    return TranscribeSummary(
        Counter(row.text_source or "none" for row in rows),
        Counter(row.times_method or PROPORTIONAL for row in rows if row.text),
        asr.processed + ctc.processed,
        (*map(_other_words, mismatched), *asr.problems, *ctc.problems),
    )


def _read_files(config: TranscribeConfig, clips: Sequence[Clip]) -> Mapping[str, Sequence[Word]]:
    if config.word_times is None:
        return {}
    segments = Path(config.segments).expanduser() if config.segments else None
    return read_word_files(Path(config.word_times).expanduser(), clips, segments)


def _with_text(clip: Clip, recognised: Mapping[str, Speech]) -> Clip:
    if clip.text.strip():
        return clip
    return replace(clip, text=recognised[clip.clip_id].text if clip.clip_id in recognised else "")


def _words(clip: Clip) -> list[str]:
    return split_words(clip.text, clip.language)


def _transcript(
    clip: Clip, source: str, file_times: np.ndarray | None, ctc: Mapping[str, Speech], asr: Mapping[str, Speech]
) -> Transcript:
    """Return the clip's transcript with the first word times of corpus, aligner and recogniser that fit it."""
    words = _words(clip)
    method, times = "file", file_times
    for name, results in (("ctc", ctc), ("asr", asr)):
        if times is None and clip.clip_id in results:
            method, times = name, match_words(words, results[clip.clip_id].words)
    if times is None:
        return Transcript(clip.clip_id, clip.text, source, words)
    return Transcript(clip.clip_id, clip.text, source, words, times[:, 0].tolist(), times[:, 1].tolist(), method)


def _other_words(clip: Clip) -> Problem:
    message = (
        "the corpus's word times are of other words than its transcript, so another method times the transcript; "
        "correct one of the two, or ignore this"
    )
    return Problem(clip.clip_id, "transcribe", "text", "OtherWords", message)


def _run_model(
    kind: Kind,
    model: str | None,
    clips: Sequence[Clip],
    manifest: Manifest,
    scratch: Path,
    clip_timeout: float,
    progress: Progress,
    fresh: bool,
) -> _ModelResults:
    """Return a model's results for the clips, cached unless `fresh` or from a worker; nothing without a model."""
    if model is None or not clips:
        return _ModelResults()
    identity = _build_model(kind, model).identity
    adopt_results(scratch, identity)
    results = _ModelResults(signature=identity.signature)
    tag_scratch(scratch)
    root = Path(manifest.root)
    paths = {clip.clip_id: _scratch_path(scratch, results.signature, clip, root) for clip in clips}
    for path in paths.values() if fresh else ():
        path.unlink(missing_ok=True)
    results.speech = {clip_id: speech for clip_id, path in paths.items() if (speech := _load(path)) is not None}
    pending = sorted((clip for clip in clips if clip.clip_id not in results.speech), key=lambda clip: clip.language)
    done = len(results.speech)
    task = "recognise speech" if kind == "asr" else "align words"
    progress(task, done, len(clips))
    for batch, problems in _run_in_worker(kind, model, pending, root, paths, clip_timeout):
        results.problems += problems
        failed = {problem.clip_id for problem in problems}
        for clip in batch:
            speech = None if clip.clip_id in failed else _load(paths[clip.clip_id])
            if speech is not None:
                results.speech[clip.clip_id] = speech
                results.processed += 1
        done += len(batch)
        progress(task, done, len(clips))
    return results


def _run_in_worker(
    kind: Kind, model: str, clips: Sequence[Clip], root: Path, paths: Mapping[str, Path], clip_timeout: float
) -> Iterator[tuple[Sequence[Clip], list[Problem]]]:
    """Yield batches of processed clips with their problems, from a separate process, as a file can crash or hang it."""
    if not clips:
        return
    worker = Worker(threads=os.cpu_count() or 1)

    def process(batch: Sequence[Clip]) -> list[Problem]:
        if not worker.running:
            worker.call(None, _load_model, kind, model)  # outside the clips' timeout
        batch_paths = [paths[clip.clip_id] for clip in batch]
        problems: list[Problem] = worker.call(clip_timeout, _process_batch, kind, model, batch, root, batch_paths)
        return problems

    try:
        size: int = worker.call(None, _load_model, kind, model)
        for _, group in groupby(clips, key=lambda clip: clip.language):
            same_language = list(group)
            for i in range(0, len(same_language), size):
                for batch, outcome in isolate_failures(process, same_language[i : i + size], WorkerLostError):
                    yield batch, [_lost(batch[0], outcome)] if isinstance(outcome, WorkerLostError) else outcome
    finally:
        worker.close(grace=0)


def _lost(clip: Clip, lost: WorkerLostError) -> Problem:
    message = lost.explain(clip.media, on_timeout="raise extract.clip_timeout if the clip is long")
    return Problem(clip.clip_id, "transcribe", "text", lost.error, message)


@functools.lru_cache(maxsize=2)
def _build_model(kind: Kind, model: str) -> Recogniser | TinyWhisper | CtcAligner:
    """Return the recogniser or aligner, one instance per process."""
    return create_recogniser(model) if kind == "asr" else CtcAligner(model)


def model_identities(config: TranscribeConfig) -> list[Identity]:
    """Return what decides the results of the configured models; a signature is the name of a folder in scratch.

    Raises:
        ValueError: a model is unavailable or unsuitable.
    """
    models: tuple[tuple[Kind, str | None], ...] = (("asr", config.model), ("ctc", config.aligner))
    return [_build_model(kind, model).identity for kind, model in models if model is not None]


def _load_model(kind: Kind, model: str) -> int:
    """Load the weights, in the worker, and return the batch size."""
    built = _build_model(kind, model)
    return 1 if isinstance(built, CtcAligner) else built.load()


def _process_batch(kind: Kind, model: str, clips: Sequence[Clip], root: Path, paths: Sequence[Path]) -> list[Problem]:
    """Process clips of one language, in the worker: write the results to `paths` and return the problems."""
    inputs: list[tuple[Clip, Path, np.ndarray]] = []
    problems = []
    for clip, path in zip(clips, paths, strict=True):
        if path.exists():  # retry of a batch that was lost half way
            continue
        try:
            check_media(clip, root)
            inputs.append((clip, path, read_audio(root / clip.media, SAMPLE_RATE)))
        except MissingStreamError:
            _save(path, Speech(""))
        except (MediaError, ExtractionError) as error:
            problems.append(_problem(clip, error, path))
    for (clip, path, _), result in zip(inputs, _infer(kind, model, inputs), strict=True):
        if isinstance(result, Speech):
            _save(path, result)
        elif kind == "ctc" and isinstance(result, ExtractionError):
            message = f"{result}; its words are timed by another method"
            problems.append(Problem(clip.clip_id, "transcribe", "text", "NotAligned", message))
        else:
            problems.append(_problem(clip, result, path))
    return problems


def _infer(kind: Kind, model: str, inputs: Sequence[tuple[Clip, Path, np.ndarray]]) -> list[Speech | Exception]:
    """Return one result or error for each input. If a batch fails, its clips are retried one by one."""
    if not inputs:
        return []
    built = _build_model(kind, model)
    language = inputs[0][0].language

    def infer(batch: Sequence[tuple[Clip, Path, np.ndarray]]) -> list[Speech]:
        if not isinstance(built, CtcAligner):
            return [*built.recognise([samples for *_, samples in batch], language)]
        return [Speech(clip.text, tuple(built.align(samples, _words(clip), language))) for clip, _, samples in batch]

    results: list[Speech | Exception] = []
    for _, outcome in isolate_failures(infer, inputs, Exception):  # errors become rows in the problems table
        results += [outcome] if isinstance(outcome, Exception) else outcome
    return results


def _problem(clip: Clip, error: Exception, path: Path) -> Problem:
    """Return the problem of a clip that failed; `path` is its `_scratch_path`."""
    if not isinstance(error, (ExtractionError, MediaError)):
        logger.error("clip %s: %r", clip.clip_id, error, exc_info=error)
    reference = save_traceback(error, clip, path.parents[1].name, path.stem, path.parents[2])
    return Problem(clip.clip_id, "transcribe", "text", type(error).__name__, str(error) or repr(error), reference)


def _scratch_path(scratch: Path, signature: str, clip: Clip, root: Path) -> Path:
    """Return the path of a clip's cached result. The file is hashed if the manifest has no hash."""
    media = root / clip.media
    content = clip.sha256 or (sha256_of(media) if media.is_file() else "absent")
    payload = json.dumps([content, clip.language, _words(clip)])
    key = hashlib.sha256(payload.encode()).hexdigest()
    return scratch / signature / key[:2] / f"{key}.json"


def _save(path: Path, speech: Speech) -> None:
    content = asdict(speech)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content | {"crc32": _checksum(content)}, ensure_ascii=False), encoding="utf-8")


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _load(path: Path) -> Speech | None:
    """Return the cached result, or None; a damaged file is removed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored = content.pop("crc32", None)  # older results have none
        if stored is not None and stored != _checksum(content):
            raise ValueError("its checksum differs")
        return Speech(content["text"], tuple(Word(**word) for word in content["words"]))
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes raise nearly anything
        logger.warning("%s is damaged (%s) and will be recreated", path, error)
        path.unlink(missing_ok=True)
        return None
