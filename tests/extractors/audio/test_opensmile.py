"""What `audio.opensmile` measures where the package is installed, and what is said where it is not."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from extractors.audio import opensmile
from extractors.audio.opensmile import OpenSmileAudio
from extractors.base import ExtractionError, MissingModalityError, Source

installed = pytest.mark.skipif(find_spec("opensmile") is None, reason="opensmile, an optional extra, is not installed")


def source(path, name="clip"):
    return Source(clip_id=name, media=path, text="", language="en", duration=None)


def voice(f0, seconds, rate=44_100):
    """A buzz with a voice's falling harmonics."""
    time = np.arange(round(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 9)) * 0.2


def column(result, name):
    return result.values[:, OpenSmileAudio.feature_names.index(name)]


@pytest.fixture
def measure(tmp_path, make_clip):
    def run(sound):
        path = make_clip(tmp_path / "clip.wav", "a", audio=sound, codecs=("", "pcm_s16le"))
        (result,) = OpenSmileAudio().extract([source(path)])
        return result

    return run


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(opensmile, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package opensmile; pip install 'dashfusion\[opensmile\]'"):
        OpenSmileAudio()


def test_the_set_has_its_25_descriptors():
    assert len(set(OpenSmileAudio.feature_names)) == len(OpenSmileAudio.feature_names) == 25


@installed
def test_names_are_opensmiles_own_in_its_order():
    import opensmile

    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    assert OpenSmileAudio.feature_names == tuple(smile.feature_names)


@installed
def test_steps_of_10_ms_cover_the_clip_and_follow_the_voice(measure):
    result = measure(np.concatenate([voice(150, 1.0), np.zeros(44_100), voice(300, 1.0)]))
    assert len(result) == pytest.approx(300, abs=6)
    assert result.start == pytest.approx(np.arange(len(result)) * 0.01, abs=1e-5)
    assert np.array_equal(result.start[1:], result.end[:-1])
    assert result.end[-1] == pytest.approx(3.0, abs=1e-3)
    semitones = column(result, "F0semitoneFrom27.5Hz_sma3nz")
    for f0, begin in ((150, 0.2), (300, 2.2)):
        inside = (result.start > begin) & (result.start < begin + 0.6)
        assert result.valid[inside].all()
        assert semitones[inside] == pytest.approx(12 * np.log2(f0 / 27.5), abs=0.3)
    silent = (result.start > 1.2) & (result.start < 1.8)
    assert not result.valid[silent].any()
    loudness = column(result, "Loudness_sma3")
    assert loudness[silent].max() < 0.1 < loudness[inside].min()


@installed
@pytest.mark.parametrize("samples", [2, 500, 2600, 3000])
def test_a_clip_shorter_than_a_window_is_padded(measure, samples, recwarn):
    result = measure(voice(200, 1.0)[:samples])
    assert len(result) >= 1
    assert (result.end > result.start).all()
    assert result.end[-1] == pytest.approx(samples / 44_100, abs=1e-4)
    assert not [w for w in recwarn if "too short" in str(w.message)]


@installed
@pytest.mark.parametrize("seconds", [6.0, 6.001, 17.3])
def test_a_long_clip_in_blocks_equals_the_whole(measure, monkeypatch, seconds):
    time = np.arange(round(seconds * 44_100)) / 44_100
    sound = voice(140, seconds) * np.maximum(np.sin(1.7 * time), 0) + np.random.default_rng(0).normal(
        0, 0.002, len(time)
    )
    whole = measure(sound)
    monkeypatch.setattr(opensmile, "BLOCK_SECONDS", 6.0)
    lengths = []
    take = OpenSmileAudio._measure
    monkeypatch.setattr(OpenSmileAudio, "_measure", lambda *a: lengths.append(len(a[1])) or take(*a))
    cut = measure(sound)
    assert max(lengths) <= 6 * 16_000
    assert len(lengths) == max(1, int(np.ceil((seconds - 4) / 2)))
    assert 0.2 < whole.valid.mean() < 0.8
    assert cut.values == pytest.approx(whole.values, rel=1e-3, abs=1e-3)
    for name in ("start", "end", "valid"):
        assert np.array_equal(getattr(cut, name), getattr(whole, name))


@installed
def test_what_is_missing_and_what_fails(tmp_path, make_clip):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no media")
    silent = make_clip(tmp_path / "silent.mp4", "v", seconds=0.2)
    good = make_clip(tmp_path / "good.wav", "a", codecs=("", "pcm_s16le"))
    results = list(OpenSmileAudio().extract([source(p) for p in (silent, broken, None, good)]))
    assert [type(r) for r in results[:3]] == [MissingModalityError, ExtractionError, MissingModalityError]
    assert results[3].values.shape[1] == 25
