"""`audio.transformer` on small models of random weights: values, times and chunks of each kind of encoder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, Wav2Vec2Config, WhisperFeatureExtractor, WhisperModel

from extractors.audio import transformer
from extractors.audio.transformer import TransformerAudio, receptive_field
from extractors.base import ExtractionError, FeatureSequence, MissingModalityError, Source
from media.audio import read_audio

WAVES = ("wav2vec2", "hubert", "wavlm")
KINDS = (*WAVES, "whisper")


def source(path, name="clip"):
    return Source(clip_id=name, media=path, text="", language="en", duration=None)


@pytest.fixture
def sound(tmp_path, make_clip):
    """A clip of so many seconds of a voice-like sweep, at 44,100 Hz."""

    def make(seconds):
        time = np.arange(round(seconds * 44_100)) / 44_100
        wave = np.sin(2 * np.pi * (150 + 40 * np.sin(3 * time)) * time) * (0.3 + 0.2 * np.sin(7 * time)) + 0.05
        return make_clip(tmp_path / f"{seconds}.wav", "a", audio=wave, codecs=("", "pcm_s16le"))

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_20_ms_cover_the_clip(speech_models, sound, kind):
    extractor = TransformerAudio(str(speech_models / kind))
    (result,) = extractor.extract([source(sound(1.5))])
    assert result.values.shape == (75 if kind == "whisper" else 74, 16)
    assert result.values.dtype == np.float32
    assert result.valid.all()
    assert result.start[0] == 0
    assert result.end[-1] == pytest.approx(1.5, abs=1e-4)
    assert np.array_equal(result.start[1:], result.end[:-1])
    assert np.diff(result.start)[1:] == pytest.approx(0.02, abs=1e-6)
    assert result.start[1] == pytest.approx(0.01 if kind == "whisper" else 0.0225)
    assert result.values.std(axis=0).min() > 0


@pytest.mark.parametrize("kind", WAVES)
def test_values_are_the_speech_models_own_on_the_normalised_clip(speech_models, sound, kind):
    samples = read_audio(sound(1.0), 16_000)
    wave = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.inference_mode():
        output = AutoModel.from_pretrained(speech_models / kind).eval()(
            torch.tensor(wave[None]), output_hidden_states=True
        )
    states = [state[0].numpy() for state in output.hidden_states]
    expected = {-1: output.last_hidden_state[0].numpy(), 0: states[0], 2: states[2], -2: states[4]}
    expected["last_four"] = np.mean(states[-4:], axis=0)
    for layer, values in expected.items():
        (result,) = TransformerAudio(str(speech_models / kind), layer=layer).extract([source(sound(1.0))])
        assert result.values == pytest.approx(values, abs=1e-5), layer


def test_whisper_gives_its_encoders_states_without_the_padding(speech_models, sound):
    samples = read_audio(sound(1.0), 16_000)
    spectra = WhisperFeatureExtractor.from_pretrained(speech_models / "whisper")(
        samples, sampling_rate=16_000, return_tensors="pt"
    ).input_features
    with torch.inference_mode():
        expected = WhisperModel.from_pretrained(speech_models / "whisper").eval().encoder(spectra).last_hidden_state[0]
    (result,) = TransformerAudio(str(speech_models / "whisper")).extract([source(sound(1.0))])
    assert result.values == pytest.approx(expected[:50].numpy(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_long_clips_are_encoded_in_bounded_chunks_with_the_same_steps(speech_models, sound, kind, monkeypatch):
    lengths = []
    encode = transformer.hidden_states
    monkeypatch.setattr(
        transformer,
        "hidden_states",
        lambda *a, **kw: lengths.append(next(iter(kw.values())).shape[-1]) or encode(*a, **kw),
    )
    whole_seconds = 1.9
    (whole,) = TransformerAudio(str(speech_models / kind)).extract([source(sound(whole_seconds))])
    assert len(lengths) == 1
    monkeypatch.setattr(transformer, "CHUNK_SECONDS", 0.8)
    extractor = TransformerAudio(str(speech_models / kind))
    (cut,) = extractor.extract([source(sound(whole_seconds))])
    assert len(lengths) > 3
    assert max(lengths[1:]) <= (200 if kind == "whisper" else 0.8 * 16_000 + 80)
    assert cut.values.shape == whole.values.shape
    assert np.array_equal(cut.start, whole.start)
    if kind == "whisper":  # of random weights, it sees little but the place in its window
        assert cut.values[:20] == pytest.approx(whole.values[:20], abs=0.05)
        return
    likeness = [np.corrcoef(a, b)[0, 1] for a, b in zip(cut.values, whole.values, strict=True)]
    assert np.median(likeness) > 0.8


def test_whispers_window_bounds_its_chunks(speech_models, sound):
    (result,) = TransformerAudio(str(speech_models / "whisper")).extract([source(sound(5.0))])
    assert len(result) == 250
    assert result.end[-1] == pytest.approx(5.0, abs=1e-4)


@pytest.fixture
def encoded(monkeypatch):
    """The arguments of every call of the model."""
    calls = []
    encode = transformer.hidden_states
    monkeypatch.setattr(transformer, "hidden_states", lambda *a, **kw: calls.append(kw) or encode(*a, **kw))
    return calls


def test_the_chunks_of_a_long_clip_are_normalised_as_a_whole(speech_models, sound, encoded, monkeypatch):
    monkeypatch.setattr(transformer, "CHUNK_SECONDS", 0.8)
    path = sound(1.9)
    samples = read_audio(path, 16_000)
    wave = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    assert len(list(TransformerAudio(str(speech_models / "hubert")).extract([source(path)]))) == 1
    longest, context = 40 * 320, 5 * 320
    for number, call in enumerate(encoded):
        expected = wave[number * (longest - 2 * context) :][:longest]
        assert call["input_values"][0].numpy() == pytest.approx(expected, abs=1e-4)
    assert len(encoded) == 3
    assert len(encoded[-1]["input_values"][0]) < longest


@pytest.fixture(scope="session")
def masked_models(speech_models, tmp_path_factory):
    """Of the kind that takes a mask: each step's convolution is normalised for itself."""
    root = tmp_path_factory.mktemp("masked")
    torch.manual_seed(1)
    for kind in WAVES:
        config = AutoConfig.from_pretrained(speech_models / kind)
        config.feat_extract_norm, config.do_stable_layer_norm = "layer", True
        AutoModel.from_config(config).save_pretrained(root / kind)
        shutil.copy(speech_models / kind / "preprocessor_config.json", root / kind)
    return root


