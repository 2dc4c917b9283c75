"""Audio features with librosa: the set that CH-SIMS uses (log F0, 20 MFCC, 12 CQT), 33 in all.

T steps, W samples a window, N samples a clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from extractors.base import (
    ExtractionError,
    Feature,
    FeatureSequence,
    FeatureDescription,
    Source,
    extract_each,
    make_signature,
    numbered,
)
from media.audio import cut_overlapping, read_audio_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 2

SAMPLE_RATE = 22_050
WINDOW = 2048
"""Samples, 93 ms: more than two periods of the lowest F0."""

F0_FLOOR, F0_CEILING = 60.0, 500.0
"""Hz. Speech of adults and children; a wider range finds more octaves than voices."""

MFCC_COUNT = 20

CQT_FLOOR, CQT_OCTAVES, CQT_BINS = 65.406, 6, 12
"""Hz of C2, and how far up: six octaves of twelve bins, folded to twelve pitch classes.

librosa's own default starts an octave lower with three times the bins. Its lowest filters last 1.5 s, against
0.26 s here, which is too long for syllables, and it takes two and a half times as long.
"""
CQT_SHORTEST = 1024 << (CQT_OCTAVES - 1)
"""Samples that fill the lowest octave's window after its halvings of the rate; shorter clips are padded."""

BLOCK_STEPS = 1024
"""Steps that are measured at once, within `BLOCK_SECONDS`: what bounds the memory, whatever the clip's length."""
BLOCK_SECONDS = (10.0, 60.0)
CONTEXT_SECONDS = 0.5
"""What a block sees on either side beyond its steps: the lowest octave's window reaches 0.19 s, and then there are
the tails of the filters that halve the rate."""

CQT_SILENCE = 1e-5
"""Energy, of a tone at about -110 dB of full scale, below which a step is left near 0: digital silence holds but the
rounding errors of its neighbours, which say nothing when they are scaled up to 1."""

HOP_UNIT = 1 << (CQT_OCTAVES - 1)
"""Samples. Each octave halves rate and hop, so a hop must be a multiple of this to stay whole."""

VOICED_CORRELATION = 0.6
"""Least correlation of a stretch with the next period of itself."""
VOICED_LEVEL = 0.05
"""Least level relative to the clip's loud parts (their 95th percentile), -26 dB."""
SILENCE = 1e-4
"""Level, -80 dB of full scale, below which nothing is voiced however quiet the clip."""

MEL_RANGE = 80.0
"""dB below the clip's strongest mel band, at which the weaker ones end; librosa's `power_to_db` has the same."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one block of a clip says alone, before the whole clip's level is known.

    Attributes:
        f0: [T] Hz.
        periodic: [T] bool, like itself one period later (see `find_periodic`).
        level: [T] root mean square.
        mel: [128, T] float32 dB.
        chroma: [12, T] float32.
    """

    f0: np.ndarray
    periodic: np.ndarray
    level: np.ndarray
    mel: np.ndarray
    chroma: np.ndarray


