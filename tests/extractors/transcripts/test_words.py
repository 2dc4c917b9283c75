from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors.base import FeatureSequence
from extractors.transcripts.words import (
    Word,
    _segmenter,
    match_words,
    place_words,
    split_words,
    timing_error,
    token_times,
    voiced_spans,
    word_length,
    word_times,
)


def audio_with(valid: str, hop: float = 0.1) -> FeatureSequence:
    """One step of `hop` seconds a character, valid where it is '#'."""
    steps = len(valid)
    start = (np.arange(steps) * hop).astype(np.float32)
    end = (np.arange(1, steps + 1) * hop).astype(np.float32)
    return FeatureSequence(np.zeros((steps, 1), np.float32), start, end, np.array([c == "#" for c in valid], bool))


def test_words_are_split_at_white_space_and_keep_their_punctuation():
    assert split_words("Well,  I don't - know.\n") == ["Well,", "I", "don't", "-", "know."]


def test_each_chinese_character_is_a_word():
    assert split_words("我很喜欢。Netflix 电影!") == ["我", "很", "喜", "欢。", "Netflix", "电", "影!"]


def test_chinese_is_cut_into_words_and_nothing_is_lost():
    text = "其实\uff0c我朋友觉得“这部电影”非常精彩! iPhone手机 3D 鿃㐀..."
    words = split_words(text, "zh")
    assert words[:6] == ["其实\uff0c", "我", "朋友", "觉得“", "这部", "电影”"]
    assert words[6:10] == ["非常", "精彩!", "iPhone", "手机"]
    assert "".join(words) == text.replace(" ", "")
    assert split_words("Well, I don't - know.\n", "zh") == split_words("Well, I don't - know.\n", "en")
    assert split_words("", "zh") == []


def test_chinese_words_take_the_time_of_their_characters():
    words = split_words("这部电影精彩。", "zh")
    times = match_words(words, timed(("这部", 0, 1), ("电影精彩", 1, 3)))
    assert words == ["这部", "电影", "精彩。"]
    assert times.tolist() == [[0, 1], [1, 2], [2, 3]]
    placed = word_times(words, None, 6.0)
    assert placed.tolist() == [[0, 2], [2, 4], [4, 6]]


def test_without_rjieba_the_extra_is_named(monkeypatch):
    _segmenter.cache_clear()
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ValueError, match=r"pip install 'dashfusion\[zh\]'"):
        split_words("看电影", "zh")
    assert split_words("看", "en") == ["看"]


