"""The clips that can be looked at: which they are, and what is kept of each."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from corpora.manifest import Clip
from flows.report.explorer import COLUMNS, LEVELS, MAX_CLIPS, choose_clips, explorer, to_levels, to_script
from model.evaluation.explain import Attention, ClipView, Explanation, Track


def make_explorer(make, clips: dict[str, Clip], known=None, offset: float = 0.3, **without: float):
    labels = np.array([np.nan if clip.label is None else clip.label for clip in clips.values()])
    prediction = np.nan_to_num(labels) + offset
    left_out = {m: prediction - value for m, value in without.items()}
    return explorer(tuple(clips), labels, prediction, left_out, clips, known or make.explorer(clips))


def entries(found) -> list[dict]:
    return json.loads(found.data)["clips"]


def one_step_view(states: str, values: list[float], seconds: float = 4.0) -> ClipView:
    """A clip whose audio has a step a quarter; `states`: v visible, h hidden."""
    edges = np.linspace(0, seconds, len(states) + 1)
    visible = np.array([state == "v" for state in states])
    return ClipView(
        np.zeros((0, 2)), {"audio": Track(edges[:-1], edges[1:], visible, np.array(values, float)[:, None])}
    )


def test_a_small_split_is_shown_whole_worst_first():
    label, prediction = np.array([0.0, 1.0, 2.0, np.nan]), np.array([0.1, 3.0, 1.0, 0.0])
    assert choose_clips(label, prediction).tolist() == [1, 2, 0, 3]


def test_of_a_large_split_half_are_the_worst_and_the_others_are_drawn():
    rng = np.random.default_rng(0)
    label, prediction = np.zeros(5000), rng.normal(size=5000)
    chosen = choose_clips(label, prediction)
    assert len(chosen) == len(set(chosen.tolist())) == MAX_CLIPS
    error = np.abs(prediction)
    worst = np.sort(error)[::-1]
    np.testing.assert_array_equal(error[chosen[:150]], worst[:150])
    assert (np.diff(error[chosen]) <= 0).all() and error[chosen[150:]].mean() == pytest.approx(error.mean(), rel=0.15)
    np.testing.assert_array_equal(chosen, choose_clips(label, prediction))


def test_a_large_split_without_labels_is_drawn_from():
    chosen = choose_clips(np.full(1000, np.nan), np.zeros(1000))
    assert len(set(chosen.tolist())) == MAX_CLIPS and chosen.max() > 900


def test_rows_say_what_a_clip_is_and_what_it_lacks(make):
    clips = make.clips(4)
    found = make_explorer(make, clips)
    rows = {row.clip_id: row for row in found.rows}
    assert set(rows) == set(clips) and found.total == 4
    assert rows["v0/0001"].missing == ["vision"] and rows["v3/0001"].missing == ()
    assert rows["v0/0001"].error == pytest.approx(0.3) and rows["v0/0001"].seconds == 3.0
    assert found.subgroups == [("Polarity", "positive"), ("Conflict", "text misleads")]
    parts = {entry["id"]: entry.get("subgroups") for entry in entries(found)}
    assert parts == {"v0/0001": [1], "v1/0001": None, "v2/0001": [0], "v3/0001": [0]}


def test_what_a_modality_moves_is_what_is_predicted_less_what_is_without_it(make):
    clips = make.clips(3)
    found = make_explorer(make, clips, text=0.5, audio=np.nan, vision=-0.25)
    assert [entry["contributions"] for entry in entries(found)] == [{"text": 0.5, "vision": -0.25}] * 3


def test_labels_of_single_modalities_are_kept_where_there_are_any(make):
    clip = Clip("v/1", "v", "test", "zh", "", "很 好", 0.6, label_text=-0.2, label_audio=0.4, duration=2.0)
    assert entries(make_explorer(make, {"v/1": clip}))[0]["own_labels"] == {"text": -0.2, "audio": 0.4}


def test_a_clip_that_the_manifest_does_not_know_has_a_row_all_the_same(make):
    clips = make.clips(2)
    labels = np.array([1.0, 2.0])
    found = explorer(("v0/0001", "gone"), labels, labels, {}, clips, make.explorer(clips))
    gone = {row.clip_id: row for row in found.rows}["gone"]
    assert gone.clip is None and gone.seconds is None


def test_levels_are_one_character_a_value_and_a_blank_where_there_is_none():
    assert (
        to_levels(np.array([0.0, 1.0, np.nan, -5.0, 7.0, 0.5])) == f"{LEVELS[0]}{LEVELS[63]} {LEVELS[0]}{LEVELS[63]}W"
    )
    assert len(LEVELS) == len(set(LEVELS)) == 64


def test_a_track_says_of_each_moment_whether_the_network_sees_it_and_whether_it_is_valid(make):
    clips = {"a/1": replace(make.clips(1)["v0/0001"], clip_id="a/1", duration=5.0)}
    view = one_step_view("vvhv", [2.0, -2.0, 0.0, 0.0])
    known = make.explorer(clips, valid={"audio": {"a/1": np.array([True, True, True, False])}})
    known = replace(known, explanation=Explanation({"a/1": view}, known.explanation.features, "text"))
    track = entries(make_explorer(make, clips, known))[0]["tracks"]["audio"]
    # 4 s of steps on a clip of 5 s: a fifth of the columns have none
    shares = {state: track["states"].count(state) / COLUMNS for state in "0123"}
    assert shares == pytest.approx({"0": 0.4, "1": 0.2, "2": 0.2, "3": 0.2}, abs=0.03)
    line = track["lines"][0]
    assert line[0] == LEVELS[63] and line[int(0.3 * COLUMNS)] == LEVELS[0] and line[int(0.5 * COLUMNS)] == " "
    assert len(line) == len(track["states"]) == COLUMNS


def test_attention_is_told_as_multiples_of_an_even_spread(make):
    clips = {"a/1": replace(make.clips(1, text="one two three")["v0/0001"], clip_id="a/1", duration=4.0)}
    view = one_step_view("vvvv", [0.0] * 4)
    looks = np.array([[0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 0.0, 0.8], [0.0, 0.0, 0.0, 0.0]])
    attention = {"audio": Attention(looks, np.array([0.2, 0.2, 0.0]))}
    view = replace(view, attention=attention, word_times_W2=np.full((3, 2), np.nan), anchors={"text": 0.75})
    known = make.explorer(clips)
    known = replace(known, explanation=Explanation({"a/1": view}, known.explanation.features, "text"))
    entry = entries(make_explorer(make, clips, known))[0]
    found = entry["attention"]["audio"]
    assert found["max"] == 4.0 and found["cls"] == [0.2, 0.2, 0.0]
    even, peaked, cut = found["rows"]
    assert set(even) == {LEVELS[round(63 / 4)]} and cut == ""
    assert set(peaked[: 3 * COLUMNS // 4]) == {LEVELS[0]} and peaked[-1] == LEVELS[63]
    assert entry["words"] == [["one", None, None], ["two", None, None], ["three", None, None]]
    assert entry["anchors"] == {"text": 0.75}


def test_words_of_which_nothing_is_known_are_no_more_than_the_transcript(make):
    clips = make.clips(1)
    known = make.explorer(clips)
    view = replace(known.explanation.views["v0/0001"], word_times_W2=np.full((3, 2), np.nan), attention={})
    known = replace(known, explanation=replace(known.explanation, views={"v0/0001": view}))
    found = entries(make_explorer(make, clips, known))[0]
    assert "words" not in found and found["text"] == "It was fine." and "tracks" in found


def test_attention_of_a_very_long_transcript_is_cut(make):
    clips = make.clips(1, text=" ".join(["so"] * 200))
    found = entries(make_explorer(make, clips, make.explorer(clips, words=200)))[0]
    assert len(found["words"]) == 200 and len(found["attention"]["audio"]["rows"]) == 80


def test_thousands_of_clips_make_a_page_of_a_few_megabytes(make):
    clips = make.clips(4659, text=" ".join(["word"] * 25))
    found = make_explorer(make, clips, make.explorer(clips, words=25, steps=400))
    assert len(found.rows) == MAX_CLIPS and found.total == 4659
    assert len(found.data) < 2_000_000


def test_data_cannot_leave_their_script_element():
    text = to_script({"text": "</script><!--\u2028&amp;", "other": "é很"})
    assert not set(text) & set("<>&\u2028") and json.loads(text) == {"text": "</script><!--\u2028&amp;", "other": "é很"}
    assert "é很" in text


def test_the_page_says_why_there_is_no_attention_and_whose_it_is_where_there_are_several_seeds(render, make):
    known = make.explorer(make.clips())
    assert "first seed" not in render(explorer=known)[1].words
    assert "Attention is that of the first seed" in render(explorer=known, metrics={"mae": 0.5, "seeds": 2})[1].words
    none = replace(known, explanation=replace(known.explanation, no_attention_reason="the model has no alignment"))
    assert "Attention is not shown: the model has no alignment." in render(explorer=none)[1].words


def test_the_page_says_how_many_clips_of_a_large_split_it_holds(render, make):
    clips = make.clips(400)
    _, page = render(clips=clips, predictions=make.predictions(clips, {0: 0.1}))
    shown = "Of 400 clips, 300 are shown: the 150 with the largest error, and a random sample of as many others"
    assert shown in page.words
    assert len(page.clips()) == 300


def test_rows_come_worst_first_with_the_mean_over_the_seeds(render, make):
    clips = make.clips(40)
    table = make.predictions(clips, {0: 0.3, 1: -0.6, 2: 0.9})
    _, page = render(clips=clips, predictions=table)
    assert len(page.clips()) == 40 and {row[4] for row in page.clips()} == {"+0.200"}
    errors = np.linspace(0, 2, 40) * np.resize([1, -1], 40)
    wrong = np.asarray(make.predictions(clips, {0: 0.0})["label"]) + errors
    table = make.predictions(clips, {0: 0.0}).set_column(4, "prediction", [wrong.astype(np.float32)])
    _, page = render(clips=clips, predictions=table)
    assert [row[0] for row in page.clips()] == [f"v{i}/0001" for i in reversed(range(40))]
    assert page.clips()[0] == ["v39/0001", "3.0", "+3.000", "+1.000", "\u22122.000", "It was fine."]


def test_unlabelled_clips_are_shown_without_errors(render, make):
    clips = {name: replace(clip, label=None, text="") for name, clip in make.clips(3).items()}
    _, page = render(clips=clips, predictions=make.predictions(clips, {0: 0.1}))
    assert page.clips()[0][2:] == ["–", "+0.100", "–", "no transcript"]  # noqa: RUF001
    assert "The prediction for each clip." in page.words


def test_transcripts_say_their_language(render, make):
    clips = {"v0/0001": replace(make.clips(1)["v0/0001"], language="zh", text="很好")}
    _, page = render(clips=clips, predictions=make.predictions(clips, {0: 0.1}))
    assert any(tag == "span" and attrs.get("lang") == "zh" for tag, attrs in page.elements)
