"""The transcribe stage: who says what when, one row a clip, from the corpus, a speech recogniser, a forced aligner.

What was heard in a clip is one file in the scratch folder of extraction,
`<scratch>/<signature>/<key[:2]>/<key>.json`, keyed by the media file's content, the language and the words to be
timed: nothing is heard twice. W words of a clip; times are seconds from the clip's start.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from corpora.files import atomic_file, sha256_of
from corpora.manifest import Clip, Manifest, read_manifest
from corpora.problems import Problem
from extractors.base import ExtractionError, make_signature
from extractors.execution.cache import save_traceback, tag_scratch
from extractors.execution.units import check_media
from extractors.execution.workers import Worker, WorkerLostError
from extractors.transcripts.asr import SAMPLE_RATE, Recogniser, Speech
from extractors.transcripts.forced_alignment import CtcAligner
from extractors.transcripts.table import PROPORTIONAL, Transcript, write_transcripts
from extractors.transcripts.word_timings import read_word_files
from extractors.transcripts.words import Word, match_words, split_words
from media.audio import read_audio
from media.container import MediaError, MissingStreamError

logger = logging.getLogger(__name__)

NOTES = ("OtherWords", "NotAligned")
"""Problems that leave a clip with its transcript, timed in another way: listed, but not failures."""

Kind = Literal["asr", "ctc"]

Progress = Callable[[str, int, int], None]
"""Called with what is going on, the clips done so far and the clips in all."""


@dataclass(frozen=True, slots=True)
class TranscribeConfig:
    """Where transcripts and word times come from, beside the corpus's own transcripts.

    Attributes:
        model: speech recogniser for clips without a transcript: a folder or an id; None leaves them without text.
        word_times: word times that come with the corpus: a CSV file, a folder of TextGrids or a .csd file.
        segments: for a .csd of word times, the .csd with the clips' starts and ends in their videos.
        aligner: wav2vec2 CTC model that times the words which `word_times` does not time: a folder or an id.
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
            raise ValueError("transcribe.segments belong to a .csd of words: name it as transcribe.word_times")


@dataclass(frozen=True, slots=True)
class TranscribeSummary:
    """What came of the stage.

    Attributes:
        texts: clips by the source of their text, `none` for those without.
        methods: clips with text by what timed their words, `proportional` for those that `align` will time.
        heard: clips that a model listened to now; those whose result lay in scratch do not count.
        problems: one row for each thing that went wrong.
    """

    texts: Mapping[str, int]
    methods: Mapping[str, int]
    heard: int
    problems: tuple[Problem, ...]

    @property
    def failures(self) -> list[Problem]:
        """Problems other than `NOTES`."""
        return [problem for problem in self.problems if problem.error not in NOTES]


@dataclass(slots=True)
class _Heard:
    """What a model heard: by clip, with the problems of those that it could not hear, and how many it heard now."""

    speech: dict[str, Speech] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    now: int = 0
    signature: str = ""


def transcribe(
    manifest_path: Path,
    out: Path,
    config: TranscribeConfig,
    scratch: Path,
    clip_timeout: float,
    progress: Progress = lambda what, done, total: None,
) -> TranscribeSummary:
    """Write the transcripts of a manifest's clips, in its order, to `out`.

    A clip keeps the corpus's transcript; without one, the recogniser's is taken. Its words' times are those that
    came with the corpus; else those of forced alignment; else the recogniser's own. Where none of these has the
    words of the transcript, they stay without times.

    Args:
        clip_timeout: seconds that a model may listen to a clip, or to those that it takes at once; then its process
            is killed, and the clip, when it is alone, listed.

    Raises:
        FileNotFoundError: no manifest, or no word times where `config` says.
        ValueError: word times that cannot be read, a model that cannot be had or used.
        OSError: scratch cannot be written.
    """
    manifest = read_manifest(manifest_path)
    files = _read_files(config, manifest.clips)
    silent = [clip for clip in manifest.clips if not clip.text.strip() and clip.media]
    asr = _hear("asr", config.model, silent, manifest, scratch, clip_timeout, progress)
    clips = [_with_text(clip, asr.speech) for clip in manifest.clips]
    given = {clip.clip_id: match_words(_words(clip), files.get(clip.clip_id, ())) for clip in clips}
    untimed = [clip for clip in clips if clip.text and clip.media and given[clip.clip_id] is None]
    ctc = _hear("ctc", config.aligner, untimed, manifest, scratch, clip_timeout, progress)
    rows = []
    for clip, before in zip(clips, manifest.clips, strict=True):
        source = "" if not clip.text else "corpus" if before.text.strip() else "asr"
        rows.append(_transcript(clip, source, given[clip.clip_id], ctc.speech, asr.speech))
    models = {kind: heard.signature for kind, heard in (("asr", asr), ("ctc", ctc)) if heard.signature}
    write_transcripts(rows, out, models, sha256_of(manifest_path), config.model or "")
    differing = [clip for clip in clips if clip.text and clip.clip_id in files and given[clip.clip_id] is None]
    return TranscribeSummary(
        Counter(row.text_source or "none" for row in rows),
        Counter(row.times_method or PROPORTIONAL for row in rows if row.text),
        asr.now + ctc.now,
        (*map(_other_words, differing), *asr.problems, *ctc.problems),
    )


