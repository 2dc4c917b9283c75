"""Audio features with openSMILE: the low-level descriptors of eGeMAPS, a small set made for voice research.

T steps of 10 ms. Times are seconds from the clip's start.
"""

from __future__ import annotations

import math
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

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

SAMPLE_RATE = 16_000

HOP_SECONDS = 0.01

BLOCK_SECONDS, CONTEXT_SECONDS = 60.0, 2.0
"""Longest stretch that is measured at once, and what it sees on either side beyond the steps that are kept of it.

What bounds the memory: openSMILE takes 0.7 MB a second. The values are those of the whole clip; only jitter, whose
periods openSMILE counts from the start of a voiced stretch, can differ where one spans more than the context.
"""

SHORTEST = 960
"""Samples of the longest window, 60 ms; shorter clips are filled up with silence."""

_PITCH = "F0semitoneFrom27.5Hz_sma3nz"


class OpenSmileAudio:
    """`audio.opensmile`: the 25 low-level descriptors of eGeMAPSv02, smoothed over three steps as the set does.

    The clip is resampled to 16,000 Hz and mixed to one channel. Step t begins where openSMILE's windows do, at
    10 ms * t, so what is measured lies 10 to 30 ms behind that; steps touch, the last ends with the clip. A step
    is valid where it is voiced: where openSMILE gives an F0. Names are openSMILE's own; `nz` marks what is
    smoothed over voiced steps alone. A clip longer than 60 s is measured in blocks that see 2 s of each other.

    Raises:
        ValueError: the package opensmile is not installed.
    """

    modality = "audio"
    description = FeatureDescription(
        source=f"openSMILE, configuration eGeMAPSv02 (Eyben et al. 2016), of the sound at {SAMPLE_RATE:,} Hz, channels "
        "averaged; smoothed over three steps, `nz` over voiced ones alone. openSMILE's licence allows research and "
        "private use, not commercial products",
        rate=f"{1 / HOP_SECONDS:.0f} a second; step t begins at {HOP_SECONDS} t s, where its windows begin: their "
        "middles lie 10 ms (of 20 ms windows) to 30 ms (of 60 ms windows) later",
        window="60 ms for pitch, jitter, shimmer, harmonics and HNR; 20 to 25 ms for the others",
        valid="where voiced: where openSMILE gives an F0",
        features=(
            Feature(("Loudness_sma3",), "perceived loudness, the sum of an auditory spectrum", "1"),
            Feature(("alphaRatio_sma3",), "energy of 50 to 1,000 Hz against 1 to 5 kHz", "dB"),
            Feature(("hammarbergIndex_sma3",), "strongest peak of 0 to 2 kHz against 2 to 5 kHz", "dB"),
            Feature(
                ("slope0-500_sma3", "slope500-1500_sma3"), "slope of the logarithmic power spectrum in a band", "dB/Hz"
            ),
            Feature(("spectralFlux_sma3",), "change of the spectrum from step to step", "1"),
            Feature((*(f"{name}_sma3" for name in numbered("mfcc", 4, first=1)),), "mel cepstrum, 1 to 4", "1"),
            Feature((_PITCH,), "fundamental frequency, 0 where unvoiced", "semitones above 27.5 Hz"),
            Feature(("jitterLocal_sma3nz",), "change of the period from one to the next", "period"),
            Feature(("shimmerLocaldB_sma3nz",), "change of the period's amplitude from one to the next", "dB"),
            Feature(("HNRdBACF_sma3nz",), "harmonics to noise, from the autocorrelation", "dB"),
            Feature(
                ("logRelF0-H1-H2_sma3nz", "logRelF0-H1-A3_sma3nz"),
                "first harmonic against the second, and against the strongest near the third formant",
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
                        f"strongest harmonic near formant {number} against that of F0",
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
        self.signature = make_signature("audio.opensmile", VERSION, {}, f"opensmile {version('opensmile')}")
        self._smile: Any = None

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        longest, context, hop = (round(s * SAMPLE_RATE) for s in (BLOCK_SECONDS, CONTEXT_SECONDS, HOP_SECONDS))
        blocks, count = [], 0
        for samples, inside in cut_overlapping(read_audio_blocks(media, SAMPLE_RATE), longest, context):
            measured = self._measure(np.pad(samples, (0, max(SHORTEST - len(samples), 0))))
            blocks.append(measured[inside.start // hop : math.ceil(inside.stop / hop)])
            count += inside.stop - inside.start
        values = np.concatenate(blocks)
        start = np.arange(len(values)) * HOP_SECONDS
        return FeatureSequence(
            values=values,
            start=start.astype(np.float32),
            end=np.append(start[1:], count / SAMPLE_RATE).astype(np.float32),
            valid=values[:, self.feature_names.index(_PITCH)] > 0,
        )

    def _measure(self, samples: np.ndarray) -> np.ndarray:
        """[T, 25] float32 of samples [N]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the libraries that opensmile stands on
            import opensmile

            if self._smile is None:
                self._smile = opensmile.Smile(
                    feature_set=opensmile.FeatureSet.eGeMAPSv02,
                    feature_level=opensmile.FeatureLevel.LowLevelDescriptors,
                )
            found = self._smile.process_signal(samples, SAMPLE_RATE)
        return found[list(self.feature_names)].to_numpy(np.float32)
