"""Transcripts of clips that come without one: Whisper, or a CTC speech recogniser, through transformers.

N samples of a clip. Times are seconds from the clip's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extractors.audio.transformer import check_preprocessor
from extractors.base import make_signature
from extractors.huggingface import find_model, fingerprint, read_config
from extractors.transcripts.words import Word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

VERSION = 1

SAMPLE_RATE = 16_000

GPU_CLIPS = 16
"""Clips that a GPU recognises at once. On a CPU they go one by one: nothing is gained by more."""

CTC_CHUNK_SECONDS = 30
"""A CTC model's attention costs the square of the length; transformers cuts the clip and joins what it heard."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What is said in a clip, with the times of its words; no words where only the text is known."""

    text: str
    words: tuple[Word, ...] = ()


class Recogniser:
    """Speech to text. The weights are loaded by `load`, onto a GPU where there is one, in float32.

    Whisper decodes as transformers' pipeline does: five beams, where its `generation_config.json` says nothing else.

    Args:
        model: a folder with a Hugging Face model, or an id on its hub: Whisper, or one of the kind `...ForCTC`.

    Raises:
        ValueError: the model cannot be had, or is of another kind.
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
        self.signature = make_signature("transcribe.asr", VERSION, {}, fingerprint(self.folder))
        self._pipeline: Any = None

    def load(self) -> int:
        """Load the weights; how many clips to recognise at once."""
        if self._pipeline is None:
            self._pipeline = self._make_pipeline()
        return GPU_CLIPS if self._whisper and self._pipeline.device.type != "cpu" else 1

    def _make_pipeline(self) -> Any:
        import torch
        import transformers as hf

        hf.utils.logging.disable_progress_bar()
        hf.utils.logging.set_verbosity_error()  # it warns of what the pipeline itself does
        kind = hf.AutoModelForSpeechSeq2Seq if self._whisper else hf.AutoModelForCTC
        return hf.pipeline(
            "automatic-speech-recognition",
            model=kind.from_pretrained(self.folder, local_files_only=True, dtype=torch.float32).eval(),
            tokenizer=hf.AutoTokenizer.from_pretrained(self.folder, local_files_only=True),
            feature_extractor=hf.AutoFeatureExtractor.from_pretrained(self.folder, local_files_only=True),
            device="cuda" if torch.cuda.is_available() else "cpu",
        )

    def recognise(self, sounds: Sequence[np.ndarray], language: str) -> list[Speech]:
        """What is said in each sound, [N] float32 at 16,000 Hz.

        Args:
            language: ISO 639-1; ignored by a model that knows one language only.

        Raises:
            ValueError: Whisper does not know the language.
        """
        self.load()
        options = self._whisper_options(language) if self._whisper else {"chunk_length_s": CTC_CHUNK_SECONDS}
        inputs = [{"raw": sound, "sampling_rate": SAMPLE_RATE} for sound in sounds]
        window = getattr(self._pipeline.feature_extractor, "n_samples", 0)  # what is longer goes by windows, alone
        together = len(inputs) if all(len(sound) <= window for sound in sounds) else 1
        results = self._pipeline(inputs, batch_size=together, **{"return_timestamps": "word"} | options)
        timed = not self._whisper or options["return_timestamps"] == "word"
        return [_speech(result, len(sound), timed) for result, sound in zip(results, sounds, strict=True)]

    def _whisper_options(self, language: str) -> dict[str, Any]:
        """Times of words need to know which of the model's attention heads follow the sound; not every copy says so."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

        said = self._pipeline.model.generation_config
        options: dict[str, Any] = {"return_timestamps": "word" if getattr(said, "alignment_heads", None) else True}
        # The tokenizer cuts the text into words as it does in this language: Chinese by the character.
        self._pipeline.tokenizer.language = LANGUAGES.get(language)
        if getattr(said, "is_multilingual", False):
            options["generate_kwargs"] = {"language": language, "task": "transcribe"}
        return options


def _speech(result: Mapping[str, Any], samples: int, timed: bool) -> Speech:
    """The pipeline's answer: white space in order; times in order and within the clip, where a window's are not."""
    seconds, reached = samples / SAMPLE_RATE, 0.0
    words = []
    for chunk in result["chunks"] if timed else ():
        start, end = (reached if edge is None else min(edge, seconds) for edge in chunk["timestamp"])
        reached = max(start, reached)
        words.append(Word(chunk["text"].strip(), reached, max(end, reached)))
    return Speech(" ".join(result["text"].split()), tuple(words))
