"""Opening, probing and decoding of media files with PyAV (FFmpeg).

Times are seconds from the start of the container, so that a stream that begins later than another keeps its offset.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import av
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

P = ParamSpec("P")
T = TypeVar("T")
StreamT = TypeVar("StreamT", bound=Stream)
FrameT = TypeVar("FrameT", av.VideoFrame, av.AudioFrame)

MAX_MISSING = 0.5
"""Seconds. A file that ends earlier than this before its declared end counts as truncated."""

MAX_GAP = 60.0
"""Seconds. A longer jump between two time stamps is damage, not a still image or silence."""

MAX_PIXELS = 7680 * 4320
"""Pixels of a frame, those of 8K video. A file of a few bytes can declare frames that take gigabytes to decode."""

REFERENCE_FORMATS = frozenset(
    ("concat", "dash", "hls", "image2", "imf", "rtp", "rtsp", "sdp", "vobsub", "webm_dash_manifest")
)
"""FFmpeg formats whose files refer to other files or addresses. They are refused: a clip must be self-contained."""

_DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS * 9 // 8)}
"""Have decoders refuse a frame before they allocate it. They round its width up to a multiple of 64, hence the margin;
`check_frame_size` applies the exact limit."""

_OPTIONS = {
    **_DECODER_OPTIONS,  # opening a file may decode a frame to learn its format
    "protocol_whitelist": "file,crypto,data",
    "format_whitelist": ",".join(av.formats_available - REFERENCE_FORMATS),
}

_TAG_ARGUMENTS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Have av accept tags that are not UTF-8, as av 19 always does; it has no such argument."""

_clock = threading.local()


class MediaError(Exception):
    """A media file cannot be used. The message names the file, what was found, and what to do."""


class MissingStreamError(MediaError):
    """The file is intact, but has no stream of the requested kind."""


class FrameSizeError(MediaError):
    """The frames have more than `MAX_PIXELS`."""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """Header information of a media file. None where the header does not say, or where there is no such stream.

    Attributes:
        duration: seconds.
        has_audio, has_video: whether there is such a stream; the cover image of an audio file is not video.
        fps: average frames per second.
        width, height: pixels as stored, before any rotation.
        pixel_aspect: width of a pixel divided by its height, 1 unless the video is anamorphic.
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
    pixel_aspect: Fraction = Fraction(1)


def decoding_seconds() -> float:
    """Return the seconds that this thread has spent decoding audio and video so far."""
    return getattr(_clock, "seconds", 0.0)


def count_decoding_time(
    read: Callable[P, Generator[T, None, None]],
) -> Callable[P, Generator[T, None, None]]:
    """Decorate a generator function so that its running time counts towards `decoding_seconds`."""

    @wraps(read)
    def timed(*args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        with closing(read(*args, **kwargs)) as items:
            while True:
                start = time.perf_counter()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    _clock.seconds = decoding_seconds() + time.perf_counter() - start
                yield item

    return timed


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a media file.

    Raises:
        MediaError: the file does not exist, is empty, or is not a media file.
    """
    path = Path(path).absolute()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise MediaError(f"{path}: {found}, expected a media file; correct the corpus's media paths")
    if not path.stat().st_size:
        raise MediaError(f"{path}: zero bytes; copy or download the file again")
    try:
        # `file:` keeps a colon in the name from being read as a protocol; the whitelists in _OPTIONS keep a file from
        # reaching the network or other files.
        container = av.open(f"file:{path}", options=_OPTIONS, **_TAG_ARGUMENTS)
    except (FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path}: {path.stat().st_size} bytes, but not a media file, or cut off before its index "
            f"({_reason(error)}); copy it again, or convert it with a current ffmpeg"
        ) from error
    with container:
        yield container


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _main_stream(streams: Sequence[StreamT]) -> StreamT | None:
    """Return the default stream, or else the first one; cover images do not count."""
    candidates = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    return max(candidates, key=lambda stream: bool(stream.disposition & Disposition.default), default=None)


