"""Word times by forced alignment: the likeliest path of a known transcript through a CTC recogniser's output.

N samples of a clip, T frames of the model, V symbols, W words, L symbols of the transcript. Times are seconds
from the clip's start.
"""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
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
from extractors.base import ExtractionError
from extractors.huggingface import find_model, fingerprint, read_config
from extractors.transcripts.words import Word, split_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

VERSION = 1
"""Part of the fingerprint: raise it when the times could change."""

WILDCARD = -1
WILDCARD_COST = 0.5
"""Nats a frame. A run of letters or digits that the vocabulary lacks is a wildcard: the likeliest symbol of each
frame, less this. So it takes the frames that no known neighbour explains, and leaves silence to the blank."""

LEAST_KNOWN = 0.5
"""Of a transcript's letters and digits; with fewer known, its path would be a guess."""

LARGEST_TRELLIS = 1 << 29
"""Frames times states, a byte each: about ten minutes of speech without a break."""


class CtcAligner:
    """Forced alignment with a wav2vec 2.0, HuBERT or WavLM that was fine-tuned with CTC (Graves et al. 2006).

    The transcript is written in the model's vocabulary: in the case that it has, accents dropped where it lacks
    the accented letter, the word delimiter where the words are parted by white space, punctuation left out. A
    word lasts from its first symbol's first frame to its last symbol's last; one of punctuation alone takes no
    time. Sound is prepared and cut into chunks as `audio.transformer` does it. The weights are loaded at the
    first clip, onto a GPU where there is one, in float32.

    Args:
        model: a folder with a Hugging Face model, or an id on its hub.

    Attributes:
        fingerprint: changes whenever the times could: what the weights and the code are.

    Raises:
        ValueError: the model cannot be had, or is of another kind.
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
        self.fingerprint = f"ctc-v{VERSION} {fingerprint(self.folder)}"
        self._loaded: tuple[Any, Any] | None = None

    def align(self, samples: np.ndarray, words: Sequence[str], language: str) -> list[Word]:
        """The words with their times, in order and inside the clip.

        Args:
            samples: [N] float32 at 16,000 Hz.
            words: of the transcript, see `extractors.transcripts.words.split_words`.
            language: ISO 639-1, for messages: the model knows its own.

        Raises:
            ExtractionError: the model knows too few of the characters, or the sound is too short for them.
        """
        if not words:
            return []
        spelled = [self._vocabulary.spell(word) for word in words]
        self._check_known(spelled, language)
        symbols, owner = self._vocabulary.join(words, spelled)
        frames = (max(len(samples), self._receptive) - self._receptive) // self._stride + 1
        check_room(frames, symbols)
        columns, index = np.unique(symbols, return_inverse=True)
        spans = best_path(self._log_probs(samples, columns), index + 1)
        # A frame is centred on the samples that its convolutions see; frames touch.
        edges = (np.arange(frames + 1) - 0.5) * self._stride + self._receptive / 2
        edges = np.clip(edges, 0, len(samples)) / SAMPLE_RATE
        return _timed(words, owner, edges[spans])

    def _check_known(self, spelled: Sequence[Sequence[int]], language: str) -> None:
        flat = list(itertools.chain(*spelled))
        known = sum(symbol != WILDCARD for symbol in flat)
        if not flat:
            raise ExtractionError(f"nothing is spoken in this {language} transcript: it has no letters or digits")
        if known < LEAST_KNOWN * len(flat):
            raise ExtractionError(
                f"the alignment model's vocabulary knows {known} of the {len(flat)} letters and digits of this "
                f"{language} transcript; choose a CTC model of that language, or spell its numbers out"
            )

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoFeatureExtractor, AutoModelForCTC
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # its own, of every weight that is copied
            prepare = AutoFeatureExtractor.from_pretrained(self.folder, local_files_only=True)
            model = AutoModelForCTC.from_pretrained(self.folder, local_files_only=True, dtype=torch.float32)
            self._loaded = prepare, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        return self._loaded

    def _log_probs(self, samples: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """[T, 1 + C] log probabilities of the blank and of the C symbols `columns`, ascending, -1 the wildcard.

        Only these are kept: a Chinese vocabulary has thousands of symbols, a transcript a few dozen.
        """
        import torch

        prepare, model = self._load()
        samples = np.pad(samples, (0, max(self._receptive - len(samples), 0)))
        wave = prepare(samples, sampling_rate=SAMPLE_RATE, return_tensors="np").input_values[0]
        steps = (len(wave) - self._receptive) // self._stride + 1
        longest, context = (round(s * SAMPLE_RATE) // self._stride for s in (CHUNK_SECONDS, CONTEXT_SECONDS))
        wanted = np.r_[self._vocabulary.blank, np.maximum(columns, 0)]
        parts = []
        for chunk, kept in make_chunks(steps, longest, context):
            stop = (chunk.stop - 1) * self._stride + self._receptive
            part = torch.from_numpy(wave[None, chunk.start * self._stride : stop if chunk.stop < steps else None])
            with torch.inference_mode():
                logits = model(part.to(model.device)).logits[0, kept]
                log_probs = torch.log_softmax(logits, dim=-1)
                found = log_probs[:, torch.from_numpy(wanted).to(model.device)]
                if columns[0] < 0:
                    found[:, 1] = log_probs.amax(dim=-1) - WILDCARD_COST
            parts.append(found.cpu().numpy())
        result = np.concatenate(parts)
        if not np.isfinite(result).all():
            raise ExtractionError("the alignment model gives NaN or infinite values; check the sound and the model")
        return result


class Vocabulary:
    """The symbols of a CTC model, and how a transcript is written in them.

    Attributes:
        blank: CTC's blank, which is transformers' padding token.
    """

    def __init__(self, symbols: Mapping[str, int], delimiter: str, blank: int) -> None:
        self.blank = blank
        self._delimiter = symbols.get(delimiter)
        special = (blank, self._delimiter)
        self._symbols = {text: i for text, i in symbols.items() if len(text) == 1 and i not in special}

    @classmethod
    def read(cls, folder: Path, blank: int, size: int) -> Vocabulary:
        """Of a model's folder.

        Raises:
            ValueError: there is none, it is of several languages, or not the model's.
        """
        path, said = folder / "vocab.json", folder / "tokenizer_config.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing, which says what the model's outputs mean; copy it from its hub page")
        symbols = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(symbols, dict) or not all(isinstance(i, int) for i in symbols.values()):
            raise ValueError(
                f"{path} does not number symbols; where it has several languages' vocabularies, choose a model of one"
            )
        if not symbols or max(symbols.values()) >= size:
            raise ValueError(f"{path} has symbols up to {max(symbols.values(), default=None)}, but the model {size}")
        options = json.loads(said.read_text(encoding="utf-8")) if said.is_file() else {}
        return cls(symbols, options.get("word_delimiter_token", "|"), blank)

    def spell(self, word: str) -> list[int]:
        """Symbols of a word, `WILDCARD` for each letter or digit that has none; nothing of punctuation alone."""
        text = unicodedata.normalize("NFC", word).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        spoken = [i for i, character in enumerate(text) if _is_spoken(character)]
        if not spoken:
            return []
        inner = text[spoken[0] : spoken[-1] + 1]  # an apostrophe is a letter in don't, and silent around 'hello'
        return list(itertools.chain.from_iterable(map(self._write, inner)))

    def _write(self, character: str) -> list[int]:
        """Symbols of a character in the first of its forms that has them."""
        apart = unicodedata.normalize("NFKD", character)
        bare = "".join(one for one in apart if not unicodedata.combining(one))
        for form in (character, apart, bare):
            for text in (form, form.lower(), form.upper()):
                if text and self._symbols.keys() >= set(text):
                    return [self._symbols[one] for one in text]
        return [WILDCARD] * character.isalnum()

    def join(self, words: Sequence[str], spelled: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """The whole transcript: [L] symbols, a run of wildcards as one, and [L] the word of each, -1 for delimiters."""
        symbols: list[int] = []
        owner: list[int] = []
        before = ""
        for i, (word, own) in enumerate(zip(words, spelled, strict=True)):
            if not own:
                continue
            if before and self._delimiter is not None and len(split_words(before + word)) == 1:
                symbols.append(self._delimiter)
                owner.append(-1)
            once = [s for j, s in enumerate(own) if s != WILDCARD or j == 0 or own[j - 1] != WILDCARD]
            symbols += once
            owner += [i] * len(once)
            before = word
        return np.array(symbols), np.array(owner)


def _is_spoken(character: str) -> bool:
    """Letters, digits, and the marks that are vowels in Indian scripts; no punctuation."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def check_room(frames: int, symbols: np.ndarray) -> None:
    """Refuse what has no path, or one that would be too dear to find.

    Raises:
        ExtractionError: fewer frames than symbols (two equal ones in a row need a blank between them), or a
            trellis beyond `LARGEST_TRELLIS`.
    """
    needed = len(symbols) + int((symbols[1:] == symbols[:-1]).sum())
    if frames < needed:
        raise ExtractionError(
            f"the transcript needs {needed} frames of the alignment model, but the sound has {frames}: they are not of "
            "the same clip, or the clip is cut short"
        )
    if frames * (2 * len(symbols) + 1) > LARGEST_TRELLIS:
        raise ExtractionError(
            f"{frames} frames by {len(symbols)} symbols are too much to align at once; cut the clip into utterances"
        )