@pytest.fixture
def mixed_sources(tmp_path, make_clip, sound):
    """Clips of several lengths, one of them long, two of the same, and two that fail."""
    broken = tmp_path / "broken.mp4"
    broken.write_text("no media")
    same = sound(0.7).rename(tmp_path / "same.wav")
    return [source(path) for path in (sound(0.7), broken, sound(0.31), sound(2.5), None, same, sound(0.01), sound(0.9))]


def assert_alike(batched, alone, tolerance):
    for found, expected in zip(batched, alone, strict=True):
        if isinstance(expected, ExtractionError):
            assert type(found) is type(expected)
            continue
        assert found.values == pytest.approx(expected.values, abs=tolerance)
        for name in ("start", "end", "valid"):
            assert np.array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("waiting", [3.0, 60.0])
@pytest.mark.parametrize("kind", [*(f"masked {kind}" for kind in WAVES), *KINDS])
def test_batches_give_what_one_by_one_gives(
    speech_models, masked_models, mixed_sources, encoded, monkeypatch, kind, waiting
):
    masked, _, name = kind.rpartition(" ")
    folder = str((masked_models if masked else speech_models) / name)
    monkeypatch.setattr(transformer, "CHUNK_SECONDS", 1.2)
    alone = list(TransformerAudio(folder).extract(mixed_sources))
    assert all(len(next(iter(call.values()))) == 1 and len(call) == 1 for call in encoded)
    calls = len(encoded)
    monkeypatch.setattr(transformer, "batch_limit", lambda model, limit: limit)  # as on a GPU
    monkeypatch.setattr(transformer, "BATCH_SECONDS", 4.0)
    monkeypatch.setattr(transformer, "QUEUE_SECONDS", waiting)
    extractor = TransformerAudio(folder)
    assert_alike(extractor.extract(mixed_sources), alone, 1e-5)
    sizes = [len(next(iter(call.values()))) for call in encoded[calls:]]
    assert sum(sizes) == calls and max(sizes) > 1
    padded = [call for call in encoded[calls:] if "attention_mask" in call]
    assert bool(padded) == bool(masked)
    assert [type(r) for r in alone].count(FeatureSequence) == 6


