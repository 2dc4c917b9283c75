"""`text.words`: what can be said of a word without a model."""

from __future__ import annotations

import numpy as np
import pytest

from extractors.base import MissingModalityError, Source
from extractors.registry import create
from extractors.transcripts.words import split_words


def source(text, duration=2.5, language="en"):
    return Source(clip_id="clip", media=None, text=text, language=language, duration=duration)


def extract(text, **options):
    (result,) = create("text.words", {}).extract([source(text, **options)])
    return result


def rows(text):
    """Word -> the names of its features that are not 0, and its length."""
    result, names = extract(text), create("text.words", {}).feature_names
    return {
        word: (values[0], {name for name, value in zip(names[1:], values[1:], strict=True) if value})
        for word, values in zip(split_words(text), result.values.tolist(), strict=True)
    }


def test_a_step_is_a_word_with_its_length_and_its_marks():
    assert rows('Well, 2 films were "GREAT!?" (I say.) OK so - no!') == {
        "Well,": (4, {"ends_comma"}),
        "2": (4, {"digits"}),
        "films": (5, set()),
        "were": (4, set()),
        '"GREAT!?"': (5, {"capitals", "ends_exclamation", "ends_question"}),
        "(I": (1, set()),
        "say.)": (3, {"ends_stop"}),
        "OK": (2, {"capitals"}),
        "so": (2, set()),
        "-": (0, set()),
        "no!": (2, {"ends_exclamation"}),
    }


def test_chinese_characters_are_words_and_wide_marks_are_marks():
    wide = dict.fromkeys((0xFF01, 0xFF1F, 0xFF0C))
    good, film, why, so = (rows("好" + chr(mark))["好" + chr(mark)] for mark in (*wide, 0x3002))
    assert (good, film, why, so) == (
        (3, {"ends_exclamation"}), (3, {"ends_question"}), (3, {"ends_comma"}), (3, {"ends_stop"})
    )  # fmt: skip
    assert len(extract("这部电影")) == 4
    assert extract("这部电影", language="zh").values[:, 0].tolist() == [6, 6]


def test_the_same_word_has_the_same_id_wherever_it_stands():
    result = extract("Good good bad")
    assert result.token_ids[0] == result.token_ids[1] != result.token_ids[2]
    assert result.token_ids[1] == extract("so good").token_ids[1] == 1820610194
    assert result.token_ids.dtype == np.int32 and (extract("a b c d e f g h").token_ids >= 0).all()
    assert result.word_index.tolist() == [0, 1, 2]


def test_steps_span_the_clip_until_the_words_are_timed():
    assert extract("a b").end.tolist() == [2.5, 2.5]
    assert extract("a b", duration=None).end.tolist() == [0, 0]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_transcript_is_a_missing_modality(text):
    assert isinstance(extract(text), MissingModalityError)
