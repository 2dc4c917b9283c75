"""Metrics of parts of a split: which clips belong to which part, and what is measured of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from model.data.clips import ClipTable
from model.evaluation.metrics import evaluate_metrics
from model.evaluation.subgroups import (
    MIN_SPEAKER_CLIPS,
    SLICES,
    ClipAttributes,
    Subgroup,
    measure_speakers,
    measure_subgroups,
    slice_rows,
    split_into_subgroups,
)

WIDE, UNIT = (-3.0, 3.0), (-1.0, 1.0)


def make_facts(clips: int = 12, **changes) -> ClipAttributes:
    """Clips alike in everything that is not changed."""
    alike = {
        "seconds_N": np.full(clips, 3.0),
        "speaker_N": np.array(["v"] * clips, object),
        "gender_N": np.array([""] * clips, object),
        "steps": {m: np.full(clips, 5) for m in ("text", "audio", "vision")},
        "valid": {},
        "label_N": np.ones(clips),
        "own_label": {},
    }
    return ClipAttributes(**alike | changes)


def rows_of(facts: ClipAttributes) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = {}
    for part in split_into_subgroups(facts):
        found.setdefault(part.group, {})[part.name] = np.flatnonzero(part.rows_N).tolist()
    return found


def test_clips_that_are_all_alike_have_no_parts():
    assert rows_of(make_facts()) == {}


def test_lengths_are_cut_into_thirds_and_unknown_ones_belong_to_none():
    seconds = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, np.nan])
    parts = rows_of(make_facts(7, seconds_N=seconds))["Length"]
    assert parts == {"up to 2.7 s": [0, 1], "2.7 to 4.3 s": [2, 3], "more than 4.3 s": [4, 5]}


def test_thirds_whose_edges_fall_together_are_fewer():
    parts = rows_of(make_facts(5, seconds_N=np.array([2.0, 2.0, 2.0, 2.0, 9.0])))["Length"]
    assert list(parts.values()) == [[0, 1, 2, 3], [4]]


def test_clips_that_lack_a_modality_stand_apart_from_whole_ones():
    steps = {"text": np.array([5, 0, 5, 0]), "audio": np.array([5, 5, 0, 0]), "vision": np.full(4, 5)}
    parts = rows_of(make_facts(4, steps=steps))["Modalities"]
    assert parts == {"all there": [0], "without text": [1, 3], "without audio": [2, 3]}


def test_shares_of_valid_steps_tell_clips_apart_where_they_are_known():
    valid = {"audio": np.array([0.2, 0.5, 0.8, np.nan]), "vision": np.array([1.0, 0.5, 0.49, np.nan])}
    parts = rows_of(make_facts(4, valid=valid))
    assert list(parts["Voiced steps of audio"].values()) == [[0], [1], [2]]
    assert parts["Frames with a face"] == {"in all": [0], "in half or more": [1], "in less than half": [2]}


def test_polarity_is_the_labels_sign():
    parts = rows_of(make_facts(4, label_N=np.array([-0.2, 0.0, 3.0, np.nan])))["Polarity"]
    assert parts == {"negative": [0], "neutral (0)": [1], "positive": [2]}


def test_a_modality_misleads_where_its_label_and_the_clips_have_opposite_signs():
    label = np.array([1.0, 1.0, -1.0, 0.0, np.nan])
    own = {"text": np.array([-1.0, 1.0, np.nan, -1.0, -1.0]), "vision": np.array([-0.2, 0.2, 0.4, 1.0, 1.0])}
    parts = rows_of(make_facts(5, label_N=label, own_label=own))["Conflict"]
    assert parts == {"no modality misleads": [1, 3], "text misleads": [0], "vision misleads": [0, 2]}
    assert "Conflict" not in rows_of(make_facts(5, label_N=label, own_label={"text": np.full(5, np.nan)}))


@pytest.mark.parametrize(("label_range", "accuracy"), [(WIDE, "acc2_np"), (UNIT, "acc2")])
def test_a_part_has_the_metrics_of_its_labelled_clips(label_range, accuracy):
    rng = np.random.default_rng(0)
    label = rng.uniform(*label_range, 40)
    prediction_SN = label + rng.normal(size=(2, 40))
    label[:3] = np.nan
    rows = np.arange(40) < 20
    found = measure_subgroups([Subgroup("some", "first", rows)], prediction_SN, label, np.arange(40), label_range)[0]
    kept = slice(3, 20)
    runs = [evaluate_metrics(prediction[kept], label[kept], label_range) for prediction in prediction_SN]
    assert found.clips == 17 and (found.group, found.name) == ("some", "first")
    assert found.accuracy == pytest.approx(np.mean([run[accuracy] for run in runs]))
    assert found.mae == pytest.approx(np.mean([run["mae"] for run in runs]))
    assert found.mae_interval[0] < found.mae < found.mae_interval[1]


def test_what_is_undefined_in_a_part_is_none():
    label = np.zeros(4)
    neutral = measure_subgroups([Subgroup("", "", np.ones(4, bool))], np.ones((1, 4)), label, np.arange(4), WIDE)[0]
    assert neutral.accuracy is None and neutral.accuracy_interval is None and neutral.mae == 1.0
    nobody = measure_subgroups([Subgroup("", "", np.zeros(4, bool))], np.ones((1, 4)), label, np.arange(4), WIDE)[0]
    assert (nobody.clips, nobody.mae, nobody.mae_interval) == (0, None, None)


def test_intervals_are_for_other_speakers():
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(8), 10)
    error = 0.5 + 0.4 * rng.random(8)[speaker] + 0.05 * rng.random(80)
    whole, label = [Subgroup("", "", np.ones(80, bool))], np.zeros(80)
    by_speaker = measure_subgroups(whole, error[None], label, speaker, WIDE)[0].mae_interval
    by_clip = measure_subgroups(whole, error[None], label, np.arange(80), WIDE)[0].mae_interval
    assert by_speaker[1] - by_speaker[0] > 2 * (by_clip[1] - by_clip[0]), "clips of a speaker are alike"
    alone = measure_subgroups(whole, error[None], label, np.zeros(80), WIDE)[0].mae_interval
    assert alone == by_clip, "nothing is known of other speakers than one"


def test_genders_are_told_apart_where_the_corpus_says_them():
    gender = np.array(["female", "", "male", "female"], object)
    assert rows_of(make_facts(4, gender_N=gender)) == {"Gender": {"female": [0, 3], "male": [2]}}
    assert rows_of(make_facts(2, gender_N=np.array(["female", ""], object))) == {}


def test_speakers_come_with_the_greatest_error_first_and_only_those_with_enough_clips():
    videos = np.repeat(["good", "few", "bad", "unlabelled"], [6, MIN_SPEAKER_CLIPS - 1, 5, 8]).astype(object)
    error = np.repeat([0.1, 2.0, 1.0, 3.0], [6, 4, 5, 8])
    label = np.where(videos == "unlabelled", np.nan, 1.0)
    facts = make_facts(len(videos), speaker_N=videos, label_N=label)
    found, measured = measure_speakers(facts, (np.nan_to_num(label) + error)[None], WIDE, max_speakers=10)
    assert [(video.name, video.clips, round(video.mae, 3)) for video in found] == [("bad", 5, 1.0), ("good", 6, 0.1)]
    assert measured == 2


def test_a_prediction_beyond_the_labels_counts_as_the_metrics_count_it():
    videos = np.repeat(["far", "off"], 5).astype(object)
    facts = make_facts(10, speaker_N=videos, label_N=np.ones(10))
    prediction = np.where(videos == "far", 4.0, 0.5)
    found, _ = measure_speakers(facts, prediction[None], UNIT, max_speakers=4)
    assert [(video.name, video.mae) for video in found] == [("off", 0.5), ("far", 0.0)]


def test_of_many_speakers_both_ends_are_measured():
    videos = np.repeat([f"v{i:02d}" for i in range(20)], 5).astype(object)
    facts = make_facts(100, speaker_N=videos, label_N=np.zeros(100))
    error = np.repeat(np.arange(20) / 10, 5)
    found, measured = measure_speakers(facts, error[None], WIDE, max_speakers=4)
    assert [video.name for video in found] == ["v19", "v18", "v01", "v00"] and measured == 20


def test_a_modality_misleads_where_its_own_label_is_of_the_opposite_sign(dataset_writer, tmp_path):
    own = [1.0, -1.0, 0.0, None, 2.0, -2.0]
    whole = [1.0, 1.0, -1.0, -1.0, -2.0, 0.0]

    def change(split, table):
        for name, values in (("label", whole), ("label_text", own)):
            column = pa.array((values * 4)[: len(table)], pa.float32())
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return table

    clips = ClipTable.read(dataset_writer(tmp_path, clips=dict.fromkeys(("train", "valid", "test"), 6), change=change),
                           "test", 32)  # fmt: skip
    assert SLICES[0] == "text misleads"
    assert slice_rows(clips, "text misleads").tolist() == [False, True, False, False, True, False]
    assert not slice_rows(clips, "audio misleads").any(), "nobody has labelled audio alone"