def test_clips_are_given_as_soon_as_they_are_encoded(speech_models, sound, monkeypatch):
    monkeypatch.setattr(transformer, "batch_limit", lambda model, limit: limit)
    monkeypatch.setattr(transformer, "QUEUE_SECONDS", 1.0)
    asked = []
    sources = (asked.append(number) or source(sound(0.6)) for number in range(10))
    results = TransformerAudio(str(speech_models / "hubert")).extract(sources)
    next(results)
    assert asked == [0, 1]
    assert len(list(results)) == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [*(f"masked {kind}" for kind in WAVES), *KINDS])
def test_batches_on_a_gpu_give_what_the_cpu_gives_one_by_one(
    speech_models, masked_models, mixed_sources, encoded, monkeypatch, kind
):
    masked, _, name = kind.rpartition(" ")
    folder = str((masked_models if masked else speech_models) / name)
    batched = list(TransformerAudio(folder).extract(mixed_sources))
    assert max(len(next(iter(call.values()))) for call in encoded) > 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_alike(batched, TransformerAudio(folder).extract(mixed_sources), 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.0002, 0.02, 0.03])
def test_a_clip_shorter_than_a_step_is_one(speech_models, sound, kind, seconds):
    (result,) = TransformerAudio(str(speech_models / kind)).extract([source(sound(seconds))])
    assert 1 <= len(result) <= 2
    assert result.end[-1] == pytest.approx(seconds, abs=1e-4)
    assert (result.end > result.start).all()


def test_receptive_field_of_wav2vec2_is_25_ms_every_20():
    config = Wav2Vec2Config()
    assert receptive_field(config.conv_kernel, config.conv_stride) == (320, 400)


def test_what_is_missing_and_what_fails(speech_models, tmp_path, make_clip, sound):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no media")
    nan = make_clip(tmp_path / "nan.wav", "a", audio=np.full(9000, np.nan), codecs=("", "pcm_f32le"))
    silent = make_clip(tmp_path / "silent.mp4", "v", seconds=0.2)
    extractor = TransformerAudio(str(speech_models / "hubert"))
    results = list(extractor.extract([source(p) for p in (silent, broken, None, nan, sound(0.5))]))
    assert [type(r) for r in results[:4]] == [
        MissingModalityError,
        ExtractionError,
        MissingModalityError,
        ExtractionError,
    ]
    assert results[4].values.shape == (24, 16)


def test_signature_follows_model_and_layer(speech_models):
    made = [
        TransformerAudio(str(speech_models / kind), layer=layer).signature
        for kind, layer in (("hubert", -1), ("hubert", 2), ("hubert", "last_four"), ("wavlm", -1))
    ]
    assert len(set(made)) == 4
    assert TransformerAudio(str(speech_models / "hubert"), layer=5).signature == made[0]


@pytest.mark.parametrize("layer", [6, -7, 1.0, True, "last", None])
def test_layer_is_validated(speech_models, layer):
    with pytest.raises(
        ValueError, match=r"layer must be a whole number \(-1, or between -6 and 5 here\) or 'last_four'"
    ):
        TransformerAudio(str(speech_models / "wavlm"), layer=layer)


def test_a_model_of_another_kind_is_refused(speech_models, tmp_path):
    shutil.copytree(speech_models / "hubert", tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"is 'bert'; audio\.transformer takes wav2vec2, hubert, wavlm .* whisper"):
        TransformerAudio(str(tmp_path / "m"))


def test_a_model_for_another_rate_or_without_its_preprocessor_is_refused(speech_models, tmp_path):
    shutil.copytree(speech_models / "hubert", tmp_path / "m")
    path = tmp_path / "m" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampling_rate": 24_000}))
    with pytest.raises(ValueError, match="takes 24000 Hz; choose one for 16000 Hz"):
        TransformerAudio(str(tmp_path / "m"))
    path.unlink()
    with pytest.raises(ValueError, match="how to normalise the audio"):
        TransformerAudio(str(tmp_path / "m"))


def test_an_id_that_cannot_be_had_is_named():
    with pytest.raises(ValueError, match=r"'nobody-here/no-such-model' is neither.* local folder$"):
        TransformerAudio("nobody-here/no-such-model")
