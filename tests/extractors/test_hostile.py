"""Names and headers that a corpus can bring and nobody wishes for, from the table to the features."""

from __future__ import annotations

import csv
import re
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from corpora.readers.raw import read_raw
from extractors.base import ExtractionError, Source
from extractors.execution.units import assemble, extract_unit
from extractors.store import FeatureReader
from extractors.vision.face_landmarker import FaceLandmarkerVision
from media.audio import read_audio, read_audio_blocks
from media.container import MAX_GAP, MediaError, probe
from media.video import read_frames

if TYPE_CHECKING:
    from collections.abc import Callable

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
    with (root / "label.csv").open("w", encoding="utf-8", newline="") as table:
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
            assert 0 < sum(1 for _ in read_frames(path, 25)) <= MAX_GAP * 25
    except MediaError as error:
        assert str(path) in str(error)
    (result,) = librosa_audio.extract([Source("v/1", path, "", "en", 2.0)])
    assert isinstance(result, ExtractionError) or 0 < len(result) < 100


def test_the_frames_of_a_variable_rate_keep_their_times(tmp_path, make_clip, frame_number):
    times = [0.0, 0.04, 0.5, 0.54, 0.58, 1.5]
    path = make_clip(tmp_path / "a.mkv", "v", times=times)
    shown = {round(t, 2): frame_number(image) for t, image in read_frames(path, 10)}
    assert [shown[t] for t in (0.0, 0.1, 0.4, 0.5, 0.6, 1.4, 1.5)] == [0, 1, 1, 2, 4, 4, 5]


def test_the_ending_of_a_name_means_nothing(tmp_path, make_clip, frame_number):
    path = make_clip(tmp_path / "clip.mkv", seconds=0.4, codecs=("libx264", "flac")).rename(tmp_path / "clip.mp4")
    assert [frame_number(image) for _, image in read_frames(path, 25)] == list(range(10))
    assert len(read_audio(path, 8000)) == pytest.approx(0.4 * 8000, abs=100)


EIGHT_K = (7680, 4320)

READ_LARGE = """
import re, sys
from media.video import read_frames
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024
before, shapes = peak(), [image.shape for _, image in read_frames(sys.argv[1], 25)]
print(len(shapes), *set(shapes), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("codec", "pixels"), [("mjpeg", "yuvj420p"), ("libx264", "yuv420p")])
def test_8k_frames_are_scaled_down_while_they_are_converted(tmp_path, codec, pixels):
    path, frames = tmp_path / "clip.mkv", 3
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        (video.width, video.height), video.pix_fmt = EIGHT_K, pixels
        video.options = {"preset": "ultrafast", "tune": "zerolatency", "threads": "1"} if codec == "libx264" else {}
        picture = av.VideoFrame(*EIGHT_K, pixels)
        for plane in picture.planes:
            plane.update(bytes([100]) * plane.buffer_size)
        for number in range(frames):
            picture.pts = number
            container.mux(video.encode(picture))
        container.mux(video.encode())
    ran = subprocess.run([sys.executable, "-c", READ_LARGE, path], capture_output=True, text=True, check=True)
    count, shape, grown = re.fullmatch(r"(\d+) (\(.*\)) (\d+)\n", ran.stdout).groups()
    assert (int(count), shape) == (frames, "(360, 640, 3)")
    assert int(grown) < 270, "MiB: a picture has 50 as it is decoded, 100 in RGB"


def test_an_hour_is_read_to_its_end_in_small_pieces(tmp_path):
    path, rate, block = tmp_path / "hour.mkv", 8000, 80_000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt, video.codec_context.time_base = 64, 64, "yuv420p", Fraction(1, 1000)
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for second in range(0, 3600, 30):  # a slide every half minute
            slide = av.VideoFrame.from_ndarray(np.full((64, 64, 3), second // 30, np.uint8), "rgb24")
            slide.pts = second * 1000
            container.mux(video.encode(slide))
        container.mux(video.encode())
        for start in range(0, 3600 * rate, block):
            piece = av.AudioFrame.from_ndarray(np.full((1, block), 1000, np.int16), "s16", "mono")
            piece.sample_rate, piece.pts, piece.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(piece))
    (seen,) = FaceLandmarkerVision(fps=1).extract([Source("hour", path, "", "en", 3600.0)])
    assert seen.start == pytest.approx(np.arange(len(seen)))
    assert 3571 <= len(seen) <= 3600  # how long the last slide stays is the container's to say
    blocks = [len(samples) for samples in read_audio_blocks(path, rate)]
    assert sum(blocks) == 3600 * rate
    assert max(blocks) < 30 * rate
