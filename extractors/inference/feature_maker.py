"""Features of new videos, extracted as a dataset's own features were.

`FeatureMaker` is registered in the entry point group `dashfusion.features`, where `model.predict` finds it; it
implements `model.prediction.protocol.FeatureMaker`.

Shapes: T steps, D features, W words. Times are seconds from the start of the video.
"""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.manifest import MODALITIES, Clip
from extractors.base import IMPORTED, ExtractionError, Extractor, FeatureSequence, made_by
from extractors.dataset.align import SEVERAL_LANGUAGES
from extractors.dataset.align_clip import AlignConfig, WordTimer, align_clip, missing_sequence, visible_steps
from extractors.dataset.columns import ALL, select_columns, selected_columns
from extractors.dataset.statistics import standardise_alone
from extractors.execution.reference import reproduce_reference, reproduce_with
from extractors.execution.units import checked, extract_all, feature_meta, shared_extractor, source_of
from extractors.execution.workers import MEMORY_LIMIT, Worker, WorkerLostError
from extractors.huggingface import downloads
from extractors.inference.media_features import MEDIA_MODALITIES, MediaFeatures, extract_media
from extractors.inference.windows import cut_sequence, cut_transcript, window_times
from extractors.registry import create
from extractors.transcripts.subtitles import read_transcript
from extractors.transcripts.table import Transcript
from extractors.transcripts.tiny_whisper import create_recogniser
from extractors.transcripts.words import CHINESE, is_ideographic, match_words, split_words
from media.container import MediaError
from model.prediction.protocol import FeatureFailure, Note, Segment, Steps, Video, VideoFeatures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np

    from extractors.store import FeatureMeta

MAX_FRAMES_WITHOUT_FACE = 0.1
"""Fraction of the frames without a face from which a note says so."""

REFERENCE_TIMEOUT = 120.0
"""Seconds that an extractor may take to start and to extract the reference clip."""

MIN_VOICED = 0.02
"""Fraction of voiced audio steps below which a note says that there is no voice."""


