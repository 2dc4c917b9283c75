"""Video decoding: upright RGB frames on a regular time grid, or frames as stored."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from media.container import (
    MAX_GAP,
    MediaError,
    count_decoding_time,
    decode_frames,
    frame_time,
    open_media,
    pixel_aspect,
    require_stream,
    start_time,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream

MAX_SIDE = 640
"""Pixels. Larger frames are scaled down during conversion, which leaves faces large enough for the models."""

MAX_SQUARE_DEVIATION = 0.01
"""Pixels whose sides differ by less than this fraction count as square: encoders round sizes and write such ratios."""

FALLBACK_FPS = Fraction(25)
"""Frame rate of a video whose time stamps and header both say nothing."""


@count_decoding_time
def read_frames(path: Path, fps: float, max_side: int = MAX_SIDE) -> Generator[tuple[float, np.ndarray], None, None]:
    """Yield a clip's frames at the times 0, 1 / fps, 2 / fps, ... as (seconds, [H, W, 3] uint8 RGB, read-only).

    Each time gets the frame that a player would show then, whatever the video's own rate, constant or not. The same
    array is yielded again while its frame stays on the screen. A video stream that starts late yields nothing for the
    times before it. Frames are as people see them, with rotation and pixel aspect ratio applied (the shorter side of
    oblong pixels is stretched), and at most `max_side` pixels on the longer side.

    Raises:
        ValueError: `fps` or `max_side` is not positive.
        MissingStreamError: there is no video stream, or an empty one.
        MediaError: the file cannot be used, or is damaged (see `decode_frames`); possibly after some frames.
    """
    if not fps > 0 or not max_side > 0:
        raise ValueError(f"fps and max_side must be positive, found {fps} and {max_side}")
    step = 1 / Fraction(fps).limit_denominator(1_000_000)
    shrink, convert = VideoReformatter(), VideoReformatter()  # each caches the set-up of its last frame
    with open_media(path) as container:
        stream = require_stream(path, container, "video")
        number: int | None = None
        tolerance = _stamp_tolerance(stream)
        assert isinstance(stream, VideoStream)
        aspect = float(pixel_aspect(stream))
        aspect = aspect if abs(aspect - 1) >= MAX_SQUARE_DEVIATION else 1.0
        for frame, start, end in _timed_frames(path, container, stream, step):
            number = int(max(start, Fraction(0)) / step) if number is None else number
            image: np.ndarray | None = None
            while number * step < end - tolerance:
                image = _to_rgb(shrink, convert, frame, max_side, aspect) if image is None else image
                yield float(number * step), image
                number += 1


def read_stored_frames(path: Path) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    """Yield a clip's frames as stored, neither rotated nor scaled, each with its exact start and end in seconds.

    A frame ends where the next one starts. `frame.time_base` is that of the stream. The pixel aspect ratio is not
    applied: see `MediaInfo.pixel_aspect`.

    Raises:
        MissingStreamError, MediaError: as `read_frames`; possibly after some frames.
    """
    with open_media(path) as container:
        yield from _timed_frames(path, container, require_stream(path, container, "video"))


def _stamp_tolerance(stream: Stream) -> Fraction:
    """Return by how many seconds a frame's time stamp may be too late.

    Time stamps are rounded to the stream's time base, so they may be off by half a tick. A time base as coarse as the
    frame rate (AVI) is exact, hence the limit.
    """
    return min((stream.time_base or Fraction(0)) / 2, Fraction(1, 1000))


def _timed_frames(
    path: Path, container: InputContainer, stream: Stream, step: Fraction | None = None
) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    """Yield each frame with the time it appears and the time the next one replaces it.

    With a `step`, frames that are not on the screen at any multiple of it are left out where no other frame depends
    on them; the previous frame then lasts longer.
    """
    zero = start_time(container)

    def skippable(packet: Packet[Stream]) -> bool:
        if step is None or packet.pts is None or not packet.duration:
            return False
        start = packet.pts * packet.time_base - zero
        # A margin of two ticks on either side: time stamps and durations are rounded
        first, last = start - 2 * packet.time_base, start + (packet.duration + 2) * packet.time_base
        return first > 0 and last // step == first // step and first % step != 0

    duration = 1 / (stream.average_rate or stream.guessed_rate or FALLBACK_FPS)
    shown: av.VideoFrame | None = None
    start = Fraction(0)
    for frame in decode_frames(path, container, stream, av.VideoFrame, None if step is None else skippable):
        expected = start + duration if shown is not None else Fraction(0)
        stamp = frame_time(frame)
        time = expected if stamp is None else stamp - zero
        if shown is not None:
            if time - start > MAX_GAP:
                raise MediaError(
                    f"{path}: the video's time jumps from {float(start):.0f} s to {float(time):.0f} s; convert it again"
                )
            yield shown, start, time
        shown, start = frame, time
        if frame.duration and frame.time_base:
            duration = min(frame.duration * frame.time_base, Fraction(MAX_GAP))
    if shown is not None:
        yield shown, start, start + duration


def _to_rgb(
    shrink: VideoReformatter, convert: VideoReformatter, frame: av.VideoFrame, max_side: int, aspect: float
) -> np.ndarray:
    """Convert a frame to an upright RGB image of square pixels, at most `max_side` on the longer side.

    `aspect` is the width of the frame's pixels divided by their height.
    """
    turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 counts
    sides = (frame.width * max(aspect, 1.0), frame.height / min(aspect, 1.0))  # nothing is shrunk
    scale = min(1.0, max_side / max(sides))
    width, height = (max(1, round(side * scale)) for side in sides)
    if scale < 1 and frame.format.name == "yuv420p":  # swscale is faster in two steps: scale, then convert
        frame = shrink.reformat(frame, width, height, interpolation="AREA", threads=1)
    rgb = convert.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    image = np.ascontiguousarray(np.rot90(rgb, turns))  # also drops row padding
    image.flags.writeable = False
    return image
