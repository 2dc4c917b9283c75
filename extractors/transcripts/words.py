"""Words of a transcript and their times: taken from words that were timed elsewhere, or, without any, the
transcript laid over the voiced part of the clip, in proportion.

Times are seconds from the clip's start, half-open. W words, T tokens, S spans.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import jieba

    from extractors.base import FeatureSequence

CHINESE = "zh"

CLOSED_GAP = 0.2
"""Seconds. Shorter unvoiced stretches (consonants, plosives' closures) belong to the speech around them."""

_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHARACTER}][^\w\s]*|[^\s{_CHARACTER}]+")
_RUN = re.compile(rf"([{_CHARACTER}]+)([^\w\s]*)|[^\s{_CHARACTER}]+")
_IDEOGRAPH = re.compile(rf"[{_CHARACTER}]")

# A spoken Chinese syllable, and a spoken digit, take about as long as so many letters of an English word.
LETTERS_AN_IDEOGRAPH = 3
LETTERS_A_DIGIT = 4


@dataclass(frozen=True, slots=True)
class Word:
    """A spoken word and when: seconds from the clip's start, half-open."""

    text: str
    start: float
    end: float


def split_words(text: str, language: str = "") -> list[str]:
    """Words of a transcript: split at white space, and Chinese (`zh`) where jieba sees its words.

    In other languages a Chinese or Japanese character is a word of its own. Punctuation stays with the word that it
    follows: `"Well, 你好吗。"` in Chinese gives `["Well,", "你好", "吗。"]`.
    """
    if language != CHINESE:
        return _WORD.findall(text)
    words: list[str] = []
    for found in _RUN.finditer(text):
        run, marks = found.groups()
        words += _segmenter().lcut(run) if run else [found[0]]
        words[-1] += marks or ""
    return words


@functools.cache
def _segmenter() -> jieba.Tokenizer:
    """jieba with the dictionary of its package, so that the same text has the same words everywhere.

    The dictionary is read here, in 1 s: `initialize` would take it from a file in the temporary folder that anybody may
    have written, and print that it does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of how it is written
        import jieba
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


def word_length(word: str) -> int:
    """Estimated length of a spoken word, in letters; 0 where nothing is spoken (punctuation alone).

    Letters serve better than vowel groups: on 387 words of espeak's English the median error of a word's
    start is 0.07 s against 0.11 s.
    """
    letters = sum(c.isalpha() for c in word)
    ideographs = len(_IDEOGRAPH.findall(word))
    digits = sum(c.isdigit() for c in word)
    return letters + (LETTERS_AN_IDEOGRAPH - 1) * ideographs + LETTERS_A_DIGIT * digits


def is_ideographic(character: str) -> bool:
    """Whether it is a Chinese or Japanese character."""
    return _IDEOGRAPH.match(character) is not None


def voiced_spans(audio: FeatureSequence, closed_gap: float = CLOSED_GAP) -> np.ndarray:
    """[S, 2] stretches of speech: the valid steps, with gaps up to `closed_gap` seconds closed."""
    start, end = audio.start[audio.valid].astype(float), audio.end[audio.valid].astype(float)
    if not len(start):
        return np.empty((0, 2))
    breaks = np.flatnonzero(start[1:] - np.maximum.accumulate(end)[:-1] > closed_gap)
    first, last = np.r_[0, breaks + 1], np.r_[breaks, len(start) - 1]
    return np.column_stack([start[first], np.maximum.accumulate(end)[last]])


def place_words(words: Sequence[str], spans: np.ndarray) -> np.ndarray:
    """[W, 2] start and end of each word: the spans, laid end to end, shared out by `word_length`.

    A word may reach over a pause between two spans; none starts or ends inside a pause.
    """
    lengths = np.array([word_length(word) for word in words])
    if not lengths.sum():
        lengths = np.ones(len(words))
    inside = np.r_[0.0, np.cumsum(spans[:, 1] - spans[:, 0])]  # span starts
    edges = np.r_[0.0, np.cumsum(lengths)] / lengths.sum() * inside[-1]
    edges[-1] = inside[-1]
    # Where an edge falls on a pause, a word that starts there starts after it and one that ends there ends
    # before it. A microsecond absorbs the rounding of the sums.
    opening = np.clip(np.searchsorted(inside, edges[:-1] + 1e-6, side="right") - 1, 0, len(spans) - 1)
    closing = np.clip(np.searchsorted(inside, edges[1:] - 1e-6, side="left") - 1, 0, len(spans) - 1)
    starts = spans[opening, 0] + np.maximum(edges[:-1] - inside[opening], 0)
    ends = np.minimum(spans[closing, 0] + edges[1:] - inside[closing], spans[closing, 1])
    return np.column_stack([starts, np.maximum(starts, ends)])


def match_words(words: Sequence[str], timed: Sequence[Word]) -> np.ndarray | None:
    """[W, 2] start and end of each word of a transcript, from the same words with times; None where they differ.

    Case and punctuation do not matter, nor where the words are cut (`don't` or `do n't`, a Chinese phrase or its
    characters): within a timed word, time is shared out evenly. Where only the spelling differs (`2`, `two`), words
    are taken one for one, if there are as many and at least half of them agree. Punctuation alone takes no time.
    """
    wanted, given = [_spoken(word) for word in words], [_spoken(word.text) for word in timed]
    if not any(wanted):
        return None
    if "".join(wanted) == "".join(given):
        lengths = [len(spoken) for spoken in wanted]
        units = [unit for word, spoken in zip(timed, given, strict=True) for unit in _share(word, len(spoken))]
    else:
        heard = [(word, spoken) for word, spoken in zip(timed, given, strict=True) if spoken]
        said = [spoken for spoken in wanted if spoken]
        agreeing = sum(a == b for a, (_, b) in zip(said, heard, strict=False))
        if len(said) != len(heard) or 2 * agreeing < len(said):
            return None
        lengths = [bool(spoken) for spoken in wanted]
        units = [(word.start, word.end) for word, _ in heard]
    times, first, reached = [], 0, units[0][0]
    for length in lengths:
        start = units[first][0] if length else reached
        first += length
        reached = units[first - 1][1] if length else reached
        times.append((start, reached))
    return np.array(times)


def _spoken(word: str) -> str:
    """Letters and digits of a word, as one writes them small."""
    return "".join(c for c in unicodedata.normalize("NFKC", word).casefold() if c.isalnum())


def _share(word: Word, parts: int) -> Iterable[tuple[float, float]]:
    """The word's time cut into so many equal parts."""
    return itertools.pairwise(np.linspace(word.start, word.end, parts + 1).tolist())


