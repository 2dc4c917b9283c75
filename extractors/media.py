"""Decoding media: the one place that opens video and audio files.

Times are seconds from the clip's time zero, which is the container's start: a stream that begins later than
another keeps its distance. H, W are a frame's height and width, N counts samples.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from itertools import groupby
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.reformatter import VideoReformatter

P = ParamSpec("P")
T = TypeVar("T")

MAX_SIDE = 640
"""Pixels. Larger frames are scaled down while they are converted: a face keeps enough for the models."""

SHORT_BY = 0.5
"""Seconds. A stream that ends this much before its declared end is taken to be cut off."""

LONGEST_GAP = 60.0
"""Seconds. A longer jump between two time stamps is damage, not a still picture or a silence."""

AUDIO_GAP = 0.05
"""Seconds. A longer hole between audio packets becomes silence, so that what follows keeps its time."""

LOWEST_RATE = 2000
"""Hz. Sound of a lower rate holds no speech: its header is wrong, and seconds would be stretched to hours."""

FALLBACK_RATE = Fraction(25)
"""Frames a second, where neither the time stamps nor the header know better."""


REFERRING = frozenset(("concat", "dash", "hls", "image2", "imf", "rtp", "rtsp", "sdp", "vobsub", "webm_dash_manifest"))
"""FFmpeg's formats that name other files, or addresses, to be read in their place. A clip is what it holds itself."""

_OPTIONS = {"protocol_whitelist": "file,crypto,data", "format_whitelist": ",".join(av.formats_available - REFERRING)}

_clock = threading.local()


def decoding_seconds() -> float:
    """Seconds that this thread has spent in reading sound and pictures so far: what remains is the features' own."""
    return getattr(_clock, "seconds", 0.0)


