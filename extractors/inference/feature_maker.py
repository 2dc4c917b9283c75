"""Features of videos that are in no corpus, made as a dataset says that its own were made.

`FeatureMaker` is what the entry point group `dashfusion.features` names: `model.predict` finds it there, and knows of
it what `model.prediction.protocol` says. T steps, D features, W words; times are seconds from the video's start.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from corpora.manifest import MODALITIES, Clip
from extractors.base import ExtractionError, Extractor, FeatureSequence
from extractors.dataset.align import SEVERAL_LANGUAGES
from extractors.dataset.align_clip import AlignConfig, Steps, WordTimes, align_clip, missing_sequence
from extractors.execution.units import built, checked, extract_all, meta_of, source_of
from extractors.execution.workers import Worker, WorkerLostError
from extractors.inference.media_features import MEDIA_MODALITIES, Looked, look
from extractors.inference.windows import cut_sequence, cut_transcript, window_times
from extractors.registry import create
from extractors.transcripts.asr import Recogniser
from extractors.transcripts.subtitles import read_transcript
from extractors.transcripts.table import Transcript
from extractors.transcripts.words import CHINESE, is_ideographic, match_words, split_words
from media.container import MediaError

if TYPE_CHECKING:
    from extractors.store import FeatureMeta

Stretches = Callable[[float], list[tuple[float, float]]]
"""A video's length in seconds -> starts and ends of its windows."""

FEW_FACES = 0.1
"""Part of the frames without a face, from which on it is said."""

NO_VOICE = 0.02
"""Part of the sound with a voice, below which there is none."""


class Wanted(Protocol):
    """A video to make features of: its file, and what is said in it, as text or as a file; neither where unknown."""

    media: Path
    text: str | None
    transcript: Path | None


