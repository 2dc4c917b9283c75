"""The contrary of a sentence, by rules: its negation goes, or one comes in. English and Chinese.

No parser is needed and none is asked: what counts is that the meaning flips and that the sentence stays one. Most rules
undo each other, so that the contrary of the contrary is the sentence again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from extractors.transcripts.words import CHINESE, split_words

if TYPE_CHECKING:
    from collections.abc import Sequence

ENGLISH = "en"
LANGUAGES = (ENGLISH, CHINESE)

NO_NEGATION = {"not": {"only", "just", "merely"}, "no": {"doubt", "wonder", "matter", "problem"}}
"""English: with one of these behind it, the word negates nothing (not only, no doubt)."""

AFFIRMED = {
    "not": "", "never": "", "hardly": "", "barely": "", "scarcely": "", "no": "", "nothing": "something",
    "nobody": "somebody", "none": "some", "nowhere": "somewhere", "neither": "either", "nor": "or", "without": "with",
    "cannot": "can", "can't": "can", "cant": "can", "won't": "will", "wont": "will", "shan't": "shall", "ain't": "is",
    "dont": "do", "doesnt": "does", "didnt": "did", "isnt": "is", "arent": "are", "wasnt": "was", "werent": "were",
    "hasnt": "has", "havent": "have", "hadnt": "had", "couldnt": "could", "wouldnt": "would", "shouldnt": "should",
}  # fmt: skip
"""English negations, and what is left without them; other words in n't lose that."""

AUXILIARIES = {
    "am", "is", "are", "was", "were", "can", "could", "will", "would", "shall", "should", "may", "might", "must",
    "i'm", "it's", "he's", "she's", "that's", "there's", "what's", "who's", "let's", "you're", "we're", "they're",
    "i've", "you've", "we've", "they've", "i'll", "you'll", "he'll", "she'll", "it'll", "we'll", "they'll",
}  # fmt: skip
"""English words that `not` stands behind."""

SUBJECTS = {"i", "you", "he", "she", "it", "we", "they"}
"""English words behind which `never` negates any verb in any tense: `I never liked it`."""

ALSO_OBJECTS = {"you", "it"}
CLAUSE_OPENERS = {"and", "but", "or", "so", "because", "that", "when", "if", "while", "though", "although", "since"}

CONTRARY = ("it", "is", "not", "true", "that")
"""English: before a sentence of which no more is known."""

AFFIRMATIVE_ZH = (
    "不错", "不过", "不仅", "不但", "不光", "不只", "不单", "不管", "不论", "不断", "不同", "不久", "不少", "不禁",
    "不由", "不得不", "不好意思", "差不多", "对不起", "了不起", "好不容易", "没想到", "没错", "没关系", "没问题",
)  # fmt: skip
"""Chinese words that hold a sign of negation and negate nothing."""

_NEGATION_ZH = re.compile(
    "|".join(AFFIRMATIVE_ZH)
    + r"|(?P<question>(\w)[不没]\2)"  # 是不是, 有没有
    + r"|^(?P<whole>并不是)|(?P<gone>并不|不|(?<![特分差告个区性类级])别(?![人的])|未(?![来必免]))|(?P<had>没有?)"
)
MODALS_ZH = {"是", "会", "能", "能够", "可以", "应该", "值得", "想", "要", "愿意", "敢", "肯"}
PREDICATES_ZH = {
    "喜欢", "爱", "觉得", "认为", "相信", "推荐", "建议", "知道", "懂", "同意", "支持", "希望",
    "很", "太", "真", "真的", "真是", "非常", "十分", "特别", "挺", "比较", "最", "更", "超", "超级", "相当", "好",
}  # fmt: skip
"""Chinese words before which 不, or 并不, negates what follows."""

PRONOUNS_ZH = {"这", "那", "我", "你", "他", "她", "它"}


def negate(text: str, language: str) -> tuple[list[str], list[list[str]]]:
    """A text's units, and what stands in the place of each in the contrary of the text.

    Where there are negations all of them go: `it isn't good` becomes `it is good`, 不是 becomes 是. Where there is none
    one comes in: behind an auxiliary (`it is not good`), before a verb (`I never liked it`, 并不喜欢), or before the
    whole sentence (`it is not true that`, 并不是). Words that only look like negations stay (`not only`, 不错).

    Raises:
        ValueError: the language is neither English nor Chinese.
    """
    check_language(language)
    units = split_words(text)  # characters, where the text is Chinese
    if not any(map(str.isalnum, text)):
        return units, [[unit] for unit in units]
    if language == CHINESE:
        return units, _without_negation_zh(units) or _with_negation_zh(text, units)
    words = [_plain(unit) for unit in units]
    return units, _without_negation(units, words) or _with_negation(units, words)