def _clocked(read: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """The same generator, with the time that it takes added to `decoding_seconds`."""

    @wraps(read)
    def clocked(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        with closing(read(*args, **kwargs)) as items:
            while True:
                began = time.perf_counter()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    _clock.seconds = decoding_seconds() + time.perf_counter() - began
                yield item

    return clocked


class MediaError(Exception):
    """A media file cannot be used. The message names the file, what was found, and what to do."""


class MissingStream(MediaError):
    """The file is sound, but has no stream of the kind that was asked for."""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a media file declares. None where the header does not say, or where there is no such stream.

    Attributes:
        duration: seconds.
        has_audio, has_video: a cover picture in an audio file is no video.
        fps: average frames a second.
        width, height: pixels as stored, before any rotation.
        sample_rate: Hz.
        video_codec, audio_codec, container: FFmpeg's names.
    """

    duration: float | None
    has_audio: bool
    has_video: bool
    fps: float | None
    width: int | None
    height: int | None
    sample_rate: int | None
    video_codec: str | None
    audio_codec: str | None
    container: str


@contextmanager
def _open(path: Path) -> Iterator[InputContainer]:
    path = Path(path).absolute()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise MediaError(f"{path}: {found}, expected a media file; correct the corpus's media paths")
    if not path.stat().st_size:
        raise MediaError(f"{path}: zero bytes; copy or download the file again")
    try:
        # `file:`: a colon in a name is no protocol; the lists: no file can reach the network, or another file
        container = av.open(f"file:{path}", metadata_errors="replace", options=_OPTIONS)
    except (FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path}: {path.stat().st_size} bytes, but not a media file, or cut off before its index "
            f"({_reason(error)}); copy it again, or convert it with a current ffmpeg"
        ) from error
    with container:
        yield container


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _find(container: InputContainer, kind: Literal["audio", "video"]) -> Stream | None:
    """The file's main stream of a kind, wherever it stands; cover pictures do not count."""
    streams = [s for s in getattr(container.streams, kind) if not s.disposition & Disposition.attached_pic]
    return max(streams, key=lambda s: bool(s.disposition & Disposition.default), default=None)


def _need(path: Path, container: InputContainer, kind: Literal["audio", "video"]) -> Stream:
    stream = _find(container, kind)
    if stream is None:
        raise MissingStream(f"{path}: no {kind} stream")
    if stream.codec_context is None:
        raise MediaError(f"{path}: no decoder for its {kind} stream; convert it to an mp4 file")
    stream.codec_context.thread_count = 1  # the clips are spread over the cores, not one clip's frames
    return stream


def probe(path: Path) -> MediaInfo:
    """What the headers of a media file say; nothing is decoded.

    Raises:
        MediaError: not there, zero bytes, not a media file, or neither sound nor picture in it.
    """
    with _open(path) as container:
        video, audio = _find(container, "video"), _find(container, "audio")
        if video is None and audio is None:
            raise MediaError(f"{path}: {container.format.name} without sound or picture; replace the file")
        return _info(container, video, audio)


def found_length(path: Path, most: float) -> float:
    """Seconds up to the end of a file's last packet, whatever its header declares; nothing is decoded.

    Reading ends with the first packet beyond `most` seconds, so a long file costs no more than that.

    Raises:
        MediaError: as `probe`.
    """
    reached = 0.0
    with _open(path) as container:
        zero = float(_time_zero(container))
        packets = container.demux()
        while reached <= most:
            try:
                packet = next(packets, None)
            except FFmpegError:  # torn; whoever decodes it says where
                break
            if packet is None:
                break
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                reached = max(reached, float(end) - zero)
    return reached


def _info(container: InputContainer, video: Stream | None, audio: Stream | None) -> MediaInfo:
    lengths = [s.duration * s.time_base for s in (video, audio) if s is not None and s.duration]
    duration = max(lengths, default=None)
    if container.duration:
        duration = Fraction(container.duration, av.time_base)
    picture = video.codec_context if video is not None else None
    sound = audio.codec_context if audio is not None else None
    rate = video.average_rate or video.guessed_rate if video is not None else None
    return MediaInfo(
        duration=float(duration) if duration else None,
        has_audio=audio is not None,
        has_video=video is not None,
        fps=float(rate) if rate else None,
        width=(picture.width or None) if picture else None,
        height=(picture.height or None) if picture else None,
        sample_rate=(sound.sample_rate or None) if sound else None,
        video_codec=picture.name if picture else None,
        audio_codec=sound.name if sound else None,
        container=container.format.name,
    )


def _decode(
    path: Path, container: InputContainer, stream: Stream, unseen: Callable[[Packet], bool] | None = None
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Every frame of a stream, in order of presentation; of those that are `unseen`, only what others are made of.

    A packet that does not decode is allowed before the first frame (a recording that was cut inside a group
    of pictures) and after the last one (its torn end); between two frames it fails the file.

    Raises:
        MissingStream: the stream is declared, but holds no packet.
        MediaError: nothing decodes, something between does not, or the file ends before its declared end.
    """
    failure: FFmpegError | None = None
    torn = False
    packets = frames = 0
    reached = {s.index: Fraction(0) for s in container.streams}
    demuxer = container.demux()
    while True:
        try:
            packet = next(demuxer, None)
        except FFmpegError as error:
            failure, torn = error, True
            break
        if packet is None:
            break
        if packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            reached[packet.stream.index] = max(reached[packet.stream.index], end)
        if packet.stream.index != stream.index:
            continue
        packets += bool(packet.size)
        if unseen is not None:
            stream.codec_context.skip_frame = "NONREF" if unseen(packet) else "DEFAULT"
        try:
            decoded = packet.decode()
        except FFmpegError as error:
            failure = error if frames else None
            continue
        if decoded and packet.size and failure is not None:
            raise MediaError(
                f"{path}: damaged at {float(reached[stream.index]):.2f} s of its {stream.type} stream "
                f"({_reason(failure)}); copy it again, or convert it with a current ffmpeg"
            )
        frames += len(decoded)
        yield from decoded
    _check_end(path, container, reached[stream.index] if torn else max(reached.values()))
    if not packets and not torn:
        raise MissingStream(f"{path}: its {stream.type} stream is empty")
    if not frames:
        raise MediaError(f"{path}: nothing of its {stream.type} stream decodes; copy or record it again")


def _check_end(path: Path, container: InputContainer, reached: Fraction) -> None:
    """Raise MediaError where a container that writes its duration down ends well before it.

    Other containers' durations are guessed from the file's size or last time stamp and prove nothing.
    """
    if container.format.name.split(",")[0] not in ("mov", "matroska", "wav") or not container.duration:
        return
    declared = Fraction(container.duration, av.time_base)
    found = max(reached - _time_zero(container), Fraction(0))
    if declared - found > SHORT_BY:
        raise MediaError(
            f"{path}: truncated: {float(declared):.2f} s declared, {float(found):.2f} s found; "
            "copy or download the file again"
        )


def _time_zero(container: InputContainer) -> Fraction:
    return Fraction(container.start_time or 0, av.time_base)


def read_audio(path: Path, sample_rate: int) -> np.ndarray:
    """A clip's sound as one channel, [N] float32, at `sample_rate` Hz.

    Sample n is at n / sample_rate seconds after time zero: a stream that begins late, or has a hole, is
    filled up with silence. Channels are averaged.

    Raises:
        MissingStream: no audio stream, or an empty one.
        MediaError: the file cannot be used, or is damaged (see `_decode`).
    """
    return np.concatenate(list(read_audio_blocks(path, sample_rate)))


@_clocked
def read_audio_blocks(path: Path, sample_rate: int) -> Iterator[np.ndarray]:
    """What `read_audio` gives, in blocks of about a second, one after the other: an hour need not fit the memory.

    Raises:
        MissingStream, MediaError: as `read_audio`; possibly after some blocks.
    """
    given = 0
    for (start, rate), run in groupby(_sound_pieces(path), key=lambda piece: piece[:2]):
        skip = given - round(start * sample_rate)  # what lies before time zero, or in what was given already
        if skip < 0:
            yield np.zeros(-skip, np.float32)
            given, skip = given - skip, 0
        for samples in _resample((samples for *_, samples in run), start, rate, sample_rate):
            if len(samples) > skip:
                yield samples[skip:]
                given += len(samples) - skip
            skip = max(skip - len(samples), 0)
    if not given:
        raise MissingStream(f"{path}: its audio stream is empty")


def _sound_pieces(path: Path) -> Iterator[tuple[Fraction, int, np.ndarray]]:
    """Samples as they are decoded, channels averaged, each with its run's start in seconds and rate in Hz.

    A run is a stretch without a hole or a change of rate.
    """
    start, rate, clock, kind = Fraction(0), 0, 0.0, None
    with _open(path) as container:
        stream = _need(path, container, "audio")
        zero = _time_zero(container)
        offset = float(zero)
        for frame in _decode(path, container, stream):
            time = clock if frame.pts is None else frame.time - offset
            if time - clock > LONGEST_GAP:
                raise MediaError(f"{path}: the sound's time jumps by {time - clock:.0f} s; convert it again")
            if frame.sample_rate < LOWEST_RATE:
                raise MediaError(
                    f"{path}: sound at {frame.sample_rate} Hz, expected {LOWEST_RATE} or more; convert it again"
                )
            if kind != (frame.format.name, frame.layout.name, frame.sample_rate):
                kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                to_float = None if frame.format.name == "fltp" else av.AudioResampler("fltp")
            if rate != frame.sample_rate or time - clock > AUDIO_GAP:
                start = Fraction(clock) if frame.pts is None else frame.pts * frame.time_base - zero
                rate, clock = frame.sample_rate, time
            clock += frame.samples / rate
            for piece in to_float.resample(frame) if to_float else [frame]:
                channels = piece.to_ndarray()
                yield start, rate, channels[0] if len(channels) == 1 else channels.sum(axis=0) / len(channels)


def _resample(pieces: Iterable[np.ndarray], start: Fraction, rate: int, wanted: int) -> Iterator[np.ndarray]:
    """A run's samples at another rate, in blocks of about a second; as many as lie between its rounded ends."""
    resampler = av.AudioResampler("fltp", "mono", wanted)

    def convert(samples: np.ndarray) -> list[np.ndarray]:
        if rate == wanted:
            return [samples]
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate = rate
        return [piece.to_ndarray()[0] for piece in resampler.resample(frame)]

    taken = given = 0
    held = np.empty(0, np.float32)
    for samples in _gather(pieces, rate):
        yield held
        given += len(held)
        taken += len(samples)
        held = np.concatenate([np.empty(0, np.float32), *convert(samples)])
    behind = []
    if rate != wanted:  # the filter keeps back its last taps: let it keep silence
        behind = [*convert(np.zeros(rate // 10, np.float32)), *(p.to_ndarray()[0] for p in resampler.resample(None))]
    held = np.concatenate([held, *behind])[: round(taken * wanted / rate) - given]
    end = round((start + Fraction(taken, rate)) * wanted) - round(start * wanted)
    yield np.pad(held, (0, max(end - given - len(held), 0)))[: end - given]


def _gather(pieces: Iterable[np.ndarray], least: int) -> Iterator[np.ndarray]:
    """The same samples in pieces of at least so many, but for the last."""
    waiting: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count >= least:
            yield np.concatenate(waiting)
            waiting, count = [], 0
    if count:
        yield np.concatenate(waiting)


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
