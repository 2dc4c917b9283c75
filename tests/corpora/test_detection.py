"""How an unknown folder is read: by the names of its files, and by its table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from corpora.detection import detect_columns, detect_corpus, detect_label_range, features_of
from corpora.readers.raw import MediaFiles
from corpora.readers.table import open_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = [f"{i:02d}" for i in range(8)]


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a table beside empty media files, and gives the folder."""

    def make(table: str, *media: str, name: str = "ratings.csv", encoding: str = "utf-8") -> Path:
        root = tmp_path / "corpus"
        for path in media or [f"videos/{name}.mp4" for name in NAMES]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        if table:
            (root / name).write_bytes(table.encode(encoding))
        return root

    return make


def rows(header: str, row: Callable[[int], str]) -> str:
    return "\n".join([header, *(row(i) for i in range(len(NAMES)))]) + "\n"


def columns(root: Path) -> dict[str, str]:
    table = open_table(root / "ratings.csv")
    return detect_columns(table, [row.values for row in table.rows()], MediaFiles(root))


def test_columns_are_told_by_their_names_whatever_their_case(place):
    root = place(
        rows(
            "Video File,Speaker ID,Sentiment-Score,Transcription,Split,Sex",
            lambda i: f"{NAMES[i]}.mp4,p{i},{i / 2 - 2},it was good,{['train', 'val', 'test'][i % 3]},f",
        )
    )
    assert columns(root) == {
        "media": "Video File", "speaker": "Speaker ID", "label": "Sentiment-Score", "text": "Transcription",
        "mode": "Split", "gender": "Sex",
    }  # fmt: skip


def test_columns_of_other_names_are_told_by_their_values(place):
    root = place(
        rows(
            "no;nom;note;parole;lot",
            lambda i: f"{i};{NAMES[i]};{i / 2 - 2};c'est un beau film;{'dev' if i else 'Test'}",
        )
    )
    assert columns(root) == {"media": "nom", "label": "note", "text": "parole", "mode": "lot"}


def test_a_column_whose_values_do_not_fit_its_name_is_not_taken(place):
    root = place(rows("label,score,file,text,transcript", lambda i: f"positive,{i - 4}.5,{NAMES[i]},{i},it was good"))
    assert columns(root) == {"label": "score", "media": "file", "text": "transcript"}


def test_ids_that_lead_to_the_media_need_no_path(place):
    root = place(
        rows("video,clip,score", lambda i: f"v{i // 2},{i},{i - 4}"), *(f"Raw/v{i // 2}/{i}.mp4" for i in range(8))
    )
    assert columns(root) == {"video_id": "video", "clip_id": "clip", "label": "score"}


def test_a_corpus_without_splits_gets_some_drawn_by_speaker_or_by_video(place):
    root = place(rows("file,score,speaker", lambda i: f"{NAMES[i]},{i / 2 - 2},p{i // 2}"))
    found = detect_corpus(root)
    assert (found.layout, found.table, found.split.by) == ("folder", "ratings.csv", "speaker")
    assert [remark.partition(";")[0] for remark in found.remarks] == ["no transcripts"]
    (root / "ratings.csv").write_text(rows("file,score", lambda i: f"{NAMES[i]},{i / 2 - 2}"))
    assert any("by video" in remark for remark in detect_corpus(root).remarks)
    (root / "ratings.csv").write_text(rows("media,score", lambda i: f"videos/{NAMES[i]}.mp4,{i / 2 - 2}"))
    found = detect_corpus(root)
    assert found.split.by == "clip" and any("by clip" in remark for remark in found.remarks)


@pytest.mark.parametrize(("encoding", "named"), [("utf-8-sig", None), ("utf-16", None), ("gb18030", "gb18030")])
def test_mmsas_layout_is_recognised_in_any_encoding_and_with_any_names_of_splits(place, encoding, named):
    header = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
    table = rows(header, lambda i: f"v,{i},很好的电影,{i / 10},,,,Positive,{'dev' if i % 2 else 'Train'}")
    root = place(table, *(f"Raw/v/{i}.mp4" for i in range(8)), name="label.csv", encoding=encoding)
    found = detect_corpus(root)
    assert (found.layout, found.columns, found.encoding, found.language) == ("mmsa", {}, named, "zh")
    assert (found.label_range, dict(found.splits)) == ((-1, 1), {"dev": 4, "Train": 4})


def test_a_folder_without_a_table_or_with_features_is_recognised(place, tmp_path):
    assert (detect_corpus(place("")).layout, features_of(place(""))) == ("folder", None)
    features = tmp_path / "features"
    features.mkdir()
    with pytest.raises(ValueError, match="no corpus: neither a table"):
        detect_corpus(features)
    (features / "unaligned.pkl").touch()
    assert features_of(features) == ("mmsa_pickle", features / "unaligned.pkl")
    assert features_of(features / "unaligned.pkl") == ("mmsa_pickle", features / "unaligned.pkl")
    (features / "COVAREP.csd").touch()
    (features / "splits.csv").touch()
    assert features_of(features / "COVAREP.csd") == features_of(features) == ("csd", features)
    (features / "labels.csd").touch()
    assert features_of(features) == ("csd", features)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        detect_corpus(tmp_path / "absent")


def test_of_several_tables_the_one_that_leads_to_the_videos_is_read(place):
    root = place(rows("file,score", lambda i: f"{NAMES[i]}.mp4,{i - 3}"))
    (root / "a_speakers.csv").write_text("id,age\n1,30\n2,40\n")
    (root / "files.tsv").write_text("file\n" + "".join(f"{name}.mp4\n" for name in [*NAMES, *NAMES]))
    (root / "double.csv").write_bytes(b"file,file\n")
    found = detect_corpus(root)
    assert (found.table, found.columns) == ("ratings.csv", {"media": "file", "label": "score"})
    assert found.other_tables["a_speakers.csv"].startswith("no column media (the clip's file); found id, age;")
    assert found.other_tables["files.tsv"] == "videos that its rows lead to: 8; with a label: 0"
    assert "two columns" in found.other_tables["double.csv"] and len(found.other_tables) == 3
    named = detect_corpus(root, "files.tsv")
    assert named.table == "files.tsv" and list(named.other_tables) == ["a_speakers.csv", "double.csv", "ratings.csv"]
    (root / "ratings.csv").rename(root / "label.csv")
    assert detect_corpus(root).other_tables == {}
    assert list(detect_corpus(root, "files.tsv").other_tables) == ["label.csv"]
    (root / "label.csv").unlink()
    (root / "files.tsv").unlink()
    with pytest.raises(
        ValueError, match=r"none leads to its videos; name one as prepare.table: a_speakers.csv: no column"
    ):
        detect_corpus(root)


@pytest.mark.parametrize(
    ("labels", "label_range", "remark"),
    [
        ([-0.8, 0.2, 1.0], (-1, 1), ""),
        ([-2.4, 0.2, 1.0], (-3, 3), ""),
        ([-0.8, 0.2] * 20 + [99.0], (-1, 1), ""),
        ([], (-3, 3), ""),
        ([0.0, 1.0, 2.0], (-3, 3), "no label is below 0"),
        ([1.0, 3.0, 5.0, 4.0], (-3, 3), r"from 1 to 5 .* to \(label - 3\) \* 1.5"),
    ],
)
def test_the_label_range_is_the_narrowest_that_fits(labels, label_range, remark):
    found, remarks = detect_label_range(labels)
    assert found == label_range and len(remarks) == bool(remark)
    assert re.search(remark, "".join(remarks))
