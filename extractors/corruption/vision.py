"""Corruptions of the picture: out of focus, partly covered, with frames lost, at a lower frame rate.

Frames are changed as they are stored, plane by plane and one at a time, and written as lossless H.264 into a QuickTime
file, with their own times, size, rotation and colour space: what was not asked for stays, bit for bit. The sound is
left behind. H, W are a plane's height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING

import av
import numpy as np

from media.video import read_stored_frames

if TYPE_CHECKING:
    from pathlib import Path

    from av.container import OutputContainer
    from av.video.stream import VideoStream

Stored = tuple[av.VideoFrame, Fraction, Fraction]
"""A frame as it is stored, and when it appears and is replaced, in seconds."""

Change = Callable[[Iterator[Stored]], Iterator[Stored]]

Draw = Callable[[], np.random.Generator]
"""Gives the clip's random numbers, from their beginning at each call."""

KEPT_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
"""Pixel formats that are changed and encoded as they are; others (10 bits, RGB, palettes) become the nearest one."""

LOSSLESS = {"qp": "0", "preset": "ultrafast", "threads": "1"}
"""Of x264. `ultrafast` makes no B-frames: packets come in the order in which their frames are shown."""

SHRUNK_SIGMA = 4.0
"""Pixels. The cost of a blur grows with its width: of 54 pixels, 0.5 s a picture in high definition, against 0.01 s."""

GREY = 128

PATCH_SPEED = 0.1
"""How far the patch moves in a second, as a part of the way that it has from edge to edge."""

ON_TIME = 1e-3
"""Seconds that a frame may come before its turn and still take it: stamps are rounded."""


def blur(media: Path, out: Path, level: float, draw: Draw) -> Path:
    """A Gaussian blur, its standard deviation `level` of the picture's shorter side. All of these: see `write_frames`.

    Args:
        draw: not used; all corruptions are called alike.
    """

    def blurred(frames: Iterator[Stored]) -> Iterator[Stored]:
        for frame, start, end in frames:
            sigma = level * min(frame.width, frame.height)
            for plane_HW in _writable_planes(frame):
                down, across = sigma * np.array(plane_HW.shape) / (frame.height, frame.width)
                plane_HW[:] = _gaussian(plane_HW, across, down)
            yield frame, start, end

    return write_frames(media, out, blurred)


