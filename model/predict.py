"""Sentiment of new videos from a checkpoint: `Predictor.load("models/seed-0/best")("talk.mp4")`.

Scores equal those of `model.evaluate` for the same clip. Features come from the registered feature maker, see
`model.prediction.protocol`. Torch is imported only with the weights, so that worker processes can read the first
videos meanwhile.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.checkpoint.description import read_description
from model.config import MODALITIES
from model.prediction.protocol import (
    FeatureFailure,
    FeatureMaker,
    Note,
    Segment,
    Steps,
    Video,
    VideoFeatures,
    find_maker,
)
from model.prediction.reference import check_reference
from model.prediction.results import Failure, Prediction, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from model.checkpoint.io import CheckpointInfo
    from model.evaluation.cv_plus import FoldNetworks
    from model.network.base import Network

LEVEL = 0.9
"""Default coverage of the prediction intervals."""

WINDOW = 5.0
"""Seconds of a window if the checkpoint does not record the durations of its training clips."""

BATCH_SEGMENTS = 64
"""Clips and windows that are collected for one forward pass."""


class PredictionError(ValueError):
    """A video cannot be scored; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Predictor:
    """A checkpoint that scores videos. Extractors and network stay loaded between calls.

    May be called from several threads. Each extractor processes one video at a time, so threads wait for each other
    there; the network is stateless and not locked. `Predictor.load` loads the weights at once, the constructor leaves
    that to the first prediction, while workers already read the first videos.

    Args:
        folder: Checkpoint folder.
        device: Device of the network: auto, cpu, cuda, ...
        language: ISO 639-1 code of the spoken language; None: the corpus's.
        recogniser: Folder or id of a speech recogniser for videos without a transcript. None: the one that the
            checkpoint names, if any and if available; empty: none.
        quantise_text: Compute the text encoder's Linear layers in int8, see `model.prediction.quantisation`.
        allow_different_features: Whether to score even if the extractors, with other versions of their libraries than
            in training, compute far other features of the checkpoint's reference clip.
        allow_download: Whether pre-trained models that the checkpoint or `recogniser` names may be downloaded from the
            Hugging Face hub. By default no request leaves this machine.

    Attributes:
        folder: Checkpoint folder.
        description: Content of its checkpoint.json.
        recogniser: Speech recogniser in use; None: none, or not known before `maker` is called.

    Raises:
        FileNotFoundError: No checkpoint there.
        ValueError: Another checkpoint version, or no text encoder to quantise.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        device: str = "auto",
        language: str | None = None,
        recogniser: str | None = None,
        quantise_text: bool = False,
        allow_download: bool = False,
        allow_different_features: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        if quantise_text and "text" not in self.description["train"]["modalities"]:
            raise ValueError(f"{folder}: trained without text, so there is no text encoder to quantise")
        self._device, self._quantise, self._allow_download = device, quantise_text, allow_download
        self._language, self._recogniser = language, recogniser
        self._allow_different = allow_different_features
        self.recogniser: str | None = None
        self._notes_without_text: list[Note] = []
        self._notes: list[Note] = []
        self._loading = threading.Lock()
        self._network: tuple[Network, CheckpointInfo] | None = None
        self._folds: FoldNetworks | None = None
        self._maker: FeatureMaker | None = None

    @classmethod
    def load(cls, path: Path | str, **options: Any) -> Predictor:
        """Read the checkpoint in the folder `path` with its weights; `options` as for the class.

        Raises:
            FileNotFoundError: No checkpoint there.
            ValueError: As the class; also an unavailable device.
        """
        predictor = cls(path, **options)
        predictor.network()
        return predictor

    def __call__(
        self,
        video: Path | str,
        text: str | None = None,
        *,
        transcript: Path | None = None,
        level: float = LEVEL,
        window: float | None = None,
        hop: float | None = None,
    ) -> Prediction:
        """Score one video in this process; see `Video` and `predict`.

        Raises:
            PredictionError: The video cannot be scored; the message says what was found and what to do.
            ValueError: As `predict`.
        """
        (result,) = self.predict([Video(Path(video), text, transcript)], level=level, window=window, hop=hop)
        return _prediction_of(result)

    def predict(
        self,
        videos: Iterable[Video],
        *,
        level: float = LEVEL,
        window: float | None = None,
        hop: float | None = None,
        workers: int = 0,
        timeout: float = 300.0,
        memory: int | None = None,
    ) -> Iterator[Result]:
        """Score videos: yield one result each, in order, a batch at a time. A bad video never stops the others.

        Reading starts with the call, not with the first `next`.

        Args:
            videos: Files and transcripts.
            level: Coverage of the prediction intervals: one that the checkpoint was calibrated for (0.5, 0.8, 0.9,
                0.95).
            window: Seconds of a window; every longer video is also scored window by window. None: the median duration
                of the training clips, and windows only for videos at least two windows long.
            hop: Maximum seconds between the starts of two windows; None: half a window.
            workers: Worker processes that read the videos; 0: read in this process, which a damaged file may hang or
                crash.
            timeout: Seconds that a worker may take for one video.
            memory: Bytes that a worker may use; None: no limit.

        Raises:
            ValueError: Features cannot be extracted here as they were in training, or an option is out of range.
        """
        self._check(level, window=window, hop=hop)
        seconds = self.description["dataset"].get("training", {}).get("seconds", {})
        length = window or max(round(seconds.get("median", WINDOW), 1), 1.0)
        videos = list(videos)
        features = self.maker().make(
            videos,
            window=length,
            hop=hop or length / 2,
            longer_than=length if window else 2 * length,
            workers=workers,
            timeout=timeout,
            memory=memory,
        )
        self.network()  # while the workers read
        self.maker().prepare()
        return self._in_batches(videos, features, level)

    def from_features(
        self,
        features: Mapping[str, np.ndarray],
        *,
        masks: Mapping[str, np.ndarray] | None = None,
        text: str = "",
        name: str = "features",
        level: float = LEVEL,
    ) -> Prediction:
        """Score a clip whose features were extracted elsewhere, by the extractors that the checkpoint names.

        Args:
            features: Modality -> values [T, D] as its extractor returns them, not normalised, in the columns that the
                checkpoint names; for a checkpoint of the aligned mode, pooled onto the text's tokens. A modality that
                is left out is missing. Where training standardised audio by speaker, the clip's is by its own steps.
            masks: Modality -> [T] bool, True where the network may attend; default: everywhere, except at all-zero
                steps of audio and vision whose training features came with the corpus.
            text: Transcript, for a checkpoint that reads transcripts (model.text.mode finetune or scratch).
            name: Name of the clip in the result.
            level: Coverage of the prediction interval.

        Raises:
            PredictionError: No usable modality.
            ValueError: An unknown modality, another width than in training, or values that are not finite.
        """
        self._check(level)
        unknown = sorted(set(features) - set(MODALITIES))
        if unknown:
            raise ValueError(f"features of {unknown[0]!r}: name them {', '.join(MODALITIES)}")
        steps = {m: Steps(x, self._mask(m, np.asarray(x), (masks or {}).get(m))) for m, x in features.items()}
        if "audio" in steps and self.description["dataset"].get("normalise_audio") == "speaker":
            steps["audio"] = _standardised(steps["audio"])
        clip = VideoFeatures(None, "given" if text else "", Segment(0.0, 0.0, text, steps))
        return _prediction_of(self._score([(name, clip)], level)[0])

    def _mask(self, modality: str, values_TD: np.ndarray, mask_T: np.ndarray | None) -> np.ndarray:
        """Return the given mask [T], or the default of `from_features`."""
        if mask_T is not None:
            return np.asarray(mask_T)
        is_imported = self.description["dataset"]["modalities"][modality]["extractor"].endswith(".imported")
        if is_imported and modality != "text" and values_TD.ndim == 2:
            return np.asarray(values_TD.any(axis=1))
        return np.ones(len(values_TD), bool)

    def warm_up(self) -> None:
        """Load all models, so that the first video does not wait for them and errors appear early.

        Raises:
            ValueError: As `predict`.
        """
        self.maker().prepare()
        self.network()

    def network(self) -> tuple[Network, CheckpointInfo]:
        """Return the network and its checkpoint's description; loaded by the first call."""
        with self._loading:
            if self._network is None:
                self._network = self._load_network()
            return self._network

    def _load_network(self) -> tuple[Network, CheckpointInfo]:
        from model.checkpoint.io import load_checkpoint
        from model.device import resolve_device

        network, info = load_checkpoint(self.folder, resolve_device(self._device))
        networks = [network]
        if info.calibrated_by.get("method") == "cv_plus":
            from model.evaluation.cv_plus import read_fold_networks

            self._folds = read_fold_networks(self.folder, network)
            networks += self._folds.networks
        for one in networks if self._quantise and network.text else ():
            encoder: Any = one.token_encoder
            encoder.encoder = _quantise(encoder.encoder)
        return network, info

    def maker(self) -> FeatureMaker:
        """Return the feature maker; built by the first call.

        Raises:
            ValueError: None is registered, it would extract other features than those of the training, or the
                features of the reference clip differ from those of the training.
        """
        with self._loading:
            if self._maker is None:
                maker = self._build_maker()
                if note := check_reference(self.folder, self.description, maker, self._allow_different):
                    self._notes.append(note)
                self._maker = maker
            return self._maker

    def _build_maker(self) -> FeatureMaker:
        dataset, train = self.description["dataset"], self.description["train"]
        reads_tokens = self.description["model"].get("text", {}).get("mode", "frozen") != "frozen"
        build = partial(
            find_maker(),
            dataset,
            train["modalities"],
            tokens=reads_tokens,
            language=self._language,
            change_text=_quantise if self._quantise and not reads_tokens else None,
            allow_download=self._allow_download,
        )
        trained_with = dataset.get("recogniser")
        if self._recogniser is not None or not trained_with:
            self.recogniser = self._recogniser or None
            return build(recogniser=self.recogniser)
        try:
            maker, self.recogniser = build(recogniser=trained_with), trained_with
        except ValueError as error:
            maker = build(recogniser=None)  # raises again if the recogniser was not the reason
            message = f"the speech recogniser of the training transcripts is not available here: {error}"
            self._notes_without_text.append(Note("no_recogniser", message))
        return maker

    def _check(self, level: float, **seconds: float | None) -> None:
        known = self.description.get("calibration", {}).values()
        levels = sorted({name for entry in known for name in entry} - {"n"}, key=float)
        if levels and f"{level:g}" not in levels:
            raise ValueError(f"level is {level:g}: the checkpoint has intervals for {', '.join(levels)}; choose one")
        for name, value in seconds.items():
            if value is not None and not 0.1 <= value < float("inf"):
                raise ValueError(f"{name} is {value:g} s: it must be 0.1 s or more")

    def _in_batches(
        self, videos: Sequence[Video], results: Iterator[VideoFeatures | FeatureFailure], level: float
    ) -> Iterator[Result]:
        batch: list[tuple[str, VideoFeatures | FeatureFailure]] = []
        segments = 0
        for video, features in zip(videos, results, strict=True):
            batch.append((str(video.media), features))
            segments += 1 + (len(features.windows) if isinstance(features, VideoFeatures) else 0)
            if segments >= BATCH_SEGMENTS:
                yield from self._score(batch, level)
                batch, segments = [], 0
        yield from self._score(batch, level)

    def _score(self, batch: Sequence[tuple[str, VideoFeatures | FeatureFailure]], level: float) -> list[Result]:
        from model.prediction.scoring import score_videos

        network, info = self.network()
        return score_videos(batch, network, info, level, self._notes, self._notes_without_text, self._folds)


def _prediction_of(result: Result) -> Prediction:
    if isinstance(result, Failure):
        raise PredictionError(result)
    return result


def _standardised(steps: Steps) -> Steps:
    """Return a clip's steps standardised by those of them that the network sees, as the align stage does."""
    values_TD, visible_T = np.asarray(steps.values), np.asarray(steps.mask)
    if values_TD.ndim != 2 or visible_T.shape != values_TD.shape[:1] or visible_T.dtype != bool or not visible_T.any():
        return steps  # refused, with the clip's name, where the network gets it
    seen_SD = values_TD[visible_T].astype(np.float64)
    mean_D, std_D = seen_SD.mean(axis=0), seen_SD.std(axis=0)
    std_D[std_D <= np.finfo(np.float32).eps * np.abs(mean_D)] = 1.0  # constant
    standardised_TD = values_TD.astype(np.float32)
    standardised_TD[visible_T] = (seen_SD - mean_D) / std_D
    return replace(steps, values=standardised_TD)


def _quantise(encoder: nn.Module) -> nn.Module:
    from model.prediction.quantisation import quantise_linear

    return quantise_linear(encoder)
