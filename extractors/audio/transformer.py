"""Audio features from a pre-trained speech encoder: hidden states, one step every 20 ms of the usual models.

N samples of a clip, T steps, D the model's width. Times are seconds from the clip's start.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.base import ExtractionError, Feature, FeatureSequence, FeatureDescription, Source, extract_each, make_signature
from extractors.huggingface import (
    batch_limit,
    choose_layers,
    find_model,
    fingerprint,
    hidden_names,
    hidden_states,
    load_model,
    make_batches,
    read_config,
)
from media.audio import cut_overlapping, read_audio_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 2

SAMPLE_RATE = 16_000

WAVE_MODELS = ("wav2vec2", "hubert", "wavlm")
"""Encoders of the wave itself; `whisper` reads its log-mel spectrum."""

CHUNK_SECONDS = 30.0
"""Longest stretch that is encoded at once: attention costs its square. Whisper's own limit holds as well."""
CONTEXT_SECONDS = 2.0
"""What a chunk sees on either side beyond the steps that are kept of it."""

BATCH_SECONDS, WAITING_SECONDS = 120.0, 480.0
"""On a GPU: most sound a batch, padding included, and how much is read before it is sorted into batches."""

WHISPER_HOP, WHISPER_STRIDE = 160, 2
"""Samples between the spectra that Whisper reads, and spectra a step: its second convolution's stride."""


@dataclass(slots=True)
class _Chunk:
    """A part of a clip that is encoded at once.

    Attributes:
        sound: tensor that the model takes, until it is encoded.
        length: samples that it costs.
        steps: which of its steps are kept.
        hidden: [T, D] these, once encoded.
    """

    sound: Any
    length: int
    steps: slice
    hidden: np.ndarray | None = None


@dataclass(slots=True)
class _Clip:
    """A clip's chunks, in order, and its length in samples."""

    chunks: list[_Chunk]
    samples: int