def best_path(log_probs: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """[L, 2] frames [first, stop) of each symbol on the likeliest path.

    Viterbi over the symbols with an optional blank before, between and after, each state held for any number of
    frames; the blank between two equal symbols must be there (Graves et al. 2006, section 4.1, with the maximum in
    place of the sum).

    Args:
        log_probs: [T, V], finite, column 0 the blank's; T as `check_room` demands.
        symbols: [L] columns, L >= 1.
    """
    leap = np.where(symbols[1:] != symbols[:-1], 0.0, -np.inf)  # from symbol to symbol, over the blank between
    blank, symbol = np.full(len(symbols) + 1, -np.inf), np.full(len(symbols), -np.inf)
    blank[0], symbol[0] = log_probs[0, 0], log_probs[0, symbols[0]]
    # States alternate, blanks at even places; how many states back the best way into each comes from.
    back = np.zeros((len(log_probs), 2 * len(symbols) + 1), np.uint8)
    for frame in range(1, len(log_probs)):
        back[frame, 2::2] = symbol > blank[1:]
        back[frame, 1::2] = blank[:-1] > symbol
        best = np.maximum(symbol, blank[:-1])
        leapt = symbol[:-1] + leap
        back[frame, 3::2][leapt > best[1:]] = 2
        np.maximum(best[1:], leapt, out=best[1:])
        np.maximum(blank[1:], symbol, out=blank[1:])
        blank += log_probs[frame, 0]
        symbol = best + log_probs[frame, symbols]
    state = 2 * len(symbols) - int(symbol[-1] >= blank[-1])
    spans = np.zeros((len(symbols), 2), np.intp)
    for frame in range(len(log_probs) - 1, -1, -1):
        if state % 2:
            spans[state // 2, 0] = frame
            spans[state // 2, 1] = max(spans[state // 2, 1], frame + 1)
        state -= int(back[frame, state])
    return spans


def _timed(words: Sequence[str], owner: np.ndarray, times: np.ndarray) -> list[Word]:
    """Words from the times [L, 2] of their symbols; one without any stands, without length, where the last ended."""
    timed, last = [], float(times[0, 0])
    for i, word in enumerate(words):
        own = times[owner == i]
        start, last = (float(own[0, 0]), float(own[-1, 1])) if len(own) else (last, last)
        timed.append(Word(word, start, last))
    return timed


def make_chunks(steps: int, longest: int, context: int) -> Iterator[tuple[slice, slice]]:
    """Cut `steps` steps into chunks of at most `longest`: each chunk's steps, and which of these to keep.

    Chunks overlap by `context` on either side of what is kept; what is kept covers every step once. A clip
    that fits is one chunk.
    """
    count = 1 if steps <= longest else math.ceil(steps / (longest - 2 * context))
    edges = [steps * i // count for i in range(count + 1)]
    for begin, end in itertools.pairwise(edges):
        first, last = max(begin - context, 0), min(end + context, steps)
        yield slice(first, last), slice(begin - first, end - first)
