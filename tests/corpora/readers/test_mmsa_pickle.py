"""Features in MMSA's format, with all that such files can be, into a manifest and clean sequences."""

from __future__ import annotations

import functools
import hashlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from corpora.manifest import MODALITIES
from corpora.readers import mmsa_pickle
from corpora.readers.mmsa_pickle import Published, read_mmsa

if TYPE_CHECKING:
    from collections.abc import Callable

    from corpora.readers.feature_corpus import ImportedCorpus, ImportedSteps

SPLITS = {"train": 6, "valid": 3, "test": 2}
STEPS = {"text": 8, "audio": 20, "vision": 30}
DIMS = {"text": 4, "audio": 5, "vision": 3}

BOMB: Any = functools.reduce(lambda inner, _: [inner, inner], range(60), [1.0])
"""A list that is 2 ** 60 times as large as it is written."""

Content = dict[str, dict[str, Any]]


def make_split(name: str, count: int, aligned: bool = False, kind: type = np.float32) -> dict[str, Any]:
    """A split of MMSA's; clip i has 3 + i % 5 text steps, twice and three times as many of audio and vision."""
    rng = np.random.default_rng(len(name))
    lengths = {m: [(3 + i % 5) * (1 if aligned else k) for i in range(count)] for k, m in enumerate(MODALITIES, 1)}
    steps = dict.fromkeys(MODALITIES, STEPS["text"]) if aligned else STEPS
    split: dict[str, Any] = {}
    for m in MODALITIES:
        split[m] = rng.uniform(1, 2, (count, steps[m], DIMS[m])).astype(kind)
        for row, length in enumerate(lengths[m]):
            split[m][row, length:] = 0
    split["text_bert"] = np.zeros((count, 3, STEPS["text"]), np.float32)
    for row, length in enumerate(lengths["text"]):
        split["text_bert"][row, :2, :length] = [np.arange(101, 101 + length), np.ones(length)]
    if not aligned:
        split |= {"audio_lengths": lengths["audio"], "vision_lengths": lengths["vision"]}
    split["id"] = [f"{name}-{i // 3}$_$clip_{i % 3}" for i in range(count)]
    split["raw_text"] = np.array([f"transcript {i} of {name}" for i in range(count)], object)
    split["annotations"] = ["Neutral"] * count
    split["regression_labels"] = np.linspace(-1, 1, count).astype(kind)
    return split


def make(aligned: bool = False, kind: type = np.float32) -> Content:
    return {name: make_split(name, count, aligned, kind) for name, count in SPLITS.items()}