class TransformerAudio:
    """`audio.transformer`: hidden states of wav2vec 2.0, HuBERT, WavLM or of Whisper's encoder, in float32.

    The clip is resampled to 16,000 Hz, mixed to one channel and normalised the way that the model's
    `preprocessor_config.json` says. Every step is valid. A step of the wave models is centred on the samples
    that its convolutions see, one of Whisper's on its spectra, and steps touch; the first begins and the last
    ends with the clip.

    Clips over 30 s (or Whisper's window) are cut into chunks of that length that see up to 2 s of each other, and
    are read chunk by chunk; where their sound is normalised, its mean and deviation take a second reading.

    The weights are loaded at the first clip, onto a GPU where there is one. There clips and chunks of like length
    are encoded together, the shorter ones padded under a mask; models that normalise their first convolution
    over time, padding included (`feat_extract_norm` is `group`), take none of another length along. The result
    is that of one at a time to float32's precision, but its last bits hang on what a batch holds, and so on what
    was left to do. On a CPU each is encoded alone, to the same bytes every time.

    Args:
        model: a folder with a Hugging Face model, or an id on its hub.
        layer: -1 is the model's output, 0 what enters its first layer; `last_four` is the mean of the last four.

    Raises:
        ValueError: an option is out of its range, or the model cannot be had or used.
    """

    modality = "audio"
    description = FeatureDescription(
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
        self._padded = config.get("feat_extract_norm") == "layer"
        self._context = min(round(CONTEXT_SECONDS * SAMPLE_RATE), self._longest // 8) // self.stride * self.stride
        self._longest -= self._longest % self.stride
        options = {"model": model, "layers": self._layers}
        self.signature = make_signature("audio.transformer", VERSION, options, fingerprint(self.folder))
        self._loaded: tuple[Any, Any] | None = None

    @property
    def batched(self) -> bool:
        """Whether clips are encoded together: on a GPU."""
        import torch

        return torch.cuda.is_available()

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order; see the class for what is encoded together."""
        chunks: list[_Chunk] = []  # not yet encoded
        clips: list[_Clip | ExtractionError] = []  # not yet given
        for clip in extract_each(sources, partial(self._read, chunks=chunks)):
            clips.append(clip)
            if not chunks:
                yield from map(self._sequence, clips)
                clips.clear()
        self._encode(chunks)
        yield from map(self._sequence, clips)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoFeatureExtractor

            prepare = AutoFeatureExtractor.from_pretrained(self.folder, local_files_only=True)
            self._loaded = prepare, load_model(self.folder)
        return self._loaded

    def _read(self, media: Path, chunks: list[_Chunk]) -> _Clip:
        """A clip whose chunks are added to `chunks`; these are encoded and taken off whenever they are enough."""
        limit = batch_limit(self._load()[1], round(WAITING_SECONDS * SAMPLE_RATE))
        clip = _Clip([], 0)
        scale: tuple[float, float] | None = None
        for samples, inside in cut_overlapping(read_audio_blocks(media, SAMPLE_RATE), self._longest, self._context):
            if inside.stop < len(samples) and scale is None:
                scale = self._find_scale(media)
            steps = slice(inside.start // self.stride, math.ceil(inside.stop / self.stride))
            sound = self._prepare(samples, scale)
            chunk = _Chunk(sound, self._longest if self._whisper else len(sound), steps)
            clip.chunks.append(chunk)
            clip.samples += inside.stop - inside.start
            chunks.append(chunk)
            if sum(chunk.length for chunk in chunks) > limit:
                self._encode(chunks)
        return clip

    def _find_scale(self, media: Path) -> tuple[float, float]:
        """Mean and deviation of a whole clip that its chunks are normalised with; 0 and 1 where they are not."""
        if self._whisper or not self._load()[0].do_normalize:
            return 0.0, 1.0
        count, total, squares = 0, 0.0, 0.0
        for samples in read_audio_blocks(media, SAMPLE_RATE):
            count += len(samples)
            total += samples.sum(dtype=np.float64)
            squares += np.square(samples, dtype=np.float64).sum()
        mean = total / count
        return mean, math.sqrt(max(squares / count - mean**2, 0.0) + 1e-7)

    def _prepare(self, samples: np.ndarray, scale: tuple[float, float] | None) -> Any:
        """What the model takes for samples [N]: a wave [N], at least one step long, or Whisper's spectra [M, S].

        Args:
            scale: mean and deviation, where the samples are not the whole clip.
        """
        import torch

        prepare, _ = self._load()
        if self._whisper:
            return prepare(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
        samples = np.pad(samples, (0, max(self._receptive - len(samples), 0)))
        if scale is not None:
            mean, deviation = scale
            return torch.from_numpy(((samples - mean) / deviation).astype(np.float32))
        return prepare(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values[0]

    def _encode(self, chunks: list[_Chunk]) -> None:
        """Fill in the chunks' hidden states, in batches of like length where the model is on a GPU; empty the list."""
        import torch

        if not chunks:
            return
        _, model = self._load()
        lengths = {i: chunk.length for i, chunk in enumerate(chunks)}
        limit = batch_limit(model, round(BATCH_SECONDS * SAMPLE_RATE))
        for batch in make_batches(lengths, limit, only_equal=not self._padded):
            inputs = [chunks[i].sound for i in batch]
            if self._whisper:
                arguments = {"input_features": torch.stack(inputs)}
            else:
                arguments = {"input_values": torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)}
                if lengths[batch[0]] < lengths[batch[-1]]:
                    real = torch.tensor([lengths[i] for i in batch])
                    arguments["attention_mask"] = (torch.arange(lengths[batch[-1]]) < real[:, None]).long()
            hidden_BTD = hidden_states(model, self._layers, **arguments)
            for row, i in enumerate(batch):
                stop = hidden_BTD.shape[1] if self._whisper else (lengths[i] - self._receptive) // self.stride + 1
                chunks[i].hidden = hidden_BTD[row, :stop][chunks[i].steps].copy()
                chunks[i].sound = None
        chunks.clear()

    def _sequence(self, clip: _Clip | ExtractionError) -> FeatureSequence | ExtractionError:
        if isinstance(clip, ExtractionError):
            return clip
        values = np.concatenate([chunk.hidden for chunk in clip.chunks])
        middle = (0.0 if self._whisper else self._receptive / 2) + np.arange(len(values)) * self.stride
        start, end = middle - self.stride / 2, middle + self.stride / 2
        start[0], end[-1] = 0, clip.samples
        try:
            return FeatureSequence(
                values=values,
                start=(start / SAMPLE_RATE).astype(np.float32),
                end=(end / SAMPLE_RATE).astype(np.float32),
                valid=np.ones(len(values), bool),
            )
        except ExtractionError as error:  # the weights overflow on this clip
            return error


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
