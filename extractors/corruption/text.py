"""Corruptions of a transcript: words that are missing, that a recogniser misheard, or a negation too many or too few.

Each cuts the transcript into units, as `extractors.transcripts.words.split_words` does, and says what replaces each;
`edited` puts that together, and gives the new words the times of those whose place they take. U units, W words.
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
"""The units of a text, and what stands in the place of each: nothing, the unit itself, another, or several."""

SUBSTITUTIONS, DELETIONS = 0.7, 0.2
"""Of all errors; the rest are insertions.

By sclite's counts of an E-Branchformer: 73 % substitutions, 17 % deletions and 10 % insertions on LibriSpeech's
test-other, where it gets 7 % of the words wrong; 68, 19 and 13 % on Common Voice, where it is 26 %.
"""

SIMILAR = 5
"""A misheard word becomes one of so many that sound most like it, the nearest in nearly half of all cases."""

COMMON = 20
"""An inserted word is one of so many that are most frequent: recognisers make up short words that carry no meaning."""

VOICES = {"en": "en-us", "zh": "cmn"}
"""Of espeak; those of other languages are called as the language is."""

_PARTS = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)
_STRESS = str.maketrans("", "", "ˈˌ")
_espeak = threading.Lock()


class Lexicon:
    """The words of some transcripts in one language, by how they sound and how frequent they are.

    How they sound is what espeak-ng says; where it does not know the language, how they are spelled. Of Chinese, and of
    Japanese, the words are the single characters.
    """

    def __init__(self, texts: Iterable[str], language: str) -> None:
        self._voice = VOICES.get(language, language)
        units = (_core(unit) for text in texts for unit in spoken_units(text, language))
        counts = sorted(Counter(filter(None, units)).items(), key=lambda item: (-item[1], item[0]))
        self.words = [word for word, _ in counts]
        self._often = np.cumsum([count for _, count in counts[:COMMON]], dtype=float)
        self._sounds = dict(zip(self.words, self._pronounce(self.words), strict=True))
        self.similar = functools.cache(self._similar)

    def _pronounce(self, words: Sequence[str]) -> list[str]:
        from corpora.demo.voice import pronounce

        with _espeak:  # its state is the process's
            sounds = pronounce(words, self._voice)
        return [sound.translate(_STRESS) for sound in sounds] if sounds is not None else list(words)

    def _similar(self, word: str) -> list[str]:
        """Up to `SIMILAR` other words, those first that sound most like it, of like ones the more frequent.

        By the edit distance of their sounds, relative to the longer one.
        """
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist

        sound = self._sounds[word] if word in self._sounds else self._pronounce([word])[0]
        distance = cdist([sound], list(self._sounds.values()), scorer=Levenshtein.normalized_distance)[0]
        nearest = np.argsort(distance, kind="stable")[: SIMILAR + 1]
        return [self.words[index] for index in nearest if self.words[index] != word][:SIMILAR]

    def common(self, share: float) -> str:
        """One of the most frequent words, more often the more frequent it is; `share` in [0, 1) chooses."""
        return self.words[int(np.searchsorted(self._often, share * self._often[-1], side="right"))]


def spoken_units(text: str, language: str) -> list[str]:
    """What a recogniser gets right or wrong: words, but characters of Chinese, as its error rate counts them."""
    return split_words(text, "" if language == CHINESE else language)


def drop_words(text: str, language: str, level: float, rng: np.random.Generator, lexicon: Lexicon | None) -> Edit:
    """Each word is missing with the probability `level`, with the punctuation behind it.

    What is missing at one level is missing at the higher ones too. `lexicon` is not used: all of these are called
    alike.
    """
    units = split_words(text, language)
    return units, [[unit] if kept else [] for unit, kept in zip(units, rng.random(len(units)) >= level, strict=True)]


def mishear(text: str, language: str, level: float, rng: np.random.Generator, lexicon: Lexicon) -> Edit:
    """A recogniser's errors at about the word error rate `level`; of Chinese, the character error rate.

    Each word goes wrong with the probability `level`: another that sounds like it takes its place, it is missing, or a
    frequent word stands before it. What is wrong at one level is so at the higher ones too. Punctuation and capitals
    stay as they were. Where many words are wrong, some errors lie so that fewer of them explain the result.
    """
    units = spoken_units(text, language)
    instead = []
    for unit, (chance, kind, choice) in zip(units, rng.random((len(units), 3)).tolist(), strict=True):
        word = _core(unit)
        similar = lexicon.similar(word) if word and chance < level and kind < SUBSTITUTIONS else ()
        if not word or chance >= level:
            instead.append([unit])
        elif similar:
            before, heard, after = _parts(unit)
            instead.append([before + _in_case_of(heard, similar[int(choice**2 * len(similar))]) + after])
        elif kind < SUBSTITUTIONS + DELETIONS:
            instead.append([])
        else:
            instead.append([lexicon.common(choice), unit])
    return units, instead


def flip_negation(text: str, language: str, level: float, rng: np.random.Generator, lexicon: Lexicon | None) -> Edit:
    """With the probability `level` the clip says the contrary, see `extractors.corruption.negation.negate`.

    `lexicon` is not used; all of these are called alike.

    Raises:
        ValueError: the language is neither English nor Chinese.
    """
    check_language(language)
    return negate(text, language) if rng.random() < level else ([], [])


def _parts(unit: str) -> tuple[str, str, str]:
    """Punctuation before, the word itself, punctuation behind."""
    return _PARTS.fullmatch(unit).groups()


def _core(unit: str) -> str:
    return _parts(unit)[1].casefold()


def _in_case_of(pattern: str, word: str) -> str:
    if len(pattern) > 1 and pattern.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if pattern[:1].isupper() else word


def edited(transcript: Transcript, language: str, units: Sequence[str], instead: Sequence[Sequence[str]]) -> Transcript:
    """The transcript with `instead[i]` in the place of its unit i; the same object where nothing changes.

    What takes a word's place takes its time, in equal shares where it is several words. Words without times stay
    without, and `align` places them in proportion.
    """
    if all(list(new) == [unit] for unit, new in zip(units, instead, strict=True)):
        return transcript
    text = put_together(transcript.text, units, instead)
    words = split_words(text, language)
    source = transcript.text_source if text else ""
    changed = replace(transcript, text=text, text_source=source, words=words, start=(), end=(), times_method="")
    times = _times(transcript, words, units, instead)
    if times is None:
        return changed
    start, end = times.T.tolist()
    return replace(changed, start=start, end=end, times_method=transcript.times_method)


def _times(
    transcript: Transcript, words: Sequence[str], units: Sequence[str], instead: Sequence[Sequence[str]]
) -> np.ndarray | None:
    """[W, 2] start and end of the new words; None where the old ones have none."""
    if not transcript.times_method:
        return None
    old = [Word(*row) for row in zip(transcript.words, transcript.start, transcript.end, strict=True)]
    times_U2 = match_words(units, old)
    if times_U2 is None:
        return None
    new = []
    for pieces, (start, end) in zip(instead, times_U2.tolist(), strict=True):
        edges = pairwise(np.linspace(start, end, len(pieces) + 1).tolist())
        new += [Word(piece, *edge) for piece, edge in zip(pieces, edges, strict=False)]
    return match_words(words, new)


def put_together(text: str, units: Sequence[str], instead: Sequence[Sequence[str]]) -> str:
    """The text with `instead[i]` in the place of its unit i; white space before what stays is as it was."""
    made: list[str] = []
    position, gap = 0, ""
    for unit, pieces in zip(units, instead, strict=True):
        begin = text.index(unit, position)
        gap, position = text[position:begin] or gap, begin + len(unit)
        for piece in pieces:
            made += [gap or _gap(made[-1], piece), piece] if made else [piece]
            gap = ""
    return "".join(made)


def _gap(before: str, piece: str) -> str:
    """A space, unless the two are told apart without one, as Chinese characters are."""
    apart = len(split_words(before + piece)) == len(split_words(before)) + len(split_words(piece))
    return "" if apart else " "
