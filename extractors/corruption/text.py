"""Corruptions of a transcript: dropped words, recognition errors, a flipped negation.

Each splits the transcript into units and returns what replaces each of them; `apply_edit` joins the result and gives
the new words the times of those that they replace. U units, W words.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from extractors.corruption.negation import check_language, negate
from extractors.transcripts.words import CHINESE, Word, match_words, split_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from extractors.transcripts.table import Transcript

Edit = tuple[list[str], list[list[str]]]
"""The units of a text, and the replacement of each: nothing, the unit itself, another, or several."""

SUBSTITUTIONS, DELETIONS = 0.7, 0.2
"""Fractions of all errors; the rest are insertions.

By sclite's counts of an E-Branchformer: 73 % substitutions, 17 % deletions and 10 % insertions on LibriSpeech
test-other, at a word error rate of 7 %; 68, 19 and 13 % on Common Voice, at 26 %.
"""

SIMILAR_WORDS = 5
"""Number of candidates, by similarity of sound, for the substitution of a word; nearly half of the time it is the
first."""

FREQUENT_WORDS = 20
"""Number of candidates for an insertion: recognisers insert short words that carry no meaning."""

VOICES = {"en": "en-us", "zh": "cmn"}
"""Language -> voice of espeak-ng; other languages' voices have the language's code."""

_PUNCTUATED_WORD = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)
_STRESS = str.maketrans("", "", "ˈˌ")
_espeak_lock = threading.Lock()  # espeak-ng's state is global


class Lexicon:
    """The words of some transcripts in one language, with their pronunciations and frequencies.

    Pronunciations are espeak-ng's phonemes; where it does not support the language, the spelling. Words of Chinese and
    Japanese are single characters.

    Attributes:
        words: the words, the most frequent first.
    """

    def __init__(self, texts: Iterable[str], language: str) -> None:
        self._voice = VOICES.get(language, language)
        units = (_key(unit) for text in texts for unit in spoken_units(text, language))
        counts = sorted(Counter(filter(None, units)).items(), key=lambda item: (-item[1], item[0]))
        self.words = [word for word, _ in counts]
        self._cumulative_counts = np.cumsum([count for _, count in counts[:FREQUENT_WORDS]], dtype=float)
        self._sounds = dict(zip(self.words, self._pronounce(self.words), strict=True))
        self.similar = functools.cache(self._similar)

    def _pronounce(self, words: Sequence[str]) -> list[str]:
        from corpora.demo.voice import pronounce

        with _espeak_lock:
            sounds = pronounce(words, self._voice)
        return [sound.translate(_STRESS) for sound in sounds] if sounds is not None else list(words)

    def _similar(self, word: str) -> list[str]:
        """Return up to `SIMILAR_WORDS` other words by similarity of sound, of equally similar ones the more frequent.

        Similarity is the Levenshtein distance of the pronunciations, relative to the longer one.
        """
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist

        sound = self._sounds[word] if word in self._sounds else self._pronounce([word])[0]
        distance = cdist([sound], list(self._sounds.values()), scorer=Levenshtein.normalized_distance)[0]
        nearest = np.argsort(distance, kind="stable")[: SIMILAR_WORDS + 1]
        return [self.words[index] for index in nearest if self.words[index] != word][:SIMILAR_WORDS]

    def frequent(self, quantile: float) -> str:
        """Return one of the `FREQUENT_WORDS`: the one at this quantile, in [0, 1), of their cumulative frequency."""
        place = np.searchsorted(self._cumulative_counts, quantile * self._cumulative_counts[-1], side="right")
        return self.words[int(place)]


def spoken_units(text: str, language: str) -> list[str]:
    """Split a text into the units of recognition errors: words, or characters of Chinese (as its error rate counts)."""
    return split_words(text, "" if language == CHINESE else language)


def drop_words(text: str, language: str, level: float, rng: np.random.Generator, lexicon: Lexicon | None) -> Edit:
    """Drop each word, with the punctuation that follows it, with probability `level`; `lexicon` is unused.

    A higher level drops every word that a lower one does.
    """
    units = split_words(text, language)
    return units, [[unit] if kept else [] for unit, kept in zip(units, rng.random(len(units)) >= level, strict=True)]


def misrecognise(text: str, language: str, level: float, rng: np.random.Generator, lexicon: Lexicon | None) -> Edit:
    """Simulate a recogniser with about the word error rate `level`; for Chinese, the character error rate.

    Each word is an error with probability `level`: it is replaced by one that sounds alike, is deleted, or has a
    frequent word inserted before it. A higher level makes every error that a lower one does. Punctuation and
    capitalisation are kept. At high levels the measured rate is a little lower, as some errors cancel.
    """
    assert lexicon is not None
    units = spoken_units(text, language)
    replacements = []
    for unit, (chance, kind, choice) in zip(units, rng.random((len(units), 3)).tolist(), strict=True):
        word = _key(unit)
        similar = lexicon.similar(word) if word and chance < level and kind < SUBSTITUTIONS else ()
        if not word or chance >= level:
            replacements.append([unit])
        elif similar:
            before, original, after = _split_punctuation(unit)
            # Squaring the uniform number prefers the most similar words
            substitute = _match_case(original, similar[int(choice**2 * len(similar))])
            replacements.append([before + substitute + after])
        elif kind < SUBSTITUTIONS + DELETIONS:
            replacements.append([])
        else:
            replacements.append([lexicon.frequent(choice), unit])
    return units, replacements


def flip_negation(text: str, language: str, level: float, rng: np.random.Generator, lexicon: Lexicon | None) -> Edit:
    """Negate the text, or remove its negations, with probability `level`; `lexicon` is unused. See `negate`.

    Raises:
        ValueError: the language is neither English nor Chinese.
    """
    check_language(language)
    return negate(text, language) if rng.random() < level else ([], [])


def _split_punctuation(unit: str) -> tuple[str, str, str]:
    """Split a unit into the punctuation before the word, the word, and the punctuation after it."""
    match = _PUNCTUATED_WORD.fullmatch(unit)
    assert match is not None  # it matches every string
    return match[1], match[2], match[3]


def _key(unit: str) -> str:
    """Return the word of a unit as a lexicon key: without punctuation, case-folded."""
    return _split_punctuation(unit)[1].casefold()


def _match_case(pattern: str, word: str) -> str:
    if len(pattern) > 1 and pattern.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if pattern[:1].isupper() else word


def apply_edit(
    transcript: Transcript, language: str, units: Sequence[str], replacements: Sequence[Sequence[str]]
) -> Transcript:
    """Return the transcript with each unit replaced, or the same object where nothing changes.

    A replacement takes the time of its unit, in equal shares if it is several words. Words of a transcript without
    times get none; `align` places them in proportion.

    Args:
        transcript: the original.
        language: ISO 639-1.
        units: [U] units of its text, in order.
        replacements: [U] what replaces each unit.
    """
    if all(list(new) == [unit] for unit, new in zip(units, replacements, strict=True)):
        return transcript
    text = join_units(transcript.text, units, replacements)
    words = split_words(text, language)
    source = transcript.text_source if text else ""
    changed = replace(transcript, text=text, text_source=source, words=words, start=(), end=(), times_method="")
    times = _edited_times(transcript, words, units, replacements)
    if times is None:
        return changed
    start, end = times.T.tolist()
    return replace(changed, start=start, end=end, times_method=transcript.times_method)


def _edited_times(
    transcript: Transcript, words: Sequence[str], units: Sequence[str], replacements: Sequence[Sequence[str]]
) -> np.ndarray | None:
    """Return [W, 2] start and end of the new words; None where the transcript has no times."""
    if not transcript.times_method:
        return None
    old = [Word(*row) for row in zip(transcript.words, transcript.start, transcript.end, strict=True)]
    times_U2 = match_words(units, old)
    if times_U2 is None:
        return None
    new = []
    for pieces, (start, end) in zip(replacements, times_U2.tolist(), strict=True):
        edges = pairwise(np.linspace(start, end, len(pieces) + 1).tolist())
        new += [Word(piece, *edge) for piece, edge in zip(pieces, edges, strict=False)]
    return match_words(words, new)


def join_units(text: str, units: Sequence[str], replacements: Sequence[Sequence[str]]) -> str:
    """Return the text with each unit replaced; the white space before a unit is kept."""
    joined: list[str] = []
    position, gap = 0, ""
    for unit, pieces in zip(units, replacements, strict=True):
        begin = text.index(unit, position)
        gap, position = text[position:begin] or gap, begin + len(unit)
        for piece in pieces:
            joined += [gap or _separator(joined[-1], piece), piece] if joined else [piece]
            gap = ""
    return "".join(joined)


def _separator(before: str, piece: str) -> str:
    """Return a space, or nothing where the two are distinct words without one, as Chinese characters are."""
    distinct = len(split_words(before + piece)) == len(split_words(before)) + len(split_words(piece))
    return "" if distinct else " "