def check_language(language: str) -> None:
    """Raise ValueError, with what to do, where the rules do not know the language."""
    if language not in LANGUAGES:
        raise ValueError(
            f"text.negation knows {' and '.join(LANGUAGES)}, found transcripts in {language!r}; use text.words or "
            "text.recogniser for them"
        )


def _plain(unit: str) -> str:
    return unit.replace("\u2019", "'").strip(".,;:!?\"'()[]-\u201c\u201d").lower()


def _like(unit: str, word: str) -> str:
    """The word in the capitals of a unit, with the punctuation around it."""
    core = _plain(unit)
    if not core:
        return word
    at = unit.replace("\u2019", "'").lower().index(core)
    old = unit[at : at + len(core)]
    new = word.upper() if old.isupper() and len(old) > 1 else word.capitalize() if old[0].isupper() else word
    return unit[:at] + new + unit[at + len(core) :]


def _without_negation(units: Sequence[str], words: Sequence[str]) -> list[list[str]] | None:
    """Without any negation; None where there is none."""
    instead = [[unit] for unit in units]
    found = tuple(words[: len(CONTRARY)]) == CONTRARY
    if found:
        instead[: len(CONTRARY)] = [[] for _ in CONTRARY]
    for i, (unit, word) in enumerate(zip(units, words, strict=True)):
        following = words[i + 1] if i + 1 < len(words) else ""
        left = AFFIRMED.get(word, word.removesuffix("n't"))
        aside = word == "no" and unit[-1] in ",.!?;"  # an answer: No, I liked it
        if left == word or not instead[i] or aside or following in NO_NEGATION.get(word, ()):
            continue
        instead[i] = [_like(unit, left)] if left else []
        found = True
    return instead if found else None


def _with_negation(units: Sequence[str], words: Sequence[str]) -> list[list[str]]:
    instead = [[unit] for unit in units]
    shouted = "".join(units).isupper()
    place = _auxiliary(units, words)
    word = "not"
    if place is None:
        place, word = _subject(units, words), "never"
    if place is not None:
        instead[place].append(word.upper() if shouted else word)
    else:
        opening = " ".join(CONTRARY)
        opening = opening.upper() if shouted else opening.capitalize() if units[0][0].isupper() else opening
        instead[0] = [*opening.split(), units[0]]
    return instead


def _auxiliary(units: Sequence[str], words: Sequence[str]) -> int | None:
    """Behind which unit `not` can stand."""
    for i in range(len(units) - 1):
        if words[i] not in AUXILIARIES or not units[i][-1].isalpha():
            continue
        place = i + ("'" not in words[i] and words[i + 1] in SUBJECTS)  # is it -> is it not
        if place + 1 < len(units) and units[place][-1].isalpha() and words[place + 1] not in NO_NEGATION["not"]:
            return place
    return None


def _subject(units: Sequence[str], words: Sequence[str]) -> int | None:
    """Behind which unit `never` can stand."""
    for i in range(len(units) - 1):
        opens = i == 0 or words[i - 1] in CLAUSE_OPENERS or not units[i - 1][-1].isalnum()
        if words[i] in SUBJECTS and units[i][-1].isalpha() and (opens or words[i] not in ALSO_OBJECTS):
            return i
    return None


def _without_negation_zh(units: Sequence[str]) -> list[list[str]] | None:
    instead = [[unit] for unit in units]
    at = [i for i, unit in enumerate(units) for _ in unit]  # unit of each character
    found = False
    for match in _NEGATION_ZH.finditer("".join(units)):
        if match.lastgroup not in ("whole", "gone", "had"):
            continue
        found = True
        for position in range(*match.span()):
            instead[at[position]] = []
        if match.lastgroup == "had":  # 没有 and 没 are of what there is not: 有
            instead[at[match.start()]] = ["有"]
    return instead if found else None


def _with_negation_zh(text: str, units: Sequence[str]) -> list[list[str]]:
    instead = [[unit] for unit in units]
    place = 0
    for word in split_words(text, CHINESE):
        core = re.sub(r"\W+$", "", word)
        characters = len(split_words(word))
        ends = len(core) < len(word) or place + characters == len(units)
        at = place
        if core[:-1] in PRONOUNS_ZH and core[-1] == "是":  # one word to jieba
            core, at = "是", place + characters - 1
        sign = "没" if core == "有" else "不" if core in MODALS_ZH else "并不" if core in PREDICATES_ZH else ""
        if sign and (core != "好" or ends):  # good, not a good film
            instead[at] = [sign, units[at]]
            return instead
        place += characters
    instead[0] = ["并不是", units[0]]
    return instead
