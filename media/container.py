"""Decoding media: the one place that opens video and audio files.

Times are seconds from the clip's time zero, which is the container's start: a stream that begins later than
another keeps its distance. H, W are a frame's height and width, N counts samples.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

import av
from av.error import FFmpegError
from av.stream import Disposition, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from av.container import InputContainer
    from av.packet import Packet

P = ParamSpec("P")
T = TypeVar("T")

SHORT_BY = 0.5
"""Seconds. A stream that ends this much before its declared end is taken to be cut off."""

LONGEST_GAP = 60.0
"""Seconds. A longer jump between two time stamps is damage, not a still picture or a silence."""


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
