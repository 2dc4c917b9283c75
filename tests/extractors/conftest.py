"""Clips made on the spot, the shared real clips, and one instance of each extractor."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WIDTH, HEIGHT, RATE = 64, 48, 44_100


def numbered(number: int) -> np.ndarray:
    """A picture [HEIGHT, WIDTH, 3] that says its number in eight bars, dark for 0 and bright for 1."""
    bits = np.unpackbits(np.uint8(number))
    return np.broadcast_to(np.repeat(40 + 160 * bits, WIDTH // 8)[None, :, None], (HEIGHT, WIDTH, 3))


def number_of(image: np.ndarray) -> int:
    """Which frame of a made clip an image shows."""
    bars = image.mean(axis=(0, 2)).reshape(8, -1).mean(axis=1)
    return int(np.packbits(bars > 120)[0])


def write_clip(
    path: Path,
    streams: str = "va",
    *,
    fps: float = 25,
    seconds: float = 2.0,
    times: Sequence[float] | None = None,
    picture: Callable[[int], np.ndarray] | None = None,
    sound: np.ndarray | None = None,
    sound_start: float = 0.0,
    rotation: int = 0,
    codecs: tuple[str, str] = ("libx264", "aac"),
    options: dict[str, str] | None = None,
) -> Path:
    """A media file: `streams` in their order (v, a), frames that say their number, a 200 Hz tone.

    `times` are the frames' own times instead of those of `fps`; `sound` [N] or [channels, N] is at 44,100 Hz.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        made = {}
        for kind in streams:
            if kind == "v":
                video = container.add_stream(codecs[0], rate=Fraction(fps).limit_denominator(1001))
                video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
                if times is not None:
                    video.codec_context.time_base = Fraction(1, 1000)
                if rotation:
                    video.set_display_rotation(rotation)
                made["v"] = video
            else:
                layout = "stereo" if sound is not None and sound.ndim == 2 else "mono"
                made["a"] = container.add_stream(codecs[1], rate=RATE, layout=layout)
        if "v" in made:
            for number in range(len(times) if times is not None else round(seconds * fps)):
                image = np.ascontiguousarray((picture or numbered)(number), np.uint8)
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
                frame.pts = round(times[number] * 1000) if times is not None else number
                container.mux(made["v"].encode(frame))
            container.mux(made["v"].encode(None))
        if "a" in made:
            if sound is None:
                sound = np.sin(np.arange(round(seconds * RATE)) * 2 * np.pi * 200 / RATE) * 0.5
            sound = np.atleast_2d(sound).astype(np.float32)
            resampler = av.AudioResampler(made["a"].format, made["a"].layout, RATE, frame_size=1024)
            frame = av.AudioFrame.from_ndarray(sound, "fltp", made["a"].layout.name)
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = round(sound_start * RATE)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(made["a"].encode(piece))
            container.mux(made["a"].encode(None))
    return path


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
    """Folder of the shared real clips; tests that need it are skipped where it is not."""
    beside = Path(__file__).parents[3] / "shared" / "clips"
    folder = Path(os.environ.get("DASHFUSION_CLIPS") or beside)
    if not folder.is_dir():
        pytest.skip(f"the real clips are not in {folder}; set DASHFUSION_CLIPS to their folder")
    return folder


@pytest.fixture(scope="session")
def minilm():
    """The default text extractor, loaded once."""
    from extractors.text import TransformerText

    return TransformerText()


@pytest.fixture(scope="session")
def librosa_audio():
    """The default audio extractor."""
    from extractors.audio import LibrosaAudio

    return LibrosaAudio()


@pytest.fixture(scope="session")
def face_mesh():
    """The default vision extractor; FaceMesh starts once."""
    from extractors.vision import FaceMeshVision

    return FaceMeshVision()