class FeatureMaker:
    """Extract features of videos with the extractors that a dataset was made with.

    May be called from several threads: each extractor processes one video at a time, so threads wait for each other.

    Args:
        dataset: Content of dataset.json, which a checkpoint includes.
        modalities: Modalities that the network uses.
        tokens: Whether the network reads transcripts instead of text features.
        language: ISO 639-1 code of the spoken language; None: the dataset's.
        recogniser: Speech recogniser for videos without a transcript: tiny, a folder or a hub id; None: they stay
            without text.
        change_text: Replaces the model of the text extractor once it is loaded, for example by a quantised one.
        allow_download: Whether models that are not on this machine may be downloaded from the Hugging Face hub.

    Raises:
        ValueError: An extractor that is not available or would extract other features than the dataset's, or a
            recogniser that is not available; the message says what to do.

    Attributes:
        versions: Versions of the libraries that compute the features, by modality.
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
        allow_download: bool = False,
    ) -> None:
        normalise = dataset.get("normalise_audio", "none")
        self.config = AlignConfig(dataset["mode"], tuple(dataset["mask_invalid"]), normalise)
        self._trained_on = dataset["language"] if dataset["language"] != SEVERAL_LANGUAGES else ""
        self.language = self._trained_on if language is None else language
        self._reads_text = "text" in modalities
        # Pooling needs the times of the text's tokens, and word times are estimated from the audio.
        needed = [m for m in modalities if m != "text" or not tokens]
        extracted = MODALITIES if self.config.mode == "aligned" else needed
        self._dims = {m: int(dataset["modalities"][m]["dim"]) for m in MODALITIES}
        self._methods = tuple(dataset.get("word_times", {}).get("methods", {}))
        with downloads(allow_download):
            extractors = {m: load_extractor(m, dataset["modalities"][m]) for m in extracted}
        kept = {m: tuple(dataset["modalities"][m].get("feature_names", ())) for m in MEDIA_MODALITIES}
        self._columns = {
            m: selected_columns(meta, kept[m] if kept[m] not in ((), meta.feature_names) else ALL)
            for m, (_, meta) in extractors.items()
            if m != "text"
        }
        self._media = {m: (meta.extractor, meta.options) for m, (_, meta) in extractors.items() if m != "text"}
        self._text = extractors.get("text")
        self._text_changed = change_text is not None
        self.versions = {m: dict(meta.versions) for m, (_, meta) in extractors.items()}
        self._in_use = threading.Lock()
        if change_text:
            self._change_text(change_text)
        if recogniser and not self.language:
            raise ValueError("the corpus is in several languages: say which one is spoken, for the recogniser to know")
        with downloads(allow_download):
            self._recogniser = create_recogniser(recogniser) if recogniser and self._reads_text else None

    def _change_text(self, change: Callable[[Any], Any]) -> None:
        extractor: Any = self._text[0] if self._text else None
        if not hasattr(extractor, "change_model"):
            name = self._text[1].extractor if self._text else "none"
            raise ValueError(f"the text extractor ({name}) has no network of its own that could be quantised")
        extractor.change_model(change)

    def prepare(self) -> None:
        """Load the speech recogniser and the text extractor, so that the first video does not wait for them."""
        with self._in_use:
            if self._recogniser is not None:
                self._recogniser.load()
            if self._text is not None:
                extract_all(self._text[0], [source_of(Clip("", "", "test", self.language, "", "a"), Path(), "text")])

    def reproduce_reference(self, folder: Path) -> dict[str, np.ndarray]:
        """Return the features of the reference clip as they are computed here, by modality.

        Args:
            folder: Folder with `<modality>.safetensors`; a modality without a file, or whose model was replaced, is
                left out.

        Raises:
            ValueError: A file is damaged, or an extractor fails on the clip.
        """
        found = {}
        own_process = not multiprocessing.current_process().daemon  # a scoring process of the server may start none
        worker = Worker(memory=MEMORY_LIMIT) if own_process else None
        try:
            for m, settings in self._media.items():
                if (path := _reference(folder, m)).is_file():
                    arguments = *settings, path
                    if worker:
                        values = worker.call(REFERENCE_TIMEOUT, reproduce_reference, *arguments)
                    else:
                        values = reproduce_reference(*arguments)
                    found[m] = values if self._columns[m] is None else values[:, self._columns[m]]
        except WorkerLostError as lost:
            raise ValueError(lost.explain(str(path), "try it again")) from lost
        finally:
            if worker:
                worker.close(grace=0)
        if self._text and not self._text_changed and (path := _reference(folder, "text")).is_file():
            with self._in_use:
                found["text"] = reproduce_with(*self._text, path)
        return found

    def make(
        self,
        videos: Iterable[Video],
        *,
        window: float | None = None,
        hop: float | None = None,
        longer_than: float = 0.0,
        workers: int = 0,
        timeout: float = 300.0,
        memory: int | None = None,
    ) -> Iterator[VideoFeatures | FeatureFailure]:
        """Yield one result a video, in order. Reading starts with the call, not with the first `next`.

        Args:
            videos: Files and transcripts.
            window: Seconds of a window; None: no windows.
            hop: Maximum seconds between the starts of two windows.
            longer_than: Seconds; only videos longer than this, and than one window, get windows.
            workers: Worker processes that read the media; 0: read in this process, which a damaged file may hang or
                crash.
            timeout: Seconds that a worker may take for one file before it is killed and the file fails.
            memory: Bytes that a worker may use before it is killed and the file fails; None: no limit.
        """
        pairs = _Prefetcher(self, workers, timeout, memory).run(videos)

        def windows_of(duration: float) -> list[tuple[float, float]]:
            return window_times(duration, window, hop) if duration > longer_than else []

        return (self._result(video, media, windows_of) for video, media in pairs)

    def read(self, video: Video, worker: Worker | None, timeout: float) -> MediaFeatures | FeatureFailure:
        """Extract audio and vision of the video's file, in a worker process or (None) in this one."""
        need_waveform = self._recogniser is not None and video.text is None and video.transcript is None
        arguments = video.media, self._media, self.language, need_waveform
        try:
            media: MediaFeatures = (
                worker.call(timeout, extract_media, *arguments) if worker else extract_media(*arguments)
            )
        except MediaError as error:
            return FeatureFailure(type(error).__name__, str(error))
        except OSError as error:
            return FeatureFailure(type(error).__name__, f"{video.media}: {error.strerror or error}; check the file")
        except WorkerLostError as lost:
            return FeatureFailure(lost.error, lost.explain(str(video.media), "give it more time"))
        return media

    def _result(
        self,
        video: Video,
        media: MediaFeatures | FeatureFailure,
        windows_of: Callable[[float], list[tuple[float, float]]],
    ) -> VideoFeatures | FeatureFailure:
        if isinstance(media, FeatureFailure):
            return media
        try:
            return self._combine(video, media, windows_of)
        except (ValueError, OSError, ExtractionError) as error:
            return FeatureFailure(type(error).__name__, str(error))

    def _combine(
        self, video: Video, media: MediaFeatures, windows_of: Callable[[float], list[tuple[float, float]]]
    ) -> VideoFeatures:
        """Add the text, cut the windows, and align every segment as the align stage does.

        Args:
            video: The video.
            media: Its audio and vision features.
            windows_of: Returns start and end of each window for a duration in seconds.
        """
        # Transcript
        began = time.perf_counter()
        transcript = self._transcript(video, media)
        transcribing = time.perf_counter() - began if transcript.text_source == "asr" else 0.0

        # Spans of the whole video and of its windows
        whole = {m: self._as_in_dataset(m, media.sequences.get(m)) for m in MEDIA_MODALITIES}
        ends = (float(sequence.end.max(initial=0.0)) for sequence in whole.values())
        duration = media.duration or max([*ends, *transcript.end[-1:]])
        windows = windows_of(duration)
        spans = [(0.0, duration), *windows]
        durations = [media.duration, *(end - start for start, end in windows)]

        # Words and features of each span
        word_times, method = WordTimer().time(transcript, whole["audio"], duration)
        transcripts, sequences = [transcript], [whole]
        for span in windows:
            transcripts.append(cut_transcript(transcript, word_times, *span, self.language))
            sequences.append({m: cut_sequence(sequence, *span) for m, sequence in whole.items()})
        texts = self._text_features(transcripts, durations)

        # Alignment
        segments = []
        for i, span in enumerate(spans):
            aligned, _ = align_clip(
                transcripts[i], {"text": texts[i], **sequences[i]}, durations[i], self.config, WordTimer()
            )
            steps = {m: Steps(s.values, s.mask, s.start, s.end) for m, s in aligned.items()}
            segments.append(Segment(*span, transcripts[i].text, steps))

        notes = tuple(self._notes(media, transcript, texts[0], method))
        seconds = {**media.seconds, "transcribe": transcribing}
        seconds["features"] += time.perf_counter() - began - transcribing
        return VideoFeatures(duration, transcript.text_source, segments[0], tuple(segments[1:]), notes, seconds)

    def _as_in_dataset(self, modality: str, sequence: FeatureSequence | None) -> FeatureSequence:
        """Return a modality of the whole video with the dataset's columns, audio standardised as the dataset's is.

        Who speaks is not known: the speaker's clips are this video and its windows.
        """
        if not sequence:
            return missing_sequence(self._dims[modality])
        sequence = select_columns(sequence, self._columns[modality])
        if modality == "audio" and self.config.normalise_audio == "speaker":
            return standardise_alone(sequence, visible_steps(modality, sequence, self.config))
        return sequence

    def _transcript(self, video: Video, media: MediaFeatures) -> Transcript:
        """Return the transcript: given, read from a file, or recognised; without words if there is none."""
        name = Path(video.media).name
        if not self._reads_text:
            return Transcript(name, "", "", ())
        if video.text is not None:
            text = " ".join(video.text.split())
            return Transcript(name, text, "given" if text else "", split_words(text, self.language))
        if video.transcript is not None:
            read = read_transcript(video.transcript, name, self.language)
            return read if read.text else replace(read, text_source="")
        if self._recogniser is None or media.waveform is None:
            return Transcript(name, "", "", ())
        with self._in_use:
            (speech,) = self._recogniser.recognise([media.waveform], self.language)
        words = split_words(speech.text, self.language)
        times = match_words(words, speech.words)
        source = "asr" if speech.text else ""
        if times is None:
            return Transcript(name, speech.text, source, words)
        return Transcript(name, speech.text, source, words, times[:, 0].tolist(), times[:, 1].tolist(), "asr")

    def _text_features(
        self, transcripts: Sequence[Transcript], durations: Sequence[float | None]
    ) -> list[FeatureSequence]:
        """Return the text features of each transcript; T = 0 if the network uses none."""
        if self._text is None:
            return [missing_sequence(self._dims["text"])] * len(transcripts)
        extractor, meta = self._text
        clips = [
            Clip(t.clip_id, "", "test", self.language, "", t.text, duration=duration)
            for t, duration in zip(transcripts, durations, strict=True)
        ]
        with self._in_use:
            results = extract_all(extractor, [source_of(clip, Path(), "text") for clip in clips])
        sequences = []
        for result in results:
            sequence = checked(result, meta)
            if isinstance(sequence, Exception):
                raise sequence
            sequences.append(sequence)
        return sequences

    def _notes(
        self, media: MediaFeatures, transcript: Transcript, text: FeatureSequence, method: str
    ) -> Iterator[Note]:
        """Yield what is unusual about the video; `method`: how its words were timed."""
        if self._trained_on and self.language != self._trained_on:
            message = f"{self.language} is spoken, the training clips were {self._trained_on}: the score means little"
            yield Note("other_language", message)
        for m, reason in media.failures.items():
            yield Note(f"{m}_failed", f"{m} could not be read and counts as missing: {reason}")
        if (vision := media.sequences.get("vision")) is not None:
            yield from _vision_notes(vision)
        if (audio := media.sequences.get("audio")) is not None:
            yield from _audio_notes(audio)
        if self._reads_text:
            yield from self._text_notes(transcript, text, method)

    def _text_notes(self, transcript: Transcript, text: FeatureSequence, method: str) -> Iterator[Note]:
        words = len(transcript.words)
        if not transcript.text:
            yield Note("no_text", "no text was given or recognised")
            return
        if transcript.text_source == "asr":
            yield Note("text_recognised", "the text was recognised from the audio, and may be wrong")
        if in_other_script(transcript.text, self.language):
            message = (
                f"the text is not in the script of the expected language ({self.language}): the score means little"
            )
            yield Note("other_language", message)
        if len(text) and text.word_index is not None and words > text.word_index.max() + 1 > 0:
            cut = words - 1 - int(text.word_index.max())
            yield Note("text_cut", f"the last {cut} of {words} words are beyond the text encoder's limit")
        if self.config.mode == "aligned" and self._methods and method not in self._methods:
            trained = ", ".join(self._methods)
            yield Note("word_times", f"word times come from another method ({method}) than in training ({trained})")


