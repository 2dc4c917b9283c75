"""Language of transcripts by script and most common words: enough to suggest a setting, and to notice a wrong one."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MIN_LETTERS = 3
MIN_STOP_WORDS = 3
"""Letters, and different stop words of another language, below which a transcript says nothing."""

_SCRIPTS = {
    "Latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "Kana": "\u3040-\u30ff",
    "Hangul": "\uac00-\ud7af\u1100-\u11ff",
    "Cyrillic": "\u0400-\u04ff",
    "Greek": "\u0370-\u03ff",
    "Arabic": "\u0600-\u06ff",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
}
_LETTERS = {name: re.compile(f"[{characters}]") for name, characters in _SCRIPTS.items()}
_LETTERS_PER_CHARACTER = {"Han": 3, "Hangul": 3, "Kana": 2}
"""Of scripts whose characters stand for a syllable, so that a foreign name does not outweigh a sentence."""

_OF_LANGUAGE = {
    "zh": ("Han",), "ja": ("Han", "Kana"), "ko": ("Hangul", "Han"), "ru": ("Cyrillic",), "uk": ("Cyrillic",),
    "bg": ("Cyrillic",), "el": ("Greek",), "ar": ("Arabic",), "fa": ("Arabic",), "ur": ("Arabic",), "he": ("Hebrew",),
    "hi": ("Devanagari",), "mr": ("Devanagari",), "th": ("Thai",),
} | dict.fromkeys(
    ("ca", "cs", "da", "de", "en", "es", "et", "fi", "fr", "ga", "hr", "hu", "id", "is", "it", "lt", "lv", "ms", "nl",
     "no", "pl", "pt", "ro", "sk", "sl", "sq", "sv", "sw", "tr", "vi"), ("Latin",)
)  # fmt: skip

MIN_KANA = 0.1
"""Share of kana from which a text in Chinese characters is Japanese."""

_LIKELY = {"Han": "zh", "Kana": "ja", "Hangul": "ko", "Cyrillic": "ru", "Greek": "el", "Hebrew": "he", "Thai": "th"}

_STOP_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the and of to is was were it that this you with for not but have has had they are what would there "
        "from about very just because i'm it's don't",
        "de": "der die das und ist nicht ich ein eine mit auf für sich auch war wie aber wir haben hat den dem sind "
        "noch nur wenn oder sehr mich",
        "fr": "le les et est une des dans que qui pour pas je vous nous avec sur mais ce cette sont était il elle "
        "très du au c'est j'ai",
        "es": "el los las es una que con por para no pero como muy está son fue yo lo su este esta más cuando también "
        "hay",
        "it": "il lo gli è una che non di per con sono ma anche questo questa come più molto mi della nel era ho ha "
        "perché",
        "pt": "o os as é uma que não em para com mas como mais muito isso eu ele ela foi está são do da você também",
        "nl": "de het een en is niet ik dat van op te met voor zijn maar ook er wat was heb naar heel deze wel",
    }.items()
}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def likely_language(texts: Iterable[str]) -> str:
    """Return the ISO 639-1 code of the language that texts are most likely in; en if nothing tells."""
    text = " ".join(texts)
    letters = _count_letters(text)
    script = max(letters, key=lambda name: letters[name])
    if script == "Han" and letters["Kana"] > MIN_KANA * sum(letters.values()):
        return "ja"
    if script != "Latin":
        return {**_LIKELY, "Arabic": "ar", "Devanagari": "hi"}[script]
    counts = Counter(_words(text))
    scores = {language: sum(counts[word] for word in words) for language, words in _STOP_WORDS.items()}
    return max(scores, key=lambda language: scores[language])


def other_language(text: str, language: str) -> str | None:
    """Return what a transcript seems to be in, if not in `language`: an ISO 639-1 code or a script; otherwise None.

    Short transcripts, and languages that are not known here, give None.
    """
    expected = _OF_LANGUAGE.get(language)
    if expected is None:
        return None
    if not text.isascii() or expected != ("Latin",):
        counts = _count_letters(text)
        total, script = sum(counts.values()), max(counts, key=lambda name: counts[name])
        if total >= MIN_LETTERS and script not in expected and 2 * sum(counts[name] for name in expected) < total:
            return _LIKELY.get(script, f"{script} script")
    if language not in _STOP_WORDS:
        return None
    words = set(_words(text))
    found = {name: len(words & stop_words) for name, stop_words in _STOP_WORDS.items()}
    likely = max(found, key=lambda name: found[name])
    return likely if found[likely] >= MIN_STOP_WORDS and found[likely] > 2 * found[language] else None


def _count_letters(text: str) -> dict[str, int]:
    return {
        name: len(letters.findall(text)) * _LETTERS_PER_CHARACTER.get(name, 1) for name, letters in _LETTERS.items()
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("\u2019", "'"))
