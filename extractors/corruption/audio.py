"""Corruptions of the sound: added noise, silenced spans.

The sound is read twice, block by block: once to measure it as a whole, once to change it. The result is a mono 32-bit
float WAV file at the original sample rate, starting at time zero, so nothing is clipped or resampled.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np

from media.audio import read_audio_blocks
from media.container import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

FALLBACK_RATE = 48_000
"""Sample rate in Hz where the file's header has none."""

SPEECH_SPECTRUM = {
    63: 38.6, 80: 43.5, 100: 54.4, 125: 57.7, 160: 56.8, 200: 60.2, 250: 60.3, 315: 59.0, 400: 62.1, 500: 62.1,
    630: 60.5, 800: 56.8, 1000: 53.7, 1250: 53.0, 1600: 52.0, 2000: 48.7, 2500: 48.1, 3150: 46.8, 4000: 45.6,
    5000: 44.5, 6300: 44.3, 8000: 43.7, 10000: 43.4, 12500: 41.3, 16000: 40.7,
}  # fmt: skip
"""Long-term average spectrum of speech, women and men combined: third-octave centre in Hz -> level in dB.

It is the same for all languages within a few dB (Byrne et al., "An international comparison of long-term average
speech spectra", Journal of the Acoustical Society of America 96(4), 1994).
"""

FILTER_SECONDS = 0.04

SPAN_SECONDS = (0.1, 0.3)
"""Shortest and longest span: several consecutive packets of 20 ms."""


class SpeechNoise:
    """Stationary Gaussian noise with the long-term spectrum of speech, generated in contiguous blocks.

    It masks speech evenly, like a crowd too dense to make out a word; intelligibility tests use such noise.
    """

    def __init__(self, rng: np.random.Generator, rate: int) -> None:
        self._rng = rng
        self._filter = _speech_filter(rate)
        self._tail = np.zeros(len(self._filter) - 1)

    def take(self, count: int) -> np.ndarray:
        """Return the next [count] samples."""
        from scipy.signal import fftconvolve

        if not count:
            return np.zeros(0)
        noise: np.ndarray = fftconvolve(self._rng.standard_normal(count), self._filter)
        noise[: len(self._tail)] += self._tail
        self._tail = noise[count:]
        return noise[:count]


def _speech_filter(rate: int) -> np.ndarray:
    """Design a linear-phase filter that shapes white noise like speech, with zeros at 0 Hz and half the rate."""
    from scipy.signal import firwin2

    gains = {hz: math.sqrt(10 ** (db / 10) / hz) for hz, db in SPEECH_SPECTRUM.items() if hz < rate / 2}
    length = round(rate * FILTER_SECONDS) | 1
    taps: np.ndarray = firwin2(length, [0, *gains, rate / 2], [0, *gains.values(), 0], fs=rate)
    return taps


def add_noise(media: Path, out: Path, level: float, rng: np.random.Generator) -> Path:
    """Add speech-shaped noise at a signal-to-noise ratio of `level` dB and write `out`.wav.

    The ratio compares the mean powers over the whole clip. Levels differ in the noise's gain only; digital silence
    stays silent.

    Raises:
        MissingStreamError, MediaError, ExtractionError: as `media.audio.read_audio_blocks`.
    """
    rate, blocks = _open_sound(media)
    # Measure the energies of signal and noise
    noise, same_noise = SpeechNoise(copy.deepcopy(rng), rate), SpeechNoise(rng, rate)
    signal_energy = noise_energy = 0.0
    for samples in blocks():
        signal_energy += float(np.square(samples, dtype=float).sum())
        noise_energy += float(np.square(noise.take(len(samples))).sum())
    gain = math.sqrt(signal_energy / noise_energy / 10 ** (level / 10)) if noise_energy else 0.0
    # Add the same noise at the right gain
    return _write((samples + gain * same_noise.take(len(samples)) for samples in blocks()), out, rate)


def silence_spans(media: Path, out: Path, level: float, rng: np.random.Generator) -> Path:
    """Silence the fraction `level` of the clip, in spans of 0.1 to 0.3 s like lost packets, and write `out`.wav.

    Raises:
        MissingStreamError, MediaError, ExtractionError: as `media.audio.read_audio_blocks`.
    """
    rate, blocks = _open_sound(media)
    spans = choose_spans(sum(map(len, blocks())), rate, level, rng)

    def silenced() -> Iterator[np.ndarray]:
        offset = 0
        for samples in blocks():
            changed = samples.copy()
            overlapping = spans[(spans[:, 0] < offset + len(samples)) & (spans[:, 1] > offset)]
            for start, end in overlapping - offset:
                changed[max(start, 0) : end] = 0
            yield changed
            offset += len(samples)

    return _write(silenced(), out, rate)


def choose_spans(count: int, rate: int, level: float, rng: np.random.Generator) -> np.ndarray:
    """Choose spans that cover the fraction `level` of a clip.

    The clip is cut into spans, which are taken in random order until enough is covered, the last one in part. So a
    higher level covers everything that a lower one does. Adjacent spans may both be taken.

    Args:
        count: samples of the clip.
        rate: samples per second.
        level: fraction in [0, 1].
        rng: random numbers.

    Returns:
        [S, 2] start and end in samples, in random order.
    """
    shortest, longest = SPAN_SECONDS
    lengths = rng.uniform(shortest, longest, math.ceil(count / rate / shortest) + 1) * rate
    edges = np.unique(np.minimum(np.rint(np.cumsum([0, *lengths])).astype(int), count))
    order = rng.permutation(len(edges) - 1)
    start, length = edges[order], np.diff(edges)[order]
    before = np.cumsum(length) - length
    covered = np.clip(round(level * count) - before, 0, length)
    spans: np.ndarray = np.column_stack([start, start + covered])[covered > 0]
    return spans


def _open_sound(media: Path) -> tuple[int, Callable[[], Iterator[np.ndarray]]]:
    """Return the sample rate in Hz, and a function that reads the sound from its start at each call."""
    rate = probe(media).sample_rate or FALLBACK_RATE
    return rate, lambda: read_audio_blocks(media, rate)


def _write(blocks: Iterable[np.ndarray], out: Path, rate: int) -> Path:
    """Write samples to `out` with the suffix .wav, and return that path."""
    import soundfile

    path = out.with_name(f"{out.name}.wav")
    with soundfile.SoundFile(path, "w", rate, channels=1, subtype="FLOAT") as file:
        for samples in blocks:
            file.write(samples.astype(np.float32))
    return path
