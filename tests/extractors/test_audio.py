"""What `audio.librosa` measures, on sounds whose pitch and voicing are known."""

from __future__ import annotations

import numpy as np
import pytest

from extractors.audio import SAMPLE_RATE, LibrosaAudio, fill_log_f0
from extractors.base import ExtractionError, MissingModality, Source

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
        path = make_clip(tmp_path / "clip.wav", "a", sound=sound, codecs=SOUND_CODECS)
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
    filled = np.exp(fill_log_f0(f0, np.array([False, True, False, True, False])))
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
    nan = make_clip(tmp_path / "nan.wav", "a", sound=np.full(9000, np.nan), codecs=("", "pcm_f32le"))
    good = make_clip(tmp_path / "good.wav", "a", codecs=SOUND_CODECS)
    silent = make_clip(tmp_path / "silent.mp4", "v")
    results = list(librosa_audio.extract([source(p) for p in (silent, broken, None, nan, good)]))
    assert [type(r) for r in results[:4]] == [
        MissingModality,
        ExtractionError,
        MissingModality,
        ExtractionError,
    ]
    assert "NaN" in str(results[3])
    assert results[4].values.shape[1] == 33


@pytest.mark.parametrize("hop", [0, -1, 0.001, 2, "0.046", True, None, float("nan")])
def test_hop_is_validated(hop):
    with pytest.raises(ValueError, match="hop_seconds must be"):
        LibrosaAudio(hop_seconds=hop)
