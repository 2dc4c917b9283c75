"""What the corruptions of transcripts do to words, and to the times of words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from extractors.corruption.text import (
    DELETIONS,
    SUBSTITUTIONS,
    Lexicon,
    apply_edit,
    drop_words,
    flip_negation,
    join_units,
    misrecognise,
    spoken_units,
)
from extractors.transcripts.table import Transcript
from extractors.transcripts.words import split_words

ENGLISH = """the film was slow and the plot was thin but the actors were wonderful
i bought a new phone last week and the screen is bright and clear
we went to see the sea and their seat was there by the sheep and the ship
he read the red book right before he had to write a letter to his son in the sun
it is not bad at all it is really good and i would buy it again for my whole family
she said the food was cold and the waiter was rude so we will never come back""".splitlines()
CHINESE = """这部电影的剧情很慢可是演员非常好
我上个星期买了一个新的手机屏幕很亮很清楚
他们说服务员的态度不好菜也冷了我们以后不会再来
她在看书的时候听见树上的鸟在叫声音很好听""".splitlines()


@pytest.fixture(scope="module")
def english() -> Lexicon:
    return Lexicon(ENGLISH, "en")


@pytest.fixture(scope="module")
def chinese() -> Lexicon:
    return Lexicon(CHINESE, "zh")


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def text_of(text: str, edit: tuple[list[str], list[list[str]]]) -> str:
    return join_units(text, *edit)


def timed(text: str, language: str = "en") -> Transcript:
    words = split_words(text, language)
    edges = np.cumsum([0.2, *(0.1 * len(word) for word in words)])
    return Transcript("v/1", text, "corpus", words, edges[:-1].tolist(), edges[1:].tolist(), "file")


def test_words_are_missing_at_the_rate_that_was_asked_for():
    said = " ".join(ENGLISH * 20)
    for level in (0.1, 0.5, 0.9):
        left = text_of(said, drop_words(said, "en", level, rng(1), None)).split()
        assert len(left) / len(said.split()) == pytest.approx(1 - level, abs=0.03)


@given(seed=st.integers(0, 99), low=st.floats(0, 1), high=st.floats(0, 1))
def test_what_is_missing_at_one_level_is_missing_at_the_higher_ones(seed, low, high):
    low, high = sorted((low, high))
    (units, few), (_, many) = (drop_words(ENGLISH[0], "en", level, rng(seed), None) for level in (low, high))
    assert units == ENGLISH[0].split()
    assert all(not late or early for early, late in zip(few, many, strict=True))


def test_all_words_can_be_missing_and_none():
    assert text_of(ENGLISH[0], drop_words(ENGLISH[0], "en", 1, rng(0), None)) == ""
    assert text_of(ENGLISH[0], drop_words(ENGLISH[0], "en", 0, rng(0), None)) == ENGLISH[0]


def test_missing_chinese_words_leave_no_spaces():
    said = "我喜欢这部电影，真的很好。"  # noqa: RUF001
    left = text_of(said, drop_words(said, "zh", 0.4, rng(1), None))
    assert left and " " not in left and len(left) < len(said)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("level", [0.05, 0.15, 0.3, 0.5])
def test_the_error_rate_is_the_one_that_was_asked_for(english, chinese, language, level):
    lexicon, texts = (english, ENGLISH) if language == "en" else (chinese, CHINESE)
    wrong = said = 0
    for seed in range(200):
        for number, text in enumerate(texts):
            heard = text_of(text, misrecognise(text, language, level, rng(10 * seed + number), lexicon))
            units = spoken_units(text, language)
            wrong += Levenshtein.distance(units, spoken_units(heard, language))
            said += len(units)
    assert wrong / said == pytest.approx(level, rel=0.1)  # some errors explain each other


@pytest.mark.parametrize("language", ["en", "zh"])
def test_errors_are_of_the_three_kinds_in_their_proportions(english, chinese, language):
    lexicon, texts = (english, ENGLISH) if language == "en" else (chinese, CHINESE)
    kinds = {"same": 0, "substitution": 0, "deletion": 0, "insertion": 0}
    for seed in range(100):
        for text in texts:
            for unit, new in zip(*misrecognise(text, language, 0.4, rng(seed), lexicon), strict=True):
                kind = "insertion" if len(new) > 1 else "deletion" if not new else "substitution"
                kinds["same" if new == [unit] else kind] += 1
                assert set(new) <= {unit, *lexicon.words}
    errors = sum(kinds.values()) - kinds["same"]
    assert kinds["substitution"] / errors == pytest.approx(SUBSTITUTIONS, abs=0.03)
    assert kinds["deletion"] / errors == pytest.approx(DELETIONS, abs=0.03)


def test_words_that_sound_alike_are_confused(english, chinese):
    assert english.similar("right")[0] == "write"
    assert english.similar("sea")[0] == "see"
    assert english.similar("their")[0] == "there"
    assert {"red"} <= set(english.similar("read")) or {"read"} <= set(english.similar("red"))
    assert chinese.similar("书")[0] in "树数束"
    assert "的" not in chinese.similar("的")


def test_a_language_that_espeak_does_not_know_is_confused_by_its_spelling():
    lexicon = Lexicon(["aran aram bolu bolo zzz"], "xx")
    assert lexicon.similar("aran")[0] == "aram" and lexicon.similar("bolu")[0] == "bolo"


def test_words_that_are_put_in_are_frequent_ones(english):
    assert english.frequent(0.0) == "the" and english.frequent(0.9999) in english.words[:20]


def test_a_misheard_word_keeps_capitals_and_punctuation(english):
    lexicon = Lexicon(["right write"], "en")
    for seed in range(40):
        units, new = misrecognise('Right, (WRITE) right!" ', "en", 1, rng(seed), lexicon)
        assert new[0] in ([], ["Write,"], ["right", "Right,"], ["write", "Right,"])
        assert new[1] in ([], ["(RIGHT)"], ["right", "(WRITE)"], ["write", "(WRITE)"])
        assert new[2] in ([], ['write!"'], ["right", 'right!"'], ["write", 'right!"'])
        assert units == ["Right,", "(WRITE)", 'right!"']


@given(seed=st.integers(0, 30))
def test_errors_of_one_level_are_there_at_the_higher_ones(english, seed):
    (units, few), (_, many) = (misrecognise(ENGLISH[3], "en", level, rng(seed), english) for level in (0.2, 0.6))
    assert all(late == early for unit, early, late in zip(units, few, many, strict=True) if early != [unit])


def test_a_lexicon_of_one_word_has_nothing_to_confuse_it_with():
    lexicon = Lexicon(["good"], "en")
    assert all(misrecognise("good", "en", 1, rng(seed), lexicon)[1] in ([[]], [["good", "good"]]) for seed in range(20))


def test_so_many_clips_say_the_contrary():
    flipped = [bool(flip_negation("it is good", "en", 0.3, rng(seed), None)[0]) for seed in range(400)]
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.06)
    with pytest.raises(ValueError, match=r"text\.negation supports en and zh"):
        flip_negation("es ist gut", "de", 0, rng(0), None)


def test_what_takes_a_words_place_takes_its_time():
    said = timed("I really liked it.")
    new = apply_edit(said, "en", split_words(said.text), [["I"], [], ["never", "liked"], ["it."]])
    assert (new.text, list(new.words)) == ("I never liked it.", ["I", "never", "liked", "it."])
    assert new.times_method == "file"
    old = dict(zip(said.words, zip(said.start, said.end, strict=True), strict=True))
    times = list(zip(new.start, new.end, strict=True))
    assert times[0] == pytest.approx(old["I"]) and times[3] == pytest.approx(old["it."])
    middle = sum(old["liked"]) / 2
    assert times[1] == pytest.approx((old["liked"][0], middle))
    assert times[2] == pytest.approx((middle, old["liked"][1]))


def test_a_chinese_character_takes_its_share_of_its_words_time():
    said = timed("我喜欢电影", "zh")
    units = spoken_units(said.text, "zh")
    new = apply_edit(said, "zh", units, [["我"], ["喜"], ["欢"], [], ["影"]])
    assert new.text == "我喜欢影" and list(new.words) == split_words("我喜欢影", "zh")
    assert new.start[0] == said.start[0]
    assert new.end[-1] == pytest.approx(said.end[-1])
    assert new.start[-1] == pytest.approx((said.start[-1] + said.end[-1]) / 2)


@given(text=st.text(st.sampled_from("ab, 不好。 I\t"), max_size=25), seed=st.integers(0, 20), level=st.floats(0, 1))
def test_words_and_times_of_any_corrupted_transcript_belong_together(text, seed, level):
    for language in ("en", "zh"):
        for said in (timed(text, language), replace(timed(text, language), start=(), end=(), times_method="")):
            new = apply_edit(said, language, *drop_words(text, language, level, rng(seed), None))
            assert list(new.words) == split_words(new.text, language)
            assert len(new.start) == len(new.end) == (len(new.words) if new.times_method else 0)
            assert (np.array(new.end) >= np.array(new.start)).all() and (np.diff(new.start) >= -1e-9).all()


def test_nothing_changed_is_the_same_transcript():
    said = timed("I  liked \t it.")
    assert apply_edit(said, "en", split_words(said.text), [["I"], ["liked"], ["it."]]) is said
    assert apply_edit(said, "en", [], []) is said


def test_a_transcript_without_words_left_has_no_text():
    new = apply_edit(timed("Yes."), "en", ["Yes."], [[]])
    assert (new.text, new.text_source, list(new.words), new.times_method) == ("", "", [], "")
