"""Generated clips, the shared real clips, and one instance of each extractor."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WIDTH, HEIGHT, RATE = 64, 48, 44_100


def numbered(number: int) -> np.ndarray:
    """Draw an image [HEIGHT, WIDTH, 3] that encodes a number in eight bars, dark for 0 and bright for 1."""
    bits = np.unpackbits(np.uint8(number))
    return np.broadcast_to(np.repeat(40 + 160 * bits, WIDTH // 8)[None, :, None], (HEIGHT, WIDTH, 3))


def number_of(image: np.ndarray) -> int:
    """Return the number of the frame of a generated clip that an image shows."""
    bars = image.mean(axis=(0, 2)).reshape(8, -1).mean(axis=1)
    return int(np.packbits(bars > 120)[0])


def write_clip(
    path: Path,
    streams: str = "va",
    *,
    fps: float = 25,
    seconds: float = 2.0,
    times: Sequence[float] | None = None,
    image: Callable[[int], np.ndarray] | None = None,
    audio: np.ndarray | None = None,
    audio_start: float = 0.0,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    codecs: tuple[str, str] = ("libx264", "aac"),
    options: dict[str, str] | None = None,
) -> Path:
    """Write a media file with `streams` in the given order (v, a): frames with their numbers, and a 200 Hz tone.

    Args:
        times: of the frames, instead of those at `fps`.
        image: draws the frame of a number, instead of `numbered`.
        audio: [N] or [channels, N] at 44,100 Hz, instead of the tone.
        audio_start: seconds.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        encoders = {}
        for kind in streams:
            if kind == "v":
                video = container.add_stream(codecs[0], rate=Fraction(fps).limit_denominator(1001))
                video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
                if times is not None:
                    video.codec_context.time_base = Fraction(1, 1000)
                if pixel_aspect:
                    video.codec_context.sample_aspect_ratio = pixel_aspect
                if rotation:
                    video.set_display_rotation(rotation)
                encoders["v"] = video
            else:
                layout = "stereo" if audio is not None and audio.ndim == 2 else "mono"
                encoders["a"] = container.add_stream(codecs[1], rate=RATE, layout=layout)
        if "v" in encoders:
            for number in range(len(times) if times is not None else round(seconds * fps)):
                pixels = np.ascontiguousarray((image or numbered)(number), np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts = round(times[number] * 1000) if times is not None else number
                container.mux(encoders["v"].encode(frame))
            container.mux(encoders["v"].encode(None))
        if "a" in encoders:
            if audio is None:
                audio = np.sin(np.arange(round(seconds * RATE)) * 2 * np.pi * 200 / RATE) * 0.5
            audio = np.atleast_2d(audio).astype(np.float32)
            resampler = av.AudioResampler(encoders["a"].format, encoders["a"].layout, RATE, frame_size=1024)
            frame = av.AudioFrame.from_ndarray(audio, "fltp", encoders["a"].layout.name)
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = round(audio_start * RATE)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(encoders["a"].encode(piece))
            container.mux(encoders["a"].encode(None))
    return path


def join_clips(paths: Sequence[Path], target: Path) -> Path:
    """One clip of several from the same encoder, one after the other; nothing is encoded again."""
    streams: dict[str, Any] = {}
    offset = Fraction(0)
    with av.open(str(target), "w") as joined:
        for path in paths:
            end = Fraction(0)
            with av.open(str(path)) as source:
                streams = streams or {s.type: joined.add_stream_from_template(s) for s in source.streams}
                for packet in source.demux():
                    if packet.dts is None or packet.pts < 0:  # the encoder's first samples, before time zero
                        continue
                    end = max(end, (packet.pts + packet.duration) * packet.time_base)
                    shift = round(offset / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.type]
                    joined.mux(packet)
            offset += end
    return target


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """`write_clip`."""
    return write_clip


@pytest.fixture(scope="session")
def frame_number() -> Callable[[np.ndarray], int]:
    """`number_of`."""
    return number_of


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Folder of the shared real clips; tests that need it are skipped without it."""
    beside = Path(__file__).parents[3] / "shared" / "clips"
    folder = Path(os.environ.get("DASHFUSION_CLIPS") or beside)
    if not folder.is_dir():
        pytest.skip(f"the real clips are not in {folder}; set DASHFUSION_CLIPS to their folder")
    return folder


@pytest.fixture(scope="session")
def minilm():
    """The default text extractor, loaded once."""
    from extractors.text.transformer import TransformerText

    return TransformerText()


@pytest.fixture(scope="session")
def librosa_audio():
    """The default audio extractor."""
    from extractors.audio.librosa import LibrosaAudio

    return LibrosaAudio()


@pytest.fixture(scope="session")
def face_landmarker():
    """The default vision extractor; mediapipe starts once."""
    from extractors.vision.face_landmarker import FaceLandmarkerVision

    return FaceLandmarkerVision()


SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="session")
def speech_models(tmp_path_factory) -> Path:
    """Folders of a wav2vec2, hubert, wavlm and whisper with random weights, five layers, and width 16.

    Whisper's window is two seconds instead of thirty.
    """
    import torch
    import transformers as hf

    root = tmp_path_factory.mktemp("speech")
    torch.manual_seed(0)
    convolutions = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    sizes = {**SMALL, "num_hidden_layers": 5, **convolutions}
    hf.Wav2Vec2Model(hf.Wav2Vec2Config(**sizes)).save_pretrained(root / "wav2vec2")
    hf.HubertModel(hf.HubertConfig(**sizes)).save_pretrained(root / "hubert")
    hf.WavLMModel(hf.WavLMConfig(**sizes)).save_pretrained(root / "wavlm")
    for name in ("wav2vec2", "hubert", "wavlm"):
        hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / name)
    sizes = {"encoder_layers": 5, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    window = {"num_mel_bins": 8, "max_source_positions": 100, "max_target_positions": 8}
    hf.WhisperModel(hf.WhisperConfig(d_model=16, **sizes, **ids, **window)).save_pretrained(root / "whisper")
    hf.WhisperFeatureExtractor(feature_size=8, chunk_length=2).save_pretrained(root / "whisper")
    return root


@pytest.fixture(scope="session")
def image_models(tmp_path_factory) -> Path:
    """Folders of a vit, dinov2, clip and clip_vision_model with random weights, width 16, and 32 pixels of input."""
    import torch
    import transformers as hf

    root = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    words = {**SMALL, "num_hidden_layers": 2, "vocab_size": 20, "max_position_embeddings": 8}
    words |= {"bos_token_id": 1, "eos_token_id": 2}
    sizes = {**SMALL, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    models = {
        "vit": hf.ViTModel(hf.ViTConfig(**sizes)),
        "dinov2": hf.Dinov2Model(hf.Dinov2Config(**{**sizes, "image_size": 64})),  # not the input size, as usual
        "clip": hf.CLIPModel(hf.CLIPConfig(text_config=words, vision_config=sizes, projection_dim=8)),
        "clip_vision_model": hf.CLIPVisionModel(hf.CLIPVisionConfig(**sizes)),
    }
    preprocessing = {
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return root