def require_stream(path: Path, container: InputContainer, kind: Literal["audio", "video"]) -> Stream:
    """Return the file's main audio or video stream.

    Raises:
        MissingStreamError: there is none.
        FrameSizeError: the header declares frames that are too large.
        MediaError: FFmpeg has no decoder for it.
    """
    stream: Stream | None = _main_stream(getattr(container.streams, kind))
    if stream is None:
        raise MissingStreamError(f"{path}: no {kind} stream")
    if stream.codec_context is None:
        raise MediaError(f"{path}: no decoder for its {kind} stream; convert it to an mp4 file")
    if isinstance(stream, VideoStream):
        check_frame_size(path, stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = _DECODER_OPTIONS
    stream.codec_context.thread_count = 1  # parallelism is over clips, not over the frames of one clip
    return stream


def check_frame_size(name: object, width: int, height: int) -> None:
    """Check that a frame is small enough to be decoded and converted.

    Args:
        name: the file's name or path, for the message.
        width: pixels.
        height: pixels.

    Raises:
        FrameSizeError: the frame has more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise FrameSizeError(
            f"{name}: frames of {width} x {height}, but at most {MAX_PIXELS:,} pixels (8K) are read; "
            "reduce its resolution"
        )


def start_time(container: InputContainer) -> Fraction:
    """Return the container's own start time, which is time zero of the clip."""
    return Fraction(container.start_time or 0, av.time_base)


def frame_time(frame: av.VideoFrame | av.AudioFrame) -> Fraction | None:
    """Return a frame's time stamp in seconds, not yet relative to `start_time`; None where it has none."""
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


def probe(path: Path) -> MediaInfo:
    """Read the headers of a media file. Nothing is decoded.

    Raises:
        MediaError: the file does not exist, is empty, is not a media file, or has neither audio nor video.
    """
    with open_media(path) as container:
        video, audio = _main_stream(container.streams.video), _main_stream(container.streams.audio)
        if video is None and audio is None:
            raise MediaError(f"{path}: {container.format.name} without audio or video; replace the file")
        return _media_info(container, video, audio)


def _media_info(container: InputContainer, video: VideoStream | None, audio: AudioStream | None) -> MediaInfo:
    duration = max((s.duration * s.time_base for s in (video, audio) if s and s.duration and s.time_base), default=None)
    if container.duration:
        duration = Fraction(container.duration, av.time_base)
    video_codec = video.codec_context if video is not None else None
    audio_codec = audio.codec_context if audio is not None else None
    rate = video.average_rate or video.guessed_rate if video is not None else None
    return MediaInfo(
        duration=float(duration) if duration else None,
        has_audio=audio is not None,
        has_video=video is not None,
        fps=float(rate) if rate else None,
        width=(video_codec.width or None) if video_codec else None,
        height=(video_codec.height or None) if video_codec else None,
        sample_rate=(audio_codec.sample_rate or None) if audio_codec else None,
        video_codec=video_codec.name if video_codec else None,
        audio_codec=audio_codec.name if audio_codec else None,
        container=container.format.name,
        pixel_aspect=pixel_aspect(video) if video is not None else Fraction(1),
    )


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Return the width of a video's pixels divided by their height; 1 where the file does not say."""
    aspect = stream.sample_aspect_ratio
    return aspect if aspect is not None and aspect > 0 else Fraction(1)


def measure_duration(path: Path, limit: float) -> float:
    """Return the seconds up to the end of a file's last packet, whatever its header declares. Nothing is decoded.

    Reading stops at the first packet that ends after `limit` seconds, which bounds the cost of a long file.

    Raises:
        MediaError: see `open_media`.
    """
    reached = 0.0
    with open_media(path) as container:
        zero = float(start_time(container))
        packets = container.demux()
        while reached <= limit:
            try:
                packet = next(packets, None)
            except FFmpegError:  # a truncated file; decoding reports where
                break
            if packet is None:
                break
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                reached = max(reached, float(end) - zero)
    return reached


def decode_frames(
    path: Path,
    container: InputContainer,
    stream: Stream,
    frame_type: type[FrameT],
    skippable: Callable[[Packet[Stream]], bool] | None = None,
) -> Iterator[FrameT]:
    """Decode a stream's frames in presentation order.

    A packet that does not decode is tolerated before the first frame (a recording that was cut inside a group of
    pictures) and after the last one (a truncated end). Between two frames it is an error.

    Args:
        path: the file's path, for messages.
        container: the open file.
        stream: one of its streams.
        frame_type: type of the stream's frames.
        skippable: whether the caller does not need a packet's frame. It is then decoded only if other frames
            depend on it.

    Raises:
        MissingStreamError: the stream is declared, but holds no packet.
        FrameSizeError: a frame is too large; it is not decoded.
        MediaError: no frame decodes, a frame in the middle does not, or the file ends before its declared end.
    """
    failure: FFmpegError | None = None
    torn = False
    packets = frames = 0
    reached = {s.index: Fraction(0) for s in container.streams}
    demuxer = container.demux()
    while True:
        # Demux
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

        # Decode
        if skippable is not None:
            stream.codec_context.skip_frame = "NONREF" if skippable(packet) else "DEFAULT"
        try:
            decoded = packet.decode()
        except FFmpegError as error:
            if frames and isinstance(stream, VideoStream):
                _check_refused_frame(path, stream, reached[stream.index])
            failure = error if frames else None
            continue
        if decoded and packet.size and failure is not None:
            raise MediaError(
                f"{path}: damaged at {float(reached[stream.index]):.2f} s of its {stream.type} stream "
                f"({_reason(failure)}); copy it again, or convert it with a current ffmpeg"
            )
        frames += len(decoded)
        for frame in decoded:
            if isinstance(frame, av.VideoFrame):
                check_frame_size(path, frame.width, frame.height)
            if isinstance(frame, frame_type):
                yield frame

    _check_end(path, container, reached[stream.index] if torn else max(reached.values()))
    if not packets and not torn:
        raise MissingStreamError(f"{path}: its {stream.type} stream is empty")
    if not frames:
        too_large = f", or its pictures have more than {MAX_PIXELS:,} pixels" if isinstance(stream, VideoStream) else ""
        raise MediaError(f"{path}: nothing of its {stream.type} stream decodes{too_large}; copy or record it again")


def _check_refused_frame(path: Path, stream: VideoStream, time: Fraction) -> None:
    """Raise FrameSizeError where a frame did not decode because it is too large for `_DECODER_OPTIONS`."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width * height:  # some decoders reset the size that they refuse
        raise FrameSizeError(
            f"{path}: at {float(time):.2f} s its frames grow to more than {MAX_PIXELS:,} pixels; reduce its resolution"
        )
    check_frame_size(path, width, height)


def _check_end(path: Path, container: InputContainer, reached: Fraction) -> None:
    """Raise MediaError where a file ends well before its declared duration.

    Only some containers store a duration. For others FFmpeg estimates it from the file's size or last time stamp,
    which proves nothing.
    """
    if container.format.name.split(",")[0] not in ("mov", "matroska", "wav") or not container.duration:
        return
    declared = Fraction(container.duration, av.time_base)
    found = max(reached - start_time(container), Fraction(0))
    if declared - found > MAX_MISSING:
        raise MediaError(
            f"{path}: truncated: {float(declared):.2f} s declared, {float(found):.2f} s found; "
            "copy or download the file again"
        )