@dataclass(frozen=True, slots=True)
class Note:
    """What whoever reads a score should know of the video: a stable `code`, and the message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a video, or all of it, as the model gets a clip.

    Attributes:
        start, end: seconds of the video; the steps' own times count from `start`.
        text: what is said in it.
        steps: of the three modalities; T = 0 where it has none, or where nobody asked for it.
    """

    start: float
    end: float
    text: str
    steps: Mapping[str, Steps]


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of one video.

    Attributes:
        duration: seconds.
        text_source: given, file or asr; empty where there is no text.
        whole: all of it.
        windows: what slides over it, in order; empty where it is too short for that.
        notes: what was found to be out of the ordinary.
        seconds: spent on `decode`, `features` and `transcribe`; they may overlap.
    """

    duration: float
    text_source: str
    whole: Part
    windows: tuple[Part, ...]
    notes: tuple[Note, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failed:
    """Why nothing could be made of a video: a short class, and what was found and what to do."""

    error: str
    message: str


class FeatureMaker:
    """Makes features of videos with the extractors that a dataset was made with.

    May be called from several threads: each extractor works on one video at a time, and they wait for each other.

    Args:
        dataset: the content of dataset.json, which a checkpoint keeps.
        modalities: those that the network looks at.
        tokens: it reads the transcripts themselves, and no features of them.
        language: ISO 639-1 code of what is said; None: the dataset's.
        recogniser: folder or id of a speech recogniser, for videos without a transcript; None: they stay without text.
        change_text: what is done to the network of the text extractor once it is loaded, such as quantising it.

    Raises:
        ValueError: an extractor that is not here, or would make other features than the dataset's; a recogniser that
            cannot be had; the message says the way out.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        modalities: Sequence[str],
        *,
        tokens: bool = False,
        language: str | None = None,
        recogniser: str | None = None,
        change_text: Callable[[Any], Any] | None = None,
    ) -> None:
        self.config = AlignConfig(dataset["mode"], tuple(dataset["mask_invalid"]))
        self._trained_on = dataset["language"] if dataset["language"] != SEVERAL_LANGUAGES else ""
        self.language = self._trained_on if language is None else language
        self._reads_text = "text" in modalities
        # Pooling needs the times of the text's tokens, and these the sound.
        read = [m for m in modalities if m != "text" or not tokens]
        made = MODALITIES if self.config.mode == "aligned" else read
        self._dims = {m: int(dataset["modalities"][m]["dim"]) for m in MODALITIES}
        self._methods = tuple(dataset.get("word_times", {}).get("methods", {}))
        obtained = {m: obtain(m, dataset["modalities"][m]) for m in made}
        self._media = {m: (meta.extractor, meta.options) for m, (_, meta) in obtained.items() if m != "text"}
        self._text, self._text_meta = obtained.get("text", (None, None))
        self._in_use = threading.Lock()
        if change_text:
            self._change_text(change_text)
        if recogniser and not self.language:
            raise ValueError("the corpus is in several languages: say which one is spoken, for the recogniser to know")
        self._recogniser = Recogniser(recogniser) if recogniser and self._reads_text else None

    def _change_text(self, change: Callable[[Any], Any]) -> None:
        if not hasattr(self._text, "change_model"):
            name = self._text_meta.extractor if self._text_meta else "none"
            raise ValueError(f"the text extractor ({name}) has no network of its own that could be quantised")
        self._text.change_model(change)

    def prepare(self) -> None:
        """Load what the first video would wait for, but for what reads media."""
        with self._in_use:
            if self._recogniser is not None:
                self._recogniser.load()
            if self._text is not None:
                extract_all(self._text, [source_of(Clip("", "", "test", self.language, "", "a"), Path(), "text")])

    def make(
        self,
        items: Iterable[Wanted],
        *,
        window: float | None = None,
        hop: float | None = None,
        longer_than: float = 0.0,
        workers: int = 0,
        timeout: float = 300.0,
    ) -> Iterator[Made | Failed]:
        """What is made of each video, in their order. Work begins with the call, not when the first is asked for.

        Args:
            window: seconds of the windows over each video; None: none.
            hop: seconds between their starts.
            longer_than: seconds; shorter videos, and those that one window holds, get no windows.
            workers: processes that read the media; 0: this one, in which a damaged file may hang or crash it all.
            timeout: seconds that a worker may take for one file; then it is killed, and the file fails.
        """
        pairs = _Ahead(self, workers, timeout).run(items)

        def stretches(duration: float) -> list[tuple[float, float]]:
            return window_times(duration, window, hop) if duration > longer_than else []

        return (self._finished(item, looked, stretches) for item, looked in pairs)

    def look(self, item: Wanted, worker: Worker | None, timeout: float) -> Looked | Failed:
        """What is in the video's file, found here or by a worker process."""
        hear = self._recogniser is not None and item.text is None and item.transcript is None
        arguments = item.media, self._media, self.language, hear
        try:
            return worker.call(timeout, look, *arguments) if worker else look(*arguments)
        except MediaError as error:
            return Failed(type(error).__name__, str(error))
        except OSError as error:
            return Failed(type(error).__name__, f"{item.media}: {error.strerror or error}; check the file")
        except WorkerLostError as lost:
            advice = "give it more time" if lost.error == "Timeout" else "try it again"
            message = f"{item.media}: {lost}; convert the file with a current ffmpeg, or {advice}"
            return Failed(lost.error, message)

    def _finished(self, item: Wanted, looked: Looked | Failed, stretches: Stretches) -> Made | Failed:
        if isinstance(looked, Failed):
            return looked
        try:
            return self._put_together(item, looked, stretches)
        except (ValueError, OSError, ExtractionError) as error:
            return Failed(type(error).__name__, str(error))

    def _put_together(self, item: Wanted, looked: Looked, stretches: Stretches) -> Made:
        """Text of the video and its windows, and all modalities as the align stage puts them together."""
        began = time.perf_counter()
        transcript = self._transcript(item, looked)
        heard = time.perf_counter() - began if transcript.text_source == "asr" else 0.0
        found = {m: looked.found.get(m) or missing_sequence(self._dims[m]) for m in MEDIA_MODALITIES}
        ends = (float(sequence.end.max(initial=0.0)) for sequence in found.values())
        duration = looked.duration or max([*ends, *transcript.end[-1:]])
        spans = [(0.0, duration), *stretches(duration)]
        times, method = WordTimes().of(transcript, found["audio"], duration)
        pieces = [(transcript, found)]
        for start, end in spans[1:]:
            cut = {m: cut_sequence(sequence, start, end) for m, sequence in found.items()}
            pieces.append((cut_transcript(transcript, times, start, end, self.language), cut))
        lengths = [looked.duration, *(end - start for start, end in spans[1:])]
        texts = self._text_features([piece for piece, _ in pieces], lengths)
        parts = []
        for (start, end), (piece, cut), text, length in zip(spans, pieces, texts, lengths, strict=True):
            steps, _ = align_clip(piece, {"text": text, **cut}, length, self.config, WordTimes())
            parts.append(Part(start, end, piece.text, steps))
        notes = self._notes(looked, transcript, texts[0], method)
        seconds = {**looked.seconds, "transcribe": heard}
        seconds["features"] += time.perf_counter() - began - heard
        return Made(duration, transcript.text_source, parts[0], tuple(parts[1:]), tuple(notes), seconds)

    def _transcript(self, item: Wanted, looked: Looked) -> Transcript:
        """What is said, as it was given, as a file says, or as it is recognised."""
        name = Path(item.media).name
        if not self._reads_text:
            return Transcript(name, "", "", ())
        if item.text is not None:
            text = " ".join(item.text.split())
            return Transcript(name, text, "given" if text else "", split_words(text, self.language))
        if item.transcript is not None:
            read = read_transcript(item.transcript, name, self.language)
            return read if read.text else replace(read, text_source="")
        if self._recogniser is None or looked.sound is None:
            return Transcript(name, "", "", ())
        with self._in_use:
            (speech,) = self._recogniser.recognise([looked.sound], self.language)
        words = split_words(speech.text, self.language)
        times = match_words(words, speech.words)
        source = "asr" if speech.text else ""
        if times is None:
            return Transcript(name, speech.text, source, words)
        return Transcript(name, speech.text, source, words, times[:, 0].tolist(), times[:, 1].tolist(), "asr")

    def _text_features(
        self, transcripts: Sequence[Transcript], durations: Sequence[float | None]
    ) -> list[FeatureSequence]:
        """Of each transcript; nothing where the network does not look at them."""
        if self._text is None or self._text_meta is None:
            return [missing_sequence(self._dims["text"])] * len(transcripts)
        clips = [
            Clip(t.clip_id, "", "test", self.language, "", t.text, duration=duration)
            for t, duration in zip(transcripts, durations, strict=True)
        ]
        with self._in_use:
            results = extract_all(self._text, [source_of(clip, Path(), "text") for clip in clips])
        features = []
        for result in results:
            features.append(checked(result, self._text_meta))
            if isinstance(features[-1], Exception):
                raise features[-1]
        return features

    def _notes(self, looked: Looked, transcript: Transcript, text: FeatureSequence, method: str) -> Iterator[Note]:
        """What is out of the ordinary in the video itself."""
        if self._trained_on and self.language != self._trained_on:
            message = f"{self.language} is spoken, the training clips were {self._trained_on}: the score means little"
            yield Note("other_language", message)
        for m, reason in looked.failures.items():
            yield Note(f"{m}_failed", f"{m} could not be read and counts as missing: {reason}")
        if (vision := looked.found.get("vision")) is not None:
            yield from _vision_notes(vision)
        if (audio := looked.found.get("audio")) is not None:
            yield from _audio_notes(audio)
        if self._reads_text:
            yield from self._text_notes(transcript, text, method)

    def _text_notes(self, transcript: Transcript, text: FeatureSequence, method: str) -> Iterator[Note]:
        words = len(transcript.words)
        if not transcript.text:
            yield Note("no_text", "no text: nothing was given or recognised")
            return
        if transcript.text_source == "asr":
            yield Note("text_recognised", "the text was recognised from the sound, and may be wrong")
        if other_script(transcript.text, self.language):
            yield Note(
                "other_language",
                f"the text is not written as the language expected here ({self.language}) is: the score means little",
            )
        if len(text) and text.word_index is not None and words > text.word_index.max() + 1 > 0:
            cut = words - 1 - int(text.word_index.max())
            yield Note("text_cut", f"the last {cut} of {words} words are beyond what the text encoder takes")
        if self.config.mode == "aligned" and self._methods and method not in self._methods:
            yield Note(
                "word_times",
                f"words were timed in another way ({method}) than the training clips' ({', '.join(self._methods)})",
            )


