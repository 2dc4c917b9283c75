"""Speech from espeak-ng, called through ctypes: samples, and when each word is said.

espeak-ng keeps its state in the process: one utterance at a time, no threads. Use processes to go faster.
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

SYNCHRONOUS = 2
DO_NOT_EXIT = 0x8000
CHARACTERS = 1
UTF8 = 1
IPA = 2
WORD_EVENT = 1
LIST_END = 0
RATE, PITCH, RANGE = 1, 3, 4

RANDOM_SEED = 1
"""Of espeak-ng's own noise, which it seeds with the time otherwise."""

SILENCE = 0.01
"""Amplitude, of 1, below which a word is taken to be over."""


@dataclass(frozen=True, slots=True)
class Prosody:
    """How a sentence is said.

    Attributes:
        rate: words a minute, 80 to 450.
        pitch: espeak's base pitch, 0 to 99; 50 is the voice's own.
        pitch_range: espeak's liveliness of the pitch, 0 (monotone) to 99.
        gain: amplitude factor.
        emphasis: further amplitude factor on the emphasised words.
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
        starts, ends: seconds from the first sample, one of each for every word.
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

    Its generators (oscillator phases, flutter, random noise) live in the library's static memory, run on from
    one utterance to the next and survive `espeak_Terminate`. Loading it anew (0.6 ms) is what makes an
    utterance depend on nothing but its own text and settings.
    """

    def __init__(self) -> None:
        import espeakng_loader

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
        self._callback = _Callback(self._collect)  # kept: ctypes does not hold a reference
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
        unload = _ctypes.FreeLibrary if sys.platform == "win32" else _ctypes.dlclose
        unload(self.library._handle)


def say(
    words: Sequence[str], voice: str, prosody: Prosody, emphasised: Sequence[int] = (), joiner: str = " "
) -> Speech:
    """Say the words, joined by `joiner`, in an espeak voice such as `en-us+f3`.

    Raises:
        RuntimeError: the library does not start, usually because its voices cannot be read.
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
    """How an espeak voice such as `en-us` pronounces each word alone, in the International Phonetic Alphabet.

    None where there is no such voice.

    Raises:
        RuntimeError: as `say`.
    """
    with _Library() as espeak:
        if espeak.library.espeak_SetVoiceByName(voice.encode()) != 0:
            return None
        translate = espeak.library.espeak_TextToPhonemes
        translate.restype, translate.argtypes = (
            ctypes.c_char_p,
            [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int],
        )
        texts = (ctypes.byref(ctypes.c_char_p(word.encode())) for word in words)
        return [translate(text, UTF8, IPA).decode() for text in texts]


def word_times(
    words: Sequence[str],
    joiner: int,
    events: Sequence[tuple[int, int]],
    samples: np.ndarray,
    sample_rate: int,
) -> tuple[list[float], list[float]]:
    """Start and end, in seconds, of each word from espeak's word events.

    Args:
        words: in order.
        joiner: characters between two words.
        events: (character position in the text, sample) of each word event. espeak says some short words as
            one (`of the`): those share its time by their length.
        samples: [N], to end a word where its sound ends and not after the pause that follows.
        sample_rate: Hz.
    """
    first_character = np.cumsum([0] + [len(word) + joiner for word in words[:-1]])
    at: dict[int, int] = {}
    for position, sample in events:
        at.setdefault(max(0, int(np.searchsorted(first_character, position, side="right")) - 1), sample)
    at.setdefault(0, 0)
    owners = sorted(at)
    starts, ends = [0.0] * len(words), [0.0] * len(words)
    for owner, following in zip(owners, [*owners[1:], len(words)], strict=True):
        begin = at[owner]
        stop = at[following] if following < len(words) else len(samples)
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
    """Amplitude factor [count]: `factor` on the emphasised words, 1 elsewhere, with soft edges of 40 ms."""
    gain = np.ones(count, dtype=np.float32)
    if count == 0:
        return gain
    for index in emphasised:
        gain[int(starts[index] * rate) : int(ends[index] * rate)] = factor
    edge = np.hanning(int(0.04 * rate) | 1).astype(np.float32)
    return np.convolve(np.pad(gain, len(edge) // 2, mode="edge"), edge / edge.sum(), mode="valid")


def loudness(samples: np.ndarray, sample_rate: int, times: np.ndarray) -> np.ndarray:
    """Root mean square over 60 ms around each time (seconds): what moves the jaw. Shape of `times`."""
    squares = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    half = 0.03
    low = np.clip(((times - half) * sample_rate).astype(int), 0, len(samples))
    high = np.clip(((times + half) * sample_rate).astype(int), 0, len(samples))
    return np.sqrt((squares[high] - squares[low]) / np.maximum(high - low, 1))
