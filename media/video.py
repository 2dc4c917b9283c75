"""Video decoding: upright RGB frames on a regular time grid, or as stored."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from av.video.reformatter import VideoReformatter

from media.container import LONGEST_GAP, MediaError, _clocked, _decode, _need, _open, _time_zero

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import av
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream

MAX_SIDE = 640
"""Pixels. Larger frames are scaled down while they are converted: a face keeps enough for the models."""

FALLBACK_RATE = Fraction(25)
"""Frames a second, where neither the time stamps nor the header know better."""


@_clocked
def read_frames(path: Path, fps: float, max_side: int = MAX_SIDE) -> Iterator[tuple[float, np.ndarray]]:
    """A clip's picture, looked at `fps` times a second: (seconds, [H, W, 3] uint8 RGB, read-only).

    The times are 0, 1 / fps, 2 / fps, ...; each gets the frame that a player would show then, whatever the
    video's own rate, constant or not. While a frame stays on the screen the very same array comes again. A
    picture that starts late gets no times before the last grid time that precedes it. Frames are upright
    (rotation applied) and at most `max_side` pixels on the longer side.

    Raises:
        ValueError: `fps` or `max_side` is not positive.
        MissingStream: no video stream, or an empty one.
        MediaError: the file cannot be used, or is damaged (see `_decode`); possibly after some frames.
    """
    if not fps > 0 or not max_side > 0:
        raise ValueError(f"fps and max_side must be positive, found {fps} and {max_side}")
    step = 1 / Fraction(fps).limit_denominator(1_000_000)
    shrink, convert = VideoReformatter(), VideoReformatter()  # each keeps what it set up for the last frame
    with _open(path) as container:
        stream = _need(path, container, "video")
        number: int | None = None
        shown: np.ndarray | None = None
        early = _early(stream)
        for frame, start, end in _intervals(path, container, stream, step):
            number = int(max(start, 0) / step) if number is None else number
            shown = None
            while number * step < end - early:
                shown = _to_rgb(shrink, convert, frame, max_side) if shown is None else shown
                yield float(number * step), shown
                number += 1


def read_stored_frames(path: Path) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    """A clip's pictures as they are stored, neither turned nor scaled, each with its start and end in exact seconds.

    A frame ends where the next one starts. `frame.time_base` is the stream's own, the unit of its stamps.

    Raises:
        MissingStream, MediaError: as `read_frames`; possibly after some frames.
    """
    with _open(path) as container:
        yield from _intervals(path, container, _need(path, container, "video"))


def _early(stream: Stream) -> Fraction:
    """How much earlier than its stamp a frame may be there, in seconds.

    Stamps are rounded to the stream's time base, so it may be half a tick; but a time base as coarse as the frame rate
    (AVI) is exact.
    """
    return min(stream.time_base / 2, Fraction(1, 1000))


def _intervals(
    path: Path, container: InputContainer, stream: Stream, step: Fraction | None = None
) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    """Each frame with the time it appears and the time the next one replaces it.

    With a `step`, a frame that is not on the screen at any multiple of it, and that no other is made of, may be left
    out: the one before it then lasts longer.
    """
    zero = _time_zero(container)

    def unseen(packet: Packet) -> bool:
        if packet.pts is None or not packet.duration:
            return False
        start = packet.pts * packet.time_base - zero
        # two ticks on either side: stamps and durations are rounded
        first, last = start - 2 * packet.time_base, start + (packet.duration + 2) * packet.time_base
        return first > 0 and last // step == first // step and first % step != 0

    length = 1 / (stream.average_rate or stream.guessed_rate or FALLBACK_RATE)
    held, start = None, Fraction(0)
    for frame in _decode(path, container, stream, None if step is None else unseen):
        expected = start + length if held is not None else Fraction(0)
        time = expected if frame.pts is None else frame.pts * frame.time_base - zero
        if held is not None:
            if time - start > LONGEST_GAP:
                raise MediaError(
                    f"{path}: the picture's time jumps from {float(start):.0f} s to {float(time):.0f} s; "
                    "convert it again"
                )
            yield held, start, time
        held, start = frame, time
        if frame.duration:
            length = min(frame.duration * frame.time_base, LONGEST_GAP)
    if held is not None:
        yield held, start, start + length


def _to_rgb(shrink: VideoReformatter, convert: VideoReformatter, frame: av.VideoFrame, max_side: int) -> np.ndarray:
    turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 counts
    scale = min(1.0, max_side / max(frame.width, frame.height))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    if scale < 1 and frame.format.name == "yuv420p":  # swscale is faster at one thing at a time
        frame = shrink.reformat(frame, width, height, interpolation="AREA", threads=1)
    image = convert.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    image = np.ascontiguousarray(np.rot90(image, turns))  # rows may have been padded as well
    image.flags.writeable = False
    return image
