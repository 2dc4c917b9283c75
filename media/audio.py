"""Audio decoding: mono float32 samples at a given rate, whole or in blocks."""

from __future__ import annotations

from fractions import Fraction
from itertools import groupby
from typing import TYPE_CHECKING

import av
import numpy as np

from media.container import LONGEST_GAP, MediaError, MissingStream, _clocked, _decode, _need, _open, _time_zero

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

AUDIO_GAP = 0.05
"""Seconds. A longer hole between audio packets becomes silence, so that what follows keeps its time."""

LOWEST_RATE = 2000
"""Hz. Sound of a lower rate holds no speech: its header is wrong, and seconds would be stretched to hours."""


def read_audio(path: Path, sample_rate: int) -> np.ndarray:
    """A clip's sound as one channel, [N] float32, at `sample_rate` Hz.

    Sample n is at n / sample_rate seconds after time zero: a stream that begins late, or has a hole, is
    filled up with silence. Channels are averaged.

    Raises:
        MissingStream: no audio stream, or an empty one.
        MediaError: the file cannot be used, is damaged (see `_decode`), or a sample is NaN or infinite.
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
                if not np.isfinite(samples).all():
                    raise MediaError(f"{path}: its sound holds NaN or infinite samples; convert it again")
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


def cut_overlapping(blocks: Iterable[np.ndarray], longest: int, context: int) -> Iterator[tuple[np.ndarray, slice]]:
    """Cut a clip's samples, given in blocks, into stretches of `longest` that see `context` samples of each other.

    Gives each stretch and where in it the part lies that no other stretch gives; in the last it is longer than
    `context`. A clip of up to `longest` samples is one stretch. Only a stretch is held at a time.
    """
    held: list[np.ndarray] = []
    count = before = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        while count > longest:
            samples = np.concatenate(held)
            yield samples[:longest], slice(before, longest - context)
            held, before = [samples[longest - 2 * context :]], context
            count -= longest - 2 * context
    yield np.concatenate(held), slice(before, count)
