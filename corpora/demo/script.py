"""Sentences with a given sentiment, composed from the templates in `script_<language>.yaml`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

FOLDER = Path(__file__).parent
STRONG, MILD = 1.7, 0.3
"""Minimum absolute sentiments of a strong sentence, and of one that is not neutral."""
OPENER_SHARE, CLOSER_SHARE = 0.35, 0.15
"""Shares of sentences with an opener and with a closer."""
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Script:
    """Templates of one language. The head of `script_en.yaml` explains the keys."""

    voice: str
    rate: int
    joiner: str
    comma: str
    full_stop: str
    emphasised: Sequence[str]
    slots: Mapping[str, Sequence[str]]
    openers: Sequence[str]
    closers: Sequence[str]
    sentences: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence as words with punctuation attached; `emphasised` are indices of words."""

    words: tuple[str, ...]
    emphasised: tuple[int, ...]


def languages() -> list[str]:
    """List the languages that have a script."""
    return sorted(path.stem.removeprefix("script_") for path in FOLDER.glob("script_*.yaml"))


@functools.cache
def load_script(language: str) -> Script:
    """Load the script of a language.

    Raises:
        ValueError: there is none; the message lists the languages that have one.
    """
    if language not in languages():
        raise ValueError(
            f"prepare.language: the demo corpus speaks {', '.join(languages())}, not {language!r}; "
            f"a file {FOLDER / 'script_<language>.yaml'} would add it"
        )
    return Script(**yaml.safe_load((FOLDER / f"script_{language}.yaml").read_text(encoding="utf-8")))


def kind_of(sentiment: float) -> str:
    """Return the key of the templates that express a sentiment in [-3, 3]."""
    if abs(sentiment) < MILD:
        return "neutral"
    polarity = "positive" if sentiment > 0 else "negative"
    return f"strong_{polarity}" if abs(sentiment) >= STRONG else polarity


def compose(script: Script, sentiment: float, rng: np.random.Generator) -> Sentence:
    """Compose a sentence that expresses `sentiment`, a value in [-3, 3]."""

    def choose(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    words = choose(script.openers).split() if rng.random() < OPENER_SHARE else []
    emphasised: list[int] = []
    for token in choose(script.sentences[kind_of(sentiment)]).split():
        slot = SLOT.fullmatch(token)
        filled = choose(script.slots[slot[1]]).split() if slot else [token]
        if slot and slot[1] in script.emphasised:
            emphasised += range(len(words), len(words) + len(filled))
        words += filled
    if rng.random() < CLOSER_SHARE:
        words += [script.comma, *choose(script.closers).split()]
    words, emphasised = _attach_commas(words, emphasised)
    words[-1] += script.full_stop
    words[0] = words[0][0].upper() + words[0][1:]
    return Sentence(tuple(_fix_articles(words)), tuple(emphasised))


def _attach_commas(words: list[str], emphasised: list[int]) -> tuple[list[str], list[int]]:
    """Append each comma in the list to the previous word, and adjust the indices of the emphasised words."""
    attached: list[str] = []
    new_indices: list[int] = []
    for index, word in enumerate(words):
        if word in (",", "\uff0c"):
            attached[-1] += word
            continue
        if index in emphasised:
            new_indices.append(len(attached))
        attached.append(word)
    return attached, new_indices


def _fix_articles(words: list[str]) -> list[str]:
    """Change English `a` before a vowel to `an`. No other script has the word `a`."""
    following = [*words[1:], ""]
    return [
        word + "n" if word in ("a", "A") and after[:1].lower() in tuple("aeiou") else word
        for word, after in zip(words, following, strict=True)
    ]
