"""What `audio.librosa` measures, on sounds whose pitch and voicing are known."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import wave
from fractions import Fraction
from importlib.machinery import ModuleSpec

import av
import numpy as np
import pytest

from extractors.audio import librosa as librosa_module
from extractors.audio.librosa import SAMPLE_RATE, LibrosaAudio, chroma_cqt, import_librosa, interpolate_log_f0
from extractors.base import ExtractionError, MissingModalityError, Source

SOUND_CODECS = ("", "pcm_s16le")


def source(path, name="clip"):
    return Source(clip_id=name, media=path, text="", language="en", duration=None)


def voice(f0, seconds, rate=44_100):
    """A buzz with a voice's falling harmonics."""
    time = np.arange(round(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 9)) * 0.2


@pytest.fixture
def measure(tmp_path, make_clip, librosa_audio):
    def run(sound, extractor=librosa_audio):
        path = make_clip(tmp_path / "clip.wav", "a", audio=sound, codecs=SOUND_CODECS)
        (result,) = extractor.extract([source(path)])
        return result

    return run


def test_names_match_columns_and_steps_tile_the_clip(measure, librosa_audio):
    result = measure(voice(150, 1.0))
    assert len(librosa_audio.feature_names) == len(set(librosa_audio.feature_names)) == 33
    assert librosa_audio.feature_names[0] == "log_f0"
    assert result.values.shape == (22, 33)
    assert result.values.dtype == np.float32
    assert result.start[0] == 0
    assert np.array_equal(result.start[1:], result.end[:-1])
    assert result.end[-1] == pytest.approx(1.0, abs=0.001)
    assert np.diff(result.start)[1:] == pytest.approx(1024 / SAMPLE_RATE, abs=1e-5)


@pytest.mark.parametrize("f0", [85, 150, 240, 400])
def test_f0_of_a_voice_is_measured(measure, f0):
    result = measure(voice(f0, 1.0))
    assert result.valid[2:-2].all()
    assert np.exp(result.values[2:-2, 0]) == pytest.approx(f0, rel=0.02)


def test_silence_and_noise_are_not_voiced_but_measured(measure):
    noise = np.random.default_rng(0).normal(0, 0.05, 44_100)
    result = measure(np.concatenate([voice(120, 1.0), np.zeros(44_100), noise, voice(240, 1.0)]))
    middle = (result.start + result.end) / 2
    inside = np.abs(middle[:, None] - np.array([0.5, 1.5, 2.5, 3.5])) < 0.35
    assert result.valid[inside[:, 0] | inside[:, 3]].all()
    assert not result.valid[inside[:, 1]].any()
    assert result.valid[inside[:, 2]].mean() < 0.15
    assert result.values[inside[:, 2], 1:].std(axis=0).min() > 0
    between = np.exp(result.values[inside[:, 1], 0])
    assert (np.diff(between) > 0).all()  # interpolated upwards from 120 to 240 Hz
    assert between.min() > 110
    assert between.max() < 250


def test_low_hum_is_not_a_voice(measure):
    hum = np.cumsum(np.random.default_rng(0).normal(0, 1, 44_100))
    hum -= np.convolve(hum, np.ones(4410) / 4410, mode="same")
    result = measure(hum / np.abs(hum).max() * 0.5)
    f0 = np.exp(result.values[result.valid, 0])
    assert (f0 < 495).all()


def test_no_voiced_step_gives_a_constant_f0(measure):
    result = measure(np.zeros(44_100))
    assert not result.valid.any()
    assert np.exp(result.values[:, 0]) == pytest.approx((60 * 500) ** 0.5)
    assert np.isfinite(result.values).all()


def test_unvoiced_steps_are_interpolated_and_ends_are_held():
    f0 = np.array([999.0, 100.0, 999.0, 400.0, 999.0])
    filled = np.exp(interpolate_log_f0(f0, np.array([False, True, False, True, False])))
    assert filled == pytest.approx([100, 100, 200, 400, 400])


