"""Who makes features of videos: found at run time, since this package reads no media itself.

A package that can registers a maker in the entry point group `dashfusion.features`; DashFusion's own extractors do. A
machine that has the model alone predicts from feature arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np

ENTRY_POINT_GROUP = "dashfusion.features"


@dataclass(frozen=True, slots=True)
class Video:
    """A video to be scored.

    Attributes:
        media: any file with sound or picture.
        text: what is said in it; None where only `transcript` says, a recogniser, or nobody.
        transcript: file with it: .srt, .vtt or .txt.

    Raises:
        ValueError: both a text and a transcript.
    """

    media: Path
    text: str | None = None
    transcript: Path | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.transcript is not None:
            raise ValueError(f"{self.media}: both a text and a transcript are given; give one of them")
        object.__setattr__(self, "media", Path(self.media))


@dataclass(frozen=True, slots=True)
class Steps:
    """One modality of a clip: values [T, D], and mask [T], True where the network may look."""

    values: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a video, in seconds, as a clip: what is said in it, and its modalities, T = 0 where it lacks one."""

    start: float
    end: float
    text: str
    steps: Mapping[str, Steps]


@dataclass(frozen=True, slots=True)
class Note:
    """What is out of the ordinary: a stable code, and a message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Made:
    """A video's features: all of it, and the windows that slide over it; see `model.prediction.results.Prediction`."""

    duration: float | None
    text_source: str
    whole: Part
    windows: Sequence[Part] = ()
    notes: Sequence[Note] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a video has no features: a short class, and what was found and what to do."""

    error: str
    message: str


def is_made(result: Made | Failed) -> bool:
    """Whether it is features. A maker has classes of its own, with the attributes of these."""
    return hasattr(result, "whole")


class FeatureMaker(Protocol):
    """Makes features as a dataset says that its own were made. Called from several threads."""

    def prepare(self) -> None:
        """Load what the first video would wait for."""

    def make(
        self,
        items: Iterable[Video],
        *,
        window: float | None,
        hop: float | None,
        longer_than: float,
        workers: int,
        timeout: float,
    ) -> Iterator[Made | Failed]:
        """One result a video, in their order. Reading begins with the call, in `workers` processes (0: in this one).

        Windows are made of videos that are longer than `longer_than` seconds.
        """


def find_maker() -> Callable[..., FeatureMaker]:
    """What is registered to make features of videos.

    Called with the content of dataset.json and the modalities that are needed, and `tokens`, `language`, `recogniser`
    and `change_text` by name: see `extractors.inference.feature_maker.FeatureMaker`.

    Raises:
        ValueError: nothing is; the message says the ways out.
    """
    found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    if not found:
        raise ValueError(
            f"nothing here makes features of videos (entry point group {ENTRY_POINT_GROUP}): install DashFusion with "
            "`pip install -e .` (again, after an update), or predict from features (Predictor.from_features)"
        )
    maker: Any = found[0].load()
    return maker
