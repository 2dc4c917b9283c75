"""Sentiment of new videos, by a checkpoint: `Predictor.load("models/seed-0/best")("talk.mp4")`.

The network sees what `model.evaluate` would show it of the same clip, so that the scores are the same. What features a
video has is the business of whoever is registered for it (`model.prediction.protocol`). Torch is imported where the weights are
loaded, and workers begin to read videos meanwhile.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.checkpoint.description import read_description
from model.config import MODALITIES
from model.prediction.protocol import Failed, FeatureMaker, Made, Part, Steps, Video, find_maker
from model.prediction.results import Failure, Notice, Prediction, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from model.checkpoint.io import CheckpointInfo
    from model.network.dashfusion import DashFusion

LEVEL = 0.9

WINDOW = 5.0
"""Seconds, where the checkpoint does not say how long its training clips were."""

BATCH_PARTS = 64
"""Clips and windows that are waited for before the network sees them."""


class PredictionError(ValueError):
    """A video could not be scored; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Predictor:
    """A checkpoint that scores videos. Extractors and network stay loaded between calls.

    May be called from several threads. Each extractor works on one video at a time, and threads wait for each other
    there; the network has no state and is not locked. `Predictor.load` loads the weights, `Predictor` alone leaves that
    to the first prediction, beside which workers then read the first videos.

    Args:
        folder: the checkpoint.
        device: of the network: auto, cpu, cuda, ...
        language: ISO 639-1 code of what is said; None: the corpus's.
        recogniser: folder or id of a speech recogniser, for videos without a transcript. None: the one that the
            checkpoint names, if it names one and it can be had; empty: none.
        quantise_text: compute the Linear layers of the text encoder in int8, see `model.prediction.quantisation`.

    Attributes:
        folder: the checkpoint.
        description: the content of its checkpoint.json.
        recogniser: what videos without a transcript are heard by; None: nothing, or not known before `maker`.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: of another version, or without a text encoder to quantise.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        device: str = "auto",
        language: str | None = None,
        recogniser: str | None = None,
        quantise_text: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        if quantise_text and "text" not in self.description["train"]["modalities"]:
            raise ValueError(f"{folder}: trained without text, so there is no text encoder to quantise")
        self._device, self._quantise = device, quantise_text
        self._language, self._recogniser = language, recogniser
        self.recogniser: str | None = None
        self._notices: list[Notice] = []
        self._loading = threading.Lock()
        self._network: tuple[DashFusion, CheckpointInfo] | None = None
        self._maker: FeatureMaker | None = None

    @classmethod
    def load(cls, path: Path | str, **options: Any) -> Predictor:
        """The checkpoint in the folder `path`, with its weights; `options` as of the class.

        Raises:
            FileNotFoundError, ValueError: as the class; also a device that is not here.
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
        """Score one video, in this process; see `Video` and `predict`.

        Raises:
            PredictionError: it cannot be scored; the message says what was found and what to do.
            ValueError: as `predict`.
        """
        item = Video(Path(video), text, transcript)
        (result,) = self.predict([item], level=level, window=window, hop=hop)
        return _prediction(result)

    def predict(
        self,
        videos: Iterable[Video],
        *,
        level: float = LEVEL,
        window: float | None = None,
        hop: float | None = None,
        workers: int = 0,
        timeout: float = 300.0,
    ) -> Iterator[Result]:
        """Score videos: one result each, in their order, a batch at a time. A bad one never stops the others.

        Args:
            level: of the intervals: one that the checkpoint was calibrated for (0.5, 0.8, 0.9, 0.95).
            window: seconds of the windows of a time line, which every longer video gets. None: the median length of
                the training clips, and a time line for videos of two windows or more.
            hop: most seconds between two windows' starts; None: half a window.
            workers: processes that read the videos; 0: this one, in which a damaged file may hang or crash it all.
            timeout: seconds that a worker may take for one video.

        Raises:
            ValueError: features cannot be made here as they were in training, or an option is out of its range.
        """
        self._check(level, window=window, hop=hop)
        seconds = self.description["dataset"].get("training", {}).get("seconds", {})
        length = window or max(round(seconds.get("median", WINDOW), 1), 1.0)
        items = list(videos)
        made = self.maker().make(
            items,
            window=length,
            hop=hop or length / 2,
            longer_than=length if window else 2 * length,
            workers=workers,
            timeout=timeout,
        )
        self.network()  # while the workers read
        self.maker().prepare()
        return self._in_batches(items, made, level)

    def from_features(
        self,
        features: Mapping[str, np.ndarray],
        *,
        masks: Mapping[str, np.ndarray] | None = None,
        text: str = "",
        name: str = "features",
        level: float = LEVEL,
    ) -> Prediction:
        """Score a clip whose features were made elsewhere, by the extractors that the checkpoint names.

        Args:
            features: modality -> values [T, D] as its extractor gives them, not normalised; for a checkpoint of the
                aligned mode, pooled onto the text's tokens. Those that are left out are missing.
            masks: modality -> [T] bool, False where the network may not look; where left out, it sees all steps.
            text: for a checkpoint that reads transcripts (model.text.mode finetune or scratch).

        Raises:
            PredictionError: there is nothing to go by.
            ValueError: an unknown modality, not the training's width, or values that are not finite.
        """
        self._check(level)
        unknown = sorted(set(features) - set(MODALITIES))
        if unknown:
            raise ValueError(f"features of {unknown[0]!r}: name them {', '.join(MODALITIES)}")
        seen = masks or {}
        steps = {m: Steps(x, np.asarray(seen.get(m, np.ones(len(x), bool)))) for m, x in features.items()}
        made = Made(None, "given" if text else "", Part(0.0, 0.0, text, steps))
        return _prediction(self._score([(name, made)], level)[0])

    def warm_up(self) -> None:
        """Load all that the first video would wait for, and refuse what cannot work.

        Raises:
            ValueError: as `predict`.
        """
        self.maker().prepare()
        self.network()

    def network(self) -> tuple[DashFusion, CheckpointInfo]:
        """The network and what stands beside its weights; loaded at the first call."""
        with self._loading:
            if self._network is None:
                self._network = self._load_network()
            return self._network

    def _load_network(self) -> tuple[DashFusion, CheckpointInfo]:
        from model.checkpoint.io import load_checkpoint
        from model.device import resolve_device

        network, info = load_checkpoint(self.folder, resolve_device(self._device))
        if self._quantise and network.text:
            network.encoders["text"].encoder = _quantise(network.encoders["text"].encoder)
        return network, info

    def maker(self) -> FeatureMaker:
        """What makes features of videos; built at the first call.

        Raises:
            ValueError: nothing here does, or it would make others than those of the training.
        """
        with self._loading:
            if self._maker is None:
                self._maker = self._find_maker()
            return self._maker

    def _find_maker(self) -> FeatureMaker:
        dataset, train = self.description["dataset"], self.description["train"]
        tokens = self.description["model"].get("text", {}).get("mode", "frozen") != "frozen"
        change = _quantise if self._quantise and not tokens else None
        make = find_maker()

        def made(recogniser: str | None) -> FeatureMaker:
            return make(
                dataset,
                train["modalities"],
                tokens=tokens,
                language=self._language,
                recogniser=recogniser,
                change_text=change,
            )

        named = dataset.get("recogniser")
        if self._recogniser is not None or not named:
            self.recogniser = self._recogniser or None
            return made(self.recogniser)
        try:
            hearing, self.recogniser = made(named), named
            return hearing
        except ValueError as error:
            maker = made(None)  # or the same error, where it is not the recogniser's
            message = f"the recogniser of the training's transcripts cannot be had here: {error}"
            self._notices.append(Notice("no_recogniser", message))
            return maker

    def _check(self, level: float, **seconds: float | None) -> None:
        known = self.description.get("calibration", {}).values()
        levels = sorted({name for entry in known for name in entry} - {"n"}, key=float)
        if levels and f"{level:g}" not in levels:
            raise ValueError(f"level is {level:g}: the checkpoint has intervals for {', '.join(levels)}; choose one")
        for name, value in seconds.items():
            if value is not None and not 0.1 <= value < float("inf"):
                raise ValueError(f"{name} is {value:g} s: it must be 0.1 s or more")

    def _in_batches(self, items: Sequence[Video], results: Iterator[Made | Failed], level: float) -> Iterator[Result]:
        waiting: list[tuple[str, Made | Failed]] = []
        parts = 0
        for item, made in zip(items, results, strict=True):
            waiting.append((str(item.media), made))
            parts += 1 + len(getattr(made, "windows", ()))
            if parts >= BATCH_PARTS:
                yield from self._score(waiting, level)
                waiting, parts = [], 0
        yield from self._score(waiting, level)

    def _score(self, batch: Sequence[tuple[str, Made | Failed]], level: float) -> list[Result]:
        from model.prediction.scoring import score_videos

        return score_videos(batch, *self.network(), level, self._notices)


def _prediction(result: Result) -> Prediction:
    if isinstance(result, Failure):
        raise PredictionError(result)
    return result


def _quantise(encoder: nn.Module) -> nn.Module:
    from model.prediction.quantisation import quantise_linear

    return quantise_linear(encoder)