class LibrosaAudio:
    """`audio.librosa`: 33 features of a clip's sound, resampled to 22,050 Hz and mixed to one channel.

    - `log_f0`: natural log of the fundamental frequency in Hz (YIN, de Cheveigné and Kawahara 2002), between
      60 and 500 Hz. Interpolated in time where the step is not voiced; in a clip without any voiced step the
      middle of that range.
    - `mfcc_0` to `mfcc_19`: mel cepstrum of 93 ms windows.
    - `cqt_0` to `cqt_11`: constant-Q energy by pitch class from C to B, the strongest of a step being 1; near 0
      in digital silence.

    A step is valid where it is voiced: loud against the clip's loud parts, like itself one period later (see
    `find_periodic`). Unvoiced steps are measured too. Step t is centred on t hops and reaches half a hop to
    either side; the first begins and the last ends with the clip.

    A clip longer than a block (48 s with the usual hop) is measured block by block, with the same result to
    float32's precision; of the whole only about 150 numbers a step are kept.

    Args:
        hop_seconds: distance of the steps; made a multiple of 32 samples (1.5 ms).

    Raises:
        ValueError: `hop_seconds` is outside 0.005 to 1.
    """

    modality = "audio"
    description = FeatureDescription(
        source="librosa: `yin`, `feature.mfcc`, `feature.chroma_cqt`, of the sound at "
        f"{SAMPLE_RATE:,} Hz, channels averaged (the set of CH-SIMS)",
        rate="1 / `hop_seconds`, the hop made a multiple of 32 samples; step t is centred on t hops",
        window=f"F0 and MFCC: {WINDOW} samples ({WINDOW / SAMPLE_RATE * 1000:.0f} ms); CQT: from 0.26 s at C2 "
        "downwards, halving with every octave",
        valid="where voiced: loud against the clip's loud parts, and like itself one period later",
        features=(
            Feature(
                ("log_f0",),
                f"natural log of the fundamental frequency (YIN), {F0_FLOOR:.0f} to {F0_CEILING:.0f} Hz; interpolated "
                "in time where unvoiced, the middle of the range in a clip without voice",
                "ln Hz",
            ),
            Feature(
                numbered("mfcc_", MFCC_COUNT),
                "mel cepstrum: DCT-II, orthonormal, of the 128-band mel spectrum in dB; the first is the level",
                "dB",
            ),
            Feature(
                numbered("cqt_", CQT_BINS),
                f"constant-Q energy by pitch class from C to B, {CQT_OCTAVES} octaves up from {CQT_FLOOR:.1f} Hz, "
                "the strongest of a step being 1; near 0 in digital silence",
                "1",
            ),
        ),
    )
    feature_names = description.names

    def __init__(self, hop_seconds: float = 0.046) -> None:
        if isinstance(hop_seconds, bool) or not isinstance(hop_seconds, int | float):
            raise ValueError(f"hop_seconds must be a number of seconds, found {hop_seconds!r}")
        if not 0.005 <= hop_seconds <= 1:
            raise ValueError(f"hop_seconds must be between 0.005 and 1, found {hop_seconds}")
        self.hop = HOP_UNIT * round(hop_seconds * SAMPLE_RATE / HOP_UNIT)
        options = {"hop_seconds": float(hop_seconds)}
        self.signature = make_signature("audio.librosa", VERSION, options, f"librosa {version('librosa')}")

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        shortest, longest = (round(seconds * SAMPLE_RATE) for seconds in BLOCK_SECONDS)
        block = min(max(BLOCK_STEPS * self.hop, shortest), longest) // self.hop * self.hop
        context = math.ceil(CONTEXT_SECONDS * SAMPLE_RATE / self.hop) * self.hop
        measured, count = [], 0
        for samples, inside in cut_overlapping(read_audio_blocks(media, SAMPLE_RATE), block, context):
            measured.append(self._measure(samples, inside))
            count += inside.stop - inside.start
        values, voiced = combine(measured)
        centre = np.arange(len(values)) * self.hop
        start, end = np.maximum(centre - self.hop / 2, 0), centre + self.hop / 2
        end[-1] = count
        return FeatureSequence(
            values=values,
            start=(start / SAMPLE_RATE).astype(np.float32),
            end=(end / SAMPLE_RATE).astype(np.float32),
            valid=voiced,
        )

    def _measure(self, samples: np.ndarray, inside: slice) -> Measured:
        """The steps that lie in a part of the samples [N]; in n samples 1 + (n - 1) // hop: each has a width."""
        import librosa

        steps = slice(inside.start // self.hop, 1 + (inside.stop - 1) // self.hop)
        padded = librosa.util.fix_length(samples, size=max(len(samples), WINDOW))
        common = {"y": padded, "sr": SAMPLE_RATE, "hop_length": self.hop}
        f0 = librosa.yin(fmin=F0_FLOOR, fmax=F0_CEILING, frame_length=WINDOW, **common)[steps]
        mel = librosa.power_to_db(librosa.feature.melspectrogram(n_fft=WINDOW, **common)[:, steps], top_db=None)
        shortest = 0 if inside.start else CQT_SHORTEST  # a clip's last block is long enough and must end where it ends
        chroma = fold_octaves(librosa.util.fix_length(samples, size=max(len(samples), shortest)), self.hop)
        windows = librosa.util.frame(np.pad(padded, WINDOW // 2), frame_length=WINDOW, hop_length=self.hop)
        periodic, level = find_periodic(windows.T[steps], f0)
        return Measured(f0, periodic, level, mel, chroma[:, steps])


def combine(measured: Sequence[Measured]) -> tuple[np.ndarray, np.ndarray]:
    """Features [T, 33] and voicing [T] of the clip whose blocks these are: here its level and its range count."""
    import librosa

    level, f0 = (np.concatenate([getattr(block, name) for block in measured]) for name in ("level", "f0"))
    loud = level >= max(SILENCE, VOICED_LEVEL * np.percentile(level, 95))
    voiced = np.concatenate([block.periodic for block in measured]) & loud
    floor = max(block.mel.max() for block in measured) - MEL_RANGE
    spectral = [
        np.vstack([librosa.feature.mfcc(S=np.maximum(block.mel, floor), n_mfcc=MFCC_COUNT), block.chroma])
        for block in measured
    ]
    return np.vstack([fill_log_f0(f0, voiced), np.hstack(spectral)]).T.astype(np.float32), voiced


@cache
def make_octave() -> tuple[np.ndarray, int]:
    """Filters of one octave of the constant-Q transform, as spectra [12, 1 + W // 2], and their window W, in samples.

    As the rate halves from octave to octave like the frequencies, every octave's are the same; librosa's
    `chroma_cqt` makes each anew for each clip, which costs more than the transform of a short one.
    """
    import librosa
    import scipy.fft

    top = CQT_FLOOR * 2.0 ** (CQT_OCTAVES - 1 + np.arange(CQT_BINS) / CQT_BINS)
    filters, lengths = librosa.filters.wavelet(freqs=top, sr=SAMPLE_RATE)
    window = filters.shape[1]
    filters *= np.sqrt(lengths)[:, None] / window
    spectra = scipy.fft.fft(filters)[:, : 1 + window // 2]
    return librosa.util.sparsify_rows(spectra, quantile=0.01), window


def fold_octaves(samples: np.ndarray, hop: int) -> np.ndarray:
    """Constant-Q energy [12, T] by pitch class from C to B of samples [N], the strongest of a step being 1, or 0.

    Schörkhuber and Klapuri 2010 (Constant-Q transform toolbox for music processing): one octave's filters, and
    the signal at half the rate for the octave below. The values are those of librosa's `chroma_cqt`, but in silence.
    """
    import librosa

    filters, window = make_octave()
    folded = 0.0
    for octave in range(CQT_OCTAVES):
        if octave:
            samples = librosa.resample(samples, orig_sr=2, target_sr=1, res_type="soxr_hq", scale=True)
        spectra = librosa.stft(samples, n_fft=window, hop_length=hop >> octave, window="ones", pad_mode="constant")
        energy = np.abs(filters @ spectra)
        steps = energy.shape[1] if not octave else min(folded.shape[1], energy.shape[1])
        folded = energy if not octave else folded[:, :steps] + energy[:, :steps]
    return librosa.util.normalize(folded, axis=0, threshold=CQT_SILENCE)


def find_periodic(windows: np.ndarray, f0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[T] whether each window [T, W] repeats itself, given its F0 in Hz [T]; and its level [T].

    YIN answers for every window, noise and silence included. A voice repeats itself after one period, more
    than after half of one: rumble, which changes slowly, is most like itself at short lags. An F0 at the end
    of the range is no dip of YIN's, but where the search stopped.
    """
    period = np.rint(SAMPLE_RATE / f0).astype(int)
    correlation, level = correlate(windows, period)
    halfway, _ = correlate(windows, period // 2)
    inside = (f0 > F0_FLOOR * 1.01) & (f0 < F0_CEILING / 1.01)
    return (correlation >= VOICED_CORRELATION) & (correlation > halfway) & inside, level


def correlate(windows: np.ndarray, lag: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalised correlation [T] of half of each window [T, W] with what comes `lag` [T] samples later.

    Both halves lie around the window's centre. The second result is the level, root mean square, of one.
    """
    width = windows.shape[1] // 2
    at = ((windows.shape[1] - width - lag) // 2)[:, None] + np.arange(width)
    here = np.take_along_axis(windows, at, axis=1)
    later = np.take_along_axis(windows, at + lag[:, None], axis=1)
    power_here, power_later = (np.einsum("tw,tw->t", part, part) for part in (here, later))
    shared, norm = np.einsum("tw,tw->t", here, later), np.sqrt(power_here * power_later)
    return np.divide(shared, norm, out=np.zeros_like(norm), where=norm > 0), np.sqrt(power_here / width)


def fill_log_f0(f0: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """[T] natural log of F0 in Hz; across unvoiced steps a straight line, at the ends the nearest voiced one.

    Without any voiced step it is the middle of the range.
    """
    if not voiced.any():
        return np.full(len(f0), math.log(F0_FLOOR * F0_CEILING) / 2)
    known = np.flatnonzero(voiced)
    return np.interp(np.arange(len(f0)), known, np.log(f0[known]))