def test_cutting_chinese_prints_nothing_and_leaves_no_file(tmp_path):
    program = (
        "from extractors.transcripts.words import split_words; assert split_words('看电影', 'zh') == ['看', '电影']"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_punctuation_has_no_length_and_digits_have_more_than_a_letter():
    assert word_length("...") == 0
    assert word_length("don't") == word_length("dont,") == 4
    assert word_length("7") > word_length("a")
    assert word_length("好。") == word_length("好") > 1


def test_spans_leave_silence_out_and_close_short_gaps():
    spans = voiced_spans(audio_with("..###.##.....##.."))
    np.testing.assert_allclose(spans, [[0.2, 0.8], [1.3, 1.5]], atol=1e-6)


def test_words_share_the_voiced_part_in_proportion_to_their_letters():
    times = word_times(["aa", "aaaa"], audio_with("..######...."), 1.2)
    np.testing.assert_allclose(times, [[0.2, 0.4], [0.4, 0.8]], atol=1e-6)


def test_a_pause_is_no_part_of_the_words_beside_it():
    times = word_times(["ab", "cd"], audio_with("##......##"), 1.0)
    np.testing.assert_allclose(times, [[0.0, 0.2], [0.8, 1.0]], atol=1e-6)


def test_a_word_may_reach_over_a_pause():
    times = word_times(["a", "bb", "c"], audio_with("##......##"), 1.0)
    np.testing.assert_allclose(times, [[0.0, 0.1], [0.1, 0.9], [0.9, 1.0]], atol=1e-6)


@pytest.mark.parametrize("audio", [None, audio_with("......"), audio_with("")])
def test_without_voiced_audio_words_share_the_whole_clip(audio):
    np.testing.assert_allclose(word_times(["ab", "cd"], audio, 4.0), [[0, 2], [2, 4]])


def test_words_of_punctuation_alone_take_no_time_unless_there_are_no_others():
    times = word_times(["ab", "--", "cd"], None, 4.0)
    np.testing.assert_allclose(times, [[0, 2], [2, 2], [2, 4]])
    np.testing.assert_allclose(word_times(["?", "!"], None, 4.0), [[0, 2], [2, 4]])


def test_no_words_have_no_times():
    assert word_times([], None, 4.0).shape == (0, 2)


def timed(*words):
    return [Word(*word) for word in words]


def test_times_of_the_same_words_are_taken_whatever_their_case_punctuation_and_cuts():
    known = timed(("well", 0, 1), ("do", 1, 2), ("n't", 2, 3.5), ("", 3.5, 4), ("STOP", 4, 5))
    times = match_words(["Well,", "don't", "--", "stop!"], known)
    np.testing.assert_allclose(times, [[0, 1], [1, 3.5], [3.5, 3.5], [4, 5]])
    np.testing.assert_allclose(
        match_words(["...", "Well", "done"], timed(("Well-done", 1, 9))), [[1, 1], [1, 5], [5, 9]]
    )


def test_a_chinese_phrase_shares_its_time_among_its_characters():
    times = match_words(split_words("你好。看"), timed(("你好", 0, 1), ("看。", 2, 3)))
    np.testing.assert_allclose(times, [[0, 0.5], [0.5, 1], [2, 3]])


def test_words_spelled_otherwise_match_one_for_one_if_most_agree():
    known = timed(("2", 0, 1), ("films", 1, 2))
    np.testing.assert_allclose(match_words(["Two", "films"], known), [[0, 1], [1, 2]])
    assert match_words(["Two", "books"], known) is None
    assert match_words(["Two", "good", "films"], known) is None
    assert match_words([], known) is None and match_words(["Two"], []) is None and match_words(["--"], known) is None


@given(
    st.lists(st.text("ab.", min_size=1, max_size=8), min_size=1, max_size=12),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=5),
)
def test_word_times_are_ordered_and_fill_the_spans(words, steps):
    edges = np.cumsum(np.array(steps).reshape(-1))
    spans = edges.reshape(-1, 2)
    times = place_words(words, spans)
    assert (times[:, 0] <= times[:, 1]).all()
    assert (np.diff(times[:, 0]) >= -1e-9).all() and (np.diff(times[:, 1]) >= -1e-9).all()
    assert times[:, 1].max() <= spans[-1, 1] + 1e-9 and times[:, 0].min() >= spans[0, 0] - 1e-9
    assert times[-1, 1] == pytest.approx(spans[-1, 1]) or not word_length(words[-1])


def test_tokens_take_their_words_times_and_special_tokens_the_whole_clip():
    words = np.array([[0.5, 1.0], [1.0, 1.5]])
    times = token_times(np.array([-1, 0, 0, 1, -1], np.int32), words, 2.0)
    np.testing.assert_allclose(times, [[0, 2], [0.5, 1], [0.5, 1], [1, 1.5], [0, 2]])


def test_a_token_of_a_word_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="word 2, but the transcript has 2 words"):
        token_times(np.array([0, 2], np.int32), np.zeros((2, 2)), 1.0)


def test_timing_error_by_hand():
    true = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    estimated = np.array([[0.1, 1.0], [1.0, 2.3], [3.0, 3.5]])
    error = timing_error(true, estimated)
    assert error["words"] == 3
    assert error["start"]["mean"] == pytest.approx(1.1 / 3)
    assert error["start"]["median"] == pytest.approx(0.1)
    assert error["start"]["p90"] == pytest.approx(0.82)
    assert error["end"]["mean"] == pytest.approx(0.8 / 3)
    assert error["overlap"] == pytest.approx(2 / 3)


def test_timing_error_needs_the_same_words():
    with pytest.raises(ValueError, match="same words"):
        timing_error(np.zeros((2, 2)), np.zeros((3, 2)))
