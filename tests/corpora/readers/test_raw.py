"""Reading a corpus in MMSA's layout: which rows are kept, listed and refused."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from corpora.manifest import Manifest, read_manifest, write_manifest
from corpora.readers import raw
from corpora.readers.raw import read_raw

if TYPE_CHECKING:
    from corpora.problems import Problem

MakeCorpus = Callable[..., Path]


def read(root: Path, label_range: tuple[float, float] = (-3, 3)) -> tuple[Manifest, list[Problem]]:
    return read_raw(root, corpus="test", language="en", label_range=label_range)


def only_problem(root: Path) -> Problem:
    """The one problem of a corpus whose first row is good and whose second is not."""
    manifest, problems = read(root)
    assert [clip.clip_id for clip in manifest.clips] == ["v/1"]
    assert len(problems) == 1, problems
    assert problems[0].stage == "prepare"
    return problems[0]


def test_generated_corpus_reads_back_whole(demo: Path, tmp_path: Path) -> None:
    manifest, problems = read(demo)
    assert problems == []
    assert len(manifest.clips) == 5
    clip = manifest.clips[0]
    assert clip.clip_id == "speaker_000/0001"
    assert clip.media == "Raw/speaker_000/0001.mp4"
    assert 1.0 < clip.duration < 10.0
    assert clip.sha256 == hashlib.sha256(manifest.media_path(clip).read_bytes()).hexdigest()
    assert None not in (clip.label, clip.label_text, clip.label_audio, clip.label_vision)
    write_manifest(manifest, tmp_path / "manifest.parquet")
    back = read_manifest(tmp_path / "manifest.parquet")
    assert [c.clip_id for c in back.clips] == [c.clip_id for c in manifest.clips]
    assert back.clips[0].duration == pytest.approx(clip.duration)


@pytest.mark.parametrize("video_id", ["0001", "-3g5yACwYnA", "1e5", "NA", "00.10", "视频_1", "a b"])
def test_ids_stay_strings(corpus: MakeCorpus, video_id: str) -> None:
    manifest, problems = read(corpus({"video_id": video_id, "clip_id": "0007"}))
    assert problems == []
    assert manifest.clips[0].video_id == video_id
    assert manifest.clips[0].clip_id == f"{video_id}/0007"


@pytest.mark.parametrize(
    ("table", "encoding", "label_range", "row", "labels"),
    [
        ("label.csv", "utf-8", (-3, 3), {"video_id": "03bSnISJMiM", "clip_id": "11", "label": "2.4"}, 0),
        ("label.csv", "utf-8", (-3, 3), {"video_id": "-3g5yACwYnA", "clip_id": "10", "label": "-0.6666667"}, 0),
        (
            "label.csv", "utf-8", (-1, 1),
            {"video_id": "video_0001", "clip_id": "0001", "text": "我不想嫁给李茶", "label": "-0.8", "label_T": "-0.6",
             "label_A": "-0.8", "label_V": "-0.6"}, 3,
        ),
        (
            "meta.csv", "utf-8-sig", (-1, 1),
            {"video_id": "aqgy3_0001", "clip_id": "00000", "text": '这,"好"的开始', "label": "1.0", "label_T": "0.8",
             "label_A": "0.2", "label_V": "1"}, 3,
        ),
    ],
    ids=["mosi", "mosei", "sims", "sims2"],
)  # fmt: skip
def test_published_corpora_are_read_as_they_are(
    corpus: MakeCorpus, table: str, encoding: str, label_range: tuple[float, float], row: dict, labels: int
) -> None:
    root = corpus(row | {"mode": "valid"}, table=table, encoding=encoding)
    content = (root / table).read_bytes().replace(b"\n", b"\r\n")
    (root / table).write_bytes(content)
    manifest, problems = read(root, label_range)
    assert problems == []
    clip = manifest.clips[0]
    assert (clip.clip_id, clip.split) == (f"{row['video_id']}/{row['clip_id']}", "valid")
    assert clip.label == pytest.approx(float(row["label"]))
    assert sum(label is not None for label in (clip.label_text, clip.label_audio, clip.label_vision)) == labels
    assert clip.text == row.get("text", "fine")


def test_empty_labels_and_text_are_missing_not_wrong(corpus: MakeCorpus) -> None:
    manifest, problems = read(corpus({"label": "", "text": ""}))
    assert problems == []
    clip = manifest.clips[0]
    assert (clip.label, clip.label_text, clip.text) == (None, None, "")


def test_other_media_endings_are_found_and_mp4_comes_first(corpus: MakeCorpus) -> None:
    root = corpus({}, {"clip_id": "2"})
    folder = root / "Raw" / "v"
    (folder / "2.mp4").rename(folder / "2.MOV")
    (folder / "1.avi").write_bytes(b"not looked at")
    manifest, problems = read(root)
    assert problems == []
    assert [clip.media for clip in manifest.clips] == ["Raw/v/1.mp4", "Raw/v/2.MOV"]


@pytest.mark.parametrize(
    ("row", "error", "found"),
    [
        ({"clip_id": "2", "label": "3.2"}, "LabelOutOfRange", "3.2"),
        ({"clip_id": "2", "label_V": "-4"}, "LabelOutOfRange", "-4"),
        ({"clip_id": "2", "label": "happy"}, "BadLabel", "'happy'"),
        ({"clip_id": "2", "label": "nan"}, "BadLabel", "'nan'"),
        ({"clip_id": "2", "mode": "eval"}, "UnknownSplit", "'eval'"),
        ({"clip_id": "2", "mode": ""}, "UnknownSplit", "''"),
        ({"clip_id": "1"}, "DuplicateClip", "row 2"),
        ({"clip_id": "2", "media": False}, "MissingMedia", "Raw/v/2.mp4"),
    ],
)
def test_bad_row_is_left_out_and_listed(corpus: MakeCorpus, row: dict, error: str, found: str) -> None:
    problem = only_problem(corpus({}, row))
    assert problem.error == error
    assert "label.csv row 3" in problem.message
    assert found in problem.message


BAD_IDS = ["", " ", ".", "..", "../v", "/etc", "a/b", "a\\b", "C:x", "a\0b", "a\nb", "x" * 300]


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("column", ["video_id", "clip_id"])
def test_ids_that_could_leave_the_corpus_are_refused(corpus: MakeCorpus, column: str, bad: str) -> None:
    problem = only_problem(corpus({}, {"clip_id": "2", "media": False} | {column: bad}))
    assert problem.error == "UnsafeId"
    assert column in problem.message


def test_row_with_a_shifted_text_is_listed(corpus: MakeCorpus) -> None:
    root = corpus({})
    with (root / "label.csv").open("a", encoding="utf-8") as out:
        out.write("v,2,well, this is fine,1.0,,,,Positive,train\n")
    problem = only_problem(root)
    assert problem.error == "MalformedRow"
    assert "row 3" in problem.message


def test_link_to_another_disk_is_followed(corpus: MakeCorpus, demo: Path) -> None:
    root = corpus({}, {"clip_id": "2", "media": False}, {"video_id": "elsewhere", "clip_id": "0001", "media": False})
    (root / "Raw" / "v" / "2.mp4").symlink_to(demo / "Raw" / "speaker_000" / "0001.mp4")
    (root / "Raw" / "elsewhere").symlink_to(demo / "Raw" / "speaker_000")
    manifest, problems = read(root)
    assert problems == []
    assert [clip.media for clip in manifest.clips] == ["Raw/v/1.mp4", "Raw/v/2.mp4", "Raw/elsewhere/0001.mp4"]
    assert len({clip.sha256 for clip in manifest.clips}) == 1


@pytest.mark.parametrize("target", ["2.mp4", "nothing.mp4"])
def test_link_in_a_loop_or_to_nothing_is_listed(corpus: MakeCorpus, target: str) -> None:
    root = corpus({}, {"clip_id": "2", "media": False})
    (root / "Raw" / "v" / "2.mp4").symlink_to(target)
    problem = only_problem(root)
    assert problem.error == "MissingMedia"
    assert "Raw/v/2.mp4 is a link that leads to no file" in problem.message


@pytest.mark.parametrize("failing", ["sha256_of", "probe", "_with_suffix"])
def test_file_without_permission_is_listed_and_the_others_go_on(
    corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    root = corpus({}, {"clip_id": "2"})
    function = getattr(raw, failing)

    def refuse(path: Path, **options: bool) -> object:
        if path.stem == "2":
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, **options)

    monkeypatch.setattr(raw, failing, refuse)
    manifest, problems = read(root)
    assert [clip.clip_id for clip in manifest.clips] == ["v/1"]
    assert [(p.clip_id, p.error) for p in problems] == [("v/2", "UnreadableMedia")]
    assert "label.csv row 3: Raw/v/2.mp4: Permission denied" in problems[0].message


def test_link_within_the_corpus_is_followed(corpus: MakeCorpus) -> None:
    root = corpus({}, {"clip_id": "2", "media": False})
    (root / "Raw" / "v" / "2.mp4").symlink_to("1.mp4")
    manifest, problems = read(root)
    assert problems == []
    assert manifest.clips[0].sha256 == manifest.clips[1].sha256


def test_unreadable_media_is_left_out_and_listed(corpus: MakeCorpus) -> None:
    root = corpus({}, {"clip_id": "2"})
    (root / "Raw" / "v" / "2.mp4").write_bytes(b"this is no video")
    problem = only_problem(root)
    assert (problem.clip_id, problem.error) == ("v/2", "UnreadableMedia")
    assert "2.mp4" in problem.message


@pytest.mark.parametrize(
    ("mode", "split"),
    [("Training", "train"), ("dev", "valid"), (" VAL ", "valid"), ("validation", "valid"), ("Test", "test")],
)
def test_other_names_of_the_splits_are_understood(corpus: MakeCorpus, mode: str, split: str) -> None:
    manifest, problems = read(corpus({"mode": mode}))
    assert ([clip.split for clip in manifest.clips], problems) == ([split], [])


@pytest.mark.parametrize(("label", "value"), [("-1,5", -1.5), ("\u22120.5", -0.5), ("2,", 2.0), ("1e-1", 0.1)])
def test_labels_may_have_a_decimal_comma_or_a_typographic_minus(corpus: MakeCorpus, label: str, value: float) -> None:
    manifest, problems = read(corpus({"label": label}))
    assert ([clip.label for clip in manifest.clips], problems) == ([value], [])


def test_video_in_two_splits_is_reported_once_and_kept(corpus: MakeCorpus) -> None:
    rows = [{"clip_id": str(i), "mode": mode} for i, mode in enumerate(("train", "test", "test"))]
    manifest, problems = read(corpus(*rows))
    assert len(manifest.clips) == 3
    assert [p.error for p in problems] == ["StraddlingVideo"]
    assert "train (1), test (2)" in problems[0].message


def test_speaker_and_gender_are_read_and_a_speaker_in_two_splits_is_reported(corpus: MakeCorpus) -> None:
    rows = [
        {"video_id": "a", "speaker": "Ann", "gender": "female", "mode": "train"},
        {"video_id": "b", "speaker": " Ann ", "gender": "female", "mode": "test"},
        {"video_id": "c", "mode": "test"},
        {"video_id": "d", "mode": "train"},
    ]
    manifest, problems = read(corpus(*rows))
    assert [(c.speaker, c.gender) for c in manifest.clips] == [("Ann", "female"), ("Ann", "female"), ("", ""), ("", "")]
    assert [clip.speaker_or_video for clip in manifest.clips] == ["Ann", "Ann", "c", "d"]
    assert [(p.clip_id, p.error) for p in problems] == [("Ann", "StraddlingSpeaker")]
    assert "speaker Ann has clips in train (1), test (1)" in problems[0].message


def test_missing_table_names_the_path_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"label\.csv.*meta\.csv.*labels\.txt.*set prepare\.layout to folder"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read(tmp_path / "absent")


def test_every_row_is_a_clip_or_a_problem(corpus: MakeCorpus) -> None:
    rows = [{"clip_id": str(i), "label": str(i - 6), "mode": ("train", "?")[i % 2]} for i in range(12)]
    root = corpus(*rows, {"clip_id": "0"})
    manifest, problems = read(root)
    with (root / "label.csv").open(encoding="utf-8") as table:
        assert len(manifest.clips) + len(problems) == len(list(csv.DictReader(table)))


def test_columns_of_mmsas_layout_can_have_other_names_too(corpus: MakeCorpus) -> None:
    root = corpus({"text": "good"})
    content = (root / "label.csv").read_text(encoding="utf-8")
    (root / "label.csv").write_text(content.replace("text", "transcript").replace("mode", "split"), encoding="utf-8")
    columns = {"text": "transcript", "mode": "split"}
    manifest, problems = read_raw(root, corpus="test", language="en", label_range=(-3, 3), columns=columns)
    assert problems == []
    assert (manifest.clips[0].text, manifest.clips[0].split) == ("good", "train")


def test_table_without_media_names_odd_files_of_the_folder(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("")
    with pytest.raises(FileNotFoundError, match=r"holds \\udcff\.txt"):
        read(tmp_path)
