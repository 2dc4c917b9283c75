"""Audio features from a pre-trained speech encoder: hidden states, one step every 20 ms of the usual models.

N samples of a clip, T steps, D the model's width. Times are seconds from the clip's start.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extractors.base import ExtractionError, FeatureSequence, Source, make_signature
from extractors.per_clip import extract_each, read_sound
from extractors.pretrained import (
    choose_layers,
    find_model,
    fingerprint,
    hidden_names,
    hidden_states,
    load_model,
    read_config,
)
from extractors.recipe import Feature, Recipe

VERSION = 1

SAMPLE_RATE = 16_000

WAVE_MODELS = ("wav2vec2", "hubert", "wavlm")
"""Encoders of the wave itself; `whisper` reads its log-mel spectrum."""

CHUNK_SECONDS = 30.0
"""Longest stretch that is encoded at once: attention costs its square. Whisper's own limit holds as well."""
CONTEXT_SECONDS = 2.0
"""What a chunk sees on either side beyond the steps that are kept of it."""

WHISPER_HOP, WHISPER_STRIDE = 160, 2
"""Samples between the spectra that Whisper reads, and spectra a step: its second convolution's stride."""


class TransformerAudio:
    """`audio.transformer`: hidden states of wav2vec 2.0, HuBERT, WavLM or of Whisper's encoder, in float32.

    The clip is resampled to 16,000 Hz, mixed to one channel and normalised the way that the model's
    `preprocessor_config.json` says. Every step is valid. A step of the wave models is centred on the samples
    that its convolutions see, one of Whisper's on its spectra, and steps touch; the first begins and the last
    ends with the clip.

    Clips are encoded one at a time, so that none depends on the padding of another; over 30 s (or Whisper's
    window) they are cut into chunks of equal length that see up to 2 s of each other. The weights are loaded
    at the first clip, onto a GPU where there is one.

    Args:
        model: a folder with a Hugging Face model, or an id on its hub.
        layer: -1 is the model's output, 0 what enters its first layer; `last_four` is the mean of the last four.

    Raises:
        ValueError: an option is out of its range, or the model cannot be had or used.
    """

    modality = "audio"
    recipe = Recipe(
        source="transformers: wav2vec 2.0, HuBERT, WavLM, or the encoder of Whisper, of the sound at "
        f"{SAMPLE_RATE:,} Hz, channels averaged, normalised as the model's `preprocessor_config.json` says",
        rate="the product of the model's strides: 50 a second for all usual models",
        window="the whole clip through attention, in chunks of at most "
        f"{CHUNK_SECONDS:.0f} s that see {CONTEXT_SECONDS:.0f} s of each other",
        valid="always",
        features=(Feature(("hidden_*",), "hidden state of the chosen layer, one feature a column", "none"),),
    )

    def __init__(self, model: str, layer: int | str = -1) -> None:
        self.folder = find_model(model)
        config = read_config(self.folder)
        kind, adapter = config.get("model_type"), bool(config.get("add_adapter"))
        self._whisper = kind == "whisper"
        if not self._whisper and (kind not in WAVE_MODELS or adapter):
            raise ValueError(
                f"model {model!r} is {kind!r}{' with an adapter' * adapter}; "
                f"audio.transformer takes {', '.join(WAVE_MODELS)} without an adapter, and whisper"
            )
        check_preprocessor(self.folder)
        self.feature_names = hidden_names(config, self.folder)
        self._layers = choose_layers(layer, config)
        self._longest = round(CHUNK_SECONDS * SAMPLE_RATE)
        if self._whisper:
            self.stride = self._receptive = WHISPER_HOP * WHISPER_STRIDE
            self._longest = min(self._longest, config["max_source_positions"] * self.stride)
        else:
            self.stride, self._receptive = receptive_field(config["conv_kernel"], config["conv_stride"])
        options = {"model": model, "layers": self._layers}
        self.signature = make_signature("audio.transformer", VERSION, options, fingerprint(self.folder))
        self._loaded: tuple[Any, Any] | None = None

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order."""
        return extract_each(sources, self._extract)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoFeatureExtractor

            prepare = AutoFeatureExtractor.from_pretrained(self.folder, local_files_only=True)
            self._loaded = prepare, load_model(self.folder)
        return self._loaded

    def _extract(self, media: Path) -> FeatureSequence:
        samples = read_sound(media, SAMPLE_RATE)
        if self._whisper:
            values, centre = self._encode_spectra(samples), 0.0
        else:
            values, centre = self._encode_wave(samples), self._receptive / 2
        middle = centre + np.arange(len(values)) * self.stride
        start, end = middle - self.stride / 2, middle + self.stride / 2
        start[0], end[-1] = 0, len(samples)
        return FeatureSequence(
            values=values,
            start=(start / SAMPLE_RATE).astype(np.float32),
            end=(end / SAMPLE_RATE).astype(np.float32),
            valid=np.ones(len(values), bool),
        )

    def _encode_wave(self, samples: np.ndarray) -> np.ndarray:
        """[T, D] for samples [N]: as many steps as fit the convolutions, one at least."""
        import torch

        prepare, model = self._load()
        samples = np.pad(samples, (0, max(self._receptive - len(samples), 0)))
        wave = prepare(samples, sampling_rate=SAMPLE_RATE, return_tensors="np").input_values[0]
        steps = (len(wave) - self._receptive) // self.stride + 1
        hidden = []
        for chunk, kept in make_chunks(steps, self._longest // self.stride, self._context()):
            stop = (chunk.stop - 1) * self.stride + self._receptive
            part = wave[chunk.start * self.stride : stop if chunk.stop < steps else None]  # some models norm over all
            values = hidden_states(model, self._layers, input_values=torch.from_numpy(part[None]))
            hidden.append(values[0, kept])
        return np.concatenate(hidden)

    def _encode_spectra(self, samples: np.ndarray) -> np.ndarray:
        """[T, D] for samples [N]: steps centred on every 320th sample, the padding of Whisper's window left out."""
        prepare, model = self._load()
        steps = 1 + (len(samples) - 1) // self.stride
        hidden = []
        for chunk, kept in make_chunks(steps, self._longest // self.stride, self._context()):
            part = samples[chunk.start * self.stride : chunk.stop * self.stride]
            spectra = prepare(part, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            hidden.append(hidden_states(model, self._layers, input_features=spectra)[0, kept])
        return np.concatenate(hidden)

    def _context(self) -> int:
        """Steps; never so many that little is left of a short window."""
        return min(round(CONTEXT_SECONDS * SAMPLE_RATE), self._longest // 8) // self.stride


def check_preprocessor(folder: Path) -> None:
    """Refuse a model that does not say how to prepare its sound, or that takes another rate.

    Raises:
        ValueError: what is missing or other than it must be.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing, which says how to normalise the sound; copy it from the model's hub page")
    rate = json.loads(path.read_text(encoding="utf-8")).get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise ValueError(f"{path}: the model takes {rate} Hz; choose one for {SAMPLE_RATE} Hz")


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Samples between steps, and samples that a step sees, of convolutions one after the other.

    Araujo, Norris and Sim 2019 (Computing Receptive Fields of Convolutional Neural Networks), equation 2.
    """
    jump, seen = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        seen += (kernel - 1) * jump
        jump *= stride
    return jump, seen


def make_chunks(steps: int, longest: int, context: int) -> Iterator[tuple[slice, slice]]:
    """Cut `steps` steps into chunks of at most `longest`: each chunk's steps, and which of these to keep.

    Chunks overlap by `context` on either side of what is kept; what is kept covers every step once. A clip
    that fits is one chunk.
    """
    count = 1 if steps <= longest else math.ceil(steps / (longest - 2 * context))
    edges = [steps * i // count for i in range(count + 1)]
    for begin, end in itertools.pairwise(edges):
        first, last = max(begin - context, 0), min(end + context, steps)
        yield slice(first, last), slice(begin - first, end - first)
