"""Audio decoding: mono float32 samples at a given rate, whole or in blocks."""

from __future__ import annotations

from fractions import Fraction
from itertools import groupby
from typing import TYPE_CHECKING

import av
import numpy as np

from media.container import (
    MAX_GAP,
    MediaError,
    MissingStreamError,
    count_decoding_time,
    decode_frames,
    frame_time,
    open_media,
    require_stream,
    start_time,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

MAX_CONTINUOUS_GAP = 0.05
"""Seconds. A longer gap between audio packets is filled with silence, so that what follows keeps its time."""

MIN_SAMPLE_RATE = 2000
"""Hz. A lower rate cannot carry speech: the header is wrong, and seconds would be stretched to hours."""


def read_audio(path: Path, sample_rate: int) -> np.ndarray:
    """Return a clip's audio as one channel, [N] float32, at `sample_rate` Hz.

    Sample n is at n / sample_rate seconds: a stream that starts late, or has a gap, is filled with silence. Channels
    are averaged.

    Raises:
        MissingStreamError: there is no audio stream, or an empty one.
        MediaError: the file cannot be used, is damaged (see `decode_frames`), or a sample is NaN or infinite.
    """
    return np.concatenate(list(read_audio_blocks(path, sample_rate)))


@count_decoding_time
def read_audio_blocks(path: Path, sample_rate: int) -> Generator[np.ndarray, None, None]:
    """Yield what `read_audio` returns in consecutive blocks of about a second, so that long files fit in memory.

    Raises:
        MissingStreamError, MediaError: as `read_audio`; possibly after some blocks.
    """
    written = 0
    for (start, rate), run in groupby(_decode_runs(path), key=lambda piece: piece[:2]):
        skip = written - round(start * sample_rate)  # samples before time zero, or that overlap the previous run
        if skip < 0:
            yield np.zeros(-skip, np.float32)
            written, skip = written - skip, 0
        for samples in _resample((samples for *_, samples in run), start, rate, sample_rate):
            if len(samples) > skip:
                if not np.isfinite(samples).all():
                    raise MediaError(f"{path}: its audio holds NaN or infinite samples; convert it again")
                yield samples[skip:]
                written += len(samples) - skip
            skip = max(skip - len(samples), 0)
    if not written:
        raise MissingStreamError(f"{path}: its audio stream is empty")


def _decode_runs(path: Path) -> Iterator[tuple[Fraction, int, np.ndarray]]:
    """Yield decoded samples with channels averaged, each array with its run's start in seconds and rate in Hz.

    A run is a stretch without a gap or a change of sample rate.
    """
    start, rate, clock = Fraction(0), 0, 0.0
    current_format: tuple[str, str, int] | None = None
    with open_media(path) as container:
        stream = require_stream(path, container, "audio")
        zero = start_time(container)
        for frame in decode_frames(path, container, stream, av.AudioFrame):
            stamp = frame_time(frame)
            time = clock if stamp is None else float(stamp - zero)
            if time - clock > MAX_GAP:
                raise MediaError(f"{path}: the audio's time jumps by {time - clock:.0f} s; convert it again")
            if frame.sample_rate < MIN_SAMPLE_RATE:
                raise MediaError(
                    f"{path}: audio at {frame.sample_rate} Hz, expected {MIN_SAMPLE_RATE} or more; convert it again"
                )
            # A new converter for each format, a new run after each gap or change of rate
            if current_format != (frame.format.name, frame.layout.name, frame.sample_rate):
                current_format = (frame.format.name, frame.layout.name, frame.sample_rate)
                to_float = None if frame.format.name == "fltp" else av.AudioResampler("fltp")
            if rate != frame.sample_rate or time - clock > MAX_CONTINUOUS_GAP:
                start = Fraction(clock) if stamp is None else stamp - zero
                rate, clock = frame.sample_rate, time
            clock += frame.samples / rate
            for piece in to_float.resample(frame) if to_float else [frame]:
                channels = piece.to_ndarray()
                yield start, rate, channels[0] if len(channels) == 1 else channels.sum(axis=0) / len(channels)


def _resample(pieces: Iterable[np.ndarray], start: Fraction, rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """Resample a run in blocks of about a second.

    The number of samples is that between the run's start and end, both rounded to `new_rate`.
    """
    resampler = av.AudioResampler("fltp", "mono", new_rate)

    def convert(samples: np.ndarray) -> list[np.ndarray]:
        if rate == new_rate:
            return [samples]
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate = rate
        return [piece.to_ndarray()[0] for piece in resampler.resample(frame)]

    taken = written = 0
    block = np.empty(0, np.float32)
    for samples in _gather(pieces, rate):
        yield block
        written += len(block)
        taken += len(samples)
        block = np.concatenate([np.empty(0, np.float32), *convert(samples)])
    tail = []
    if rate != new_rate:  # flush the filter's delay line with silence
        tail = [*convert(np.zeros(rate // 10, np.float32)), *(p.to_ndarray()[0] for p in resampler.resample(None))]
    block = np.concatenate([block, *tail])[: round(taken * new_rate / rate) - written]
    count = round((start + Fraction(taken, rate)) * new_rate) - round(start * new_rate)
    yield np.pad(block, (0, max(count - written - len(block), 0)))[: count - written]


def _gather(pieces: Iterable[np.ndarray], min_length: int) -> Iterator[np.ndarray]:
    """Join arrays into arrays of at least `min_length` samples; the last may be shorter."""
    pending: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        pending.append(piece)
        count += len(piece)
        if count >= min_length:
            yield np.concatenate(pending)
            pending, count = [], 0
    if count:
        yield np.concatenate(pending)


def cut_overlapping(blocks: Iterable[np.ndarray], length: int, context: int) -> Iterator[tuple[np.ndarray, slice]]:
    """Cut a clip's samples, given in blocks, into windows of `length` with `context` samples of overlap on either side.

    Yield each window with the slice of it that no other window covers; the slice is longer than `context` in the last
    window. A clip of up to `length` samples is one window. Only one window is held in memory at a time.
    """
    held: list[np.ndarray] = []
    count = before = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        while count > length:
            samples = np.concatenate(held)
            yield samples[:length], slice(before, length - context)
            held, before = [samples[length - 2 * context :]], context
            count -= length - 2 * context
    yield np.concatenate(held), slice(before, count)
