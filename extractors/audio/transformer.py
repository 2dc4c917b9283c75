"""Audio features from a pre-trained speech encoder: its hidden states, one step every 20 ms for the usual models.

Shapes: N samples, T steps, D width of the hidden states. Times are seconds from the clip's start.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property, partial
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
)
from extractors.huggingface import (
    MODEL_LIBRARIES,
    batch_limit,
    choose_layers,
    find_model,
    fingerprint,
    hidden_names,
    hidden_states,
    load_model,
    load_part,
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
"""Encoders of the waveform; `whisper` encodes its log-mel spectrogram."""

CHUNK_SECONDS = 30.0
"""Maximum length that is encoded at once, as attention is quadratic in it. Whisper's window limits it further."""
CONTEXT_SECONDS = 2.0
"""Context on either side of a chunk, whose steps are computed, but not kept."""

BATCH_SECONDS, QUEUE_SECONDS = 120.0, 480.0
"""On a GPU: maximum audio in a batch, including padding, and the amount read before it is sorted into batches."""

WHISPER_HOP, WHISPER_STRIDE = 160, 2
"""Hop of Whisper's spectrogram in samples, and frames per step (the stride of its second convolution)."""


@dataclass(slots=True)
class _Chunk:
    """A part of a clip that is encoded at once.

    Attributes:
        inputs: input tensor of the model; None once encoded.
        length: samples that count towards the size of a batch.
        steps: steps to keep.
        hidden: [T, D] hidden states of the steps kept; None until encoded.
    """

    inputs: Any
    length: int
    steps: slice
    hidden: np.ndarray | None = None


@dataclass(slots=True)
class _Clip:
    """Chunks of a clip, in order, and its length in samples."""

    chunks: list[_Chunk]
    samples: int


