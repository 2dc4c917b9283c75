"""Audio features with openSMILE: the low-level descriptors of eGeMAPS, one step every 10 ms.

Shapes: N samples, T steps. Times are seconds from the clip's start.
"""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

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
    from pathlib import Path

VERSION = 2

SAMPLE_RATE = 16_000

HOP_SECONDS = 0.01

BLOCK_SECONDS, CONTEXT_SECONDS = 60.0, 2.0
"""Maximum length of a block including its context, and the context on either side, whose steps are not kept.

Blocks bound the memory: openSMILE takes 0.7 MB per second. The values equal those of the whole clip, except that jitter
can differ where a voiced stretch is longer than the context, because openSMILE counts its periods from the start.
"""

MIN_SAMPLES = 960
"""Length of the longest window in samples (60 ms); shorter clips are padded with silence."""

_PITCH = "F0semitoneFrom27.5Hz_sma3nz"


class OpenSmileAudio:
    """`audio.opensmile`: the 25 low-level descriptors of eGeMAPSv02, with the set's own smoothing over three steps.

    The clip is resampled to 16,000 Hz and mixed to mono. Step t begins where openSMILE's windows begin, at 10 ms * t;
    the windows' centres are 10 to 30 ms later. Steps are contiguous and the last one ends with the clip.
    A step is valid if it is voiced, that is if openSMILE reports an F0. The names are openSMILE's; `nz` marks features
    that are smoothed over voiced steps only. Clips longer than 60 s are measured in blocks, with 2 s of context on
    either side.

    Raises:
        ValueError: the package opensmile is not installed.
    """

    modality = "audio"
    description = FeatureDescription(
        source=f"openSMILE, configuration eGeMAPSv02 (Eyben et al. 2016), on the audio resampled to {SAMPLE_RATE:,} Hz "
        "and mixed to mono; smoothed over three steps, features with `nz` over voiced steps only. openSMILE's licence "
        "allows research and private use, not commercial products",
        rate=f"{1 / HOP_SECONDS:.0f} per second; step t begins at {HOP_SECONDS} t s, where its windows begin; their "
        "centres are 10 ms (20 ms windows) to 30 ms (60 ms windows) later",
        window="60 ms for pitch, jitter, shimmer, harmonics and HNR; 20 to 25 ms for the others",
        valid="voiced steps: openSMILE reports an F0",
        features=(
            Feature(("Loudness_sma3",), "perceived loudness: sum over the auditory spectrum", "1"),
            Feature(("alphaRatio_sma3",), "energy ratio of 50 to 1,000 Hz and 1 to 5 kHz", "dB"),
            Feature(("hammarbergIndex_sma3",), "ratio of the strongest peaks in 0 to 2 kHz and in 2 to 5 kHz", "dB"),
            Feature(
                ("slope0-500_sma3", "slope500-1500_sma3"), "slope of the log power spectrum in the band (Hz)", "dB/Hz"
            ),
            Feature(("spectralFlux_sma3",), "difference of the spectra of consecutive steps", "1"),
            Feature(
                (*(f"{name}_sma3" for name in numbered("mfcc", 4, first=1)),),
                "mel-frequency cepstral coefficients 1 to 4",
                "1",
            ),
            Feature((_PITCH,), "fundamental frequency, 0 if unvoiced", "semitones above 27.5 Hz"),
            Feature(("jitterLocal_sma3nz",), "difference of consecutive pitch periods", "period"),
            Feature(("shimmerLocaldB_sma3nz",), "difference of the peak amplitudes of consecutive pitch periods", "dB"),
            Feature(("HNRdBACF_sma3nz",), "harmonics-to-noise ratio, from the autocorrelation", "dB"),
            Feature(
                ("logRelF0-H1-H2_sma3nz", "logRelF0-H1-A3_sma3nz"),
                "level of the first harmonic relative to the second, and to the strongest near the third formant",
                "dB",
            ),
            *(
                feature
                for number in (1, 2, 3)
                for feature in (
                    Feature(
                        (f"F{number}frequency_sma3nz", f"F{number}bandwidth_sma3nz"),
                        f"centre and bandwidth of formant {number}",
                        "Hz",
                    ),
                    Feature(
                        (f"F{number}amplitudeLogRelF0_sma3nz",),
                        f"level of the strongest harmonic near formant {number} relative to F0",
                        "dB",
                    ),
                )
            ),
        ),
        extra="opensmile",
    )
    feature_names = description.names

    def __init__(self) -> None:
        if find_spec("opensmile") is None:
            raise ValueError("audio.opensmile needs the package opensmile; pip install 'dashfusion[opensmile]'")
        self.identity = Identity("audio.opensmile", VERSION, {}, libraries=("opensmile", "av"), covered="opensmile")
        self.signature = self.identity.signature
        self._smile: Any = None

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        block, context, hop = (round(s * SAMPLE_RATE) for s in (BLOCK_SECONDS, CONTEXT_SECONDS, HOP_SECONDS))
        blocks, sample_count = [], 0
        for samples, inside in cut_overlapping(read_audio_blocks(media, SAMPLE_RATE), block, context):
            steps = self._measure(np.pad(samples, (0, max(MIN_SAMPLES - len(samples), 0))))
            blocks.append(steps[inside.start // hop : math.ceil(inside.stop / hop)])
            sample_count += inside.stop - inside.start
        values = np.concatenate(blocks)
        start = np.arange(len(values)) * HOP_SECONDS
        return FeatureSequence(
            values=values,
            start=start.astype(np.float32),
            end=np.append(start[1:], sample_count / SAMPLE_RATE).astype(np.float32),
            valid=values[:, self.feature_names.index(_PITCH)] > 0,
        )

    def _measure(self, samples: np.ndarray) -> np.ndarray:
        """Return the features [T, 25] float32 of samples [N]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from opensmile's own dependencies
            import opensmile

            if self._smile is None:
                self._smile = opensmile.Smile(
                    feature_set=opensmile.FeatureSet.eGeMAPSv02,
                    feature_level=opensmile.FeatureLevel.LowLevelDescriptors,
                )
            table = self._smile.process_signal(samples, SAMPLE_RATE)
        values: np.ndarray = table[list(self.feature_names)].to_numpy(np.float32)
        return values
