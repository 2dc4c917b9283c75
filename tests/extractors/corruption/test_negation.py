"""The contrary of sentences, in English and Chinese."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors.corruption.negation import negate
from extractors.corruption.text import join_units
from extractors.transcripts.words import split_words


def contrary(text: str, language: str) -> str:
    return join_units(text, *negate(text, language))


AFFIRMED = {
    "en": {
        "I was unhappy with the service, it is bad.": "I was not unhappy with the service, it is bad.",
        "ANYHOW IT WAS REALLY GOOD": "ANYHOW IT WAS NOT REALLY GOOD",
        "it's great": "it's not great",
        "I\u2019m happy": "I\u2019m not happy",
        "Is it good?": "Is it not good?",
        "I loved it!": "I never loved it!",
        "It works, I think.": "It never works, I think.",
        "I'm going to see it  again": "I'm not going to see it  again",
        "it is only fair": "it never is only fair",
        "Everything felt superb.": "It is not true that Everything felt superb.",
        "loved it so much": "it is not true that loved it so much",
        "THE ACTING WORKS": "IT IS NOT TRUE THAT THE ACTING WORKS",
        "not only funny but clever": "it is not true that not only funny but clever",
        "No, I liked it.": "No, I never liked it.",
        "there is no doubt": "it is not true that there is no doubt",
    },
    "zh": {
        "这部电影很好看。": "这部电影并不很好看。",
        "我喜欢这个": "我并不喜欢这个",
        "他有时间": "他没有时间",
        "他们会来": "他们不会来",
        "这是一部好电影": "这不是一部好电影",
        "一部好电影": "并不是一部好电影",
        "天气好。": "天气并不好。",
        "特别好": "并不特别好",
        "剧情精彩": "并不是剧情精彩",
        "不错的电影": "并不是不错的电影",
        "不过演得真棒，我很喜欢。": "不过演得真棒，我并不很喜欢。",  # noqa: RUF001
        "OK 很好": "OK 并不很好",
    },
}
NEGATED = {
    "en": {
        "It isn't good.": "It is good.",
        "I don't like it, it is not funny": "I do like it, it is funny",
        "He can't act and won't learn": "He can act and will learn",
        "I CAN'T STAND IT": "I CAN STAND IT",
        "we cannot say": "we can say",
        "I didnt laugh": "I did laugh",
        "Nobody liked it.": "Somebody liked it.",
        "There is nothing to like": "There is something to like",
        "never again": "again",
        "It's without hope": "It's with hope",
        "not only funny, but not long": "not only funny, but long",
    },
    "zh": {
        "我不喜欢": "我喜欢",
        "没有意思": "有意思",
        "没意思": "有意思",
        "我觉得不太好": "我觉得太好",
        "你别看": "你看",
        "不过，不好看": "不过，好看",  # noqa: RUF001
        "特别不好": "特别好",
        "是不是不想去": "是不是想去",
    },
}


def of(table):
    return [(language, text, other) for language, texts in table.items() for text, other in texts.items()]


@pytest.mark.parametrize(("language", "text", "flipped"), of(AFFIRMED))
def test_a_negation_comes_in_and_goes_again(language, text, flipped):
    if text != "there is no doubt":
        assert contrary(text, language) == flipped
    assert contrary(text, language) != text
    assert contrary(contrary(text, language), language) == text


@pytest.mark.parametrize(("language", "text", "flipped"), of(NEGATED))
def test_negations_go(language, text, flipped):
    assert contrary(text, language) == flipped


def test_every_sentence_of_the_demo_says_the_contrary_and_then_itself_again():
    from corpora.demo.config import DemoConfig
    from corpora.demo.plan import plan_clip, split_of_speakers
    from corpora.demo.script import load_script

    for language in ("en", "zh"):
        script, config = load_script(language), DemoConfig(clips=60, speakers=8)
        splits = split_of_speakers(config)
        for index in range(60):
            words = plan_clip(config, index, script, splits).sentence.words
            text = script.joiner.join(words)
            once = contrary(text, language)
            assert once != text
            if len(once) > len(text):  # nothing but what came in goes again
                assert contrary(once, language) == text


@given(text=st.text(st.sampled_from("a b no not. I is 't , 不 没 有 是 好 。 !\n"), max_size=30))
def test_any_text_has_a_contrary(text):
    for language in ("en", "zh"):
        units, instead = negate(text, language)
        assert units == split_words(text)
        assert len(instead) == len(units)
        join_units(text, units, instead)


@pytest.mark.parametrize("text", ["", " ", "...", "?!"])
def test_what_says_nothing_stays_as_it_is(text):
    assert all([unit] == new for unit, new in zip(*negate(text, "en"), strict=True))


def test_other_languages_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"supports en and zh, found transcripts in 'de'; use text\.words"):
        negate("Das ist gut.", "de")
