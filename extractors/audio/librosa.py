"""Audio features with librosa: the 33 features that the CH-SIMS paper describes (log F0, 20 MFCCs, 12 CQT bins).

Shapes: N samples, T steps, W samples per window.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, reduce
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from extractors.base import (
    ExtractionError,
    Feature,
    FeatureDescription,
    FeatureSequence,
    Identity,
    Source,
    extract_each,
    numbered,
)
from media.audio import cut_overlapping, read_audio_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

VERSION = 2

LOCK = "dashfusion.lock"
"""File in the folder of numba's cache that a process holds while it imports librosa."""

SAMPLE_RATE = 22_050
WINDOW = 2048
"""Window length in samples (93 ms): more than two periods of the lowest F0."""

F0_FLOOR, F0_CEILING = 60.0, 500.0
"""Range of F0 in Hz: speech of adults and children. A wider range yields more octave errors than voices."""

MFCC_COUNT = 20

CQT_FLOOR, CQT_OCTAVES, CQT_BINS = 65.406, 6, 12
"""Lowest frequency (Hz, C2), octaves and bins per octave of the constant-Q transform, folded to 12 pitch classes.

librosa's default starts an octave lower and has three times the bins. Its lowest filters span 1.5 s (0.26 s here), too
long for syllables, and it takes two and a half times as long.
"""
CQT_MIN_SAMPLES = 1024 << (CQT_OCTAVES - 1)
"""Samples that fill the window of the lowest octave after repeated halving of the rate; shorter clips are padded."""

BLOCK_STEPS = 1024
"""Steps in a block, whose duration is clamped to `BLOCK_SECONDS`. Blocks bound the memory for clips of any length."""
BLOCK_SECONDS = (10.0, 60.0)
CONTEXT_SECONDS = 0.5
"""Context on either side of a block: the window of the lowest octave reaches 0.19 s, plus the resampling filters."""

CQT_SILENCE = 1e-5
"""Energy (of a tone at about -110 dB full scale) below which a step is not normalised.

In digital silence only rounding errors would be scaled up to 1.
"""

HOP_UNIT = 1 << (CQT_OCTAVES - 1)
"""Divisor of the hop in samples: every octave halves the rate and the hop."""

MIN_VOICED_CORRELATION = 0.6
"""Minimum correlation of a voiced window with itself one period later."""
MIN_VOICED_LEVEL = 0.05
"""Minimum level of a voiced step relative to the 95th percentile of the clip (-26 dB)."""
SILENCE = 1e-4
"""Level (-80 dB full scale) below which nothing is voiced, however quiet the clip."""

MEL_RANGE = 80.0
"""Dynamic range of the mel spectrum in dB below the clip's maximum, the default of librosa's `power_to_db`."""


