"""Rule-based negation of a sentence: its negations are removed, or one is added. English and Chinese.

The rules need no parser: they flip the meaning and keep the sentence grammatical in most cases. Most of them are
inverse to each other, so that negating twice gives the sentence back.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from extractors.transcripts.words import CHINESE, split_words

if TYPE_CHECKING:
    from collections.abc import Sequence

ENGLISH = "en"
LANGUAGES = (ENGLISH, CHINESE)

NOT_NEGATING = {"not": {"only", "just", "merely"}, "no": {"doubt", "wonder", "matter", "problem"}}
"""English words that do not negate before one of these (not only, no doubt)."""

AFFIRMATIVES = {
    "not": "", "never": "", "hardly": "", "barely": "", "scarcely": "", "no": "", "nothing": "something",
    "nobody": "somebody", "none": "some", "nowhere": "somewhere", "neither": "either", "nor": "or", "without": "with",
    "cannot": "can", "can't": "can", "cant": "can", "won't": "will", "wont": "will", "shan't": "shall", "ain't": "is",
    "dont": "do", "doesnt": "does", "didnt": "did", "isnt": "is", "arent": "are", "wasnt": "was", "werent": "were",
    "hasnt": "has", "havent": "have", "hadnt": "had", "couldnt": "could", "wouldnt": "would", "shouldnt": "should",
}  # fmt: skip
"""English negation -> its affirmative; of other words, n't is removed."""

AUXILIARIES = {
    "am", "is", "are", "was", "were", "can", "could", "will", "would", "shall", "should", "may", "might", "must",
    "i'm", "it's", "he's", "she's", "that's", "there's", "what's", "who's", "let's", "you're", "we're", "they're",
    "i've", "you've", "we've", "they've", "i'll", "you'll", "he'll", "she'll", "it'll", "we'll", "they'll",
}  # fmt: skip
"""English words that `not` follows."""

SUBJECTS = {"i", "you", "he", "she", "it", "we", "they"}
"""English words after which `never` negates any verb in any tense: `I never liked it`."""

ALSO_OBJECTS = {"you", "it"}
"""Those of `SUBJECTS` that are subjects only where a clause begins."""

CLAUSE_OPENERS = {"and", "but", "or", "so", "because", "that", "when", "if", "while", "though", "although", "since"}

NOT_TRUE = ("it", "is", "not", "true", "that")
"""English words that negate any sentence they precede."""

AFFIRMATIVE_ZH = (
    "不错", "不过", "不仅", "不但", "不光", "不只", "不单", "不管", "不论", "不断", "不同", "不久", "不少", "不禁",
    "不由", "不得不", "不好意思", "差不多", "对不起", "了不起", "好不容易", "没想到", "没错", "没关系", "没问题",
)  # fmt: skip
"""Chinese words that contain a character of negation and do not negate."""

_NEGATION_ZH = re.compile(
    "|".join(AFFIRMATIVE_ZH)
    + r"|(?P<question>(\w)[不没]\2)"  # 是不是, 有没有
    + r"|^(?P<whole>并不是)|(?P<removed>并不|不|(?<![特分差告个区性类级])别(?![人的])|未(?![来必免]))|(?P<have>没有?)"
)
MODALS_ZH = {"是", "会", "能", "能够", "可以", "应该", "值得", "想", "要", "愿意", "敢", "肯"}
"""Chinese words that 不 negates."""

PREDICATES_ZH = {
    "喜欢", "爱", "觉得", "认为", "相信", "推荐", "建议", "知道", "懂", "同意", "支持", "希望",
    "很", "太", "真", "真的", "真是", "非常", "十分", "特别", "挺", "比较", "最", "更", "超", "超级", "相当", "好",
}  # fmt: skip
"""Chinese words that 并不 negates."""

PRONOUNS_ZH = {"这", "那", "我", "你", "他", "她", "它"}


def negate(text: str, language: str) -> tuple[list[str], list[list[str]]]:
    """Return a text's units, and the replacement of each that negates the text.

    Existing negations are removed: `it isn't good` becomes `it is good`, 不是 becomes 是. Where there are none, one is
    added: after an auxiliary (`it is not good`), before a verb (`I never liked it`, 并不喜欢), or before the whole
    sentence (`it is not true that`, 并不是). Words that only look like negations stay (`not only`, 不错).

    Raises:
        ValueError: the language is neither English nor Chinese.
    """
    check_language(language)
    units = split_words(text)  # characters, where the text is Chinese
    if not any(map(str.isalnum, text)):
        return units, [[unit] for unit in units]
    if language == CHINESE:
        return units, _remove_negations_zh(units) or _add_negation_zh(text, units)
    words = [_normalise(unit) for unit in units]
    return units, _remove_negations(units, words) or _add_negation(units, words)


