"""Names and headers that a corpus can bring and nobody wishes for, from the table to the features."""

from __future__ import annotations

import csv
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from corpora.raw import read_raw
from extractors.base import ExtractionError, Source
from extractors.media import LONGEST_GAP, MediaError, probe, read_audio, read_frames
from extractors.run import assemble, extract_unit
from extractors.store import FeatureReader

IDS = [
    "with space",
    " lead and trail ",
    'it\'s "quoted"',
    "-rf",
    "--",
    "你好 世界",
    "12:30",
    "%03d",
    "#1?&x=*",
    "$(id);`id`",
]


@pytest.mark.parametrize("column", ["video_id", "clip_id"])
def test_odd_ids_go_from_the_table_to_the_store(tmp_path, make_clip, column):
    plain = make_clip(tmp_path / "plain.mp4", "a", seconds=0.5).read_bytes()
    root = tmp_path / "it's a -corpus 语料"
    rows = [{"video_id": "v", "clip_id": "1"} | {column: name} for name in IDS]
    root.mkdir()
    with open(root / "label.csv", "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["video_id", "clip_id", "text", "label", "mode"])
        for row in rows:
            writer.writerow([row["video_id"], row["clip_id"], "fine", "1", "train"])
            path = root / "Raw" / row["video_id"] / f"{row['clip_id']}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(plain)
    manifest, problems = read_raw(root, corpus="odd", language="en", label_range=(-3.0, 3.0))
    assert problems == []
    names = [f"{row['video_id']}/{row['clip_id']}" for row in rows]
    assert [clip.clip_id for clip in manifest.clips] == names
    report = extract_unit(manifest.clips, root, "audio.librosa", {"hop_seconds": 0.064}, tmp_path / "scratch")
    assert report.problems == ()
    assemble(manifest.clips, root, report.meta, tmp_path / "scratch", tmp_path / "features")
    reader = FeatureReader(tmp_path / "features", "audio")
    assert list(reader.clip_ids) == names and all(len(sequence) for _, sequence in reader)


def patch(path: Path, box: bytes, offset: int, value: bytes) -> None:
    """Write `value` over a file, `offset` bytes after the first place where the box's name stands."""
    content = bytearray(path.read_bytes())
    at = content.index(box) + len(box) + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)


def big(value: int) -> bytes:
    return struct.pack(">I", value)


def little(value: int) -> bytes:
    return struct.pack("<I", value)


ABSURD = {
    "mp4, movie of 2^32 ticks": ("clip.mp4", b"mvhd", 16, big(0xFFFF_FFF0)),
    "mp4, movie of 0 ticks a second": ("clip.mp4", b"mvhd", 12, big(0)),
    "mp4, stream of 0 ticks a second": ("clip.mp4", b"mdhd", 12, big(0)),
    "mp4, frames of no duration": ("clip.mp4", b"stts", 8, big(0)),
    "mp4, frames of 2^31 ticks": ("clip.mp4", b"stts", 8, big(0x7FFF_FFFF)),
    "mp4, 65,535 x 65,535 pixels": ("clip.mp4", b"avc1", 24, big(0xFFFF_FFFF)),
    "mp4, sound of 0 Hz": ("clip.mp4", b"mp4a", 24, big(0)),
    "avi, 0 frames a second": ("clip.avi", b"strh", 20, little(1) + little(0)),
    "avi, frames of no duration": ("clip.avi", b"avih", 0, little(0)),
    "wav, 0 Hz": ("clip.wav", b"fmt ", 8, little(0)),
    "wav, 8 Hz": ("clip.wav", b"fmt ", 8, little(8)),
    "wav, 4 GHz": ("clip.wav", b"fmt ", 8, little(4_000_000_000)),
    "wav, 4 GB declared": ("clip.wav", b"data", 0, little(0xFFFF_FFFF)),
}


@pytest.mark.parametrize(("name", "box", "offset", "value"), ABSURD.values(), ids=ABSURD.keys())
def test_an_absurd_header_gives_bounded_features_or_an_error(
    tmp_path, make_clip: Callable[..., Path], librosa_audio, name, box, offset, value
):
    streams = "a" if name.endswith("wav") else "va"
    codecs = ("libx264", "aac") if name.endswith("mp4") else ("mpeg4", "pcm_s16le")
    path = make_clip(tmp_path / name, streams, codecs=codecs)
    before = path.read_bytes()
    patch(path, box, offset, value)
    assert path.read_bytes() != before
    try:
        info = probe(path)
        assert info.duration is None or info.duration > 0
        assert len(read_audio(path, 16_000)) < 3 * 16_000  # of two seconds
        if info.has_video:
            assert 0 < sum(1 for _ in read_frames(path, 25)) <= LONGEST_GAP * 25
    except MediaError as error:
        assert str(path) in str(error)
    (result,) = librosa_audio.extract([Source("v/1", path, "", "en", 2.0)])
    assert isinstance(result, ExtractionError) or 0 < len(result) < 100


def test_the_frames_of_a_variable_rate_keep_their_times(tmp_path, make_clip, frame_number):
    times = [0.0, 0.04, 0.5, 0.54, 0.58, 1.5]
    path = make_clip(tmp_path / "a.mkv", "v", times=times)
    shown = {round(t, 2): frame_number(image) for t, image in read_frames(path, 10)}
    assert [shown[t] for t in (0.0, 0.1, 0.4, 0.5, 0.6, 1.4, 1.5)] == [0, 1, 1, 2, 4, 4, 5]