@pytest.fixture
def imported(tmp_path) -> Callable[..., ImportedCorpus]:
    """Writes a pickle, or several into a folder, and reads it."""

    def read(*contents: Any, label_range: tuple[float, float] = (-3.0, 3.0), protocol: int = 4) -> ImportedCorpus:
        for index, content in enumerate(contents):
            (tmp_path / f"{index}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        path = tmp_path / "0.pkl" if len(contents) == 1 else tmp_path
        return read_mmsa(path, corpus="mine", language="en", label_range=label_range, root="data/generated")

    return read


def steps(corpus: ImportedCorpus, modality: str) -> dict[str, ImportedSteps]:
    return {clip_id: found for clip_id, found, _ in corpus.read(modality)}


def problems(corpus: ImportedCorpus) -> dict[tuple[str, str, str], str]:
    found = [*corpus.problems, *(p for m in corpus.feature_names for _, _, p in corpus.read(m) if p)]
    return {(p.clip_id, p.modality, p.error): p.message for p in found}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("aligned", [False, True])
def test_clips_come_in_order_with_text_labels_and_their_real_steps(imported, aligned, kind, protocol):
    content = make(aligned, kind)
    corpus = imported(content, protocol=protocol)
    clips = corpus.manifest.clips
    assert [clip.clip_id for clip in clips[:4]] == [
        "train-0/clip_0", "train-0/clip_1", "train-0/clip_2", "train-1/clip_0",
    ]  # fmt: skip
    assert [clip.split for clip in clips] == ["train"] * 6 + ["valid"] * 3 + ["test"] * 2
    assert clips[1].text == "transcript 1 of train" and clips[1].media == "" and clips[1].duration is None
    assert [clip.label for clip in clips[:6]] == content["train"]["regression_labels"].tolist()
    assert {clip.label_audio for clip in clips} == {None}
    assert not problems(corpus)
    for k, m in enumerate(MODALITIES, 1):
        found = steps(corpus, m)
        assert list(found) == [clip.clip_id for clip in clips]
        assert corpus.feature_names[m] == tuple(f"{m}_{i}" for i in range(DIMS[m]))
        for row in range(6):
            one = found[clips[row].clip_id]
            length = (3 + row % 5) * (1 if aligned else k)
            assert one.values.dtype == np.float32 and one.valid.all() and one.replaced == 0
            assert np.array_equal(one.values, content["train"][m][row, :length].astype(np.float32))
    assert steps(corpus, "text")[clips[2].clip_id].token_ids.tolist() == [101, 102, 103, 104, 105]
    assert steps(corpus, "audio")[clips[2].clip_id].token_ids is None


def test_steps_share_one_second_evenly_whatever_their_number(imported):
    corpus = imported(make())
    for m in MODALITIES:
        for one in steps(corpus, m).values():
            assert one.start[0] == 0 and one.end[-1] == 1
            assert np.array_equal(one.start[1:], one.end[:-1])
            assert np.allclose(one.end - one.start, 1 / len(one))


def test_values_that_are_not_finite_become_zero_and_are_counted(imported):
    content = make(kind=np.float64)
    content["train"]["audio"][1, 2, :2] = -np.inf
    content["train"]["audio"][1, 3, 0] = 1e300  # more than float32 holds
    content["valid"]["vision"][0, 4] = np.nan
    corpus = imported(content)
    audio, vision = steps(corpus, "audio")["train-0/clip_1"], steps(corpus, "vision")["valid-0/clip_0"]
    assert audio.replaced == 3 and np.flatnonzero(~audio.valid).tolist() == [2, 3]
    assert audio.values[2].tolist() == [0, 0, *np.float32(content["train"]["audio"][1, 2, 2:]).tolist()]
    assert vision.replaced == 3 and np.flatnonzero(~vision.valid).tolist() == [4] and not vision.values[4].any()
    assert set(problems(corpus)) == {
        ("train-0/clip_1", "audio", "NotFinite"),
        ("valid-0/clip_0", "vision", "NotFinite"),
    }
    assert "3 of 40 values were NaN or infinite" in problems(corpus)["train-0/clip_1", "audio", "NotFinite"]


def test_a_step_of_zeros_is_not_valid_and_a_clip_of_zeros_lacks_the_modality(imported):
    content = make()
    content["train"]["vision"][0, 1] = 0
    content["train"]["audio"][2] = 0
    corpus = imported(content)
    assert steps(corpus, "vision")["train-0/clip_0"].valid.tolist() == [True, False] + [True] * 7
    assert len(steps(corpus, "audio")["train-0/clip_2"]) == 0


def test_lengths_count_zeros_that_were_measured_but_cut_off_no_values(imported):
    content = make()
    content["train"]["audio_lengths"] = np.int64([9, 2, 99, 10, 6, 8])  # 6, 8, 10, 12, 14, 6 are filled
    lengths = [len(one) for one in steps(imported(content), "audio").values()]
    assert lengths[:6] == [9, 8, 20, 12, 14, 8]


def test_without_lengths_and_text_bert_a_clip_ends_with_its_last_filled_step(imported):
    content = make()
    for split in content.values():
        del split["text_bert"], split["audio_lengths"], split["vision_lengths"]
    corpus = imported(content)
    for k, m in enumerate(MODALITIES, 1):
        assert [len(one) for one in steps(corpus, m).values()][:6] == [(3 + i % 5) * k for i in range(6)]
    assert set(steps(corpus, "text")["train-0/clip_0"].token_ids.tolist()) == {-1}


def test_the_mask_of_text_bert_cuts_what_an_encoder_made_of_padding(imported):
    content = make()
    content["train"]["text"][:] = 1.5
    assert [len(one) for one in steps(imported(content), "text").values()][:6] == [3, 4, 5, 6, 7, 3]


def test_an_aligned_clip_is_as_long_as_its_text_where_audio_ends_in_silence(imported):
    content = make(aligned=True)
    content["train"]["audio"][3, 4:] = 0  # of 6 steps
    one = steps(imported(content), "audio")["train-1/clip_0"]
    assert len(one) == 6 and one.valid.tolist() == [True] * 4 + [False] * 2


def pad_at_the_front(content: Content, modalities: tuple[str, ...] = ("audio", "vision")) -> None:
    """Move the padding of each clip from the end to the front; the lengths stay as they are."""
    for split in content.values():
        for m in modalities:
            for row, length in enumerate(map(len, (clip[clip.any(axis=1)] for clip in split[m]))):
                split[m][row] = np.roll(split[m][row], -length, axis=0)


def test_padding_at_the_front_is_no_part_of_a_clip(imported):
    content = make()
    expected = {m: steps(imported(content), m) for m in MODALITIES}
    pad_at_the_front(content)
    content["train"]["vision"][0, -7] = 0  # the third of nine: nothing was measured
    for keep_lengths in (True, False):
        if not keep_lengths:
            for split in content.values():
                del split["audio_lengths"], split["vision_lengths"]
        corpus = imported(content)
        for m in MODALITIES:
            for clip_id, one in steps(corpus, m).items():
                same = np.ones(len(one), bool)
                same[2] = (m, clip_id) != ("vision", "train-0/clip_0")
                assert np.array_equal(one.valid, same)
                assert np.array_equal(one.values[same], expected[m][clip_id].values[same])
                assert np.array_equal(one.start, expected[m][clip_id].start)


def test_an_aligned_clip_keeps_its_steps_where_audio_begins_with_silence(imported):
    content = make(aligned=True)
    content["train"]["audio"][3, :2] = 0  # of 6 steps
    one = steps(imported(content), "audio")["train-1/clip_0"]
    assert len(one) == 6 and one.valid.tolist() == [False] * 2 + [True] * 4


def test_labels_of_single_modalities_are_kept(imported):
    content = make()
    for split in content.values():
        count = len(split["id"])
        split |= {f"regression_labels_{m}": np.full(count, v) for m, v in (("T", 0.2), ("A", -0.4), ("V", 1.0))}
    clip = imported(content, label_range=(-1.0, 1.0)).manifest.clips[0]
    assert (clip.label, clip.label_text, clip.label_audio, clip.label_vision) == (-1, 0.2, -0.4, 1)


def test_an_empty_or_absent_split_is_no_split(imported):
    content = make()
    content["test"] = {key: value[:0] for key, value in content["test"].items()}
    assert {clip.split for clip in imported(content).manifest.clips} == {"train", "valid"}
    content["test"] = {}
    assert {clip.split for clip in imported(content).manifest.clips} == {"train", "valid"}
    del content["test"], content["valid"]
    corpus = imported(content)
    assert {clip.split for clip in corpus.manifest.clips} == {"train"}
    assert len(steps(corpus, "vision")) == 6


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["a$b$_$1", "a$_$b$_$1", "03bSnISJMiM$_$0"], ["a$b/1", "a$_$b/1", "03bSnISJMiM/0"]),
        (["v[3]", "-x_[10]", "w"], ["v/3", "-x_/10", "w/0"]),
        ([0, 1, 2], ["train_0/0", "train_1/0", "train_2/0"]),
        (np.array(["v$_$1", "v$_$2", "v$_$3"]), ["v/1", "v/2", "v/3"]),
        (np.array([[b"v$_$1"], [b"v$_$2"], [b"v$_$3"]]), ["v/1", "v/2", "v/3"]),
        ([["v[1]", 0.5, 2.0], ["v[2]", 2.0, 3.0], ["v[3]", 3.0, 4.0]], ["v/1", "v/2", "v/3"]),
    ],
)
def test_ids_of_every_writing_become_video_and_clip(imported, ids, expected):
    split = make_split("train", 3) | {"id": ids}
    clips = imported({"train": split}).manifest.clips
    assert [clip.clip_id for clip in clips] == expected
    assert [clip.video_id for clip in clips] == [clip_id.rpartition("/")[0] for clip_id in expected]