def check_language(language: str) -> None:
    """Raise ValueError where there are no rules for the language."""
    if language not in LANGUAGES:
        raise ValueError(
            f"text.negation supports {' and '.join(LANGUAGES)}, found transcripts in {language!r}; use text.words or "
            "text.recogniser for them"
        )


def _normalise(unit: str) -> str:
    return unit.replace("\u2019", "'").strip(".,;:!?\"'()[]-\u201c\u201d").lower()


def _match_unit(unit: str, word: str) -> str:
    """Return the word with a unit's capitalisation and surrounding punctuation."""
    core = _normalise(unit)
    if not core:
        return word
    at = unit.replace("\u2019", "'").lower().index(core)
    old = unit[at : at + len(core)]
    new = word.upper() if old.isupper() and len(old) > 1 else word.capitalize() if old[0].isupper() else word
    return unit[:at] + new + unit[at + len(core) :]


def _remove_negations(units: Sequence[str], words: Sequence[str]) -> list[list[str]] | None:
    """Return the replacements that remove all negations; None where there are none."""
    replacements = [[unit] for unit in units]
    found = tuple(words[: len(NOT_TRUE)]) == NOT_TRUE
    if found:
        replacements[: len(NOT_TRUE)] = [[] for _ in NOT_TRUE]
    for i, (unit, word) in enumerate(zip(units, words, strict=True)):
        following = words[i + 1] if i + 1 < len(words) else ""
        affirmative = AFFIRMATIVES.get(word, word.removesuffix("n't"))
        is_answer = word == "no" and unit[-1] in ",.!?;"  # No, I liked it
        if affirmative == word or not replacements[i] or is_answer or following in NOT_NEGATING.get(word, ()):
            continue
        replacements[i] = [_match_unit(unit, affirmative)] if affirmative else []
        found = True
    return replacements if found else None


def _add_negation(units: Sequence[str], words: Sequence[str]) -> list[list[str]]:
    replacements = [[unit] for unit in units]
    upper_case = "".join(units).isupper()
    place = _place_of_not(units, words)
    word = "not"
    if place is None:
        place, word = _place_of_never(units, words), "never"
    if place is not None:
        replacements[place].append(word.upper() if upper_case else word)
    else:
        prefix = " ".join(NOT_TRUE)
        prefix = prefix.upper() if upper_case else prefix.capitalize() if units[0][0].isupper() else prefix
        replacements[0] = [*prefix.split(), units[0]]
    return replacements


def _place_of_not(units: Sequence[str], words: Sequence[str]) -> int | None:
    """Return the unit that `not` can follow."""
    for i in range(len(units) - 1):
        if words[i] not in AUXILIARIES or not units[i][-1].isalpha():
            continue
        place = i + ("'" not in words[i] and words[i + 1] in SUBJECTS)  # is it -> is it not
        if place + 1 < len(units) and units[place][-1].isalpha() and words[place + 1] not in NOT_NEGATING["not"]:
            return place
    return None


def _place_of_never(units: Sequence[str], words: Sequence[str]) -> int | None:
    """Return the unit that `never` can follow."""
    for i in range(len(units) - 1):
        opens = i == 0 or words[i - 1] in CLAUSE_OPENERS or not units[i - 1][-1].isalnum()
        if words[i] in SUBJECTS and units[i][-1].isalpha() and (opens or words[i] not in ALSO_OBJECTS):
            return i
    return None


def _remove_negations_zh(units: Sequence[str]) -> list[list[str]] | None:
    replacements = [[unit] for unit in units]
    unit_of_character = [i for i, unit in enumerate(units) for _ in unit]
    found = False
    for match in _NEGATION_ZH.finditer("".join(units)):
        if match.lastgroup not in ("whole", "removed", "have"):
            continue
        found = True
        for position in range(*match.span()):
            replacements[unit_of_character[position]] = []
        if match.lastgroup == "have":  # 没有 and 没 negate 有
            replacements[unit_of_character[match.start()]] = ["有"]
    return replacements if found else None


def _add_negation_zh(text: str, units: Sequence[str]) -> list[list[str]]:
    replacements = [[unit] for unit in units]
    place = 0
    for word in split_words(text, CHINESE):
        core = re.sub(r"\W+$", "", word)
        characters = len(split_words(word))
        ends = len(core) < len(word) or place + characters == len(units)
        at = place
        if core[:-1] in PRONOUNS_ZH and core[-1] == "是":  # jieba keeps such a pair as one word
            core, at = "是", place + characters - 1
        sign = "没" if core == "有" else "不" if core in MODALS_ZH else "并不" if core in PREDICATES_ZH else ""
        if sign and (core != "好" or ends):  # 好 as a predicate, not an attribute
            replacements[at] = [sign, units[at]]
            return replacements
        place += characters
    replacements[0] = ["并不是", units[0]]
    return replacements
