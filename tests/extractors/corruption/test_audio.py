"""What the corruptions of the sound do, measured on the files that they write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extractors.corruption.audio import (
    SPAN_SECONDS,
    SPEECH_SPECTRUM,
    SpeechNoise,
    add_noise,
    choose_spans,
    silence_spans,
)
from media.audio import read_audio
from media.container import MissingStreamError, probe

if TYPE_CHECKING:
    from pathlib import Path

RATE = 44_100


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def voice(seconds: float = 3.0) -> np.ndarray:
    """A tone that swells and fades, [N]."""
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * 220 * time) * np.sin(np.pi * time / seconds) ** 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory, make_clip) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    return make_clip(path, "va", seconds=3, audio=voice(), codecs=("libx264", "pcm_s16le"))


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return 10 * np.log10(np.square(signal, dtype=float).mean() / np.square(noise, dtype=float).mean())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(level=st.floats(-20, 60))
def test_the_ratio_that_was_asked_for_is_the_one_measured(clip, tmp_path, level):
    clean = read_audio(clip, RATE)
    noise = read_audio(add_noise(clip, tmp_path / "out", level, rng()), RATE) - clean
    assert decibels(clean, noise) == pytest.approx(level, abs=0.02)


def test_the_noise_is_the_same_at_every_level_but_for_its_strength(clip, tmp_path):
    clean = read_audio(clip, RATE)
    weak, strong = (
        read_audio(add_noise(clip, tmp_path / f"{level}", level, rng()), RATE) - clean for level in (0, -20)
    )
    assert np.allclose(10 * weak, strong, atol=1e-5)
    other = read_audio(add_noise(clip, tmp_path / "other", 0, rng(1)), RATE) - clean
    assert abs(np.corrcoef(weak, other)[0, 1]) < 0.2


def test_the_noise_has_the_spectrum_of_speech():
    from scipy.signal import welch

    frequency, density = welch(SpeechNoise(np.random.default_rng(0), 48_000).take(20 * 48_000), 48_000, nperseg=8192)
    level = {
        hz: 10 * np.log10(density[(frequency >= hz * 2 ** (-1 / 6)) & (frequency < hz * 2 ** (1 / 6))].sum())
        for hz in SPEECH_SPECTRUM
        if 125 <= hz <= 12_500
    }
    offset = np.mean([level[hz] - SPEECH_SPECTRUM[hz] for hz in level])
    assert max(abs(level[hz] - SPEECH_SPECTRUM[hz] - offset) for hz in level) < 2  # dB; they span 21


@given(st.lists(st.integers(0, 3000), max_size=6))
def test_pieces_of_noise_continue_each_other(counts):
    whole = SpeechNoise(np.random.default_rng(3), 8000).take(sum(counts))
    noise = SpeechNoise(np.random.default_rng(3), 8000)
    assert np.allclose(np.concatenate([np.zeros(0), *map(noise.take, counts)]), whole)


def test_loud_noise_is_not_clipped(clip, tmp_path):
    assert np.abs(read_audio(add_noise(clip, tmp_path / "out", -30, rng()), RATE)).max() > 2


def test_digital_silence_stays_silent(make_clip, tmp_path):
    silent = make_clip(tmp_path / "silent.mkv", "a", audio=np.zeros(RATE), codecs=("", "pcm_s16le"))
    assert not read_audio(add_noise(silent, tmp_path / "out", 0, rng()), RATE).any()


@pytest.mark.parametrize("level", [0.1, 0.5, 1.0])
def test_so_much_of_the_clip_is_silent_and_the_rest_as_it_was(clip, tmp_path, level):
    clean = read_audio(clip, RATE)
    changed = read_audio(silence_spans(clip, tmp_path / "out", level, rng()), RATE)
    different = changed != clean
    assert not changed[different].any()
    assert different.mean() == pytest.approx(level, abs=0.01)  # the tone itself passes through 0


@given(seconds=st.floats(0.05, 60), level=st.floats(0, 1), seed=st.integers(0, 9))
def test_spans_are_of_their_length_disjoint_and_exactly_enough(seconds, level, seed):
    count = round(seconds * 8000)
    spans = choose_spans(count, 8000, level, np.random.default_rng(seed))
    lengths = spans[:, 1] - spans[:, 0]
    assert lengths.sum() == round(level * count)
    assert (lengths <= SPAN_SECONDS[1] * 8000 + 1).all()
    short = (lengths < SPAN_SECONDS[0] * 8000 - 1).sum()
    assert short <= 2  # the one that is taken in part, and the clip's end
    marked = np.zeros(count, int)
    for start, end in spans:
        marked[start:end] += 1
    assert marked.max(initial=0) <= 1


def test_what_is_lost_at_one_level_is_lost_at_the_higher_ones(clip, tmp_path):
    little, much = (read_audio(silence_spans(clip, tmp_path / f"{x}", x, rng()), RATE) for x in (0.2, 0.6))
    clean = read_audio(clip, RATE)
    assert not much[little != clean].any()


@pytest.mark.parametrize("change", [add_noise, silence_spans])
def test_the_sound_keeps_its_length_its_rate_and_its_place_in_time(make_clip, tmp_path, change):
    late = make_clip(tmp_path / "late.mkv", "va", audio=voice(1), audio_start=0.5, codecs=("libx264", "pcm_s16le"))
    changed = change(late, tmp_path / "out", 0.3, rng())
    assert probe(changed).sample_rate == RATE
    clean, after = read_audio(late, RATE), read_audio(changed, RATE)
    assert len(clean) == len(after) > 1.4 * RATE
    if change is silence_spans:
        assert (after[after != 0] == clean[after != 0]).all() and after.any()


@pytest.mark.parametrize("change", [add_noise, silence_spans])
def test_a_clip_without_sound_has_nothing_to_corrupt(make_clip, tmp_path, change):
    with pytest.raises(MissingStreamError):
        change(make_clip(tmp_path / "mute.mp4", "v"), tmp_path / "out", 0.5, rng())


@pytest.mark.parametrize("name", ["grid_bbaf2n.mpg", "single_face.mp4", "face_then_none.mov", "bus_chinese.wav"])
def test_real_sound_gets_the_ratio_and_the_losses_that_were_asked_for(real_clips, tmp_path, name):
    media = real_clips / name
    rate = probe(media).sample_rate
    clean = read_audio(media, rate)
    noise = read_audio(add_noise(media, tmp_path / "noise", 5, rng()), rate) - clean
    assert decibels(clean, noise) == pytest.approx(5, abs=0.01)
    lost = read_audio(silence_spans(media, tmp_path / "spans", 0.3, rng()), rate)
    assert (lost == 0).mean() >= 0.3 - 1e-4
    assert (lost[lost != 0] == clean[lost != 0]).all()


def test_noise_hides_voicing_from_the_extractor(real_clips, librosa_audio, tmp_path):
    from extractors.base import Source

    media = real_clips / "bus_chinese.wav"
    noisy = [add_noise(media, tmp_path / f"{level}", level, rng()) for level in (20, -10)]
    clean, weak, strong = librosa_audio.extract([Source("a", path, "", "zh", None) for path in (media, *noisy)])
    assert len(clean) == len(weak) == len(strong)
    assert clean.valid.mean() > strong.valid.mean() + 0.1
    far = [np.abs(other.values - clean.values).mean() for other in (weak, strong)]
    assert 0 < far[0] < far[1]
