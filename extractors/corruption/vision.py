"""Corruptions of the picture: blur, occlusion, dropped frames, a lower frame rate.

Frames are changed one at a time in their stored colour space, plane by plane, and written as lossless H.264 into a
QuickTime file with the original times, size, rotation, pixel aspect ratio and colour space: everything else stays the
same bit for bit. The sound is not copied. H, W are a plane's height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING

import av
import numpy as np

from media.container import probe
from media.video import read_stored_frames

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from av.container import OutputContainer
    from av.video.stream import VideoStream

TimedFrame = tuple[av.VideoFrame, Fraction, Fraction]
"""A stored frame, and the times in seconds from which and until which it is shown."""

Change = Callable[[Iterator[TimedFrame]], Iterator[TimedFrame]]

KEPT_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
"""Pixel formats that are changed and encoded as they are; others (10 bits, RGB, palettes) are converted to one of
these."""

LOSSLESS = {"qp": "0", "preset": "ultrafast", "threads": "1"}
"""Options of x264. `ultrafast` makes no B-frames, so packets come in presentation order."""

MIN_DOWNSAMPLED_SIGMA = 4.0
"""Pixels that a blur's standard deviation keeps when the plane is downsampled for speed: at a standard deviation of
54 pixels, blurring a high-definition frame takes 0.5 s at full size and 0.01 s downsampled."""

GREY = 128

PATCH_SPEED = 0.1
"""Speed of the patch: fraction of its range of motion per second."""

TIME_TOLERANCE = 1e-3
"""Seconds by which a frame may precede its slot, as timestamps are rounded."""


def blur(media: Path, out: Path, level: float, rng: np.random.Generator) -> Path:
    """Blur every frame by a Gaussian whose standard deviation is `level` of the frame's shorter side.

    Like all corruptions of the picture, it writes `out`.mov and returns that path, see `write_frames`; `rng` is unused.
    """

    def blurred(frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
        for frame, start, end in frames:
            sigma = level * min(frame.width, frame.height)
            for plane_HW in _writable_planes(frame):
                sigma_y, sigma_x = sigma * np.array(plane_HW.shape) / (frame.height, frame.width)
                plane_HW[:] = _gaussian_blur(plane_HW, sigma_x, sigma_y)
            yield frame, start, end

    return write_frames(media, out, blurred)


def _gaussian_blur(plane_HW: np.ndarray, sigma_x: float, sigma_y: float) -> np.ndarray:
    """Blur a plane by a Gaussian with these standard deviations in pixels; a wide one is applied to a smaller plane.

    With `MIN_DOWNSAMPLED_SIGMA` pixels or more left, resizing widens it by less than 1 %.
    """
    import cv2

    height, width = plane_HW.shape
    factor = max(1, int(min(sigma_x, sigma_y) / MIN_DOWNSAMPLED_SIGMA))
    small_HW = plane_HW
    if factor > 1:
        small_HW = cv2.resize(plane_HW, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    blurred_HW: np.ndarray = cv2.GaussianBlur(
        small_HW, (0, 0), sigmaX=sigma_x / factor, sigmaY=sigma_y / factor, borderType=cv2.BORDER_REPLICATE
    )
    if factor > 1:
        blurred_HW = cv2.resize(blurred_HW, (width, height), interpolation=cv2.INTER_LINEAR)
    return blurred_HW


def occlude(media: Path, out: Path, level: float, rng: np.random.Generator) -> Path:
    """Cover the fraction `level` of the frame's area with a grey patch, as a hand or a microphone does.

    The patch has the frame's aspect ratio. It moves in a straight line from a random place in a random direction and
    is reflected at the edges, so that in most clips it passes over the face. A larger patch covers everything that a
    smaller one does.
    """
    place, angle = rng.random(2), rng.uniform(0, 2 * math.pi)
    velocity = PATCH_SPEED * np.array([math.sin(angle), math.cos(angle)])
    side = math.sqrt(level)

    def covered(frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
        for frame, start, end in frames:
            corner = (1 - side) * (1 - np.abs((place + velocity * float(start)) % 2 - 1))
            for plane_HW in _writable_planes(frame):
                top, left = np.rint(corner * plane_HW.shape).astype(int)
                bottom, right = np.rint((corner + side) * plane_HW.shape).astype(int)
                plane_HW[top:bottom, left:right] = GREY
            yield frame, start, end

    return write_frames(media, out, covered)


def drop_frames(media: Path, out: Path, level: float, rng: np.random.Generator) -> Path:
    """Drop each frame but the first with probability `level`; the previous one stays on the screen.

    A higher level drops every frame that a lower one does.
    """
    return write_frames(media, out, lambda frames: _select_frames(frames, lambda time: rng.random() >= level))


def lower_rate(media: Path, out: Path, level: float, rng: np.random.Generator) -> Path:
    """Keep the first frame of each 1 / `level` seconds: `level` frames per second; `rng` is unused."""
    last_slot = -1

    def opens_slot(time: Fraction) -> bool:
        nonlocal last_slot
        previous, last_slot = last_slot, max(last_slot, math.floor((float(time) + TIME_TOLERANCE) * level))
        return last_slot > previous

    return write_frames(media, out, lambda frames: _select_frames(frames, opens_slot))


def _select_frames(frames: Iterable[TimedFrame], keep: Callable[[Fraction], bool]) -> Iterator[TimedFrame]:
    """Yield the first frame and those whose start `keep` accepts, each shown until the next of them."""
    shown: av.VideoFrame | None = None
    since = until = Fraction(0)
    for frame, start, end in frames:
        kept = keep(start)
        if shown is not None and kept:
            yield shown, since, start
        if shown is None or kept:
            shown, since = frame, start
        until = end
    if shown is not None:
        yield shown, since, until


def _writable_planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Return [H, W] uint8 views of the frame's planes; writing to them leaves the decoder's reference frames alone."""
    frame.make_writable()
    rows = [np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    return [row[: plane.height, : plane.width] for row, plane in zip(rows, frame.planes, strict=True)]


def write_frames(media: Path, out: Path, change: Change) -> Path:
    """Write a clip's frames, transformed by `change`, to `out` with the suffix .mov, and return that path.

    Raises:
        MissingStreamError, MediaError: as `media.video.read_stored_frames`.
    """
    frames = read_stored_frames(media)
    first = next(frames)
    rotation, tick = first[0].rotation, first[0].time_base
    assert tick is not None  # a decoded frame has one
    pixel_aspect = probe(media).pixel_aspect
    path = out.with_name(f"{out.name}.mov")
    with av.open(str(path), "w", format="mov") as container:
        stream: VideoStream | None = None
        ends: dict[int, int] = {}
        for frame, start, end in change(_normalise(chain([first], frames))):
            if stream is None:
                stream = _add_stream(container, frame, tick, start, rotation)
                if pixel_aspect != 1:
                    stream.codec_context.sample_aspect_ratio = pixel_aspect
            frame.pts, frame.time_base = round(start / tick), tick
            frame.pict_type = 0  # let x264 choose, not the original encoder
            ends[frame.pts] = round(end / tick)
            _encode(container, stream, frame, ends)
        if stream is not None:
            _encode(container, stream, None, ends)
    return path


def _normalise(frames: Iterable[TimedFrame]) -> Iterator[TimedFrame]:
    """Convert all frames to one of `KEPT_FORMATS` and one size; skip those that end before time zero."""
    width = height = 0
    kind = ""
    for frame, start, end in frames:
        if end <= 0:
            continue
        if not kind:
            width, height, kind = frame.width, frame.height, _nearest_format(frame)
        if (frame.width, frame.height, frame.format.name) != (width, height, kind):
            frame = frame.reformat(width, height, kind, threads=1)
        yield frame, max(start, Fraction(0)), end


def _nearest_format(frame: av.VideoFrame) -> str:
    """Return the one of `KEPT_FORMATS` with the frame's chroma resolution; x264 subsamples only even sizes."""
    width, height, kind = frame.width, frame.height, frame.format
    chroma = kind.chroma_width(width) / width, kind.chroma_height(height) / height
    even = width % 2 == 0 and height % 2 == 0
    if kind.name in KEPT_FORMATS and (even or "444" in kind.name):
        return kind.name
    return {(0.5, 0.5): "yuv420p", (0.5, 1): "yuv422p"}.get(chroma, "yuv444p") if even else "yuv444p"


def _add_stream(
    container: OutputContainer, frame: av.VideoFrame, tick: Fraction, start: Fraction, rotation: int
) -> VideoStream:
    stream = container.add_stream("libx264", rate=25, options=LOSSLESS)
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
    stream.time_base = stream.codec_context.time_base = tick
    stream.codec_context.color_range = frame.color_range
    stream.codec_context.colorspace = frame.colorspace
    if rotation:
        stream.set_display_rotation(rotation)
    if start:
        _add_silence(container)
    return stream


def _add_silence(container: OutputContainer) -> None:
    """Add 10 ms of silence at time zero: a file's time starts with its first packet, and the picture starts later."""
    stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), "s16", "mono")
    frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _encode(container: OutputContainer, stream: VideoStream, frame: av.VideoFrame | None, ends: dict[int, int]) -> None:
    """Encode a frame, or with None flush the encoder; each packet lasts until its frame's end."""
    for packet in stream.encode(frame):
        assert packet.pts is not None
        packet.duration = ends.pop(packet.pts) - packet.pts
        container.mux(packet)