class _Prefetcher:
    """Read media ahead of the consumer, in worker processes or in a thread of this process."""

    def __init__(self, maker: FeatureMaker, workers: int, timeout: float, memory: int | None) -> None:
        self._maker, self._timeout = maker, timeout
        self._pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="media")
        self._workers = [Worker(memory=memory) for _ in range(workers)]
        self._idle: deque[Worker] = deque(self._workers)

    def _read(self, video: Video) -> MediaFeatures | FeatureFailure:
        with self._worker() as worker:
            return self._maker.read(video, worker, self._timeout)

    @contextmanager
    def _worker(self) -> Iterator[Worker | None]:
        """Yield an idle worker (there are as many as threads in the pool); None without workers."""
        worker = self._idle.popleft() if self._workers else None
        try:
            yield worker
        finally:
            if worker:
                self._idle.append(worker)

    def run(self, videos: Iterable[Video]) -> Iterator[tuple[Video, MediaFeatures | FeatureFailure]]:
        """Yield each video with its media features, reading just enough videos ahead to keep the workers busy."""
        source = iter(videos)
        limit = 2 * max(len(self._workers), 1)
        pending = deque((video, self._pool.submit(self._read, video)) for video in itertools.islice(source, limit))
        return self._results(source, pending)

    def _results(
        self, source: Iterator[Video], pending: deque[tuple[Video, Future[MediaFeatures | FeatureFailure]]]
    ) -> Iterator[tuple[Video, MediaFeatures | FeatureFailure]]:
        try:
            while pending:
                video, future = pending.popleft()
                media = future.result()
                pending.extend((more, self._pool.submit(self._read, more)) for more in itertools.islice(source, 1))
                yield video, media
        finally:
            for worker in self._workers:
                worker.close(grace=0)
            self._pool.shutdown(cancel_futures=True)