@pytest.mark.parametrize("samples", [2, 40, 900, 3000])
def test_a_clip_shorter_than_a_window_is_padded(measure, samples, recwarn):
    result = measure(voice(200, 1.0)[:samples])
    assert len(result) == max(1, -(-round(samples / 2) // 1024))
    assert result.end[-1] == pytest.approx(samples / 44_100, abs=1e-4)
    assert (result.end > result.start).all()
    assert not [w for w in recwarn if "n_fft" in str(w.message)]


def test_cqt_names_the_pitch_class(measure):
    tone = np.sin(np.arange(88_200) * 2 * np.pi * 440 / 44_100) * 0.3  # A
    values = measure(tone).values[5:-5, 21:]
    assert (values.argmax(axis=1) == 9).all()


def test_hop_sets_the_steps(measure):
    fine = measure(voice(150, 1.0), LibrosaAudio(hop_seconds=0.01))
    assert np.median(np.diff(fine.start)) == pytest.approx(0.01, abs=0.001)


def test_what_is_missing_and_what_fails(tmp_path, make_clip, librosa_audio):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no media")
    nan = make_clip(tmp_path / "nan.wav", "a", audio=np.full(9000, np.nan), codecs=("", "pcm_f32le"))
    good = make_clip(tmp_path / "good.wav", "a", codecs=SOUND_CODECS)
    silent = make_clip(tmp_path / "silent.mp4", "v")
    results = list(librosa_audio.extract([source(p) for p in (silent, broken, None, nan, good)]))
    assert [type(r) for r in results[:4]] == [
        MissingModalityError,
        ExtractionError,
        MissingModalityError,
        ExtractionError,
    ]
    assert "NaN" in str(results[3])
    assert results[4].values.shape[1] == 33


@pytest.mark.parametrize("hop", [0, -1, 0.001, 2, "0.046", True, None, float("nan")])
def test_hop_is_validated(hop):
    with pytest.raises(ValueError, match="hop_seconds must be"):
        LibrosaAudio(hop_seconds=hop)


@pytest.mark.parametrize("hop", [96, 1024])
def test_octaves_fold_to_what_librosa_gives(hop):
    sound = (voice(110, 4.0, SAMPLE_RATE) + np.random.default_rng(0).normal(0, 0.01, 4 * SAMPLE_RATE)).astype("f4")
    expected = import_librosa().feature.chroma_cqt(
        y=sound, sr=SAMPLE_RATE, hop_length=hop, fmin=65.406, n_octaves=6, bins_per_octave=12, tuning=0.0
    )
    assert chroma_cqt(sound, hop) == pytest.approx(expected, abs=1e-5)


BLOCK, CONTEXT = 64 * 1024, 11 * 1024
"""Samples at 22,050 Hz of the blocks that `in_blocks` sets: 2.97 s and, with the usual hop, 0.51 s."""


@pytest.fixture
def in_blocks(monkeypatch):
    monkeypatch.setattr(librosa_module, "BLOCK_STEPS", 64)
    monkeypatch.setattr(librosa_module, "BLOCK_SECONDS", (1.0, 60.0))
    blocks = []
    measure = LibrosaAudio._measure
    monkeypatch.setattr(LibrosaAudio, "_measure", lambda *a: blocks.append(a[2]) or measure(*a))
    return blocks


def uneven(samples, rate=SAMPLE_RATE):
    """A voice that rises and falls silent, over hum; the loudest stretch is near the end."""
    time = np.arange(samples) / rate
    loudness = np.maximum(np.sin(1.1 * time), 0) ** 2 * np.linspace(0.02, 0.6, samples)
    tone = sum(np.sin(2 * np.pi * 130 * k * time + 3 * k * np.sin(time)) / k for k in range(1, 6))
    return tone * loudness + 0.001 * np.sin(2 * np.pi * 70 * time)


def write_wav(path, sound):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.asarray(sound) * 32_767).astype("<i2").tobytes())
    return path


def assert_blocks_give_the_whole(path, blocks, count):
    """`blocks` lists what `in_blocks` saw; the whole clip is measured with the module's own constants."""
    (cut,) = LibrosaAudio().extract([source(path)])
    assert len(blocks) == count
    librosa_module.BLOCK_STEPS = 100_000
    (whole,) = LibrosaAudio().extract([source(path)])
    assert len(blocks) == count + 1
    assert cut.values.shape == whole.values.shape
    for name in ("start", "end", "valid"):
        assert np.array_equal(getattr(cut, name), getattr(whole, name)), name
    assert cut.values[:, :21] == pytest.approx(whole.values[:, :21], abs=1e-3)
    assert cut.values[:, 21:] == pytest.approx(whole.values[:, 21:], abs=1e-3)
    return whole