class TransformerAudio:
    """`audio.transformer`: hidden states of wav2vec 2.0, HuBERT, WavLM or Whisper's encoder, in float32.

    The clip is resampled to 16,000 Hz, mixed to mono and normalised as the model's `preprocessor_config.json` says. All
    steps are valid. A step of the waveform models is centred on the receptive field of its convolutions, one of
    Whisper's on its spectra. Steps are contiguous; the first starts and the last ends with the clip.

    Clips longer than 30 s (or Whisper's window) are read and encoded in chunks of that length with 2 s of context on
    either side. If the model normalises its input, the mean and deviation of the whole clip are computed in a first
    pass.

    The weights are loaded with the first clip, onto a GPU if there is one. On a GPU, chunks of similar length are
    encoded together, padded and masked; for models that normalise their first convolution over time, including padding
    (`feat_extract_norm` is `group`), only chunks of equal length. Batching does not change the result beyond float32
    precision, but its last bits depend on the batch and therefore on which clips are left to do. On a CPU each chunk is
    encoded alone, always to the same bytes.

    Args:
        model: a folder with a Hugging Face model, or an id on its hub.
        layer: hidden state to use: -1 is the model's output, 0 the input of its first layer; `last_four` is the mean
            of the last four.

    Raises:
        ValueError: an option is out of range, or the model cannot be found or used.
    """

    modality = "audio"
    description = FeatureDescription(
        source="transformers: wav2vec 2.0, HuBERT, WavLM or the encoder of Whisper, on the audio resampled to "
        f"{SAMPLE_RATE:,} Hz, mixed to mono, and normalised as the model's `preprocessor_config.json` says",
        rate="sampling rate over the product of the model's strides: 50 per second for the usual models",
        window="the whole clip through attention, in chunks of at most "
        f"{CHUNK_SECONDS:.0f} s with {CONTEXT_SECONDS:.0f} s of context on either side",
        valid="always",
        features=(Feature(("hidden_*",), "hidden state of the chosen layer, one feature per dimension", "none"),),
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
        self._max_samples = round(CHUNK_SECONDS * SAMPLE_RATE)
        if self._whisper:
            self.stride = self._receptive = WHISPER_HOP * WHISPER_STRIDE
            self._max_samples = min(self._max_samples, config["max_source_positions"] * self.stride)
        else:
            self.stride, self._receptive = receptive_field(config["conv_kernel"], config["conv_stride"])
        self._can_pad = config.get("feat_extract_norm") == "layer"
        self._context = min(round(CONTEXT_SECONDS * SAMPLE_RATE), self._max_samples // 8) // self.stride * self.stride
        self._max_samples -= self._max_samples % self.stride
        self._options = {"model": model, "layers": self._layers}

    @cached_property
    def identity(self) -> Identity:
        """What decides the output; the first access reads the weights."""
        libraries, weights = (*MODEL_LIBRARIES, "av"), fingerprint(self.folder)
        return Identity("audio.transformer", VERSION, self._options, weights, libraries, "transformers")

    @property
    def signature(self) -> str:
        """Signature of the output."""
        return self.identity.signature

    @property
    def batched(self) -> bool:
        """Whether clips are encoded together, which they are on a GPU."""
        import torch

        return torch.cuda.is_available()

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order."""
        chunks: list[_Chunk] = []  # read, not yet encoded
        clips: list[_Clip | ExtractionError] = []  # read, not yet yielded
        for clip in extract_each(sources, partial(self._read, chunks=chunks)):
            clips.append(clip)
            if not chunks:
                yield from map(self._sequence, clips)
                clips.clear()
        self._encode(chunks)
        yield from map(self._sequence, clips)

    @cached_property
    def _preprocessor(self) -> Any:
        return load_part(self.folder, "AutoFeatureExtractor")

    @cached_property
    def _model(self) -> Any:
        return load_model(self.folder)

    def _read(self, media: Path, chunks: list[_Chunk]) -> _Clip:
        """Read a clip in chunks and append them to the queue `chunks`; encode and empty the queue when it is full."""
        limit = batch_limit(self._model, round(QUEUE_SECONDS * SAMPLE_RATE))
        clip = _Clip([], 0)
        scale: tuple[float, float] | None = None
        for samples, inside in cut_overlapping(read_audio_blocks(media, SAMPLE_RATE), self._max_samples, self._context):
            if inside.stop < len(samples) and scale is None:
                scale = self._measure_scale(media)
            steps = slice(inside.start // self.stride, math.ceil(inside.stop / self.stride))
            inputs = self._prepare(samples, scale)
            chunk = _Chunk(inputs, self._max_samples if self._whisper else len(inputs), steps)
            clip.chunks.append(chunk)
            clip.samples += inside.stop - inside.start
            chunks.append(chunk)
            if sum(chunk.length for chunk in chunks) > limit:
                self._encode(chunks)
        return clip

    def _measure_scale(self, media: Path) -> tuple[float, float]:
        """Return the mean and deviation with which the chunks of a clip are normalised; 0 and 1 if they are not."""
        if self._whisper or not self._preprocessor.do_normalize:
            return 0.0, 1.0
        count, total, squares = 0, 0.0, 0.0
        for samples in read_audio_blocks(media, SAMPLE_RATE):
            count += len(samples)
            total += samples.sum(dtype=np.float64)
            squares += np.square(samples, dtype=np.float64).sum()
        mean = total / count
        return mean, math.sqrt(max(squares / count - mean**2, 0.0) + 1e-7)

    def _prepare(self, samples: np.ndarray, scale: tuple[float, float] | None) -> Any:
        """Return the model's input: a waveform [N] of at least one step, or Whisper's spectrogram [bands, frames].

        Args:
            samples: [N] samples of the chunk.
            scale: mean and deviation for normalisation, if the samples are not the whole clip.
        """
        import torch

        preprocess = partial(self._preprocessor, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        if self._whisper:
            return preprocess(samples).input_features[0]
        samples = np.pad(samples, (0, max(self._receptive - len(samples), 0)))
        if scale is not None:
            mean, deviation = scale
            return torch.from_numpy(((samples - mean) / deviation).astype(np.float32))
        return preprocess(samples).input_values[0]

    def _encode(self, chunks: list[_Chunk]) -> None:
        """Set `hidden` of all chunks, on a GPU in batches of similar length, and empty the list."""
        import torch

        if not chunks:
            return
        lengths = {i: chunk.length for i, chunk in enumerate(chunks)}
        limit = batch_limit(self._model, round(BATCH_SECONDS * SAMPLE_RATE))
        for batch in make_batches(lengths, limit, only_equal=not self._can_pad):
            inputs = [chunks[i].inputs for i in batch]
            if self._whisper:
                arguments = {"input_features": torch.stack(inputs)}
            else:
                arguments = {"input_values": torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)}
                if lengths[batch[0]] < lengths[batch[-1]]:
                    lengths_B = torch.tensor([lengths[i] for i in batch])
                    arguments["attention_mask"] = (torch.arange(lengths[batch[-1]]) < lengths_B[:, None]).long()
            hidden_BTD = hidden_states(self._model, self._layers, **arguments)
            for row, i in enumerate(batch):
                stop = hidden_BTD.shape[1] if self._whisper else (lengths[i] - self._receptive) // self.stride + 1
                chunks[i].hidden = hidden_BTD[row, :stop][chunks[i].steps].copy()
                chunks[i].inputs = None
        chunks.clear()

    def _sequence(self, clip: _Clip | ExtractionError) -> FeatureSequence | ExtractionError:
        if isinstance(clip, ExtractionError):
            return clip
        values = np.concatenate([chunk.hidden for chunk in clip.chunks])
        centre = (0.0 if self._whisper else self._receptive / 2) + np.arange(len(values)) * self.stride
        start, end = centre - self.stride / 2, centre + self.stride / 2
        start[0], end[-1] = 0, clip.samples
        try:
            return FeatureSequence(
                values=values,
                start=(start / SAMPLE_RATE).astype(np.float32),
                end=(end / SAMPLE_RATE).astype(np.float32),
                valid=np.ones(len(values), bool),
            )
        except ExtractionError as error:  # overflow in the model
            return error


def check_preprocessor(folder: Path) -> None:
    """Check that a model states how to prepare its input, and that it takes `SAMPLE_RATE`.

    Raises:
        ValueError: there is no `preprocessor_config.json`, or it states another rate.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing, which says how to normalise the audio; copy it from the model's hub page")
    rate = json.loads(path.read_text(encoding="utf-8")).get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise ValueError(f"{path}: the model takes {rate} Hz; choose one for {SAMPLE_RATE} Hz")


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Return the stride and the receptive field, in samples, of a stack of convolutions.

    Araujo, Norris and Sim 2019 (Computing Receptive Fields of Convolutional Neural Networks), equation 2.
    """
    jump, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * jump
        jump *= stride
    return jump, field
