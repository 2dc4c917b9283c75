"""Forced alignment: word times from the most likely path of a transcript through the output of a CTC model.

N samples of a clip, T frames of the model, V symbols of its vocabulary, W words, L symbols of the transcript. Times are
seconds from the clip's start.
"""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.audio.transformer import (
    CHUNK_SECONDS,
    CONTEXT_SECONDS,
    SAMPLE_RATE,
    WAVE_MODELS,
    check_preprocessor,
    receptive_field,
)
from extractors.base import ExtractionError, Identity
from extractors.huggingface import MODEL_LIBRARIES, find_model, fingerprint, load_model, load_part, read_config
from extractors.transcripts.words import Word, split_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

VERSION = 1
"""To be raised when a change to this module changes the times; part of the identity."""

WILDCARD = -1
WILDCARD_COST = 0.5
"""Nats per frame. A run of letters or digits that are not in the vocabulary is one wildcard symbol, whose log
probability is that of the frame's most likely symbol less this cost. So it covers the frames that its neighbours do not
explain, and leaves silence to the blank."""

MIN_KNOWN_FRACTION = 0.5
"""Fraction of a transcript's letters and digits that must be in the vocabulary for a meaningful alignment."""

MAX_TRELLIS_BYTES = 1 << 29
"""Limit of frames times states, one byte each: about ten minutes of continuous speech."""


