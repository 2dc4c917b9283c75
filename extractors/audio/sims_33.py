"""The 33 audio features of CH-SIMS, computed as in the published code of its authors.

Shapes: N samples, T steps.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from extractors.audio.librosa import (
    CQT_BINS,
    F0_CEILING,
    F0_FLOOR,
    HOP_UNIT,
    MFCC_COUNT,
    MIN_VOICED_LEVEL,
    SAMPLE_RATE,
    SILENCE,
    WINDOW,
    detect_periodicity,
    import_librosa,
)
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
from media.audio import read_audio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 1

HOP_SECONDS = 0.02322
"""512 samples, the hop of the published code."""


class Sims33Audio:
    """`audio.sims_33`: zero-crossing rate, 20 MFCCs and 12 chroma of a clip's audio, with librosa's defaults.

    The features that the CH-SIMS paper (Yu et al., ACL 2020) describes as log F0, 20 MFCCs and a 12-dimensional
    constant-Q chromatogram. Its published code (thuiar/MMSA, `data/DataPre.py`, `__getAudioEmbedding`) names the first
    column f0 and computes librosa's zero-crossing rate; this extractor follows the code. `audio.librosa` follows the
    paper, with an F0, and with transforms whose windows suit syllables.

    librosa estimates the tuning of the whole clip, so the whole clip is held in memory, about 2 MB per second.

    A step is valid if it is voiced, as for `audio.librosa`. Step t is centred at t hops.

    Args:
        hop_seconds: distance between steps in seconds, rounded to a multiple of 32 samples (1.5 ms); the default is the
            published code's 512 samples.

    Raises:
        ValueError: `hop_seconds` is outside 0.005 to 1.
    """

    modality = "audio"
    description = FeatureDescription(
        source="librosa: `feature.zero_crossing_rate`, `feature.mfcc` (`htk=True`) and `feature.chroma_cqt` with their "
        f"defaults, of the audio resampled to {SAMPLE_RATE:,} Hz and mixed to mono: the audio features of CH-SIMS (Yu "
        "et al., ACL 2020) as its authors' code computes them (thuiar/MMSA, `data/DataPre.py`). The paper says log F0 "
        "where the code has the zero-crossing rate",
        rate="1 / `hop_seconds`, the hop rounded to a multiple of 32 samples; step t is centred at t hops",
        window=f"zero-crossing rate and MFCC: {WINDOW} samples ({WINDOW / SAMPLE_RATE * 1000:.0f} ms); chroma: 1.5 s "
        "at C1, half as long with every octave up, and the tuning of the whole clip",
        valid="voiced steps, as for `audio.librosa`",
        features=(
            Feature(("zero_crossing_rate",), "share of neighbouring samples of opposite sign", "1"),
            Feature(numbered("mfcc_", MFCC_COUNT), "mel-frequency cepstral coefficients, HTK's mel scale", "dB"),
            Feature(
                numbered("chroma_", CQT_BINS),
                "constant-Q energy by pitch class from C to B, normalised to a maximum of 1 per step",
                "1",
            ),
        ),
    )
    feature_names = description.names

    def __init__(self, hop_seconds: float = HOP_SECONDS) -> None:
        if isinstance(hop_seconds, bool) or not isinstance(hop_seconds, int | float):
            raise ValueError(f"hop_seconds must be a number of seconds, found {hop_seconds!r}")
        if not 0.005 <= hop_seconds <= 1:
            raise ValueError(f"hop_seconds must be between 0.005 and 1, found {hop_seconds}")
        self.hop = HOP_UNIT * round(hop_seconds * SAMPLE_RATE / HOP_UNIT)
        options = {"hop_samples": self.hop}
        self.identity = Identity("audio.sims_33", VERSION, options, libraries=("librosa", "numpy", "scipy", "av"))
        self.signature = self.identity.signature

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        samples = read_audio(media, SAMPLE_RATE)
        with warnings.catch_warnings():  # windows longer than a short clip, and no tuning in silence
            warnings.simplefilter("ignore", UserWarning)
            values, voiced = sims_features(samples, self.hop), detect_voiced(samples, self.hop)
        centre = np.arange(len(values)) * self.hop
        start, end = np.maximum(centre - self.hop / 2, 0), centre + self.hop / 2
        end[-1] = max(len(samples), start[-1] + 1)
        return FeatureSequence(
            values=values,
            start=(start / SAMPLE_RATE).astype(np.float32),
            end=(end / SAMPLE_RATE).astype(np.float32),
            valid=voiced,
        )


def sims_features(samples: np.ndarray, hop: int) -> np.ndarray:
    """Return the features [T, 33] of samples [N], T = 1 + N // hop."""
    librosa = import_librosa()
    rate = librosa.feature.zero_crossing_rate(samples, hop_length=hop)
    mfcc = librosa.feature.mfcc(y=samples, sr=SAMPLE_RATE, n_mfcc=MFCC_COUNT, hop_length=hop, htk=True)
    chroma = librosa.feature.chroma_cqt(y=samples, sr=SAMPLE_RATE, hop_length=hop)
    return np.vstack([rate, mfcc, chroma]).T.astype(np.float32)


def detect_voiced(samples: np.ndarray, hop: int) -> np.ndarray:
    """Return which steps [T] of samples [N] are voiced, by the rule of `audio.librosa`."""
    librosa = import_librosa()
    padded = librosa.util.fix_length(samples, size=max(len(samples), WINDOW))
    steps = 1 + len(samples) // hop
    f0 = librosa.yin(y=padded, fmin=F0_FLOOR, fmax=F0_CEILING, sr=SAMPLE_RATE, frame_length=WINDOW, hop_length=hop)
    windows = librosa.util.frame(np.pad(padded, WINDOW // 2), frame_length=WINDOW, hop_length=hop)
    periodic, level = detect_periodicity(windows.T[:steps], f0[:steps])
    voiced: np.ndarray = periodic & (level >= max(SILENCE, MIN_VOICED_LEVEL * np.percentile(level, 95)))
    return voiced
