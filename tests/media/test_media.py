"""Decoding: what is in a file comes out at its time, and a broken file says what is wrong."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from media import container, video
from media.audio import read_audio, read_audio_blocks
from media.container import FrameSizeError, MediaError, MissingStreamError, decoding_seconds, measure_duration, probe
from media.video import read_frames


def numbers(path, fps, frame_number):
    return [(time, frame_number(image)) for time, image in read_frames(path, fps)]


def test_probe_reads_the_headers(tmp_path, make_clip):
    info = probe(make_clip(tmp_path / "clip.mp4", fps=12.5))
    assert info.duration == pytest.approx(2.0, abs=0.1)
    assert (info.has_video, info.has_audio, info.fps) == (True, True, 12.5)
    assert (info.width, info.height, info.sample_rate) == (64, 48, 44_100)
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")
    assert "mp4" in info.container


def test_the_length_that_is_found_is_that_of_the_packets_and_not_the_headers(tmp_path, make_clip):
    whole = make_clip(tmp_path / "whole.mkv", seconds=4.0)
    assert measure_duration(whole, 60) == pytest.approx(4.0, abs=0.1)
    live = make_clip(tmp_path / "live.mkv", seconds=4.0, options={"live": "1"})
    assert probe(live).duration is None and measure_duration(live, 60) == pytest.approx(4.0, abs=0.1)
    torn = tmp_path / "torn.mkv"
    torn.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert probe(torn).duration == pytest.approx(4.0, abs=0.1) and 0.5 < measure_duration(torn, 60) < 3
    assert 1 < measure_duration(whole, 1) < 2, "no more is read than it takes to know"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"),
        ("script.ffconcat", "ffconcat version 1.0\nfile clip.mp4\n"),
        (
            "session.sdp",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        ),
    ],
)
def test_a_file_that_names_others_to_be_read_in_its_place_is_none(tmp_path, make_clip, name, content):
    other = make_clip(tmp_path / "clip.mp4")
    (tmp_path / name).write_text(content.format(other))
    for read in (probe, lambda path: list(read_frames(path, 5)), lambda path: read_audio(path, 16_000)):
        with pytest.raises(MediaError, match="not a media file"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("a.mp4", ("libx264", "aac")),
        ("a.mkv", ("libx264", "flac")),
        ("a.mov", ("mpeg4", "pcm_s16le")),
        ("a.avi", ("mpeg4", "mp3")),
        ("a.mpg", ("mpeg1video", "mp2")),
    ],
)
@pytest.mark.parametrize("order", ["va", "av"])
def test_any_container_and_stream_order(tmp_path, make_clip, frame_number, name, codecs, order):
    path = make_clip(tmp_path / name, order, codecs=codecs)
    found = numbers(path, 25, frame_number)
    assert len(found) == pytest.approx(50, abs=2)
    assert [n for _, n in found][-1] == 49
    assert len(read_audio(path, 22_050)) / 22_050 == pytest.approx(2.0, abs=0.1)


def test_grid_sampling_takes_the_frame_that_is_shown(tmp_path, make_clip, frame_number):
    path = make_clip(tmp_path / "clip.mp4", "v")
    assert numbers(path, 25, frame_number) == [(n / 25, n) for n in range(50)]
    assert numbers(path, 12.5, frame_number) == [(n / 12.5, 2 * n) for n in range(25)]
    assert numbers(path, 10, frame_number) == [(n / 10, n * 5 // 2) for n in range(20)]
    assert numbers(path, 60, frame_number) == [(n / 60, n * 25 // 60) for n in range(120)]


@pytest.mark.parametrize(("name", "codecs"), [("clip.mp4", ("libx264", "aac")), ("clip.mpg", ("mpeg2video", "mp2"))])
def test_frames_that_are_never_shown_are_left_undecoded_and_change_nothing(
    tmp_path, make_clip, monkeypatch, name, codecs
):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path = make_clip(tmp_path / name, "va", codecs=codecs, image=lambda n: np.roll(noise, n, axis=1))
    decode, frames = video.decode_frames, []

    def counted(*arguments):
        for frame in decode(*arguments):
            frames.append(frame.pts)
            yield frame

    monkeypatch.setattr(video, "decode_frames", counted)
    sparse = dict(read_frames(path, 2.5))
    decoded = len(frames)
    monkeypatch.setattr(video, "decode_frames", lambda *arguments: decode(*arguments[:-1]))
    whole = dict(read_frames(path, 2.5))
    assert sparse.keys() == whole.keys()
    assert all(np.array_equal(sparse[time], whole[time]) for time in whole)
    # The MPEG-2 encoder makes no frames that can be skipped
    assert 0 < decoded < 45 if name == "clip.mp4" else 0 < decoded <= 50


def test_times_rounded_to_milliseconds_do_not_shift_the_grid(tmp_path, make_clip, frame_number):
    path = make_clip(tmp_path / "clip.mkv", "v", fps=30, codecs=("libx264", "flac"))  # matroska counts in 1 ms
    assert [n for _, n in numbers(path, 30, frame_number)] == list(range(60))


def test_odd_rate(tmp_path, make_clip, frame_number):
    path = make_clip(tmp_path / "clip.mp4", "v", fps=17.3)
    assert numbers(path, 5, frame_number) == [(k / 5, int(k / 5 * 17.3)) for k in range(11)]


def test_variable_rate_holds_a_frame_until_the_next(tmp_path, make_clip, frame_number):
    path = make_clip(tmp_path / "clip.mp4", "v", times=[0.0, 0.1, 0.9, 1.0])
    found = [n for time, n in numbers(path, 10, frame_number) if time < 1.05]
    assert found == [0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3]


def test_a_repeated_frame_is_the_same_array(tmp_path, make_clip):
    images = [image for _, image in read_frames(make_clip(tmp_path / "clip.mp4", "v", fps=10), 20)]
    assert [a is b for a, b in pairwise(images)] == [True, False] * 19 + [True]
    assert not images[0].flags.writeable


def test_a_picture_that_starts_late_keeps_its_time(tmp_path, make_clip, frame_number):
    path = make_clip(tmp_path / "clip.mkv", times=[1.0, 1.5, 2.0], audio=np.zeros(88_200))
    found = numbers(path, 2, frame_number)
    assert found[:3] == [(1.0, 0), (1.5, 1), (2.0, 2)]


def test_rotation_is_applied(tmp_path, make_clip):
    def picture(number):
        image = np.zeros((48, 64, 3), np.uint8)
        image[:, :32] = 200  # the left half is bright
        return image

    flat = make_clip(tmp_path / "flat.mp4", "v", image=picture, seconds=0.2)
    turned = make_clip(tmp_path / "turned.mp4", "v", image=picture, seconds=0.2, rotation=90)
    _, image = next(read_frames(flat, 5))
    _, upright = next(read_frames(turned, 5))
    assert upright.shape == (64, 48, 3)
    assert np.array_equal(upright, np.rot90(image))  # counter-clockwise: bright below
    assert upright[:32].mean() < 20 < 180 < upright[32:].mean()
    _, small = next(read_frames(turned, 5, max_side=32))
    assert small.shape == (32, 24, 3)
    assert small[:16].mean() < 20 < 180 < small[16:].mean()


def ellipse(width: float, height: float):
    """Draw a bright ellipse of these half axes in the middle of the stored picture."""
    y, x = np.mgrid[:48, :64] + 0.5
    inside = ((x - 32) / width) ** 2 + ((y - 24) / height) ** 2 <= 1
    return lambda number: np.repeat(220 * inside[..., None], 3, axis=2)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.mpg"])
@pytest.mark.parametrize(
    ("aspect", "axes", "shape"),
    [
        (Fraction(4, 3), (15, 20), (48, 85)),
        (Fraction(64, 45), (15, 21.3), (48, 91)),
        (Fraction(1, 2), (20, 10), (96, 64)),
    ],
)
def test_a_circle_stored_with_oblong_pixels_is_round(tmp_path, make_clip, name, aspect, axes, shape):
    codec = {"clip.avi": "mpeg4", "clip.mpg": "mpeg2video"}.get(name, "libx264")
    if codec == "mpeg2video" and aspect != Fraction(4, 3):
        pytest.skip("MPEG-2 has only some ratios")
    options = {"image": ellipse(*axes), "seconds": 0.4, "pixel_aspect": aspect, "codecs": (codec, "")}
    path = make_clip(tmp_path / name, "v", **options)
    images = {side: next(read_frames(path, 5, max_side=side))[1] for side in (640, 40)}
    assert images[640].shape == (*shape, 3) and max(images[40].shape) == 40
    assert probe(path).pixel_aspect == aspect and (probe(path).width, probe(path).height) == (64, 48)
    for image in images.values():
        bright = image.mean(axis=2) > 110
        height, width = bright.any(axis=1).sum(), bright.any(axis=0).sum()
        assert abs(height - width) <= 2 and height > image.shape[0] / 4
    if name == "clip.mp4":
        turned = make_clip(tmp_path / f"turned-{name}", "v", rotation=90, **options)
        assert np.array_equal(next(read_frames(turned, 5))[1], np.rot90(images[640]))


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(1281, 1280), Fraction(199, 200)])
def test_square_pixels_and_nearly_square_ones_are_left_alone(tmp_path, make_clip, aspect):
    plain = make_clip(tmp_path / "plain.mp4", "v", seconds=0.4)
    told = make_clip(tmp_path / "told.mp4", "v", seconds=0.4, pixel_aspect=aspect)
    for side in (640, 40):
        pairs = zip(read_frames(plain, 25, side), read_frames(told, 25, side), strict=True)
        assert all(np.array_equal(before, after) for (_, before), (_, after) in pairs)


def test_an_extreme_pixel_aspect_stays_within_the_limit(tmp_path, make_clip):
    path = make_clip(tmp_path / "clip.mp4", "v", seconds=0.2, pixel_aspect=Fraction(10))
    assert next(read_frames(path, 5))[1].shape == (48, 640, 3)
    assert next(read_frames(path, 5, max_side=8))[1].shape == (1, 8, 3)


def write_growing(path, codec, sizes):
    """Write one key frame of each size (width, height) as one stream, whose header declares the first."""
    packets = []
    for width, height in sizes:
        encoder = av.CodecContext.create(codec, "w")
        encoder.width, encoder.height, encoder.time_base = width, height, Fraction(1, 25)
        encoder.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), "rgb24")
        packets += [*encoder.encode(frame), *encoder.encode(None)]
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = sizes[0]
        stream.pix_fmt = encoder.pix_fmt
        for number, encoded in enumerate(packets):
            packet = av.Packet(bytes(encoded))
            packet.pts = packet.dts = number * 40
            packet.duration, packet.time_base, packet.stream, packet.is_keyframe = 40, Fraction(1, 1000), stream, True
            container.mux(packet)
    return path


@pytest.mark.parametrize("codec", ["libvpx-vp9", "mjpeg"])
@pytest.mark.parametrize("large", [(640, 512), (132, 100)])
@pytest.mark.parametrize("place", [1, 3])
def test_frames_that_grow_are_refused_before_they_are_decoded(tmp_path, monkeypatch, codec, large, place):
    monkeypatch.setattr(container, "MAX_PIXELS", 128 * 96)
    monkeypatch.setattr(container, "_DECODER_OPTIONS", {"max_pixels": str(192 * 96)})  # the decoder's or our own limit
    sizes = [(64, 48)] * 4
    assert len(list(read_frames(write_growing(tmp_path / "small.mkv", codec, sizes), 25))) == 4
    sizes[place] = large
    with pytest.raises(MediaError, match=r"frames of \d+ x \d+|frames grow to more than 12,288 pixels"):
        list(read_frames(write_growing(tmp_path / "clip.mkv", codec, sizes), 25))


def test_frames_that_the_header_declares_too_large_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"YUV4MPEG2 W16000 H12000 F25:1 C420jpeg\nFRAME\n" + bytes(1000))
    assert (probe(path).width, probe(path).height) == (16_000, 12_000)
    with pytest.raises(FrameSizeError, match=r"clip\.mp4: frames of 16000 x 12000.* 33,177,600 pixels"):
        list(read_frames(path, 5))


def test_the_largest_frames_are_read(tmp_path):
    path = tmp_path / "clip.y4m"
    path.write_bytes(b"YUV4MPEG2 W7680 H4320 F25:1 C420jpeg\nFRAME\n" + bytes(7680 * 4320 * 3 // 2))
    assert next(read_frames(path, 5))[1].shape == (360, 640, 3)


def png(width, height):
    """An image whose rows are all zero, and that is small: most of the file is the header."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join([*(packer.compress(bytes(1 + 3 * width)) for _ in range(height)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_huge_still_image_costs_no_memory(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(png(64, 48))
    assert next(read_frames(path, 5))[1].shape == (48, 64, 3)
    path.write_bytes(png(8000, 6000))
    code = (
        "import resource, sys\nfrom media.container import MediaError, probe\nfrom media.video import read_frames\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(probe(sys.argv[1]).has_video)\n"
        "try: list(read_frames(sys.argv[1], 25))\nexcept MediaError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    has_video, reason, grown = ran.stdout.splitlines()
    assert has_video == "True" and "its pictures have more than 33,177,600 pixels" in reason
    assert int(grown) < 60_000, "KiB; the image takes 144 MB"


def test_large_frames_are_scaled_down_in_proportion(tmp_path, make_clip):
    _, image = next(read_frames(make_clip(tmp_path / "clip.mp4", "v"), 5, max_side=32))
    assert image.shape == (24, 32, 3)
    assert image.flags.c_contiguous


def test_fps_must_be_positive(tmp_path, make_clip):
    with pytest.raises(ValueError, match="positive"):
        list(read_frames(make_clip(tmp_path / "clip.mp4", "v"), 0))


def test_sound_is_resampled_to_one_channel_at_its_level(tmp_path, make_clip):
    tone = np.sin(np.arange(44_100) * 2 * np.pi * 200 / 44_100) * 0.5
    path = make_clip(tmp_path / "clip.wav", "a", audio=np.stack([tone, tone]), codecs=("", "pcm_s16le"))
    samples = read_audio(path, 22_050)
    expected = np.sin(np.arange(22_050) * 2 * np.pi * 200 / 22_050) * 0.5
    assert samples.dtype == np.float32
    assert len(samples) == 22_050
    assert np.abs(samples[100:22_000] - expected[100:22_000]).max() < 0.01


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_sound_in_blocks_is_that_of_one_resampling_of_the_whole(tmp_path, make_clip, rate):
    noise = np.random.default_rng(0).normal(0, 0.1, 44_100 * 5 // 2 + 77).astype(np.float32)
    path = make_clip(tmp_path / "clip.wav", "a", audio=noise, codecs=("", "pcm_f32le"))
    blocks = list(read_audio_blocks(path, rate))
    frame = av.AudioFrame.from_ndarray(np.pad(noise, (0, 4410))[None], "fltp", "mono")
    frame.sample_rate = 44_100
    resampler = av.AudioResampler("fltp", "mono", rate)
    whole = np.concatenate([p.to_ndarray()[0] for p in [*resampler.resample(frame), *resampler.resample(None)]])
    found = np.concatenate(blocks)
    assert len(found) == round(len(noise) * rate / 44_100)
    assert np.array_equal(found, whole[: len(found)])
    assert np.array_equal(found, read_audio(path, rate))
    assert sum(len(block) > 0 for block in blocks) >= 3
    assert max(map(len, blocks)) < 1.2 * rate


def test_sound_that_starts_late_keeps_its_time(tmp_path, make_clip):
    path = make_clip(tmp_path / "clip.mkv", audio_start=0.75, seconds=1.0, codecs=("libx264", "flac"))
    samples = read_audio(path, 8000)
    assert np.abs(samples[:5900]).max() < 1e-3
    assert np.abs(samples[6000:6200]).max() > 0.3
    assert len(samples) == 14_000


def test_nothing_of_a_short_sound_is_lost(tmp_path, make_clip):
    sound = np.zeros(441)
    sound[-40:] = 0.5
    path = make_clip(tmp_path / "clip.wav", "a", audio=sound, codecs=("", "pcm_s16le"))
    samples = read_audio(path, 22_050)
    assert len(samples) == 220
    assert samples[-15:-5] == pytest.approx(0.5, abs=0.1)


def test_missing_streams_are_told_from_damage(tmp_path, make_clip):
    silent, sound = make_clip(tmp_path / "v.mp4", "v"), make_clip(tmp_path / "a.m4a", "a")
    with pytest.raises(MissingStreamError, match="no audio"):
        read_audio(silent, 16_000)
    with pytest.raises(MissingStreamError, match="no video"):
        list(read_frames(sound, 25))
    assert (probe(silent).has_audio, probe(sound).has_video) == (False, False)
    assert probe(silent).sample_rate is None
    assert probe(sound).fps is None


@pytest.mark.parametrize(
    "name", ["-dash.mp4", "a:b.mp4", "http:evil.mp4", "你好 世界.mp4", "%03d.mp4", "it's, #1?.mp4"]
)
def test_odd_file_names(tmp_path, monkeypatch, make_clip, name):
    made = make_clip(tmp_path / "plain.mp4", "v", seconds=0.2).rename(tmp_path / name)
    assert probe(made).has_video
    monkeypatch.chdir(tmp_path)
    assert len(list(read_frames(name, 25))) == 5  # a relative path as well


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "zero bytes"),
        (b"once upon a time\n" * 100, "not a media file"),
        (b"#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1:9/clip.ts\n#EXT-X-ENDLIST\n", "not a media file"),
        (bytes(5000), "not a media file"),
    ],
)
def test_files_that_are_no_media_say_so(tmp_path, content, found):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for read in (probe, lambda p: read_audio(p, 16_000), lambda p: list(read_frames(p, 25))):
        with pytest.raises(MediaError, match=found) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert not isinstance(caught.value, MissingStreamError)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        probe(tmp_path / "none.mp4")
    with pytest.raises(MediaError, match="a folder"):
        probe(tmp_path)


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mp4", {}), ("a.mkv", {})])
@pytest.mark.parametrize("part", [0.3, 0.6])
def test_truncated_files_are_refused(tmp_path, make_clip, name, options, part):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path = make_clip(tmp_path / name, options=options, image=lambda n: np.roll(noise, n, axis=1))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(MediaError, match=r"truncated|cut off|damaged"):
        list(read_frames(path, 25))
    with pytest.raises(MediaError, match=r"truncated|cut off|damaged"):
        read_audio(path, 16_000)


