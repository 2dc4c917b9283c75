"""Windows over a long video: where they lie, and which steps and words they hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors.base import FeatureSequence
from extractors.inference.windows import cut_sequence, cut_transcript, window_times
from extractors.transcripts.table import Transcript

WORDS = ["one", "two", "three", "four"]
TIMES = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0]])


def test_windows_are_spread_evenly_from_the_start_to_the_end():
    assert window_times(10.0, 4.0, 2.0) == [(0.0, 4.0), (2.0, 6.0), (4.0, 8.0), (6.0, 10.0)]
    assert window_times(9.0, 4.0, 2.0) == [(0.0, 4.0), (pytest.approx(5 / 3), pytest.approx(17 / 3)),
                                           (pytest.approx(10 / 3), pytest.approx(22 / 3)), (5.0, 9.0)]  # fmt: skip


@pytest.mark.parametrize(("window", "hop"), [(None, None), (4.0, 2.0), (3.0, 1.0)])
def test_what_one_window_holds_gets_none(window, hop):
    assert window_times(3.0, window, hop) == []


@given(st.floats(0.1, 500), st.floats(0.5, 60), st.floats(0.2, 60))
def test_windows_leave_nothing_out(duration, window, hop):
    spans = window_times(duration, window, min(hop, window))
    assert all(end - start == pytest.approx(window) for start, end in spans)
    assert all(0 < b[0] - a[0] <= min(hop, window) + 1e-6 for a, b in itertools.pairwise(spans))
    if duration > window:
        assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(duration)


def test_steps_belong_to_the_window_that_holds_their_middle_and_count_from_its_start():
    start = np.arange(10, dtype=np.float32)
    sequence = FeatureSequence(start[:, None].copy(), start, start + 1, start % 2 == 0)
    cut = cut_sequence(sequence, 2.4, 5.5)
    np.testing.assert_array_equal(cut.values[:, 0], [2, 3, 4])
    np.testing.assert_allclose(cut.start, [0, 0.6, 1.6], atol=1e-6)
    np.testing.assert_allclose(cut.end, [0.6, 1.6, 2.6], atol=1e-6)
    np.testing.assert_array_equal(cut.valid, [True, False, True])
    assert len(cut_sequence(sequence, 20, 30)) == 0


def test_a_windows_text_is_its_words_with_their_times():
    whole = Transcript("clip", "one two three four", "given", WORDS)
    cut = cut_transcript(whole, TIMES, 0.8, 2.8, "en")
    assert cut.text == "two three" and list(cut.words) == ["two", "three"] and cut.text_source == "given"
    np.testing.assert_allclose(cut.start, [0.2, 1.2])
    np.testing.assert_allclose(cut.end, [1.2, 2.0])


def test_chinese_words_are_put_together_without_spaces():
    words = ["我们", "很", "高兴"]
    times = np.array([[0, 1], [1, 2], [2, 3]], float)
    cut = cut_transcript(Transcript("clip", "".join(words), "given", words), times, 0.9, 3.0, "zh")
    assert cut.text == "很高兴" and len(cut.start) == len(cut.words) and cut.end[-1] == pytest.approx(2.1)


def test_a_window_in_a_pause_has_no_text():
    cut = cut_transcript(Transcript("clip", "one two three four", "given", WORDS), TIMES, 10, 12, "en")
    assert cut.text == "" and not cut.words
