"""`audio.sims_33` is the published code of CH-SIMS, on the samples that are decoded here."""

from __future__ import annotations

import numpy as np
import pytest

from extractors.audio.librosa import import_librosa
from extractors.audio.sims_33 import Sims33Audio
from extractors.base import ExtractionError, MissingModalityError, Source
from extractors.registry import create
from media.audio import read_audio

NAMES = ("zero_crossing_rate", *(f"mfcc_{i}" for i in range(20)), *(f"chroma_{i}" for i in range(12)))


def source(path):
    return Source(clip_id="clip", media=path, text="", language="zh", duration=None)


@pytest.fixture
def measure(tmp_path, make_clip):
    def run(seconds, sound=None):
        time = np.arange(round(seconds * 44_100)) / 44_100
        voiced = sum(np.sin(2 * np.pi * 170 * k * time) / k for k in range(1, 9)) * 0.2
        audio = voiced if sound is None else sound
        path = make_clip(tmp_path / "clip.wav", "a", audio=audio, codecs=("", "pcm_s16le"))
        (result,) = Sims33Audio().extract([source(path)])
        return path, result

    return run


@pytest.mark.filterwarnings("ignore:n_fft=")
@pytest.mark.parametrize("seconds", [1.3, 512 * 40 / 22_050])  # the second: a whole number of hops
def test_values_order_and_width_are_those_of_the_published_code(measure, seconds):
    path, result = measure(seconds)
    y = read_audio(path, 22_050)
    librosa = import_librosa()
    rate = librosa.feature.zero_crossing_rate(y, hop_length=512).T
    mfcc = librosa.feature.mfcc(y=y, sr=22_050, hop_length=512, htk=True).T
    chroma = librosa.feature.chroma_cqt(y=y, sr=22_050, hop_length=512).T
    np.testing.assert_allclose(result.values, np.concatenate([rate, mfcc, chroma], axis=-1), rtol=1e-5, atol=1e-5)
    assert Sims33Audio.feature_names == NAMES and result.values.shape[1] == 33
    assert len(result) == 1 + len(y) // 512
    assert result.start[0] == 0 and np.array_equal(result.start[1:], result.end[:-1]) and result.valid[2:-2].all()


@pytest.mark.parametrize("seconds", [1e-4, 0.01, 0.2])
def test_short_clips_and_silence_are_measured_without_warnings(measure, seconds, recwarn):
    _, result = measure(seconds, np.zeros(max(1, round(seconds * 44_100))))
    assert len(result) and np.isfinite(result.values).all() and not result.valid.any()
    assert (result.end > result.start).all()
    assert not [warning for warning in recwarn if "librosa" in str(warning.filename)]


def test_the_hop_decides_the_signature_and_bad_ones_are_refused():
    assert create("audio.sims_33", {}).signature == create("audio.sims_33", {"hop_seconds": 512 / 22_050}).signature
    assert create("audio.sims_33", {}).signature != create("audio.sims_33", {"hop_seconds": 0.05}).signature
    for hop in (0.001, True, "512"):
        with pytest.raises(ValueError, match="hop_seconds must be"):
            create("audio.sims_33", {"hop_seconds": hop})


def test_a_clip_without_audio_lacks_the_modality_and_a_broken_file_fails(tmp_path, make_clip):
    silent = make_clip(tmp_path / "silent.mp4", "v", seconds=0.5)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no audio")
    first, second = Sims33Audio().extract([source(silent), source(broken)])
    assert isinstance(first, MissingModalityError)
    assert isinstance(second, ExtractionError) and not isinstance(second, MissingModalityError)