@dataclass(frozen=True, slots=True)
class BlockMeasurements:
    """Measurements of one block of a clip, before those steps that need the level of the whole clip.

    Attributes:
        f0: [T] Hz.
        periodic: [T] bool, see `detect_periodicity`.
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
    """`audio.librosa`: 33 features of a clip's audio, resampled to 22,050 Hz and mixed to mono.

    - `log_f0`: natural log of the fundamental frequency in Hz (YIN, de Cheveigné and Kawahara 2002), 60 to 500 Hz.
      Interpolated over unvoiced steps; the middle of the range in a clip without voiced steps.
    - `mfcc_0` to `mfcc_19`: mel-frequency cepstral coefficients of 93 ms windows.
    - `cqt_0` to `cqt_11`: constant-Q energy by pitch class from C to B, normalised to a maximum of 1 per step; near 0
      in digital silence.

    A step is valid if it is voiced: loud relative to the clip, and periodic (see `detect_periodicity`). Unvoiced steps
    are measured as well. Step t is centred at t hops and extends half a hop to either side; the first starts and the
    last ends with the clip.

    Clips longer than a block (48 s with the default hop) are measured block by block, with the same result to float32
    precision and about 150 numbers per step in memory.

    Args:
        hop_seconds: distance between steps in seconds, rounded to a multiple of 32 samples (1.5 ms).

    Raises:
        ValueError: `hop_seconds` is outside 0.005 to 1.
    """

    modality = "audio"
    description = FeatureDescription(
        source="librosa: `yin`, `feature.mfcc` and `feature.chroma_cqt` of the audio, resampled to "
        f"{SAMPLE_RATE:,} Hz and mixed to mono (the feature set that the CH-SIMS paper describes)",
        rate="1 / `hop_seconds`, the hop rounded to a multiple of 32 samples; step t is centred at t hops",
        window=f"F0 and MFCC: {WINDOW} samples ({WINDOW / SAMPLE_RATE * 1000:.0f} ms); CQT: 0.26 s at C2, half as long "
        "with every octave up",
        valid="voiced steps: loud relative to the clip, and periodic",
        features=(
            Feature(
                ("log_f0",),
                f"natural log of the fundamental frequency (YIN), {F0_FLOOR:.0f} to {F0_CEILING:.0f} Hz; interpolated "
                "over unvoiced steps, the middle of the range in a clip without voiced steps",
                "ln Hz",
            ),
            Feature(
                numbered("mfcc_", MFCC_COUNT),
                "mel-frequency cepstral coefficients: orthonormal DCT-II of the 128-band mel spectrum in dB; the first "
                "is the level",
                "dB",
            ),
            Feature(
                numbered("cqt_", CQT_BINS),
                f"constant-Q energy by pitch class from C to B, over {CQT_OCTAVES} octaves from {CQT_FLOOR:.1f} Hz, "
                "normalised to a maximum of 1 per step; near 0 in digital silence",
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
        libraries = ("librosa", "numpy", "scipy", "av")
        self.identity = Identity("audio.librosa", VERSION, options, libraries=libraries, covered="librosa")
        self.signature = self.identity.signature

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        shortest, longest = (round(seconds * SAMPLE_RATE) for seconds in BLOCK_SECONDS)
        block = min(max(BLOCK_STEPS * self.hop, shortest), longest) // self.hop * self.hop
        context = math.ceil(CONTEXT_SECONDS * SAMPLE_RATE / self.hop) * self.hop
        blocks, sample_count = [], 0
        for samples, inside in cut_overlapping(read_audio_blocks(media, SAMPLE_RATE), block, context):
            blocks.append(self._measure(samples, inside))
            sample_count += inside.stop - inside.start
        values, voiced = combine_blocks(blocks)
        centre = np.arange(len(values)) * self.hop
        start, end = np.maximum(centre - self.hop / 2, 0), centre + self.hop / 2
        end[-1] = sample_count
        return FeatureSequence(
            values=values,
            start=(start / SAMPLE_RATE).astype(np.float32),
            end=(end / SAMPLE_RATE).astype(np.float32),
            valid=voiced,
        )

    def _measure(self, samples: np.ndarray, inside: slice) -> BlockMeasurements:
        """Measure the steps whose centre is in the slice `inside` of the samples [N]; the other samples are context.

        Centres lie at multiples of the hop, before the end: n samples have 1 + (n - 1) // hop steps, where librosa
        returns 1 + n // hop.
        """
        librosa = import_librosa()
        steps = slice(inside.start // self.hop, 1 + (inside.stop - 1) // self.hop)
        padded = librosa.util.fix_length(samples, size=max(len(samples), WINDOW))
        common: dict[str, Any] = {"y": padded, "sr": SAMPLE_RATE, "hop_length": self.hop}
        f0 = librosa.yin(fmin=F0_FLOOR, fmax=F0_CEILING, frame_length=WINDOW, **common)[steps]
        mel = librosa.power_to_db(librosa.feature.melspectrogram(n_fft=WINDOW, **common)[:, steps], top_db=None)
        # Only short clips are padded. The last block of a longer clip is not, as the whole clip would not be either.
        min_samples = 0 if inside.start else CQT_MIN_SAMPLES
        chroma = chroma_cqt(librosa.util.fix_length(samples, size=max(len(samples), min_samples)), self.hop)
        windows = librosa.util.frame(np.pad(padded, WINDOW // 2), frame_length=WINDOW, hop_length=self.hop)
        periodic, level = detect_periodicity(windows.T[steps], f0)
        return BlockMeasurements(f0, periodic, level, mel, chroma[:, steps])


def combine_blocks(blocks: Sequence[BlockMeasurements]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features [T, 33] and the voicing [T] of a clip, relative to the level of the whole clip."""
    librosa = import_librosa()
    level, f0 = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("level", "f0"))
    loud = level >= max(SILENCE, MIN_VOICED_LEVEL * np.percentile(level, 95))
    voiced = np.concatenate([block.periodic for block in blocks]) & loud
    floor = max(block.mel.max() for block in blocks) - MEL_RANGE
    spectral = [
        np.vstack([librosa.feature.mfcc(S=np.maximum(block.mel, floor), n_mfcc=MFCC_COUNT), block.chroma])
        for block in blocks
    ]
    return np.vstack([interpolate_log_f0(f0, voiced), np.hstack(spectral)]).T.astype(np.float32), voiced


@cache
def import_librosa() -> Any:
    """Import librosa, in one process at a time.

    numba compiles some of librosa's functions when a machine first imports them, and keeps the machine code in a cache.
    Processes that fill it at the same time can leave a mixture with which they, and every later process, crash
    (github.com/numba/numba/issues/10128): workers that start together in a new environment did.
    """
    with _numba_cache_lock():
        import librosa

        librosa.zero_crossings(np.zeros(2))
        librosa.yin(np.zeros(2 * WINDOW), fmin=F0_FLOOR, fmax=F0_CEILING, sr=SAMPLE_RATE, frame_length=WINDOW)
    return librosa


