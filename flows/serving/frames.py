"""Still frames of a clip that the sender's browser cannot play, as JPEG data URIs for the page."""

from __future__ import annotations

import base64
from fractions import Fraction
from typing import TYPE_CHECKING, TypedDict

import av

from media.container import MediaError
from media.video import read_frames

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

MAX_FRAMES = 6
MAX_SIDE = 320
"""Pixels."""


class FrameDict(TypedDict):
    """A frame: seconds from the clip's start, and the image as a data URI."""

    time: float
    image: str


def still_frames(path: Path, duration: float) -> list[FrameDict]:
    """Return up to `MAX_FRAMES` evenly spaced frames; those before the damage of a damaged file, none without video.

    Args:
        path: Media file.
        duration: Seconds.
    """
    frames: list[FrameDict] = []
    try:
        for time, frame in read_frames(path, MAX_FRAMES / max(duration, 0.1), MAX_SIDE):
            image = base64.b64encode(_to_jpeg(frame)).decode()
            frames.append({"time": round(time, 3), "image": f"data:image/jpeg;base64,{image}"})
            if len(frames) == MAX_FRAMES:
                break
    except MediaError:
        return frames
    return frames


def _to_jpeg(frame: np.ndarray) -> bytes:
    """Encode an RGB frame, [H, W, 3] uint8."""
    encoder = av.VideoCodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = frame.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1)
    image = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(image), *encoder.encode(None)])
