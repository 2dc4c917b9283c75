"""Reading a corpus in MMSA's layout: what is kept, what is listed, what is refused."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from corpora.manifest import Manifest, read_manifest, write_manifest
from corpora.problems import read_problems, write_problems
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
    assert [(c.clip_id, c.media, c.duration is None) for c in manifest.clips] == [
        ("v/1", "Raw/v/1.mp4", False),
        ("v/2", "Raw/v/2.mp4", True),
    ]
    assert [(p.clip_id, p.error) for p in problems] == [("v/2", "UnreadableMedia")]
    assert "label.csv row 3: Raw/v/2.mp4: Permission denied" in problems[0].message


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


HEADER = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"


def forty_rows(**changed: str) -> str:
    """A table of forty rows, from line 2 on, with some lines replaced (`line_6`)."""
    lines = [HEADER] + [f"v,{n},fine,1.0,,,,Positive,train" for n in range(1, 41)]
    for name, line in changed.items():
        lines[int(name.removeprefix("line_")) - 1] = line
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("table", "last"),
    [
        (forty_rows(line_6='v,5,"He said,1.0,,,,Positive,train'), 41),  # nothing closes it
        (forty_rows(line_6='v,5,"He said,1.0,,,,Positive,train', line_9='v,8,"well, yes",1.0,,,,Positive,train'), 9),
        (forty_rows(line_6='v,5,"He said,1.0,,,,Positive,train', line_9='v,8,5" long,1.0,,,,Positive,train'), 9),
        (forty_rows(line_6='v,5,"He said,1.0,,,,Positive,train', line_9='v,8,oh",1.0,,,,Positive,train'), 9),
        (forty_rows(line_6='v,5,"He said,1.0,,,,Positive,train', line_7='v,6,oh",1.0,,,,Positive,train'), 7),
        (forty_rows(line_6='v,5,"He, said,1.0,,,,Positive,train', line_8='v,7,oh",1.0,,,,Positive,train'), 8),
        (forty_rows(line_6='v,5,He said,1.0,,,,"Positive,train'), 41),
    ],
)
def test_rows_that_an_open_quote_swallows_are_not_lost_in_silence(tmp_path: Path, table: str, last: int) -> None:
    (tmp_path / "label.csv").write_text(table, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"label\.csv, line 6: a quote .* takes in the lines up to {last};"):
        read(tmp_path)


def test_a_quote_that_swallows_more_than_a_field_may_hold_is_named_with_its_line(tmp_path: Path) -> None:
    lines = [f"v,{n},fine,1.0,,,,Positive,train\n" for n in range(9000)]
    (tmp_path / "label.csv").write_text(f'{HEADER}\nv,x,"He said,1.0,,,,,train\n' + "".join(lines))
    with pytest.raises(ValueError, match=r"label\.csv, line 2: not a CSV table.*close a quote"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "one, two\nthree, four\nfive",
        'He said "no",\nand "yes",\n\nand left',
        "\nonly, the, second, line, has, a, good, many, commas\n",
        "1.0\n2.0\ntrain\n",
        "line\r\nline\r\n",
    ],
)
def test_texts_of_several_lines_are_read(corpus: MakeCorpus, text: str) -> None:
    manifest, problems = read(corpus({"text": text}, {"clip_id": "2"}))
    assert problems == []
    assert [clip.text for clip in manifest.clips] == [text.strip(), "fine"]


def test_a_stray_quote_within_one_line_is_read(tmp_path: Path, corpus: MakeCorpus) -> None:
    root = corpus({}, {"clip_id": "2"})
    (root / "label.csv").write_text(f'{HEADER}\nv,1,"No" he said,1.0,,,,,train\nv,2,so "good",1.0,,,,,train\n')
    manifest, problems = read(root)
    assert problems == []
    assert [clip.text for clip in manifest.clips] == ["No he said", 'so "good"']


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label,mode,text\nv,1,a,1.0,train,b\n")
    with pytest.raises(ValueError, match=r"label\.csv: two columns are called text; found video_id"):
        read(tmp_path)


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_other_separators_are_named(tmp_path: Path, mark: str, name: str) -> None:
    (tmp_path / "label.csv").write_text(HEADER.replace(",", mark) + "\n")
    with pytest.raises(ValueError, match=rf"label\.csv: its columns are separated by {name}"):
        read(tmp_path)
    with pytest.raises(ValueError, match=rf"label\.csv: its columns are separated by {name}"):
        read_own(tmp_path)


def test_table_without_rows_is_an_error(corpus: MakeCorpus) -> None:
    with pytest.raises(ValueError, match="no rows"):
        read(corpus())


def test_every_row_is_a_clip_or_a_problem(corpus: MakeCorpus) -> None:
    rows = [{"clip_id": str(i), "label": str(i - 6), "mode": ("train", "?")[i % 2]} for i in range(12)]
    root = corpus(*rows, {"clip_id": "0"})
    manifest, problems = read(root)
    with (root / "label.csv").open(encoding="utf-8") as table:
        assert len(manifest.clips) + len(problems) == len(list(csv.DictReader(table)))


@pytest.fixture
def folder(tmp_path: Path, demo: Path) -> Callable[..., Path]:
    """A function that puts media, copies of a generated clip, and perhaps a table into a folder of one's own."""

    def make(*media: str, table: str = "", name: str = "label.csv") -> Path:
        root = tmp_path / "own"
        for path in media:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(demo / "Raw" / "speaker_000" / "0001.mp4", root / path)
        if table:
            (root / name).write_text(table, encoding="utf-8")
        return root

    return make