def _numba_cache_lock() -> AbstractContextManager[Any]:
    """Return a lock in the folder of numba's cache: the first that is writable, as numba itself looks for one."""
    package = find_spec("librosa")
    assert package is not None and package.origin is not None
    folders = [Path(package.origin).parent / "__pycache__", Path.home() / ".cache" / "numba"]
    for folder in (Path(given), *folders) if (given := os.environ.get("NUMBA_CACHE_DIR")) else folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOCK).touch()
        except OSError:
            continue
        return FileLock(folder / LOCK)
    return nullcontext()  # nothing is cached, so nothing is shared


@cache
def octave_filters() -> tuple[np.ndarray, int]:
    """Return one octave of constant-Q filters, as spectra [12, 1 + W // 2], and their window length W in samples.

    They serve all octaves, since the rate halves along with the frequencies. librosa's `chroma_cqt` computes them again
    for each octave of each clip, which takes longer than the transform of a short clip.
    """
    import scipy.fft

    librosa = import_librosa()
    frequencies = CQT_FLOOR * 2.0 ** (CQT_OCTAVES - 1 + np.arange(CQT_BINS) / CQT_BINS)
    filters, lengths = librosa.filters.wavelet(freqs=frequencies, sr=SAMPLE_RATE)
    window = filters.shape[1]
    filters *= np.sqrt(lengths)[:, None] / window
    spectra = scipy.fft.fft(filters)[:, : 1 + window // 2]
    return librosa.util.sparsify_rows(spectra, quantile=0.01), window


def chroma_cqt(samples: np.ndarray, hop: int) -> np.ndarray:
    """Return the constant-Q energy [12, T] by pitch class from C to B of samples [N], with a maximum of 1 per step.

    Schörkhuber and Klapuri 2010 (Constant-Q transform toolbox for music processing): the filters of one octave, applied
    at half the rate for each octave below. The values are those of librosa's `chroma_cqt`, except in silence.
    """
    librosa = import_librosa()
    filters, window = octave_filters()
    octaves: list[np.ndarray] = []
    for octave in range(CQT_OCTAVES):
        if octave:
            samples = librosa.resample(samples, orig_sr=2, target_sr=1, res_type="soxr_hq", scale=True)
        spectra = librosa.stft(samples, n_fft=window, hop_length=hop >> octave, window="ones", pad_mode="constant")
        octaves.append(np.abs(filters @ spectra))
    steps = min(energy.shape[1] for energy in octaves)
    folded = reduce(np.add, [energy[:, :steps] for energy in octaves])
    return librosa.util.normalize(folded, axis=0, threshold=CQT_SILENCE)


def detect_periodicity(windows: np.ndarray, f0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each window [T, W] repeats itself with the period of its F0 [T] in Hz, and its level [T].

    YIN returns an F0 for every window, including noise and silence. A voiced window correlates with itself one period
    later, and more so than half a period later; rumble changes slowly and correlates most at short lags. An F0 at
    either end of the range is not a minimum of YIN's difference function, but the limit of the search.
    """
    period = np.rint(SAMPLE_RATE / f0).astype(int)
    correlation, level = lagged_correlation(windows, period)
    half_period_correlation, _ = lagged_correlation(windows, period // 2)
    in_range = (f0 > F0_FLOOR * 1.01) & (f0 < F0_CEILING / 1.01)
    periodic = (correlation >= MIN_VOICED_CORRELATION) & (correlation > half_period_correlation) & in_range
    return periodic, level


def lagged_correlation(windows: np.ndarray, lag: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the normalised correlation [T] of half of each window [T, W] with the samples `lag` [T] later.

    Both segments together are centred in the window. The second result is the level (root mean square) [T] of the first
    segment.
    """
    width = windows.shape[1] // 2
    positions = ((windows.shape[1] - width - lag) // 2)[:, None] + np.arange(width)
    first = np.take_along_axis(windows, positions, axis=1)
    second = np.take_along_axis(windows, positions + lag[:, None], axis=1)
    power_first, power_second = (np.einsum("tw,tw->t", segment, segment) for segment in (first, second))
    product, norm = np.einsum("tw,tw->t", first, second), np.sqrt(power_first * power_second)
    return np.divide(product, norm, out=np.zeros_like(norm), where=norm > 0), np.sqrt(power_first / width)


def interpolate_log_f0(f0: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Return the natural log [T] of F0 [T] in Hz, interpolated linearly over unvoiced steps.

    Before the first and after the last voiced step it is constant; without voiced steps it is the middle of the range.
    """
    if not voiced.any():
        return np.full(len(f0), math.log(F0_FLOOR * F0_CEILING) / 2)
    known = np.flatnonzero(voiced)
    return np.interp(np.arange(len(f0)), known, np.log(f0[known]))