def test_numbers_for_ids_do_not_mix_the_splits_up(imported):
    content = make()
    for split in content.values():
        split["id"] = np.arange(len(split["id"]))
    corpus = imported(content)
    assert len(corpus.manifest.clips) == 11 and not corpus.problems
    del content["train"]["id"]
    assert imported(content).manifest.clips[0].clip_id == "train_0/0"


def test_rows_that_cannot_be_used_are_left_out_and_listed_and_the_others_keep_their_features(imported):
    content = make()
    content["train"]["id"][2] = content["train"]["id"][1]
    content["train"]["id"][3] = "../etc$_$1"
    content["train"]["regression_labels"][4] = 7
    content["train"]["regression_labels"][5] = np.nan
    content["valid"]["id"][1] = "train-0$_$9"
    corpus = imported(content)
    assert [clip.clip_id for clip in corpus.manifest.clips[:3]] == [
        "train-0/clip_0",
        "train-0/clip_1",
        "train-1/clip_2",
    ]
    assert corpus.manifest.clips[2].label is None
    assert {(p.clip_id, p.error) for p in corpus.problems} == {
        ("train-0/clip_1", "DuplicateClip"),
        ("../etc/1", "UnsafeId"),
        ("train-1/clip_1", "LabelOutOfRange"),
        ("train-0", "StraddlingVideo"),
    }
    assert "0.pkl, train, row 2" in problems(corpus)["train-0/clip_1", "", "DuplicateClip"]
    found = steps(corpus, "audio")
    assert list(found) == [clip.clip_id for clip in corpus.manifest.clips]
    assert np.array_equal(found["train-0/clip_1"].values, content["train"]["audio"][1, :8])
    assert np.array_equal(found["train-1/clip_2"].values, content["train"]["audio"][5, :6])