def _read_files(config: TranscribeConfig, clips: Sequence[Clip]) -> Mapping[str, Sequence[Word]]:
    if config.word_times is None:
        return {}
    segments = Path(config.segments).expanduser() if config.segments else None
    return read_word_files(Path(config.word_times).expanduser(), clips, segments)


def _with_text(clip: Clip, heard: Mapping[str, Speech]) -> Clip:
    if clip.text.strip():
        return clip
    return replace(clip, text=heard[clip.clip_id].text if clip.clip_id in heard else "")


def _words(clip: Clip) -> list[str]:
    return split_words(clip.text, clip.language)


def _transcript(
    clip: Clip, source: str, given: np.ndarray | None, ctc: Mapping[str, Speech], asr: Mapping[str, Speech]
) -> Transcript:
    """The clip's text with the best times that there are."""
    words = _words(clip)
    method, times = "file", given
    for name, heard in (("ctc", ctc), ("asr", asr)):
        if times is None and clip.clip_id in heard:
            method, times = name, match_words(words, heard[clip.clip_id].words)
    if times is None:
        return Transcript(clip.clip_id, clip.text, source, words)
    return Transcript(clip.clip_id, clip.text, source, words, times[:, 0].tolist(), times[:, 1].tolist(), method)


def _other_words(clip: Clip) -> Problem:
    message = (
        "the word times that come with the corpus are of other words than its transcript; they were left out and "
        "another method times them: correct one of the two, or leave it so"
    )
    return Problem(clip.clip_id, "transcribe", "text", "OtherWords", message)


def _hear(
    kind: Kind,
    model: str | None,
    clips: Sequence[Clip],
    manifest: Manifest,
    scratch: Path,
    clip_timeout: float,
    progress: Progress,
) -> _Heard:
    """What a model makes of the clips, from scratch or in a worker process; nothing where there is no model."""
    if model is None or not clips:
        return _Heard()
    heard = _Heard(signature=_signature(kind, model))
    tag_scratch(scratch)
    root = Path(manifest.root)
    paths = {clip.clip_id: _scratch_path(scratch, heard.signature, clip, root) for clip in clips}
    heard.speech = {clip_id: speech for clip_id, path in paths.items() if (speech := _load(path)) is not None}
    pending = sorted((clip for clip in clips if clip.clip_id not in heard.speech), key=lambda clip: clip.language)
    done = len(heard.speech)
    what = "recognise speech" if kind == "asr" else "align words"
    progress(what, done, len(clips))
    for batch, problems in _in_worker(kind, model, pending, root, paths, clip_timeout):
        heard.problems += problems
        failed = {problem.clip_id for problem in problems}
        for clip in batch:
            speech = None if clip.clip_id in failed else _load(paths[clip.clip_id])
            if speech is not None:
                heard.speech[clip.clip_id] = speech
                heard.now += 1
        done += len(batch)
        progress(what, done, len(clips))
    return heard


def _in_worker(
    kind: Kind, model: str, clips: Sequence[Clip], root: Path, paths: Mapping[str, Path], clip_timeout: float
) -> Iterator[tuple[Sequence[Clip], list[Problem]]]:
    """Clips as they are done, with their problems; in a process of its own, which a file can take down or hang up."""
    if not clips:
        return
    worker = Worker(threads=os.cpu_count() or 1)

    def call(batch: Sequence[Clip]) -> Iterator[tuple[Sequence[Clip], list[Problem]]]:
        if not worker.running:
            worker.call(None, _load_model, kind, model)  # which is no clip's time
        try:
            yield batch, worker.call(clip_timeout, _listen, kind, model, batch, root, [paths[c.clip_id] for c in batch])
        except WorkerLostError as lost:
            if len(batch) == 1:
                yield batch, [_lost(batch[0], lost)]
                return
            logger.warning("%s among %d clips, going through them one by one", lost, len(batch))
            for clip in batch:
                yield from call([clip])

    try:
        size: int = worker.call(None, _load_model, kind, model)
        for _, group in groupby(clips, key=lambda clip: clip.language):
            same = list(group)
            for batch in (same[i : i + size] for i in range(0, len(same), size)):
                yield from call(batch)
    finally:
        worker.close(grace=0)