EDGES = {
    "fits one block": (BLOCK, 1),
    "a sample more": (BLOCK + 1, 2),
    "fits two": (2 * BLOCK - 2 * CONTEXT, 2),
    "two, and a sample more": (2 * BLOCK - 2 * CONTEXT + 1, 3),
    "three and a bit": (3 * (BLOCK - 2 * CONTEXT) + 40_000, 4),
}


@pytest.mark.parametrize(("samples", "count"), EDGES.values(), ids=EDGES.keys())
def test_a_long_clip_in_blocks_equals_the_whole(tmp_path, in_blocks, samples, count):
    path = write_wav(tmp_path / "clip.wav", uneven(samples))
    whole = assert_blocks_give_the_whole(path, in_blocks, count)
    assert 0.2 < whole.valid.mean() < 0.9
    assert whole.end[-1] == pytest.approx(samples / SAMPLE_RATE, abs=1e-5)


def test_a_long_silence_in_blocks_equals_the_whole(tmp_path, in_blocks):
    whole = assert_blocks_give_the_whole(write_wav(tmp_path / "clip.wav", np.zeros(2 * BLOCK)), in_blocks, 3)
    assert not whole.valid.any()


def test_a_late_start_and_a_hole_in_blocks_equal_the_whole(tmp_path, in_blocks):
    path, rate = tmp_path / "clip.mkv", 44_100
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        stream = container.add_stream("flac", rate=rate, layout="mono")
        for number in range(25 * 12):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            frame.pts = number
            container.mux(picture.encode(frame))
        sound = (uneven(10 * rate, rate) * 32_767).astype(np.int16)
        for number, piece in enumerate(np.split(sound, 100)):
            begin = number * 4410 + rate // 2 + (rate * 7 // 3 if number >= 40 else 0)  # 2.33 s of nothing after 4 s
            frame = av.AudioFrame.from_ndarray(piece[None], "s16", "mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), begin
            container.mux(stream.encode(frame))
        container.mux([*picture.encode(None), *stream.encode(None)])
    whole = assert_blocks_give_the_whole(path, in_blocks, 7)
    loudness = whole.values[:, 1]
    hole = (whole.start > 4.6) & (whole.end < 6.7)
    assert whole.end[-1] == pytest.approx(0.5 + 7 / 3 + 10, abs=0.11)
    assert np.ptp(loudness[hole]) == 0
    outside = (whole.start > 0.7) & (whole.end < 4.4) | (whole.start > 6.9) & (whole.end < 12.7)
    assert loudness[hole].max() < loudness[outside].min() - 1


def test_five_minutes_take_little_more_memory_than_one(tmp_path):
    second = (uneven(SAMPLE_RATE) * 32_767).astype("<i2").tobytes()
    peaks = []
    for minutes in (1, 5):
        path = tmp_path / f"{minutes}.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(second * 60 * minutes)
        code = (
            "import sys\nfrom pathlib import Path\nfrom extractors.audio.librosa import LibrosaAudio\n"
            "from extractors.base import Source\n"
            "(found,) = LibrosaAudio(0.1).extract([Source('long', Path(sys.argv[1]), '', 'en', None)])\n"
            "print(len(found))\nprint(Path('/proc/self/status').read_text())"
        )
        ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        assert int(ran.stdout.split()[0]) == pytest.approx(minutes * 600, rel=0.01)
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", ran.stdout)[1]) / 1024)
    assert peaks[1] < peaks[0] + 60  # MB; measured at once, five minutes take over 130 more


LOCKED = """
import sys
from contextlib import contextmanager
from extractors.audio import librosa

@contextmanager
def lock(path):
    print("librosa.core.pitch" in sys.modules, path)
    yield
    print("librosa.core.pitch" in sys.modules)

librosa.FileLock = lock
librosa.LibrosaAudio()._measure(librosa.np.zeros(22050, "f4"), slice(0, 22050))
"""


def test_librosa_is_imported_by_one_process_at_a_time(tmp_path):
    """Processes that fill numba's cache at the same time leave one in it with which every later process crashes."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", LOCKED]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == [f"False {tmp_path / 'cache' / 'dashfusion.lock'}", "True"]


def test_a_cache_that_is_not_writable_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none")
    monkeypatch.setattr(librosa_module, "find_spec", lambda name: ModuleSpec(name, None, origin="/proc/librosa/a.py"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with librosa_module._numba_cache_lock():
        assert (tmp_path / ".cache/numba/dashfusion.lock").is_file()
    monkeypatch.setenv("HOME", "/proc/none")
    with librosa_module._numba_cache_lock() as nothing:
        assert nothing is None