def word_times(words: Sequence[str], audio: FeatureSequence | None, duration: float) -> np.ndarray:
    """[W, 2] estimated start and end of each word of a clip.

    The words share the voiced part of `audio`, without the silence before, after and between; where there is
    no audio, or nothing in it is valid, they share [0, duration).
    """
    if not words:
        return np.empty((0, 2))
    spans = voiced_spans(audio) if audio is not None else np.empty((0, 2))
    return place_words(words, spans if len(spans) else np.array([[0.0, duration]]))


def token_times(word_index: np.ndarray, times: np.ndarray, duration: float) -> np.ndarray:
    """[T, 2] a token's times are its word's; special tokens (index -1) span the whole clip.

    Raises:
        ValueError: a token belongs to a word that the transcript has not.
    """
    if len(word_index) and word_index.max() >= len(times):
        raise ValueError(f"a token belongs to word {word_index.max()}, but the transcript has {len(times)} words")
    return np.vstack([times, [[0.0, duration]]])[word_index]


def timing_error(true: np.ndarray, estimated: np.ndarray) -> dict[str, Any]:
    """How far estimated word times, [W, 2], are from the true ones.

    Returns:
        `words`; under `start` and `end` the absolute error's `mean`, `median` and `p90`, seconds; `overlap`,
        the fraction of words whose estimate overlaps their true interval.

    Raises:
        ValueError: no words, or not the same number of them.
    """
    if true.shape != estimated.shape or not len(true):
        raise ValueError(f"need the same words twice, at least one, found {len(true)} and {len(estimated)}")
    error = np.abs(estimated - true)
    summary: dict[str, Any] = {"words": len(true)}
    for column, edge in zip(error.T, ("start", "end"), strict=True):
        p90 = float(np.percentile(column, 90))
        summary[edge] = {"mean": float(column.mean()), "median": float(np.median(column)), "p90": p90}
    overlap = np.minimum(true[:, 1], estimated[:, 1]) > np.maximum(true[:, 0], estimated[:, 0])
    return summary | {"overlap": float(overlap.mean())}
