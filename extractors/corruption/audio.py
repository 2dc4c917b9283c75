"""Corruptions of the sound: noise over it, or moments lost.

The sound is read twice, block by block: first for what has to be known of the whole, then to be changed. It is written
as one channel of 32-bit floating point at its own rate, from time zero: nothing is clipped, and nothing else changes.
The picture is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from media.audio import read_audio_blocks
from media.container import probe

if TYPE_CHECKING:
    from pathlib import Path

Draw = Callable[[], np.random.Generator]
"""Gives the clip's random numbers, from their beginning at each call."""

FALLBACK_RATE = 48_000
"""Hz, where the header names none."""

SPEECH_SPECTRUM = {
    63: 38.6, 80: 43.5, 100: 54.4, 125: 57.7, 160: 56.8, 200: 60.2, 250: 60.3, 315: 59.0, 400: 62.1, 500: 62.1,
    630: 60.5, 800: 56.8, 1000: 53.7, 1250: 53.0, 1600: 52.0, 2000: 48.7, 2500: 48.1, 3150: 46.8, 4000: 45.6,
    5000: 44.5, 6300: 44.3, 8000: 43.7, 10000: 43.4, 12500: 41.3, 16000: 40.7,
}  # fmt: skip
"""Hz -> dB of the third of an octave around it: the long-term average spectrum of speech, of women and men together.

It is the same for all languages to a few dB (Byrne et al., "An international comparison of long-term average speech
spectra", Journal of the Acoustical Society of America 96(4), 1994).
"""

FILTER_SECONDS = 0.04

SPAN_SECONDS = (0.1, 0.3)
"""How long one loss is: some packets of 20 ms in a row."""


class SpeechNoise:
    """Stationary Gaussian noise with the long-term spectrum of speech, in pieces that continue each other.

    It covers speech evenly, as a crowd does that is too dense to make out a word; intelligibility is tested with it.
    """

    def __init__(self, rng: np.random.Generator, rate: int) -> None:
        self._rng = rng
        self._filter = _speech_filter(rate)
        self._tail = np.zeros(len(self._filter) - 1)

    def take(self, count: int) -> np.ndarray:
        """The next [count] samples."""
        from scipy.signal import fftconvolve

        if not count:
            return np.zeros(0)
        noise = fftconvolve(self._rng.standard_normal(count), self._filter)
        noise[: len(self._tail)] += self._tail
        self._tail = noise[count:]
        return noise[:count]


def _speech_filter(rate: int) -> np.ndarray:
    """A linear-phase filter that gives white noise the spectrum of speech, silent at 0 Hz and half the rate."""
    from scipy.signal import firwin2

    known = {hz: math.sqrt(10 ** (db / 10) / hz) for hz, db in SPEECH_SPECTRUM.items() if hz < rate / 2}
    return firwin2(round(rate * FILTER_SECONDS) | 1, [0, *known, rate / 2], [0, *known.values(), 0], fs=rate)


def add_noise(media: Path, out: Path, level: float, draw: Draw) -> Path:
    """Speech-shaped noise at a signal-to-noise ratio of `level` dB. All of these: see `_write`.

    The ratio is that of the mean powers over the whole clip. The noise is the same at every level but for its strength;
    a clip of digital silence stays silent.
    """
    rate, blocks = _sound(media)
    noise = SpeechNoise(draw(), rate)
    signal_energy = noise_energy = 0.0
    for samples in blocks():
        signal_energy += float(np.square(samples, dtype=float).sum())
        noise_energy += float(np.square(noise.take(len(samples))).sum())
    gain = math.sqrt(signal_energy / noise_energy / 10 ** (level / 10)) if noise_energy else 0.0
    again = SpeechNoise(draw(), rate)
    return _write((samples + gain * again.take(len(samples)) for samples in blocks()), out, rate)


def silence_spans(media: Path, out: Path, level: float, draw: Draw) -> Path:
    """The fraction `level` of the clip is silence, in spans of 0.1 to 0.3 s, as where packets are lost.

    The clip is cut into such spans, and they go in a random order until enough is silent, the last one in part: what is
    lost at one level is lost at the higher ones too. Neighbours may both go, which makes a longer loss.
    """
    rate, blocks = _sound(media)
    lost = choose_spans(sum(map(len, blocks())), rate, level, draw())

    def silenced() -> Iterator[np.ndarray]:
        first = 0
        for samples in blocks():
            changed = samples.copy()
            here = lost[(lost[:, 0] < first + len(samples)) & (lost[:, 1] > first)]
            for start, end in here - first:
                changed[max(start, 0) : end] = 0
            yield changed
            first += len(samples)

    return _write(silenced(), out, rate)


def choose_spans(count: int, rate: int, level: float, rng: np.random.Generator) -> np.ndarray:
    """[S, 2] start and end, in samples, of what is lost of a clip of `count`; `level` of it in all."""
    shortest, longest = SPAN_SECONDS
    lengths = rng.uniform(shortest, longest, math.ceil(count / rate / shortest) + 1) * rate
    edges = np.unique(np.minimum(np.rint(np.cumsum([0, *lengths])).astype(int), count))
    order = rng.permutation(len(edges) - 1)
    start, length = edges[order], np.diff(edges)[order]
    before = np.cumsum(length) - length
    taken = np.clip(round(level * count) - before, 0, length)
    return np.column_stack([start, start + taken])[taken > 0]


def _sound(media: Path) -> tuple[int, Callable[[], Iterator[np.ndarray]]]:
    """The sound's rate in Hz, and what reads it, as often as one likes."""
    rate = probe(media).sample_rate or FALLBACK_RATE
    return rate, lambda: read_audio_blocks(media, rate)


def _write(blocks: Iterable[np.ndarray], out: Path, rate: int) -> Path:
    """Write samples to `out` with the ending .wav, and give that path.

    Raises:
        MissingStream, MediaError, ExtractionError: as `extractors.base.read_audio_blocks`.
    """
    import soundfile

    path = out.with_name(f"{out.name}.wav")
    with soundfile.SoundFile(path, "w", rate, channels=1, subtype="FLOAT") as file:
        for samples in blocks:
            file.write(samples.astype(np.float32))
    return path