def test_lists_and_utterances_of_one_vector_are_read_too(imported):
    content = make()
    for split in content.values():
        split["audio"] = [row[: 2 + i] for i, row in enumerate(split["audio"])]
        split["vision"] = split["vision"][:, 0]
        split["regression_labels"] = split["regression_labels"].tolist()
        split["text"] = split["text"].tolist()
        split["raw_text"] = split["raw_text"].tolist()
        del split["audio_lengths"], split["vision_lengths"]
    corpus = imported(content)
    assert [len(one) for one in steps(corpus, "audio").values()][:4] == [2, 3, 4, 5]
    assert {one.values.shape for one in steps(corpus, "vision").values()} == {(1, 3)}
    assert steps(corpus, "text")["train-0/clip_0"].values.shape == (3, 4)


def test_a_pickle_for_each_modality_is_brought_together_by_ids(imported):
    whole = make()
    common = ("id", "raw_text", "regression_labels")
    text = {s: {k: split[k] for k in (*common, "text", "text_bert")} for s, split in whole.items()}
    audio = {s: {k: split[k] for k in ("id", "audio", "audio_lengths")} for s, split in whole.items()}
    vision = {s: {k: split[k] for k in ("id", "vision", "vision_lengths")} for s, split in whole.items()}
    audio["train"] = {k: v[::-1] for k, v in audio["train"].items()}
    vision["train"] = {k: v[:4] for k, v in vision["train"].items()}
    alone = imported(whole)
    given = {clip.clip_id: (clip.text, clip.label, clip.split) for clip in alone.manifest.clips}
    expected = {m: steps(alone, m) for m in MODALITIES}
    corpus = imported(audio, text, vision)
    assert {clip.clip_id: (clip.text, clip.label, clip.split) for clip in corpus.manifest.clips} == given
    for m in MODALITIES:
        for clip_id, one in steps(corpus, m).items():
            absent = m == "vision" and clip_id in ("train-1/clip_1", "train-1/clip_2")
            assert np.array_equal(one.values, expected[m][clip_id].values[: 0 if absent else None])


