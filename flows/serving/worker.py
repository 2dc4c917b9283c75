"""Functions that the server's worker processes run: inspect an upload, load the model, score an upload."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.predict import Predictor

WARM_UP_CLIP = "warm-up.mkv"


@dataclass(frozen=True, slots=True)
class Model:
    """Checkpoint folder and the options to load it with; see `model.predict.Predictor`."""

    folder: Path
    device: str = "auto"
    language: str | None = None
    recogniser: str | None = None
    quantise_text: bool = False
    allow_download: bool = False
    allow_different_features: bool = False


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file with its options.

    Attributes:
        path: Temporary file.
        name: The client's name of the file, for messages only; no path is derived from it.
        text: Transcript; None to recognise speech, if there is a recogniser.
        level, window, hop: Options of `Predictor.predict`.
        frames: Whether to return `still_frames` too.
    """

    path: Path
    name: str
    text: str | None = None
    level: float = 0.9
    window: float | None = None
    hop: float | None = None
    frames: bool = False


class InvalidOptionError(ValueError):
    """An option of an upload is out of range."""


_predictor: Predictor | None = None


def prepare_examiner() -> None:
    """Import what `examine` needs."""
    import media.container  # noqa: F401

    _detach()


def examine(path: Path, max_seconds: float) -> float:
    """Return a file's duration in seconds: the declared one, or the actual one, measured up to `max_seconds`.

    Raises:
        FrameSizeError: Its frames are too large.
        MediaError: The file is not a media file.
    """
    from media.container import check_frame_size, measure_duration, probe

    info = probe(path)
    check_frame_size(path, info.width or 0, info.height or 0)
    return max(info.duration or 0.0, measure_duration(path, max_seconds))


def prepare(model: Model, folder: Path) -> str | None:
    """Load the predictor and score a generated clip, so that the first upload does not wait for lazy loading.

    Args:
        model: What to load.
        folder: Folder for the generated clip.

    Returns:
        The speech recogniser in use, if any.

    Raises:
        FileNotFoundError, ValueError: As `Predictor` and its `predict`.
    """
    global _predictor
    from model.predict import Predictor
    from model.prediction.protocol import Video

    _detach()
    options = asdict(model)
    predictor = Predictor(options.pop("folder"), **options)
    predictor.warm_up()
    clip = _write_clip(folder / WARM_UP_CLIP)
    for text in ("all is ready", None):
        list(predictor.predict([Video(clip, text)]))
    _predictor = predictor
    return predictor.recogniser


def score(upload: Upload) -> dict[str, Any]:
    """Score an upload.

    Returns:
        `Result.to_dict()` with the client's file name in place of the path, and with `frames` if they were asked for.

    Raises:
        InvalidOptionError: `Predictor.predict` rejects an option.
    """
    from model.prediction.protocol import Video

    if _predictor is None:
        raise RuntimeError("this worker process was not prepared")
    try:
        results = _predictor.predict(
            [Video(upload.path, upload.text)], level=upload.level, window=upload.window, hop=upload.hop
        )
    except ValueError as error:
        raise InvalidOptionError(str(error)) from error
    (result,) = results
    values = replace_path(result.to_dict(), str(upload.path), upload.name)
    if upload.frames:
        from flows.serving.frames import still_frames

        values["frames"] = still_frames(upload.path, values["duration"] or 0.0)
    return values


def replace_path(result: Mapping[str, Any], path: str, name: str) -> dict[str, Any]:
    """Return the result with `path` replaced by `name`, in its messages too."""
    error = result["error"]
    return {
        **result,
        "file": name,
        "error": error and {**error, "message": error["message"].replace(path, name)},
        "warnings": [{**w, "message": w["message"].replace(path, name)} for w in result["warnings"]],
    }


def _detach() -> None:
    """Leave Ctrl-C to the server, which lets workers finish, and standard output to its log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)


def _write_clip(path: Path) -> Path:
    """Write half a second of grey frames and a tone."""
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
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), "rgb24")
            container.mux(video.encode(frame))
        samples = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        samples.sample_rate = rate
        container.mux(audio.encode(samples))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return path
