"""Text features without a model: a few plain measures of each word of a transcript.

For a language with no encoder at hand; the network then reads the words themselves with `model.text.mode: scratch`.
T words of a transcript.
"""

from __future__ import annotations

import unicodedata
import zlib
from typing import TYPE_CHECKING

import numpy as np

from extractors.base import ExtractionError, Feature, FeatureSequence, MissingModalityError, FeatureDescription, Source, make_signature
from extractors.transcripts.words import split_words, word_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION = 2

_ENDINGS = {"exclamation": "!", "question": "?", "comma": ",", "stop": "."}


class WordsText:
    """`text.words`: length, case and punctuation of each word.

    A word's `token_ids` entry is a checksum of the word in small letters: the same word has the same, in every clip.
    The words are timed later: here every step spans the whole clip, [0, duration), or [0, 0) where that is unknown.
    """

    modality = "text"
    description = FeatureDescription(
        source="the transcript, cut at white space, Chinese by jieba; a Japanese character is a word of its own",
        rate="a step a word, the times of the word",
        window="the word",
        valid="always",
        features=(
            Feature(
                ("spoken_length",), "letters; a Chinese or Japanese character counts 3, a digit 4, a mark 0", "letters"
            ),
            Feature(("capitals",), "1 where it has two letters or more, all of them capitals", "none"),
            Feature(("digits",), "1 where it has a digit", "none"),
            *(
                Feature(
                    (f"ends_{name}",), f"1 where `{mark}`, in Latin or wide form, stands behind its last letter", "none"
                )
                for name, mark in _ENDINGS.items()
            ),
        ),
    )
    feature_names = description.names

    def __init__(self) -> None:
        self.signature = make_signature("text.words", VERSION, {})

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order."""
        for source in sources:
            words = split_words(source.text, source.language)
            if not words:
                yield MissingModalityError(f"{source.clip_id}: the transcript is empty")
                continue
            yield FeatureSequence(
                values=np.array([_measure(word) for word in words], np.float32),
                start=np.zeros(len(words), np.float32),
                end=np.full(len(words), source.duration or 0.0, np.float32),
                valid=np.ones(len(words), bool),
                token_ids=np.array([_checksum(word) for word in words], np.int32),
                word_index=np.arange(len(words), dtype=np.int32),
            )


def _measure(word: str) -> list[float]:
    """The features of a word, in the order of `WordsText.feature_names`."""
    letters = [c for c in word if c.isalpha()]
    last = max((place for place, c in enumerate(word) if c.isalnum()), default=-1)
    behind = unicodedata.normalize("NFKC", word[last + 1 :]).replace("\u3001", ",").replace("\u3002", ".")
    return [
        float(word_length(word)),
        float(len(letters) > 1 and all(c.isupper() for c in letters)),
        float(any(c.isdigit() for c in word)),
        *(float(mark in behind) for mark in _ENDINGS.values()),
    ]


def _checksum(word: str) -> int:
    """Of the word in small letters, 0 to 2**31 - 1."""
    return zlib.crc32(unicodedata.normalize("NFKC", word).casefold().encode()) & 0x7FFFFFFF