def load_extractor(modality: str, entry: Mapping[str, Any]) -> tuple[Extractor, FeatureMeta]:
    """Return the extractor of the features that the network was trained on.

    Audio and vision extractors are shared within the process; a text extractor is built anew, as it may be changed.

    Args:
        modality: Its modality.
        entry: The modality's entry in dataset.json, with extractor, options and signature.

    Raises:
        ValueError: The features came with a corpus, or the extractor is not registered, cannot be built here, or has
            another signature; the message says what to do.
    """
    name, options, signature = entry["extractor"], dict(entry["options"]), entry["signature"]
    if name.endswith(IMPORTED):
        raise ValueError(
            f"the network was trained on {modality} features that came with the corpus ({options.get('layout')}), and "
            "no extractor here makes them from a video; train on features that are extracted here, or predict from "
            "features that were made elsewhere as these were (Predictor.from_features)"
        )
    try:
        extractor = create(name, options) if modality == "text" else shared_extractor(name, options)[0]
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"the network was trained on {modality} features of {name!r} with {options}, which is not available here: "
            f"{error}; install what is missing, or train again with an extractor that is here"
        ) from error
    meta = feature_meta(extractor, name, options)
    if not made_by(extractor, signature):
        raise ValueError(
            f"the network was trained on {modality} features {signature}, but {name!r} with {options} makes "
            f"{meta.signature} here: its code or its model's files have changed; install the version of DashFusion "
            "that it was trained with, give the same model files, or train again"
        )
    return extractor, meta


def _reference(folder: Path, modality: str) -> Path:
    return Path(folder) / f"{modality}.safetensors"


def in_other_script(text: str, language: str) -> bool:
    """Return whether a Chinese text lacks ideographs, or one of another language but Japanese mainly has them."""
    letters = [c for c in text if c.isalpha()]
    if not letters or not language:
        return False
    share = sum(map(is_ideographic, letters)) / len(letters)
    return share < 0.5 if language == CHINESE else language != "ja" and share > 0.5


def _vision_notes(vision: FeatureSequence) -> Iterator[Note]:
    if not len(vision):
        yield Note("no_vision", "no video stream")
        return
    without_face = 1 - float(vision.valid.mean())
    if without_face == 1:
        yield Note("no_face", "no face in any frame")
    elif without_face >= MAX_FRAMES_WITHOUT_FACE:
        yield Note("no_face", f"no face in {without_face:.0%} of the frames")


def _audio_notes(audio: FeatureSequence) -> Iterator[Note]:
    if not len(audio):
        yield Note("no_audio", "no audio stream")
    elif audio.valid.mean() < MIN_VOICED:
        yield Note("no_voice", "no voice in the audio")
