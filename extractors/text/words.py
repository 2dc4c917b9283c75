"""Text features without a model: length, case and punctuation of each word of a transcript.

Meant for languages without a suitable encoder; with `model.text.mode: scratch` the network learns embeddings of the
words themselves.
"""

from __future__ import annotations

import unicodedata
import zlib
from typing import TYPE_CHECKING

import numpy as np

from extractors.base import (
    ExtractionError,
    Feature,
    FeatureDescription,
    FeatureSequence,
    MissingModalityError,
    Source,
    make_signature,
)
from extractors.transcripts.words import split_words, word_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION = 2

_ENDINGS = {"exclamation": "!", "question": "?", "comma": ",", "stop": "."}


class WordsText:
    """`text.words`: length, case and punctuation of each word.

    The token id of a word is a checksum of its lower-case form, so that a word has the same id in every clip. Words are
    timed later: here every step spans the whole clip, [0, duration), or [0, 0) if the duration is unknown.
    """

    modality = "text"
    description = FeatureDescription(
        source="the transcript, split at white space, Chinese by jieba; every Japanese character is a word of its own",
        rate="one step per word, with the times of the word",
        window="the word",
        valid="always",
        features=(
            Feature(
                ("spoken_length",),
                "number of letters; a Chinese or Japanese character counts as 3, a digit as 4, punctuation as 0",
                "letters",
            ),
            Feature(("capitals",), "1 if the word has at least two letters, all of them capitals", "none"),
            Feature(("digits",), "1 if the word contains a digit", "none"),
            *(
                Feature((f"ends_{name}",), f"1 if `{mark}`, also in full-width form, follows the last letter", "none")
                for name, mark in _ENDINGS.items()
            ),
        ),
    )
    feature_names = description.names

    def __init__(self) -> None:
        self.signature = make_signature("text.words", VERSION, {})

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order."""
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
    """Return the features of a word, in the order of `WordsText.feature_names`."""
    letters = [c for c in word if c.isalpha()]
    last = max((i for i, c in enumerate(word) if c.isalnum()), default=-1)
    ending = unicodedata.normalize("NFKC", word[last + 1 :]).replace("\u3001", ",").replace("\u3002", ".")
    return [
        float(word_length(word)),
        float(len(letters) > 1 and all(c.isupper() for c in letters)),
        float(any(c.isdigit() for c in word)),
        *(float(mark in ending) for mark in _ENDINGS.values()),
    ]


def _checksum(word: str) -> int:
    """Return a checksum of the lower-case word, 0 to 2**31 - 1."""
    return zlib.crc32(unicodedata.normalize("NFKC", word).casefold().encode()) & 0x7FFFFFFF