def _lost(clip: Clip, lost: WorkerLostError) -> Problem:
    advice = "raise extract.clip_timeout if the clip is long" if lost.error == "Timeout" else "try it again"
    message = f"{clip.media}: {lost}; convert the file with a current ffmpeg, or {advice}"
    return Problem(clip.clip_id, "transcribe", "text", lost.error, message)


@functools.lru_cache(maxsize=2)
def _model(kind: Kind, model: str) -> Recogniser | CtcAligner:
    """Recogniser or aligner, built once a process."""
    return Recogniser(model) if kind == "asr" else CtcAligner(model)


def _signature(kind: Kind, model: str) -> str:
    built = _model(kind, model)
    if isinstance(built, Recogniser):
        return built.signature
    return make_signature("transcribe.ctc", 1, {}, built.fingerprint)  # which holds the version of its code


def signatures(config: TranscribeConfig) -> set[str]:
    """Names of the scratch folders that hold what these settings' models heard.

    Raises:
        ValueError: a model cannot be had or used.
    """
    named: tuple[tuple[Kind, str | None], ...] = (("asr", config.model), ("ctc", config.aligner))
    return {_signature(kind, model) for kind, model in named if model is not None}


def _load_model(kind: Kind, model: str) -> int:
    """In the worker: load the weights; how many clips to give at once."""
    built = _model(kind, model)
    return built.load() if isinstance(built, Recogniser) else 1


def _listen(kind: Kind, model: str, clips: Sequence[Clip], root: Path, paths: Sequence[Path]) -> list[Problem]:
    """In the worker: write what is heard in clips of one language to their paths, and report those that failed."""
    sounds: list[tuple[Clip, Path, np.ndarray]] = []
    problems = []
    for clip, path in zip(clips, paths, strict=True):
        if path.exists():  # of a batch that was lost half way
            continue
        try:
            check_media(clip, root)
            sounds.append((clip, path, read_audio(root / clip.media, SAMPLE_RATE)))
        except MissingStreamError:
            _save(path, Speech(""))
        except (MediaError, ExtractionError) as error:
            problems.append(_problem(clip, error, path))
    for (clip, path, _), speech in zip(sounds, _speeches(kind, model, sounds), strict=True):
        if isinstance(speech, Speech):
            _save(path, speech)
        elif kind == "ctc" and isinstance(speech, ExtractionError):
            message = f"{speech}; its words are timed by another method"
            problems.append(Problem(clip.clip_id, "transcribe", "text", "NotAligned", message))
        else:
            problems.append(_problem(clip, speech, path))
    return problems


def _speeches(kind: Kind, model: str, sounds: Sequence[tuple[Clip, Path, np.ndarray]]) -> list[Speech | Exception]:
    """One result a sound, whatever the model does: where several fail together, they go through one by one."""
    if not sounds:
        return []
    built = _model(kind, model)
    language = sounds[0][0].language
    try:
        if isinstance(built, Recogniser):
            return [*built.recognise([samples for *_, samples in sounds], language)]
        return [Speech(c.text, tuple(built.align(s, _words(c), language))) for c, _, s in sounds]
    except Exception as error:  # becomes the clip's row in the problems table
        if len(sounds) == 1:
            return [error]
        logger.warning("%r among %d clips, going through them one by one", error, len(sounds))
    return [result for one in sounds for result in _speeches(kind, model, [one])]


def _problem(clip: Clip, error: Exception, path: Path) -> Problem:
    """The row of a clip that failed; `path` is where its result would lie (`_scratch_path`)."""
    if not isinstance(error, (ExtractionError, MediaError)):
        logger.error("clip %s: %r", clip.clip_id, error, exc_info=error)
    reference = save_traceback(error, clip, path.parents[1].name, path.stem, path.parents[2])
    return Problem(clip.clip_id, "transcribe", "text", type(error).__name__, str(error) or repr(error), reference)


def _scratch_path(scratch: Path, signature: str, clip: Clip, root: Path) -> Path:
    """Where the result lies; a clip without a hash in the manifest has its file hashed."""
    media = root / clip.media
    content = clip.sha256 or (sha256_of(media) if media.is_file() else "absent")
    payload = json.dumps([content, clip.language, _words(clip)])
    key = hashlib.sha256(payload.encode()).hexdigest()
    return scratch / signature / key[:2] / f"{key}.json"


def _save(path: Path, speech: Speech) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(speech), ensure_ascii=False), encoding="utf-8")


def _load(path: Path) -> Speech | None:
    """The result in scratch; None where there is none, or only a damaged file, which is removed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Speech(content["text"], tuple(Word(**word) for word in content["words"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s) and will be made again", path, error)
        path.unlink()
        return None