def _gaussian(plane_HW: np.ndarray, across: float, down: float) -> np.ndarray:
    """The plane under a Gaussian of these standard deviations, in pixels; a wide one is taken of a smaller plane.

    With `SHRUNK_SIGMA` pixels or more left, shrinking and enlarging widen it by less than a hundredth.
    """
    import cv2

    height, width = plane_HW.shape
    factor = max(1, int(min(across, down) / SHRUNK_SIGMA))
    small_HW = plane_HW
    if factor > 1:
        small_HW = cv2.resize(plane_HW, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    sigmas = {"sigmaX": across / factor, "sigmaY": down / factor}
    blurred_HW = cv2.GaussianBlur(small_HW, (0, 0), **sigmas, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(blurred_HW, (width, height), interpolation=cv2.INTER_LINEAR) if factor > 1 else blurred_HW


def cover(media: Path, out: Path, level: float, draw: Draw) -> Path:
    """A grey patch of the picture's shape over the fraction `level` of its area, as a hand or a microphone.

    It moves on a straight line from a random place in a random direction and is thrown back at the edges, so that it
    passes over the face in a part of most clips. A larger patch covers all that a smaller one does.
    """
    rng = draw()
    place, angle = rng.random(2), rng.uniform(0, 2 * math.pi)
    heading = PATCH_SPEED * np.array([math.sin(angle), math.cos(angle)])
    side = math.sqrt(level)

    def covered(frames: Iterator[Stored]) -> Iterator[Stored]:
        for frame, start, end in frames:
            corner = (1 - side) * (1 - np.abs((place + heading * float(start)) % 2 - 1))
            for plane_HW in _writable_planes(frame):
                top, left = np.rint(corner * plane_HW.shape).astype(int)
                bottom, right = np.rint((corner + side) * plane_HW.shape).astype(int)
                plane_HW[top:bottom, left:right] = GREY
            yield frame, start, end

    return write_frames(media, out, covered)


def lose_frames(media: Path, out: Path, level: float, draw: Draw) -> Path:
    """Each frame but the first is lost with the probability `level`; the one before it stays on the screen.

    What is lost at one level is lost at the higher ones too.
    """
    rng = draw()
    return write_frames(media, out, lambda frames: _kept(frames, lambda time: rng.random() >= level))


def lower_rate(media: Path, out: Path, level: float, draw: Draw) -> Path:
    """`level` frames a second are left, the first of each 1 / `level` seconds; a video with fewer keeps all of its.

    Args:
        draw: not used; all corruptions are called alike.
    """
    turns = -1

    def in_turn(time: Fraction) -> bool:
        nonlocal turns
        before, turns = turns, max(turns, math.floor((float(time) + ON_TIME) * level))
        return turns > before

    return write_frames(media, out, lambda frames: _kept(frames, in_turn))


def _kept(frames: Iterable[Stored], keep: Callable[[Fraction], bool]) -> Iterator[Stored]:
    """The first frame, and those that `keep` wants by their time, each until the next one that is kept."""
    held, since, until = None, Fraction(0), Fraction(0)
    for frame, start, end in frames:
        wanted = keep(start)
        if held is not None and wanted:
            yield held, since, start
        if held is None or wanted:
            held, since = frame, start
        until = end
    if held is not None:
        yield held, since, until


def _writable_planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """[H, W] uint8 views of the frame's planes; changes there stay out of what the decoder keeps of it."""
    frame.make_writable()
    rows = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    return [row[: plane.height, : plane.width] for row, plane in zip(rows, frame.planes, strict=True)]


def write_frames(media: Path, out: Path, change: Change) -> Path:
    """Write a clip's picture, as `change` makes it, to `out` with the ending .mov, and give that path.

    Raises:
        MissingStream, MediaError: as `media.video.read_frames`.
    """
    frames = read_stored_frames(media)
    first = next(frames)
    rotation, tick = first[0].rotation, first[0].time_base
    path = out.with_name(f"{out.name}.mov")
    with av.open(str(path), "w", format="mov") as container:
        stream: VideoStream | None = None
        ends: dict[int, int] = {}
        for frame, start, end in change(_plain(chain([first], frames))):
            if stream is None:
                stream = _add_stream(container, frame, tick, start, rotation)
            frame.pts, frame.time_base = round(start / tick), tick
            frame.pict_type = 0  # x264 chooses, not the file that it came from
            ends[frame.pts] = round(end / tick)
            _encode(container, stream, frame, ends)
        if stream is not None:
            _encode(container, stream, None, ends)
    return path


def _plain(frames: Iterable[Stored]) -> Iterator[Stored]:
    """The frames in one format of `KEPT_FORMATS` and one size; without those that are over before time zero."""
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
    """One of `KEPT_FORMATS`, with colours as fine as the frame's; x264 has coarser ones of even sizes only."""
    width, height, kind = frame.width, frame.height, frame.format
    colours = kind.chroma_width(width) / width, kind.chroma_height(height) / height
    even = width % 2 == 0 and height % 2 == 0
    if kind.name in KEPT_FORMATS and (even or "444" in kind.name):
        return kind.name
    return {(0.5, 0.5): "yuv420p", (0.5, 1): "yuv422p"}.get(colours, "yuv444p") if even else "yuv444p"


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
    """A moment of silence at time zero, where the picture starts later: a file's time starts with its first stream."""
    stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), "s16", "mono")
    frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _encode(container: OutputContainer, stream: VideoStream, frame: av.VideoFrame | None, ends: dict[int, int]) -> None:
    """Encode a frame, or with None those that the encoder holds; each packet lasts until its frame's end."""
    for packet in stream.encode(frame):
        packet.duration = ends.pop(packet.pts) - packet.pts
        container.mux(packet)
