"""Transcripts in files as people have them: subtitles of several kinds and qualities, and plain text."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from extractors.transcripts.subtitles import CUES, find_transcript, read_transcript

SRT = """1
00:00:00,500 --> 00:00:02,000
This is <i>good</i>,

2
00:00:02,500 --> 00:00:04,000
{\\an8}isn't it?
"""
VTT = """WEBVTT - a title
Kind: captions

NOTE nobody says this

STYLE
::cue { color: red }

first
00:00.500 --> 00:02.000 align:start position:0%
<v Bob>This is <b>good</b>,</v>

00:00:02.500 --> 00:00:04.000
isn't it?
"""


def read(tmp_path: Path, name: str, content: str | bytes, language: str = "en"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_transcript(path, "clip", language)


@pytest.mark.parametrize(("name", "content"), [("a.srt", SRT), ("a.vtt", VTT), ("a.SRT", SRT)])
def test_cues_give_text_without_markup_and_words_with_times(tmp_path, name, content):
    found = read(tmp_path, name, content)
    assert found.text == "This is good, isn't it?" and found.text_source == "file" and found.times_method == CUES
    assert list(found.words) == ["This", "is", "good,", "isn't", "it?"]
    assert found.start[0] == pytest.approx(0.5) and found.end[2] == pytest.approx(2.0)
    assert found.start[3] == pytest.approx(2.5) and found.end[4] == pytest.approx(4.0)
    assert found.start[1] == pytest.approx(found.end[0]) and found.end[0] < 2.0


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + SRT.encode(),
        SRT.replace("\n", "\r\n").encode(),
        SRT.replace("\n", "\r").encode(),
        SRT.encode("utf-16"),
        b"\n\n" + SRT.encode(),
    ],
    ids=["byte-order mark", "CRLF", "CR", "UTF-16", "empty lines first"],
)
def test_the_same_file_however_it_was_saved(tmp_path, content):
    assert read(tmp_path, "a.srt", content) == read(tmp_path, "b.srt", SRT)


def test_plain_text_has_words_and_no_times(tmp_path):
    found = read(tmp_path, "a.txt", codecs.BOM_UTF8 + b"So,\r\n  all good.\r\n")
    assert found.text == "So, all good." and list(found.words) == ["So,", "all", "good."]
    assert not found.start and found.times_method == ""


@pytest.mark.parametrize("name", ["a.srt", "a.vtt", "a.txt"])
@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file_says_nothing(tmp_path, name, content):
    found = read(tmp_path, name, content)
    assert found.text == "" and not found.words


def test_a_header_alone_says_nothing(tmp_path):
    assert read(tmp_path, "a.vtt", "WEBVTT\n\n").text == ""


def test_entities_become_characters_and_broken_cues_are_passed_over(tmp_path):
    content = (
        "1\n00:00:03,000 --> 00:00:04,000\nsalt &amp; pepper\n\n"
        "2\n00:00:02,000 --> 00:00:01,000\nbackwards\n\n"
        "no cue at all\n\n"
        "3\n00:00:01,000 --> 00:00:02,000\nfirst\n"
    )
    found = read(tmp_path, "a.srt", content)
    assert found.text == "first salt & pepper" and found.start[0] == pytest.approx(1.0)


def test_overlapping_cues_come_in_order_of_their_starts(tmp_path):
    content = "1\n00:00:00,000 --> 00:00:04,000\none two\n\n2\n00:00:01,000 --> 00:00:02,000\nthree\n"
    found = read(tmp_path, "a.srt", content)
    assert list(found.words) == ["one", "two", "three"]
    assert found.end[1] == pytest.approx(4.0) and found.start[2] == pytest.approx(1.0)


def test_a_line_that_rolls_up_is_not_said_again(tmp_path):
    content = (
        "WEBVTT\n\n00:00.000 --> 00:01.990\nhello<00:00:00.400><c> my</c>\n\n"
        "00:01.990 --> 00:02.000\nhello my\n\n"
        "00:02.000 --> 00:03.990\nhello my\ndear friends\n\n"
        "00:04.000 --> 00:05.000\ndear friends\n"
    )
    assert read(tmp_path, "a.vtt", content).text == "hello my dear friends dear friends"


def test_chinese_cues_are_cut_into_chinese_words(tmp_path):
    found = read(tmp_path, "a.srt", "1\n00:00:00,000 --> 00:00:02,000\n你好吗。\n", "zh")
    assert list(found.words) == ["你好", "吗。"] and found.end[-1] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.srt", "just words\n", "not a .srt file"),
        ("a.vtt", SRT, "`WEBVTT` on top"),
        ("a.srt", b"\xff\xd8\xff\xe0 a picture", "not UTF-8"),
        ("a.txt", b"\x00\x01\x02", "zero bytes"),
        ("a.docx", "words", "ends in .srt, .vtt, .txt"),
    ],
)
def test_what_is_no_transcript_is_refused_by_name(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as refused:
        read(tmp_path, name, content)
    assert name in str(refused.value)


def test_a_transcript_is_found_by_its_videos_name(tmp_path):
    for name in ("talk.vtt", "talk.txt", "other.mp4.srt"):
        (tmp_path / name).write_text("x")
    assert find_transcript(tmp_path, Path("/videos/talk.mp4")) == tmp_path / "talk.vtt"
    assert find_transcript(tmp_path, Path("other.mp4")) == tmp_path / "other.mp4.srt"
    assert find_transcript(tmp_path, Path("third.mp4")) is None
    with pytest.raises(FileNotFoundError):
        read_transcript(tmp_path / "third.srt", "clip", "en")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("a token")
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "talk.srt").symlink_to(tmp_path / "secret.txt")
    assert find_transcript(folder, Path("talk.mp4")) is None
    (folder / "talk.srt").unlink()
    (folder / "talk.srt").symlink_to("talk.srt")
    assert find_transcript(folder, Path("talk.mp4")) is None
    (folder / "inner" / "talk.txt").write_text("hello")
    (folder / "talk.txt").symlink_to("inner/talk.txt")
    assert find_transcript(folder, Path("talk.mp4")) == folder / "talk.txt"
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be reached by a link
    assert find_transcript(tmp_path / "link", Path("talk.mp4")) == tmp_path / "link" / "talk.txt"
