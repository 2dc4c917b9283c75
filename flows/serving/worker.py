"""What the server's worker processes do: look at an upload, and score it. Called by name, with plain values."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from media.container import MediaInfo
    from model.predict import Predictor

WARM_CLIP = "warm-up.mkv"


@dataclass(frozen=True, slots=True)
class Model:
    """The checkpoint's folder and how it is to be loaded; see `model.predict.Predictor`."""

    folder: Path
    device: str = "auto"
    language: str | None = None
    recogniser: str | None = None
    quantise_text: bool = False


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was uploaded, and what is wished of it.

    Attributes:
        path: where it lies.
        name: what its sender calls it, for messages; no path is made of it.
        text: what is said in it; None: to be recognised, where there is a recogniser.
        level, window, hop: as of `Predictor.predict`.
    """

    path: Path
    name: str
    text: str | None = None
    level: float = 0.9
    window: float | None = None
    hop: float | None = None


class BadOption(ValueError):
    """An option of an upload is out of its range."""


_predictor: Predictor | None = None


def examine(path: Path, most: float) -> tuple[MediaInfo, float]:
    """What a file's headers declare, and the seconds that are in it, as far as `most`.

    Raises:
        MediaError: it is no media file.
    """
    from media.container import found_length, probe

    return probe(path), found_length(path, most)


def prepare(model: Model, folder: Path) -> str | None:
    """Load the predictor, and score a clip of our own with it: the first upload then waits for nothing.

    Args:
        folder: where the clip may be written.

    Returns:
        The speech recogniser that it uses, if any.

    Raises:
        FileNotFoundError, ValueError: as `Predictor`, and its `predict`.
    """
    global _predictor
    from model.predict import Predictor
    from model.prediction.protocol import Video

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which lets us finish
    predictor = Predictor(
        model.folder,
        device=model.device,
        language=model.language,
        recogniser=model.recogniser,
        quantise_text=model.quantise_text,
    )
    predictor.warm_up()
    clip = _write_clip(folder / WARM_CLIP)
    for text in ("all is ready", None):
        list(predictor.predict([Video(clip, text)]))
    _predictor = predictor
    return predictor.recogniser


def score(upload: Upload) -> dict[str, Any]:
    """The result as `to_dict` of `model.prediction.results` gives it, with the sender's name of the file for its path.

    Raises:
        BadOption: as `Predictor.predict` has it.
    """
    from model.prediction.protocol import Video

    if _predictor is None:
        raise RuntimeError("this worker process was not prepared")
    try:
        results = _predictor.predict(
            [Video(upload.path, upload.text)], level=upload.level, window=upload.window, hop=upload.hop
        )
    except ValueError as error:
        raise BadOption(str(error)) from error
    (result,) = results
    return renamed(result.to_dict(), str(upload.path), upload.name)


def renamed(result: Mapping[str, Any], path: str, name: str) -> dict[str, Any]:
    """The result with the sender's name of the file wherever it names the path."""
    error = result["error"]
    return {
        **result,
        "file": name,
        "error": error and {**error, "message": error["message"].replace(path, name)},
        "warnings": [{**w, "message": w["message"].replace(path, name)} for w in result["warnings"]],
    }


def _write_clip(path: Path) -> Path:
    """Half a second of a grey picture and a tone."""
    import av
    import numpy as np

    rate, frames = 16_000, 5
    tone = 0.1 * np.sin(2 * np.pi * 220 * np.arange(rate // 2) / rate, dtype=np.float32)
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("libx264", rate=10)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="mono")
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), "rgb24")
            container.mux(video.encode(picture))
        sound = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        sound.sample_rate = rate
        container.mux(audio.encode(sound))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path