def test_two_files_with_the_same_modality_are_refused(imported):
    with pytest.raises(ValueError, match=r"0\.pkl and 1\.pkl both hold text; set prepare\.root to one of them"):
        imported(make(), make(aligned=True))


def test_a_modality_that_is_nowhere_is_said(imported):
    content = make()
    for split in content.values():
        del split["text"], split["vision"]
    corpus = imported(content)
    assert set(corpus.feature_names) == {"audio"}
    assert any("extract.text" in line for line in corpus.remarks)
    assert any("no vision features" in line for line in corpus.remarks)


def test_a_published_file_is_known_by_its_hash_and_its_settings_are_checked(imported, monkeypatch):
    raw = pickle.dumps(make(), protocol=4)
    digest = hashlib.sha256(raw).hexdigest()
    corpus = imported(make())
    assert corpus.sha256 == digest and {clip.sha256 for clip in corpus.manifest.clips} == {digest}
    assert f"SHA-256 {digest} is not one that MMSA publishes" in corpus.remarks[0]
    monkeypatch.setitem(mmsa_pickle.PUBLISHED, digest, Published("MOSI unaligned_50", "en", (-3.0, 3.0)))
    assert "MMSA's MOSI unaligned_50, unchanged" in imported(make()).remarks[0]
    monkeypatch.setitem(mmsa_pickle.PUBLISHED, digest, Published("SIMS unaligned_39", "zh", (-1.0, 1.0)))
    with pytest.raises(ValueError, match=r"set prepare\.language=zh and prepare\.label_range=\[-1,1\]"):
        imported(make())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"audio": np.ones((5, 2, 5))}, "0.pkl, train: audio has 5 rows for 6 clips"),
        ({"audio": np.ones((6, 2, 9))}, "audio is not of one width in all splits"),
        ({"audio": np.ones((6, 2, 5, 2))}, "audio of a clip is (2, 5, 2)"),
        ({"audio": np.full((6, 5), "loud")}, "not numbers"),
        ({"audio": "loud"}, "audio is a str"),
        ({"audio": [np.ones((2, 5))] * 5 + [np.ones((2, 4))]}, "audio is 4 wide, in other clips 5"),
        ({"regression_labels": ["good"] * 6}, "row 0: regression_labels is 'good', not a number"),
        ({"regression_labels": np.ones((6, 2))}, "regression_labels is array"),
        ({"text_bert": np.ones((6, 8))}, "text_bert is (8,), not [3, T]"),
        ({"audio": [[[1.0] * 5] * 7] * 5 + [BOMB]}, "audio: lists in lists of lists"),
        ({"audio": [[[1.0] * 5] * 7] * 5 + [[[1.0] * 10_000] * 10_000]}, "audio: a list of 100,010,000 values"),
        ({"regression_labels": [BOMB] * 6}, "lists in lists of lists"),
        ({"id": [BOMB] * 6}, "an id is a list"),
        ({"raw_text": [BOMB] * 6, "audio": BOMB}, "audio has 2 rows for 6 clips"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_file_and_place(imported, change, said):
    content = make()
    content["train"] |= change
    with pytest.raises(ValueError) as refused:
        problems(imported(content))
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [[1, 2], {"audio": np.ones(3)}, {"train": [1]}, {}, {"train": {"id": []}}])
def test_a_pickle_of_another_format_is_refused(imported, content):
    with pytest.raises(ValueError, match=r"0\.pkl"):
        imported(content)


def test_a_missing_file_says_what_to_set(tmp_path):
    for path in (tmp_path, tmp_path / "none.pkl"):
        with pytest.raises(FileNotFoundError, match=r"prepare\.root"):
            read_mmsa(Path(path), corpus="m", language="en", label_range=(-3.0, 3.0), root="r")
