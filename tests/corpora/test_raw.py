"""Reading a corpus in MMSA's layout: what is kept, what is listed, what is refused."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from corpora.manifest import Manifest, read_manifest, write_manifest
from corpora.problems import Problem
from corpora.raw import read_raw

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


def test_meta_csv_with_a_byte_order_mark_is_read(corpus: MakeCorpus) -> None:
    root = corpus({"video_id": "video_0001", "clip_id": "0001"}, table="meta.csv", encoding="utf-8-sig")
    manifest, problems = read(root)
    assert problems == []
    assert manifest.clips[0].clip_id == "video_0001/0001"


@pytest.mark.parametrize("video_id", ["0001", "-3g5yACwYnA", "1e5", "NA", "00.10", "视频_1", "a b"])
def test_ids_stay_strings(corpus: MakeCorpus, video_id: str) -> None:
    manifest, problems = read(corpus({"video_id": video_id, "clip_id": "0007"}))
    assert problems == []
    assert manifest.clips[0].video_id == video_id
    assert manifest.clips[0].clip_id == f"{video_id}/0007"


@pytest.mark.parametrize("text", ['He said "no", twice', "我觉得,这部电影\u201c很好\u201d。", "two\nlines", "NA"])
def test_text_survives_commas_quotes_lines_and_chinese(corpus: MakeCorpus, text: str) -> None:
    manifest, problems = read(corpus({"text": text}))
    assert problems == []
    assert manifest.clips[0].text == text


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
        ({"clip_id": "2", "mode": "dev"}, "UnknownSplit", "'dev'"),
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
    with open(root / "label.csv", "a", encoding="utf-8") as out:
        out.write("v,2,well, this is fine,1.0,,,,Positive,train\n")
    problem = only_problem(root)
    assert problem.error == "MalformedRow"
    assert "row 3" in problem.message


def test_link_out_of_the_corpus_is_refused(corpus: MakeCorpus, tmp_path: Path, demo: Path) -> None:
    root = corpus({}, {"clip_id": "2", "media": False})
    (root / "Raw" / "v" / "2.mp4").symlink_to(demo / "Raw" / "speaker_000" / "0001.mp4")
    problem = only_problem(root)
    assert problem.error == "EscapingMedia"


def test_link_within_the_corpus_is_followed(corpus: MakeCorpus) -> None:
    root = corpus({}, {"clip_id": "2", "media": False})
    (root / "Raw" / "v" / "2.mp4").symlink_to("1.mp4")
    manifest, problems = read(root)
    assert problems == []
    assert manifest.clips[0].sha256 == manifest.clips[1].sha256


def test_unreadable_media_keeps_its_row(corpus: MakeCorpus) -> None:
    root = corpus({}, {"clip_id": "2"})
    (root / "Raw" / "v" / "2.mp4").write_bytes(b"this is no video")
    manifest, problems = read(root)
    assert [clip.clip_id for clip in manifest.clips] == ["v/1", "v/2"]
    assert manifest.clips[1].duration is None
    assert manifest.clips[1].sha256 == hashlib.sha256(b"this is no video").hexdigest()
    assert [(p.clip_id, p.error) for p in problems] == [("v/2", "UnreadableMedia")]
    assert "label.csv row 3" in problems[0].message


def test_video_in_two_splits_is_reported_once_and_kept(corpus: MakeCorpus) -> None:
    rows = [{"clip_id": str(i), "mode": mode} for i, mode in enumerate(("train", "test", "test"))]
    manifest, problems = read(corpus(*rows))
    assert len(manifest.clips) == 3
    assert [p.error for p in problems] == ["StraddlingVideo"]
    assert "train (1), test (2)" in problems[0].message


def test_missing_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "label.csv").write_text("video_id,clip,text,label\n")
    with pytest.raises(ValueError, match=r"label\.csv: no column clip_id, mode; found video_id, clip, text, label"):
        read(tmp_path)


def test_missing_table_names_the_path_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"label\.csv.*meta\.csv.*labels\.txt"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read(tmp_path / "absent")


def test_table_that_is_not_utf8_says_so(corpus: MakeCorpus) -> None:
    with pytest.raises(ValueError, match=r"label\.csv: not UTF-8"):
        read(corpus({"text": "很好"}, encoding="gb18030"))


def test_table_without_rows_is_an_error(corpus: MakeCorpus) -> None:
    with pytest.raises(ValueError, match="no rows"):
        read(corpus())


def test_every_row_is_a_clip_or_a_problem(corpus: MakeCorpus) -> None:
    rows = [{"clip_id": str(i), "label": str(i - 6), "mode": ("train", "?")[i % 2]} for i in range(12)]
    root = corpus(*rows, {"clip_id": "0"})
    manifest, problems = read(root)
    with open(root / "label.csv", encoding="utf-8") as table:
        assert len(manifest.clips) + len(problems) == len(list(csv.DictReader(table)))