class _Ahead:
    """Reads media ahead of who takes the results: in worker processes, or in a thread of this one."""

    def __init__(self, maker: FeatureMaker, workers: int, timeout: float) -> None:
        self._maker, self._timeout = maker, timeout
        self._pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="look")
        self._workers = [Worker() for _ in range(workers)]
        self._idle: deque[Worker] = deque(self._workers)

    def _look(self, item: Wanted) -> Looked | Failed:
        with self._worker() as worker:
            return self._maker.look(item, worker, self._timeout)

    @contextmanager
    def _worker(self) -> Iterator[Worker | None]:
        """One of the idle workers, as many as the pool has threads; None: this process."""
        worker = self._idle.popleft() if self._workers else None
        try:
            yield worker
        finally:
            if worker:
                self._idle.append(worker)

    def run(self, items: Iterable[Wanted]) -> Iterator[tuple[Wanted, Looked | Failed]]:
        """Each video with what is in it; as many are begun at once as keep the workers busy, and no more."""
        source = iter(items)
        limit = 2 * max(len(self._workers), 1)
        waiting: deque[tuple[Wanted, Future[Looked | Failed]]] = deque(
            (item, self._pool.submit(self._look, item)) for item in itertools.islice(source, limit)
        )
        return self._results(source, waiting)

    def _results(
        self, source: Iterator[Wanted], waiting: deque[tuple[Wanted, Future[Looked | Failed]]]
    ) -> Iterator[tuple[Wanted, Looked | Failed]]:
        try:
            while waiting:
                item, future = waiting.popleft()
                looked = future.result()
                waiting.extend((more, self._pool.submit(self._look, more)) for more in itertools.islice(source, 1))
                yield item, looked
        finally:
            for worker in self._workers:
                worker.close(grace=0)
            self._pool.shutdown(cancel_futures=True)