def damage(path, part, length=400):
    content = bytearray(path.read_bytes())
    at = int(content.index(b"mdat") + part * (len(content) - content.index(b"mdat")))
    content[at : at + length] = bytes(length)
    path.write_bytes(content)


def test_damage_between_frames_is_refused(tmp_path, make_clip):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path = make_clip(tmp_path / "a.mp4", "v", image=lambda n: np.roll(noise, n, axis=1))
    damage(path, 0.4, 4000)
    with pytest.raises(MediaError, match=r"damaged at [\d.]+ s of its video stream"):
        list(read_frames(path, 25))


def test_a_torn_end_is_forgiven(tmp_path, make_clip):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    options = {"movflags": "faststart"}
    path = make_clip(tmp_path / "a.mp4", "v", options=options, image=lambda n: np.roll(noise, n, axis=1))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.95)])
    assert 40 <= len(list(read_frames(path, 25))) < 50


def test_decoding_writes_nothing_to_standard_error(tmp_path, make_clip):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path = make_clip(tmp_path / "a.mp4", "v", image=lambda n: np.roll(noise, n, axis=1))
    damage(path, 0.4, 4000)
    code = (
        "import sys\nfrom media.container import MediaError\nfrom media.video import read_frames\n"
        "try: list(read_frames(sys.argv[1], 25))\nexcept MediaError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "damaged" in ran.stdout
    assert ran.stderr == ""


def test_the_time_spent_in_decoding_is_counted_and_the_readers_own_is_not(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4")
    before, began = decoding_seconds(), time.perf_counter()
    for _ in read_frames(clip, 10):
        time.sleep(0.01)
    list(read_audio_blocks(clip, 16_000))
    spent, decoded = time.perf_counter() - began, decoding_seconds() - before
    assert 0 < decoded <= spent - 20 * 0.01
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(decoding_seconds).result() == 0.0  # of each thread its own