def read_own(root: Path, columns: Mapping[str, str] | None = None) -> tuple[Manifest, list[Problem]]:
    return read_raw(root, corpus="own", language="en", label_range=(-3, 3), layout="folder", columns=columns)


OWN = {"media": "file", "text": "transcript", "label": "score", "mode": "set"}


def test_own_table_is_read_by_the_names_that_its_columns_have(folder: Callable[..., Path]) -> None:
    table = 'score,file,transcript,set,text\n1.5,talks/03.mp4,"well, yes",train,not this\n,b.mp4,,valid,nor this\n'
    manifest, problems = read_own(folder("talks/03.mp4", "b.mp4", table=table, name="ratings.csv"), OWN)
    assert problems == []
    found = [(c.clip_id, c.video_id, c.split, c.media, c.text, c.label) for c in manifest.clips]
    assert found == [
        ("talks/03", "talks", "train", "talks/03.mp4", "well, yes", 1.5),
        ("b/b", "b", "valid", "b.mp4", "", None),
    ]
    assert all(clip.sha256 and clip.duration for clip in manifest.clips)


@pytest.mark.parametrize(
    "table",
    [
        'media,text\nb.mp4,"hello, you\nwell, yes\nso"\nc.mp4,fine\n',
        'text,media\n"hello, you\nwell, yes\nso",b.mp4\nfine,c.mp4\n',
        'media,text\nb.mp4,"hello\nthere"\nc.mp4,"so\nit is"\n',
    ],
)
def test_own_tables_texts_may_have_several_lines(folder: Callable[..., Path], table: str) -> None:
    manifest, problems = read_own(folder("b.mp4", "c.mp4", table=table))
    assert problems == []
    assert [clip.media for clip in manifest.clips] == ["b.mp4", "c.mp4"]
    assert "\n" in manifest.clips[0].text


def test_own_rows_that_an_open_quote_swallows_are_named(folder: Callable[..., Path]) -> None:
    table = 'media,text\nb.mp4,"hello\nc.mp4,fine\nd.mp4,oh"\n'
    with pytest.raises(ValueError, match=r"line 2: a quote .* up to 4"):
        read_own(folder("b.mp4", "c.mp4", "d.mp4", table=table))


def test_own_table_may_leave_out_endings_and_name_the_videos(folder: Callable[..., Path]) -> None:
    table = "file,person\ntalks\\03,anna\nb.mp4,ben\n"
    columns = {"media": "file", "video_id": "person"}
    manifest, problems = read_own(folder("talks/03.mp4", "b.mp4", table=table), columns)
    assert problems == []
    assert [(c.clip_id, c.media) for c in manifest.clips] == [("anna/03", "talks/03.mp4"), ("ben/b", "b.mp4")]


def test_columns_of_mmsas_layout_can_have_other_names_too(corpus: MakeCorpus) -> None:
    root = corpus({"text": "good"})
    content = (root / "label.csv").read_text(encoding="utf-8")
    (root / "label.csv").write_text(content.replace("text", "transcript").replace("mode", "split"), encoding="utf-8")
    columns = {"text": "transcript", "mode": "split"}
    manifest, problems = read_raw(root, corpus="test", language="en", label_range=(-3, 3), columns=columns)
    assert problems == []
    assert (manifest.clips[0].text, manifest.clips[0].split) == ("good", "train")


def test_folder_without_a_table_is_its_media_without_labels(folder: Callable[..., Path]) -> None:
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
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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


def test_table_without_media_names_odd_files_of_the_folder(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("")
    with pytest.raises(FileNotFoundError, match=r"holds \\udcff\.txt"):
        read(tmp_path)


def test_two_files_of_one_name_are_one_clip_and_a_problem(folder: Callable[..., Path]) -> None:
    manifest, problems = read_own(folder("a.mp4", "a.avi"))
    assert [clip.media for clip in manifest.clips] == ["a.avi"]
    assert [(p.error, "a.mp4" in p.message) for p in problems] == [("DuplicateClip", True)]


@pytest.mark.parametrize("media", ["../b.mp4", "/etc/b.mp4", "a//b.mp4", "C:/b.mp4", "x" * 300])
def test_own_tables_paths_cannot_leave_the_folder(folder: Callable[..., Path], media: str) -> None:
    manifest, problems = read_own(folder("b.mp4", table=f"media,video_id,clip_id\n{media},v,1\nb.mp4,v,2\n"))
    assert [clip.clip_id for clip in manifest.clips] == ["v/2"]
    assert [p.error for p in problems] == ["UnsafeMedia"]
    assert "label.csv row 2" in problems[0].message


def test_own_row_without_its_file_is_listed(folder: Callable[..., Path]) -> None:
    manifest, problems = read_own(folder("b.mp4", table="media\nb.mp4\nlost.mp4\n"))
    assert [clip.clip_id for clip in manifest.clips] == ["b/b"]
    assert [(p.clip_id, p.error) for p in problems] == [("lost/lost", "MissingMedia")]
    assert "no file lost.mp4" in problems[0].message


def test_own_folders_that_cannot_be_read_say_what_to_do(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder("b.mp4", table="file,text\nb.mp4,hi\n", name="one.csv")
    with pytest.raises(ValueError, match=r"no column 'path', which prepare.columns.media names; found file, text"):
        read_own(root, {"media": "path"})
    with pytest.raises(ValueError, match=r"no column media .* found file, text; .*prepare.columns.media"):
        read_own(root)
    with pytest.raises(FileNotFoundError, match=r"set prepare\.layout to folder"):
        read(root)
    (root / "two.csv").write_text("media\n")
    with pytest.raises(ValueError, match=r"which table\? one.csv, two.csv; call it label.csv"):
        read_own(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a table nor a media file"):
        read_own(tmp_path / "empty")
