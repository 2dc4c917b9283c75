"""Reading tables: encodings, separators, and quotes that are left open."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from corpora.readers.raw import COLUMNS, REQUIRED
from corpora.readers.table import Row, guess_encoding, open_table, parse_number, read_table

Write = Callable[..., Path]
MMSA, OWN = REQUIRED, ()
"""Columns that a table must have, by layout."""


def read(path: Path, required: Sequence[str] = MMSA, encoding: str | None = None) -> list[Row]:
    return list(read_table(path, {}, required, COLUMNS, encoding))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a table and gives its path."""

    def make(content: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "label.csv"
        path.write_bytes(content.encode(encoding))
        return path

    return make


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
def table_of(separator: str, **values: str) -> str:
    """A table of one row, written with this separator."""
    row = {"video_id": "v", "clip_id": "0001", "text": "fine", "label": "1.0", "mode": "train"} | values
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerows([row, row.values()])
    return out.getvalue()


TEXTS = ['He said "no", twice', "我觉得,这部电影\u201c很好\u201d。", "two\nlines; not | one", "NA", "a\tb"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_any_separator_is_found_and_texts_survive_it(write: Write, separator: str, text: str) -> None:
    (row,) = read(write(table_of(separator, text=text)))
    assert (row.values["text"], row.values["clip_id"], row.surplus) == (text, "0001", 0)


def test_a_separator_inside_a_quoted_name_does_not_count(write: Write) -> None:
    table = open_table(write('file;"text, as said, in full, or not";label\na.mp4;yes;1,5\n'))
    assert (table.separator, table.header) == (";", ("file", "text, as said, in full, or not", "label"))


def test_excels_line_about_the_separator_is_no_header_and_lines_keep_their_numbers(write: Write) -> None:
    path = write("sep=|\nmedia|text\na.mp4|x, y\n")
    assert open_table(path).header == ("media", "text")
    assert read(path, OWN) == [Row(3, {"media": "a.mp4", "text": "x, y"})]
    with pytest.raises(ValueError, match=r"line 4: a quote in this row .* up to 5"):
        read(write('sep=;\nmedia;text\na.mp4;x\nb.mp4;"y\nc.mp4;z"\n'), OWN)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_is_read_without_being_named(write: Write, encoding: str) -> None:
    (row,) = read(write(table_of("\t", text="很好, né"), encoding))
    assert row.values["text"] == "很好, né"


SENTENCES = {
    "gb18030": ["我觉得这部电影很好。", "他说“不行”。", "good, 很好"],
    "cp1252": ["C'était très bien, je l'ai adoré.", "Größe, Öl und Übermut", "mañana — el niño", "“curly”"],
    "utf-8": ["plain", "né", "很好"],
    None: ["это было очень хорошо", "とても良かったです"],
}


@pytest.mark.parametrize(
    ("encoding", "text"), [(encoding, text) for encoding, texts in SENTENCES.items() for text in texts]
)
def test_an_encoding_is_guessed_and_read_when_it_is_named(write: Write, encoding: str | None, text: str) -> None:
    written = encoding or ("cp1251" if text[0] < "\u3000" else "shift-jis")
    path = write(table_of(",", text=text), written)
    assert guess_encoding(path.read_bytes()) == encoding
    assert read(path, encoding=written)[0].values["text"] == text


def test_a_table_in_another_encoding_is_refused_with_the_way_to_read_it(write: Write) -> None:
    path = write(table_of(",", text="很好"), "gb18030")
    with pytest.raises(ValueError, match=r"label\.csv: not UTF-8 at byte 41; .*prepare\.encoding=gb18030, or save"):
        read(path)
    with pytest.raises(ValueError, match=r"label\.csv: not ascii at byte"):
        read(path, encoding="ascii")


@pytest.mark.parametrize(
    ("value", "number"),
    [("1.5", 1.5), (" -1,5 ", -1.5), ("\u22122", -2.0), ("1e-1", 0.1), ("1,500.0", None), ("", None), ("good", None)],
)
def test_numbers_are_those_that_spreadsheets_write(value: str, number: float | None) -> None:
    assert parse_number(value) == number


def test_missing_columns_are_named(write: Write) -> None:
    with pytest.raises(ValueError, match=r"label\.csv: no column clip_id, mode; found video_id, clip, text, label"):
        read(write("video_id,clip,text,label\n"))


def test_two_columns_of_one_name_are_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r"label\.csv: two columns are called text; found video_id"):
        read(write("video_id,clip_id,text,label,mode,text\nv,1,a,1.0,train,b\n"))


@pytest.mark.parametrize("content", ["", HEADER + "\n"])
def test_a_table_without_rows_is_an_error(write: Write, content: str) -> None:
    with pytest.raises(ValueError, match="no rows" if content else "found an empty file"):
        read(write(content))


OPEN = 'v,5,"He said,1.0,,,,Positive,train'


@pytest.mark.parametrize(
    ("table", "last"),
    [
        (forty_rows(line_6=OPEN), 41),  # nothing closes it
        (forty_rows(line_6=OPEN, line_9='v,8,"well, yes",1.0,,,,Positive,train'), 9),
        (forty_rows(line_6=OPEN, line_9='v,8,5" long,1.0,,,,Positive,train'), 9),
        (forty_rows(line_6=OPEN, line_9='v,8,oh",1.0,,,,Positive,train'), 9),
        (forty_rows(line_6=OPEN, line_7='v,6,oh",1.0,,,,Positive,train'), 7),
        (forty_rows(line_6='v,5,"He, said,1.0,,,,Positive,train', line_8='v,7,oh",1.0,,,,Positive,train'), 8),
        (forty_rows(line_6='v,5,He said,1.0,,,,"Positive,train'), 41),
    ],
)
@pytest.mark.parametrize("separator", [",", ";"])
def test_rows_that_an_open_quote_takes_in_are_not_lost(write: Write, table: str, last: int, separator: str) -> None:
    with pytest.raises(ValueError, match=rf"label\.csv, line 6: a quote .* takes in the lines up to {last};"):
        read(write(table.replace(",", separator)))


def test_a_quote_that_takes_in_more_than_a_field_may_hold_is_named_with_its_line(write: Write) -> None:
    lines = [f"v,{n},fine,1.0,,,,Positive,train\n" for n in range(9000)]
    with pytest.raises(ValueError, match=r"label\.csv, line 2: not a CSV table.*close a quote"):
        read(write(f'{HEADER}\nv,x,"He said,1.0,,,,,train\n' + "".join(lines)))


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
@pytest.mark.parametrize("separator", [",", ";"])
def test_texts_of_several_lines_are_read(write: Write, text: str, separator: str) -> None:
    (row,) = read(write(table_of(separator, text=text)))
    assert row.values["text"] == text


def test_a_stray_quote_within_one_line_is_read(write: Write) -> None:
    rows = read(write(f'{HEADER}\nv,1,"No" he said,1.0,,,,,train\nv,2,so "good",1.0,,,,,train\n'))
    assert [row.values["text"] for row in rows] == ["No he said", 'so "good"']


@pytest.mark.parametrize(
    "table",
    [
        'media,text\nb.mp4,"hello, you\nwell, yes\nso"\nc.mp4,fine\n',
        'text,media\n"hello, you\nwell, yes\nso",b.mp4\nfine,c.mp4\n',
        'media,text\nb.mp4,"hello\nthere"\nc.mp4,"so\nit is"\n',
    ],
)
def test_a_table_of_ones_own_may_have_texts_of_several_lines(write: Write, table: str) -> None:
    rows = read(write(table), OWN)
    assert [row.values["media"] for row in rows] == ["b.mp4", "c.mp4"] and "\n" in rows[0].values["text"]


def test_rows_of_ones_own_that_an_open_quote_takes_in_are_named(write: Write) -> None:
    with pytest.raises(ValueError, match=r"line 2: a quote .* up to 4"):
        read(write('media,text\nb.mp4,"hello\nc.mp4,fine\nd.mp4,oh"\n'), OWN)
