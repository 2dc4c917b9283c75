"""Reading a folder of videos with a table of one's own, or with none."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from corpora.manifest import Manifest, read_manifest, write_manifest
from corpora.problems import read_problems, write_problems
from corpora.readers.raw import read_raw
from corpora.splits import SplitConfig

if TYPE_CHECKING:
    from corpora.problems import Problem

MakeFolder = Callable[..., Path]


def read_own(root: Path, columns: Mapping[str, str] | None = None, **options: Any) -> tuple[Manifest, list[Problem]]:
    return read_raw(root, corpus="own", language="en", label_range=(-3, 3), layout="folder", columns=columns, **options)


OWN = {"media": "file", "text": "transcript", "label": "score", "mode": "set"}


def test_own_table_is_read_by_the_names_that_its_columns_have(folder: MakeFolder) -> None:
    table = 'score,file,transcript,set,text\n1.5,talks/03.mp4,"well, yes",train,not this\n,b.mp4,,valid,nor this\n'
    manifest, problems = read_own(folder("talks/03.mp4", "b.mp4", table=table, name="ratings.csv"), OWN)
    assert problems == []
    found = [(c.clip_id, c.video_id, c.split, c.media, c.text, c.label) for c in manifest.clips]
    assert found == [
        ("talks/03", "talks", "train", "talks/03.mp4", "well, yes", 1.5),
        ("b/b", "b", "valid", "b.mp4", "", None),
    ]
    assert all(clip.sha256 and clip.duration for clip in manifest.clips)


def test_own_table_may_leave_out_endings_and_name_the_videos(folder: MakeFolder) -> None:
    table = "file,person\ntalks\\03,anna\nb.mp4,ben\n"
    columns = {"media": "file", "video_id": "person"}
    manifest, problems = read_own(folder("talks/03.mp4", "b.mp4", table=table), columns)
    assert problems == []
    assert [(c.clip_id, c.media) for c in manifest.clips] == [("anna/03", "talks/03.mp4"), ("ben/b", "b.mp4")]


def test_folder_without_a_table_is_its_media_without_labels(folder: MakeFolder) -> None:
    root = folder("b.mp4", "Raw/v1/0001.mp4", "day 1/noon/c.MP4", "._b.mp4")
    (root / "notes.txt").write_text("no clip")
    manifest, problems = read_own(root)
    assert problems == []
    assert {(c.clip_id, c.split, c.label, c.text) for c in manifest.clips} == {
        ("b/b", "test", None, ""),
        ("v1/0001", "test", None, ""),
        ("day 1_noon/c", "test", None, ""),
    }


def test_odd_files_are_listed_and_the_others_go_on(
    folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = folder("b.mp4", "good/c.mp4", "closed/d.mp4")
    clip = (root / "b.mp4").read_bytes()
    (root / "loop.mp4").symlink_to("loop.mp4")
    (root / "round").symlink_to(".")
    (root / "folder.mp4").mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.mp4")).write_bytes(clip)
    Path(os.fsdecode(os.fsencode(root) + b"/n\xf6")).mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/n\xf6/e.mp4")).write_bytes(clip)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    manifest, problems = read_own(root)
    assert [clip.clip_id for clip in manifest.clips] == ["b/b", "good/c"]
    write_manifest(manifest, tmp_path / "manifest.parquet")
    write_problems(problems, tmp_path / "problems.parquet")
    listed = {problem.error: problem.message for problem in read_problems([tmp_path / "problems.parquet"])}
    assert [p.clip_id for p in problems] == ["closed", "n\\udcf6/e", "\\udcff/\\udcff", "loop/loop"]
    assert "closed: Permission denied" in listed["UnreadableFolder"]
    assert "is not in UTF-8" in listed["UnsafeMedia"]
    assert "leads to no file" in listed["MissingMedia"]


def test_two_files_of_one_name_are_one_clip_and_a_problem(folder: MakeFolder) -> None:
    manifest, problems = read_own(folder("a.mp4", "a.avi"))
    assert [clip.media for clip in manifest.clips] == ["a.avi"]
    assert [(p.error, "a.mp4" in p.message) for p in problems] == [("DuplicateClip", True)]


@pytest.mark.parametrize("media", ["../b.mp4", "/etc/b.mp4", "a//b.mp4", "C:/b.mp4", "x" * 300])
def test_own_tables_paths_cannot_leave_the_folder(folder: MakeFolder, media: str) -> None:
    manifest, problems = read_own(folder("b.mp4", table=f"media,video_id,clip_id\n{media},v,1\nb.mp4,v,2\n"))
    assert [clip.clip_id for clip in manifest.clips] == ["v/2"]
    assert [p.error for p in problems] == ["UnsafeMedia"]
    assert "label.csv row 2" in problems[0].message


def test_own_row_without_its_file_is_listed(folder: MakeFolder) -> None:
    manifest, problems = read_own(folder("b.mp4", table="media\nb.mp4\nlost.mp4\n"))
    assert [clip.clip_id for clip in manifest.clips] == ["b/b"]
    assert [(p.clip_id, p.error) for p in problems] == [("lost/lost", "MissingMedia")]
    assert "no file lost.mp4" in problems[0].message


def test_own_folders_that_cannot_be_read_say_what_to_do(folder: MakeFolder, tmp_path: Path) -> None:
    root = folder("b.mp4", table="file,text\nb.mp4,hi\n", name="one.csv")
    with pytest.raises(ValueError, match=r"no column 'path', which prepare.columns.media names; found file, text"):
        read_own(root, {"media": "path"})
    with pytest.raises(ValueError, match=r"no column media .* found file, text; .*prepare.columns.media"):
        read_own(root)
    (root / "two.csv").write_text("media\n")
    with pytest.raises(ValueError, match=r"which table\? one.csv, two.csv; name it as prepare.table"):
        read_own(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a table nor a media file"):
        read_own(tmp_path / "empty")


def test_a_table_may_leave_out_the_folder_of_a_file_whose_name_is_unique(folder: MakeFolder) -> None:
    media = ("videos/a.mp4", "more/b.MOV", "x/c.mp4", "y/c.mp4", "x/d.mp4", "x/d.avi")
    root = folder(*media, table="media\na\nb.MOV\nc\nd\n")
    manifest, problems = read_own(root)
    assert [(c.clip_id, c.media) for c in manifest.clips] == [
        ("a/a", "videos/a.mp4"), ("b/b", "more/b.MOV"), ("d/d", "x/d.mp4"),
    ]  # fmt: skip
    assert [(p.clip_id, p.error) for p in problems] == [("c/c", "AmbiguousMedia")]
    assert "x/c.mp4, y/c.mp4; write the file's path" in problems[0].message


def test_ids_alone_find_the_media_in_any_folder(folder: MakeFolder) -> None:
    root = folder("clips/v1/1.mp4", "clips/v2/1.mp4", table="video_id;clip_id\nv1;1\nv2;1\n")
    manifest, problems = read_own(root)
    assert ([clip.media for clip in manifest.clips], problems) == (["clips/v1/1.mp4", "clips/v2/1.mp4"], [])


TALKS = "media,speaker\n" + "".join(f"{name}.mp4,{speaker}\n" for name, speaker in zip("abcdef", "xxyyzz", strict=True))


def test_splits_are_drawn_by_speaker_and_recorded(folder: MakeFolder, tmp_path: Path) -> None:
    root, split = folder(*(f"{name}.mp4" for name in "abcdef"), table=TALKS), SplitConfig(0.3, 0.3, seed=7)
    manifest, problems = read_own(root, split=split)
    assert problems == []
    assert {clip.split for clip in manifest.clips} == {"train", "valid", "test"}
    assert len({(clip.speaker, clip.split) for clip in manifest.clips}) == 3
    write_manifest(manifest, tmp_path / "manifest.parquet")
    drawn = {"valid": 0.3, "test": 0.3, "by": "speaker", "seed": 7}
    assert read_manifest(tmp_path / "manifest.parquet").drawn == drawn
    (root / "label.csv").write_text("\n".join([TALKS.split()[0], *reversed(TALKS.split()[1:])]) + "\n")
    again = read_own(root, split=split)[0]
    assert {c.clip_id: c.split for c in again.clips} == {c.clip_id: c.split for c in manifest.clips}


def test_a_table_with_splits_of_its_own_keeps_them(folder: MakeFolder) -> None:
    root = folder("a.mp4", "b.mp4", table="media,set\na.mp4,\nb.mp4,dev\n")
    with pytest.raises(ValueError, match=r"row 3: the table has splits of its own, in its column set: .*split=null"):
        read_own(root, {"mode": "set"}, split=SplitConfig(0.3, 0.3))
    assert [clip.split for clip in read_own(root, {"mode": "set"})[0].clips] == ["valid"]


def test_too_few_speakers_for_the_splits_are_an_error(folder: MakeFolder) -> None:
    root = folder("day/a.mp4", "day/b.mp4", "day/c.mp4")
    with pytest.raises(ValueError, match=r"3 clips in 1 groups .* make no 3 splits; .*prepare.split.by=clip"):
        read_own(root, split=SplitConfig(0.3, 0.3))
    drawn = read_own(root, split=SplitConfig(0.3, 0.3, by="clip"))[0]
    assert sorted(clip.split for clip in drawn.clips) == ["test", "train", "valid"]
