"""Speech synthesis with espeak-ng through ctypes: samples and word times.

espeak-ng keeps global state: use one thread per process, and several processes for speed.
"""

from __future__ import annotations

import _ctypes
import ctypes
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

# Constants of espeak-ng's speak_lib.h
SYNCHRONOUS = 2
DO_NOT_EXIT = 0x8000
CHARACTERS = 1
UTF8 = 1
IPA = 2
WORD_EVENT = 1
LIST_END = 0
RATE, PITCH, RANGE = 1, 3, 4

RANDOM_SEED = 1
"""Seed of espeak-ng's noise, which it would seed with the time."""

SILENCE = 0.01
"""Amplitude, out of 1, below which a word has ended."""


@dataclass(frozen=True, slots=True)
class Prosody:
    """Voice settings of a sentence.

    Attributes:
        rate: words per minute, 80 to 450.
        pitch: espeak's base pitch, 0 to 99; 50 is the voice's default.
        pitch_range: espeak's pitch variation, 0 (monotone) to 99.
        gain: amplitude factor.
        emphasis: additional amplitude factor of emphasised words.
    """

    rate: int
    pitch: int
    pitch_range: int
    gain: float
    emphasis: float


@dataclass(frozen=True, slots=True)
class Speech:
    """One spoken sentence.

    Attributes:
        samples: [N] float32 in [-1, 1].
        sample_rate: Hz.
        starts, ends: times of each word, seconds from the first sample.
    """

    samples: np.ndarray
    sample_rate: int
    starts: tuple[float, ...]
    ends: tuple[float, ...]


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Library:
    """espeak-ng, loaded for one utterance and unloaded again.

    Its generators (oscillator phases, flutter, noise) are static: they continue from one utterance to the next and
    survive `espeak_Terminate`. Reloading the library (0.6 ms) makes an utterance depend on its own text and settings
    only.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ModuleNotFoundError as error:
            raise ValueError("the demo's voices need espeakng-loader; pip install 'dashfusion[demo]'") from error
        data = str(espeakng_loader.get_data_path())
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
        if self.sample_rate <= 0:
            raise RuntimeError(
                f"espeak-ng cannot read its voices at {data} ({len(data)} characters; about 150 is its "
                "limit): install espeakng-loader again, if need be in a folder with a shorter path"
            )
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(RANDOM_SEED))
        self.blocks: list[bytes] = []
        self.words: list[tuple[int, int]] = []
        self._callback = _Callback(self._collect)  # ctypes does not hold a reference
        self.library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer, count: int, events: ctypes._Pointer) -> int:
        if samples and count > 0:
            self.blocks.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type != LIST_END:
            if events[index].type == WORD_EVENT:
                self.words.append((events[index].text_position - 1, events[index].sample))
            index += 1
        return 0

    def __enter__(self) -> _Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.library.espeak_Terminate()
        if sys.platform == "win32":
            _ctypes.FreeLibrary(self.library._handle)
        else:
            _ctypes.dlclose(self.library._handle)


def synthesize(
    words: Sequence[str], voice: str, prosody: Prosody, emphasised: Sequence[int] = (), joiner: str = " "
) -> Speech:
    """Synthesize words, joined by `joiner`, with an espeak voice such as `en-us+f3`.

    Raises:
        RuntimeError: espeak-ng does not start, usually because its voices cannot be read.
        ValueError: there is no such voice.
    """
    text = joiner.join(words).encode()
    with _Library() as espeak:
        if espeak.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}; `espeak-ng --voices` lists them")
        for parameter, value in ((RATE, prosody.rate), (PITCH, prosody.pitch), (RANGE, prosody.pitch_range)):
            espeak.library.espeak_SetParameter(parameter, int(value), 0)
        espeak.library.espeak_Synth(text, len(text) + 1, 0, CHARACTERS, 0, UTF8, None, None)
        samples = np.frombuffer(b"".join(espeak.blocks), dtype="<i2").astype(np.float32) / 32768
        rate, events = espeak.sample_rate, tuple(espeak.words)
    starts, ends = word_times(words, len(joiner), events, samples, rate)
    samples *= prosody.gain * _emphasis(starts, ends, emphasised, prosody.emphasis, len(samples), rate)
    return Speech(np.clip(samples, -1, 1), rate, tuple(starts), tuple(ends))


def pronounce(words: Sequence[str], voice: str) -> list[str] | None:
    """Return the pronunciation of each single word in IPA, by an espeak voice such as `en-us`; None without that voice.

    Raises:
        RuntimeError: espeak-ng does not start.
    """
    with _Library() as espeak:
        if espeak.library.espeak_SetVoiceByName(voice.encode()) != 0:
            return None
        translate = espeak.library.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        translate.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
        texts = (ctypes.byref(ctypes.c_char_p(word.encode())) for word in words)
        return [translate(text, UTF8, IPA).decode() for text in texts]


def word_times(
    words: Sequence[str],
    joiner: int,
    events: Sequence[tuple[int, int]],
    samples: np.ndarray,
    sample_rate: int,
) -> tuple[list[float], list[float]]:
    """Derive each word's start and end, in seconds, from espeak's word events.

    espeak pronounces some short words as one (`of the`), with one event. They share its time in proportion to their
    lengths. A word ends where its audio ends, not after the following pause.

    Args:
        words: in order.
        joiner: number of characters between two words.
        events: (character position in the text, sample) of each word event.
        samples: [N] the audio.
        sample_rate: Hz.
    """
    first_character = np.cumsum([0] + [len(word) + joiner for word in words[:-1]])
    first_sample: dict[int, int] = {}  # by index of the word
    for position, sample in events:
        index = int(np.searchsorted(first_character, position, side="right")) - 1
        first_sample.setdefault(max(0, index), sample)
    first_sample.setdefault(0, 0)
    owners = sorted(first_sample)
    starts, ends = [0.0] * len(words), [0.0] * len(words)
    for owner, following in zip(owners, [*owners[1:], len(words)], strict=True):
        begin = first_sample[owner]
        stop = first_sample[following] if following < len(words) else len(samples)
        sounding = np.flatnonzero(np.abs(samples[begin:stop]) > SILENCE)
        if len(sounding):
            stop = begin + int(sounding[-1]) + 1
        lengths = np.array([len(word) for word in words[owner:following]], dtype=float)
        edges = (begin + np.concatenate([[0], np.cumsum(lengths)]) / lengths.sum() * (stop - begin)) / sample_rate
        starts[owner:following] = edges[:-1].tolist()
        ends[owner:following] = edges[1:].tolist()
    return starts, ends


def _emphasis(
    starts: Sequence[float],
    ends: Sequence[float],
    emphasised: Sequence[int],
    factor: float,
    count: int,
    rate: int,
) -> np.ndarray:
    """Return amplitude factors [count]: `factor` on emphasised words, 1 elsewhere, with edges smoothed over 40 ms."""
    gain = np.ones(count, dtype=np.float32)
    if count == 0:
        return gain
    for index in emphasised:
        gain[int(starts[index] * rate) : int(ends[index] * rate)] = factor
    edge = np.hanning(int(0.04 * rate) | 1).astype(np.float32)
    return np.convolve(np.pad(gain, len(edge) // 2, mode="edge"), edge / edge.sum(), mode="valid")


def loudness(samples: np.ndarray, sample_rate: int, times: np.ndarray) -> np.ndarray:
    """Return the root mean square over 60 ms around each time in seconds, [times]."""
    squares = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    half = 0.03
    low = np.clip(((times - half) * sample_rate).astype(int), 0, len(samples))
    high = np.clip(((times + half) * sample_rate).astype(int), 0, len(samples))
    rms: np.ndarray = np.sqrt((squares[high] - squares[low]) / np.maximum(high - low, 1))
    return rms