def obtain(modality: str, entry: Mapping[str, Any]) -> tuple[Extractor, FeatureMeta]:
    """The extractor that makes the features which the network was trained on; none that others use too for text.

    Args:
        entry: of dataset.json: extractor, options, signature.

    Raises:
        ValueError: features that came with a corpus, an extractor that is not registered or cannot be built here, or
            one whose output would be another; the message says the way out.
    """
    name, options, signature = entry["extractor"], dict(entry["options"]), entry["signature"]
    if name.endswith(".imported"):
        raise ValueError(
            f"the network was trained on {modality} features that came with the corpus ({options.get('layout')}), and "
            "no extractor here makes them from a video; train on features that are extracted here, or predict from "
            "features that were made elsewhere as these were (Predictor.from_features)"
        )
    try:
        extractor = create(name, options) if modality == "text" else built(name, options)[0]
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"the network was trained on {modality} features of {name!r} with {options}, which cannot be had here: "
            f"{error}; install what is missing, or train again with an extractor that is here"
        ) from error
    meta = meta_of(extractor, name, options)
    if meta.signature != signature:
        raise ValueError(
            f"the network was trained on {modality} features {signature}, but {name!r} with {options} makes "
            f"{meta.signature} here: its code, its model's files or a library have changed; install the versions that "
            "checkpoint.json names, or train again"
        )
    return extractor, meta


def other_script(text: str, language: str) -> bool:
    """Whether a text is not written as its language is: Chinese without, or another than Japanese with ideographs."""
    letters = [c for c in text if c.isalpha()]
    if not letters or not language:
        return False
    share = sum(map(is_ideographic, letters)) / len(letters)
    return share < 0.5 if language == CHINESE else language != "ja" and share > 0.5


def _vision_notes(vision: FeatureSequence) -> Iterator[Note]:
    if not len(vision):
        yield Note("no_vision", "no picture")
        return
    without = 1 - float(vision.valid.mean())
    if without == 1:
        yield Note("no_face", "no face in the picture")
    elif without >= FEW_FACES:
        yield Note("no_face", f"no face in {without:.0%} of the frames")


def _audio_notes(audio: FeatureSequence) -> Iterator[Note]:
    if not len(audio):
        yield Note("no_audio", "no sound")
    elif audio.valid.mean() < NO_VOICE:
        yield Note("no_voice", "no voice in the sound")
