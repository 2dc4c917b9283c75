"""Speech recognition by Whisper or a CTC model, through transformers.

N samples of a clip; times are seconds from the clip's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from extractors.audio.transformer import check_preprocessor
from extractors.base import Identity
from extractors.huggingface import MODEL_LIBRARIES, find_model, fingerprint, load_model, load_part, read_config
from extractors.transcripts.words import Word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

VERSION = 1

SAMPLE_RATE = 16_000

GPU_CLIPS = 16
"""Batch size on a GPU. On a CPU it is 1, as larger ones are not faster."""

CTC_CHUNK_SECONDS = 30
"""Length of the chunks into which transformers cuts a clip for a CTC model, whose attention cost is quadratic."""


@dataclass(frozen=True, slots=True)
class Speech:
    """The text of a clip, and its words with their times; no words where the times are unknown."""

    text: str
    words: tuple[Word, ...] = ()


class Recogniser:
    """Speech recogniser. `load` loads the weights in float32, onto a GPU if there is one.

    Whisper decodes by the pipeline's defaults: five beams, unless its `generation_config.json` says otherwise.

    Args:
        model: folder or hub id of a Whisper or a CTC model (`...ForCTC`).

    Attributes:
        identity: what decides the results.

    Raises:
        ValueError: the model is unavailable, or of another type.
    """

    def __init__(self, model: str) -> None:
        self.folder = find_model(model)
        config = read_config(self.folder)
        kinds = config.get("architectures") or ["no architecture"]
        self._whisper = config.get("model_type") == "whisper" and kinds[0].endswith("ForConditionalGeneration")
        if not self._whisper and not kinds[0].endswith("ForCTC"):
            raise ValueError(
                f"transcribe.model {model!r} is {kinds[0]}: choose a Whisper (WhisperForConditionalGeneration) or a "
                "recogniser such as Wav2Vec2ForCTC"
            )
        check_preprocessor(self.folder)

    @cached_property
    def identity(self) -> Identity:
        """What decides the results; the first access reads the weights."""
        return Identity("transcribe.asr", VERSION, {}, fingerprint(self.folder), MODEL_LIBRARIES, "transformers")

    def load(self) -> int:
        """Load the weights, once, and return the batch size."""
        on_gpu = self._pipeline.device.type != "cpu"
        return GPU_CLIPS if self._whisper and on_gpu else 1

    @cached_property
    def _pipeline(self) -> Any:
        from transformers import pipeline
        from transformers.utils.logging import set_verbosity_error

        set_verbosity_error()  # it warns of the pipeline's own options
        model = load_model(self.folder, "AutoModelForSpeechSeq2Seq" if self._whisper else "AutoModelForCTC")
        return pipeline(
            "automatic-speech-recognition",
            model=model,
            tokenizer=load_part(self.folder, "AutoTokenizer"),
            feature_extractor=load_part(self.folder, "AutoFeatureExtractor"),
            device=model.device,
            trust_remote_code=False,
        )

    def recognise(self, waveforms: Sequence[np.ndarray], language: str) -> list[Speech]:
        """Transcribe waveforms.

        Args:
            waveforms: [N] float32 each, at 16,000 Hz.
            language: ISO 639-1; ignored by monolingual models.

        Returns:
            One result for each waveform.

        Raises:
            ValueError: Whisper does not support the language.
        """
        options = self._whisper_options(language) if self._whisper else {"chunk_length_s": CTC_CHUNK_SECONDS}
        inputs = [{"raw": samples, "sampling_rate": SAMPLE_RATE} for samples in waveforms]
        window = getattr(self._pipeline.feature_extractor, "n_samples", 0)  # Whisper's; longer clips are not batched
        batch_size = len(inputs) if all(len(samples) <= window for samples in waveforms) else 1
        results = self._pipeline(inputs, batch_size=batch_size, **{"return_timestamps": "word"} | options)
        timed = not self._whisper or options["return_timestamps"] == "word"
        return [_speech(result, len(samples), timed) for result, samples in zip(results, waveforms, strict=True)]

    def _whisper_options(self, language: str) -> dict[str, Any]:
        """Return generation options; word times need alignment heads in the model's configuration."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

        generation = self._pipeline.model.generation_config
        timestamps = "word" if getattr(generation, "alignment_heads", None) else True
        options: dict[str, Any] = {"return_timestamps": timestamps}
        # The tokenizer splits the text into words by language: Chinese by character
        self._pipeline.tokenizer.language = LANGUAGES.get(language)
        if getattr(generation, "is_multilingual", False):
            options["generate_kwargs"] = {"language": language, "task": "transcribe"}
        return options


def _speech(result: Mapping[str, Any], samples: int, timed: bool) -> Speech:
    """Convert the pipeline's result."""
    words = [(chunk["text"], *chunk["timestamp"]) for chunk in (result["chunks"] if timed else ())]
    return to_speech(result["text"], words, samples / SAMPLE_RATE)


def to_speech(text: str, timed_words: Iterable[tuple[str, float | None, float | None]], duration: float) -> Speech:
    """Normalise a recogniser's output: white space, and times that are monotonic and end within the clip.

    Args:
        text: The text.
        timed_words: Word, start and end in seconds; None where a time is unknown.
        duration: Seconds of the clip.
    """
    reached, words = 0.0, []
    for word, *edges in timed_words:
        start, end = (reached if edge is None else min(edge, duration) for edge in edges)
        reached = max(start, reached)
        words.append(Word(word.strip(), reached, max(end, reached)))
    return Speech(" ".join(text.split()), tuple(words))
