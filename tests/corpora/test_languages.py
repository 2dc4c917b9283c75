"""The language that a transcript seems to be in."""

from __future__ import annotations

import numpy as np
import pytest

from corpora.demo.script import compose, load_script
from corpora.languages import likely_language, other_language


@pytest.mark.parametrize(
    ("text", "language", "other"),
    [
        ("The hotel was charming and we had a likeable time.", "en", None),
        ("The hotel was charming and we had a likeable time.", "de", "en"),
        ("The hotel was charming and we had a likeable time.", "zh", "Latin script"),
        ("Das Hotel war sehr schön, und ich habe gut geschlafen.", "en", "de"),
        ("Le film est très bon et je suis content", "en", "fr"),
        ("No die in so an war", "en", None),  # words of English and German alike
        ("这家酒店很迷人我们度过了愉快的时光。", "zh", None),
        ("这家酒店很迷人我们度过了愉快的时光。", "en", "zh"),
        ("我用iPhone拍照", "zh", None),
        ("これは本当にいい", "zh", "ja"),
        ("Привет, как дела?", "en", "ru"),
        ("ok", "zh", None),
        ("Um.", "en", None),
        ("", "en", None),
        ("1234 !?", "zh", None),
        ("The hotel was charming and it is not for you", "xx", None),  # not known
    ],
)
def test_another_language_is_noticed_by_script_and_by_common_words(text, language, other):
    assert other_language(text, language) == other


@pytest.mark.parametrize("language", ["en", "zh"])
def test_sentences_of_the_demos_are_in_their_language(language):
    script, rng = load_script(language), np.random.default_rng(0)
    sentences = [compose(script, sentiment, rng).words for sentiment in np.linspace(-3, 3, 100)]
    texts = [("" if language == "zh" else " ").join(words) for words in sentences]
    assert [text for text in texts if other_language(text, language)] == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("it was good and the film is not for me", "en"),
        ("Das war nicht schlecht, und ich bin froh", "de"),
        ("je ne l'ai pas aimé, et c'est dommage", "fr"),
        ("我觉得 OK", "zh"),
        ("とても良い映画でした", "ja"),
        ("정말 좋았어요", "ko"),
        ("", "en"),
    ],
)
def test_the_language_is_told_by_script_and_frequent_words(text, language):
    assert likely_language([text]) == language