class CtcAligner:
    """Forced aligner: a wav2vec 2.0, HuBERT or WavLM model fine-tuned with CTC (Graves et al. 2006).

    The transcript is spelled in the model's vocabulary: in its letter case, without accents that it lacks, without
    punctuation, and with the word delimiter where white space separates words. A word lasts from the first frame of its
    first symbol to the last frame of its last; a word of punctuation only has no duration. Waveforms are normalised and
    cut into chunks as in `audio.transformer`. The weights are loaded at the first clip in float32, onto a GPU if there
    is one.

    Args:
        model: folder or hub id of a Hugging Face model.

    Attributes:
        identity: what decides the times.

    Raises:
        ValueError: the model is unavailable, or of another type.
    """

    def __init__(self, model: str) -> None:
        self.folder = find_model(model)
        config = read_config(self.folder)
        kind, heads = config.get("model_type"), config.get("architectures") or ["no architecture"]
        if kind not in WAVE_MODELS or not heads[0].endswith("ForCTC") or config.get("add_adapter"):
            raise ValueError(
                f"model {model!r} is {kind!r}, {heads[0]}: words are timed by {', '.join(WAVE_MODELS)} without an "
                "adapter, fine-tuned as ...ForCTC, such as facebook/wav2vec2-base-960h"
            )
        check_preprocessor(self.folder)
        self._vocabulary = Vocabulary.read(self.folder, config.get("pad_token_id", 0), config.get("vocab_size", 32))
        self._stride, self._receptive = receptive_field(config["conv_kernel"], config["conv_stride"])

    @cached_property
    def identity(self) -> Identity:
        """What decides the times; the first access reads the weights."""
        weights = f"ctc-v{VERSION} {fingerprint(self.folder)}"
        return Identity("transcribe.ctc", 1, {}, weights, MODEL_LIBRARIES, "transformers")

    def align(self, samples: np.ndarray, words: Sequence[str], language: str) -> list[Word]:
        """Return the words with their times, in order and inside the clip.

        Args:
            samples: [N] float32 at 16,000 Hz.
            words: the transcript's words, see `extractors.transcripts.words.split_words`.
            language: ISO 639-1, for messages only.

        Raises:
            ExtractionError: the vocabulary lacks too many of the characters, or the sound is too short for them.
        """
        if not words:
            return []
        # Spell the transcript
        spelled = [self._vocabulary.spell(word) for word in words]
        self._check_known(spelled, language)
        symbols, word_index = self._vocabulary.join(words, spelled)
        frames = (max(len(samples), self._receptive) - self._receptive) // self._stride + 1
        check_alignable(frames, symbols)
        # Align its symbols to frames
        columns, index = np.unique(symbols, return_inverse=True)
        spans = best_path(self._log_probs(samples, columns), index + 1)
        # Convert frames to seconds: a frame is centred in its receptive field, and frames are contiguous
        edges = (np.arange(frames + 1) - 0.5) * self._stride + self._receptive / 2
        edges = np.clip(edges, 0, len(samples)) / SAMPLE_RATE
        return _timed_words(words, word_index, edges[spans])

    def _check_known(self, spelled: Sequence[Sequence[int]], language: str) -> None:
        flat = list(itertools.chain(*spelled))
        known = sum(symbol != WILDCARD for symbol in flat)
        if not flat:
            raise ExtractionError(f"this {language} transcript has no letters or digits, so there is nothing to align")
        if known < MIN_KNOWN_FRACTION * len(flat):
            raise ExtractionError(
                f"the alignment model's vocabulary has {known} of the {len(flat)} letters and digits of this "
                f"{language} transcript; choose a CTC model of that language, or spell its numbers out"
            )

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The feature extractor and the model."""
        return load_part(self.folder, "AutoFeatureExtractor"), load_model(self.folder, "AutoModelForCTC")

    def _log_probs(self, samples: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return [T, 1 + C] log probabilities of the blank and of the C symbols `columns` (ascending, -1 the wildcard).

        Only these are kept, as a Chinese vocabulary has thousands of symbols and a transcript a few dozen.
        """
        import torch

        prepare, model = self._loaded
        samples = np.pad(samples, (0, max(self._receptive - len(samples), 0)))
        wave = prepare(samples, sampling_rate=SAMPLE_RATE, return_tensors="np").input_values[0]
        steps = (len(wave) - self._receptive) // self._stride + 1
        longest, context = (round(s * SAMPLE_RATE) // self._stride for s in (CHUNK_SECONDS, CONTEXT_SECONDS))
        selected = np.r_[self._vocabulary.blank, np.maximum(columns, 0)]
        parts = []
        for chunk, kept in make_chunks(steps, longest, context):
            stop = (chunk.stop - 1) * self._stride + self._receptive
            part = torch.from_numpy(wave[None, chunk.start * self._stride : stop if chunk.stop < steps else None])
            with torch.inference_mode():
                logits = model(part.to(model.device)).logits[0, kept]
                log_probs = torch.log_softmax(logits, dim=-1)
                part_log_probs = log_probs[:, torch.from_numpy(selected).to(model.device)]
                if columns[0] < 0:
                    part_log_probs[:, 1] = log_probs.amax(dim=-1) - WILDCARD_COST
            parts.append(part_log_probs.cpu().numpy())
        result: np.ndarray = np.concatenate(parts)
        if not np.isfinite(result).all():
            raise ExtractionError("the alignment model gives NaN or infinite values; check the sound and the model")
        return result


class Vocabulary:
    """The vocabulary of a CTC model, and the spelling of transcripts in it.

    Attributes:
        blank: index of CTC's blank, which is transformers' padding token.
    """

    def __init__(self, symbols: Mapping[str, int], delimiter: str, blank: int) -> None:
        self.blank = blank
        self._delimiter = symbols.get(delimiter)
        special = (blank, self._delimiter)
        self._symbols = {text: i for text, i in symbols.items() if len(text) == 1 and i not in special}

    @classmethod
    def read(cls, folder: Path, blank: int, size: int) -> Vocabulary:
        """Read the vocabulary from a model's folder.

        Raises:
            ValueError: no vocabulary, one of several languages, or one that does not fit the model.
        """
        path, options_path = folder / "vocab.json", folder / "tokenizer_config.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing, which maps the model's outputs to symbols; copy it from its hub page")
        symbols = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(symbols, dict) or not all(isinstance(i, int) for i in symbols.values()):
            raise ValueError(
                f"{path} does not number symbols; if it has vocabularies of several languages, choose a model of one"
            )
        if not symbols or max(symbols.values()) >= size:
            raise ValueError(f"{path} has symbols up to {max(symbols.values(), default=None)}, but the model {size}")
        options = json.loads(options_path.read_text(encoding="utf-8")) if options_path.is_file() else {}
        return cls(symbols, options.get("word_delimiter_token", "|"), blank)

    def spell(self, word: str) -> list[int]:
        """Return a word's symbols, `WILDCARD` for each letter or digit without one; empty for punctuation only."""
        text = unicodedata.normalize("NFC", word).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        spoken = [i for i, character in enumerate(text) if _is_spoken(character)]
        if not spoken:
            return []
        inner = text[spoken[0] : spoken[-1] + 1]  # an apostrophe is a symbol in don't, not around 'hello'
        return list(itertools.chain.from_iterable(map(self._write, inner)))

    def _write(self, character: str) -> list[int]:
        """Return the symbols of a character in the first of its Unicode forms that the vocabulary has."""
        decomposed = unicodedata.normalize("NFKD", character)
        unaccented = "".join(c for c in decomposed if not unicodedata.combining(c))
        for form in (character, decomposed, unaccented):
            for text in (form, form.lower(), form.upper()):
                if text and self._symbols.keys() >= set(text):
                    return [self._symbols[c] for c in text]
        return [WILDCARD] * character.isalnum()

    def join(self, words: Sequence[str], spelled: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return [L] symbols of the transcript, wildcard runs merged, and [L] word indices, -1 for delimiters."""
        symbols: list[int] = []
        word_index: list[int] = []
        before = ""
        for i, (word, own) in enumerate(zip(words, spelled, strict=True)):
            if not own:
                continue
            if before and self._delimiter is not None and len(split_words(before + word)) == 1:
                symbols.append(self._delimiter)
                word_index.append(-1)
            merged = [s for j, s in enumerate(own) if s != WILDCARD or j == 0 or own[j - 1] != WILDCARD]
            symbols += merged
            word_index += [i] * len(merged)
            before = word
        return np.array(symbols), np.array(word_index)


def _is_spoken(character: str) -> bool:
    """Return whether it is a letter, a digit, or a mark, such as a vowel of an Indian script."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def check_alignable(frames: int, symbols: np.ndarray) -> None:
    """Check that there is a path, and that the trellis fits into memory.

    Raises:
        ExtractionError: fewer frames than symbols (two equal ones in a row need a blank between them), or a trellis
            larger than `MAX_TRELLIS_BYTES`.
    """
    needed = len(symbols) + int((symbols[1:] == symbols[:-1]).sum())
    if frames < needed:
        raise ExtractionError(
            f"the transcript needs {needed} frames of the alignment model, but the sound has {frames}: they are not of "
            "the same clip, or the clip is truncated"
        )
    if frames * (2 * len(symbols) + 1) > MAX_TRELLIS_BYTES:
        raise ExtractionError(
            f"{frames} frames by {len(symbols)} symbols are too much to align at once; cut the clip into utterances"
        )


def best_path(log_probs: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Return [L, 2] frames [first, stop) of each symbol on the most likely path.

    Viterbi over the symbols with an optional blank before, between and after them, each state held for any number of
    frames; the blank between two equal symbols is mandatory (Graves et al. 2006, section 4.1, with the maximum instead
    of the sum).

    Args:
        log_probs: [T, V], finite, column 0 the blank; T large enough, see `check_alignable`.
        symbols: [L] columns, L >= 1.
    """
    # Forward: best log probability of each state, and in `back` how many states before it the best path comes from.
    # States alternate, blanks at even indices.
    skip = np.where(symbols[1:] != symbols[:-1], 0.0, -np.inf)  # from symbol to symbol, without the blank between
    blank, symbol = np.full(len(symbols) + 1, -np.inf), np.full(len(symbols), -np.inf)
    blank[0], symbol[0] = log_probs[0, 0], log_probs[0, symbols[0]]
    back = np.zeros((len(log_probs), 2 * len(symbols) + 1), np.uint8)
    for frame in range(1, len(log_probs)):
        back[frame, 2::2] = symbol > blank[1:]
        back[frame, 1::2] = blank[:-1] > symbol
        best = np.maximum(symbol, blank[:-1])
        skipped = symbol[:-1] + skip
        back[frame, 3::2][skipped > best[1:]] = 2
        np.maximum(best[1:], skipped, out=best[1:])
        np.maximum(blank[1:], symbol, out=blank[1:])
        blank += log_probs[frame, 0]
        symbol = best + log_probs[frame, symbols]
    # Backtrack from the last symbol or the last blank
    state = 2 * len(symbols) - int(symbol[-1] >= blank[-1])
    spans = np.zeros((len(symbols), 2), np.intp)
    for frame in range(len(log_probs) - 1, -1, -1):
        if state % 2:
            spans[state // 2, 0] = frame
            spans[state // 2, 1] = max(spans[state // 2, 1], frame + 1)
        state -= int(back[frame, state])
    return spans


def _timed_words(words: Sequence[str], word_index: np.ndarray, times: np.ndarray) -> list[Word]:
    """Return the words, timed by the times [L, 2] of their symbols; one without any has no duration."""
    timed, end = [], float(times[0, 0])
    for i, word in enumerate(words):
        own = times[word_index == i]
        start, end = (float(own[0, 0]), float(own[-1, 1])) if len(own) else (end, end)
        timed.append(Word(word, start, end))
    return timed


def make_chunks(steps: int, longest: int, context: int) -> Iterator[tuple[slice, slice]]:
    """Cut a sequence of `steps` into chunks of at most `longest` that overlap by `context` on either side.

    Yields:
        A chunk's steps, and the slice of them to keep. The kept ones cover every step exactly once; a sequence of up to
        `longest` steps is one chunk.
    """
    count = 1 if steps <= longest else math.ceil(steps / (longest - 2 * context))
    edges = [steps * i // count for i in range(count + 1)]
    for begin, end in itertools.pairwise(edges):
        first, last = max(begin - context, 0), min(end + context, steps)
        yield slice(first, last), slice(begin - first, end - first)
