"""Protocol between prediction and a feature extractor package.

This package reads no media. A package that does registers a `FeatureMaker` in the entry point group
`dashfusion.features`, as DashFusion's own extractors do. Without one, prediction works from feature arrays only.

Shapes: T steps, D features. Times are seconds from the start of the video.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np

ENTRY_POINT_GROUP = "dashfusion.features"


@dataclass(frozen=True, slots=True)
class Video:
    """A video to score.

    Attributes:
        media: Any file with audio or video.
        text: Its transcript; None if unknown, or if `transcript` is given.
        transcript: File with the transcript: .srt, .vtt or .txt.

    Raises:
        ValueError: Both a text and a transcript are given.
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
    """One modality of a segment.

    Attributes:
        values: [T, D] features.
        mask: [T] bool, True where the network may attend.
        start, end: [T] times from the segment's start; None if unknown.
    """

    values: np.ndarray
    mask: np.ndarray
    start: np.ndarray | None = None
    end: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A whole video or one window of it, as the network gets a clip.

    Attributes:
        start, end: Its place in the video.
        text: Its transcript.
        steps: By modality; a missing modality is left out or has T = 0.
    """

    start: float
    end: float
    text: str
    steps: Mapping[str, Steps]


@dataclass(frozen=True, slots=True)
class Note:
    """A warning about a score: a stable code, and a message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """Features of one video.

    Attributes:
        duration: Seconds; None if unknown.
        text_source: `given`, `file` or `asr`; empty without a text.
        whole: The whole video.
        windows: Windows that slide over the video, in order; empty for a short video.
        notes: What is unusual about the video.
        seconds: Time spent on `decode`, `features` and `transcribe`, which may overlap.
    """

    duration: float | None
    text_source: str
    whole: Segment
    windows: Sequence[Segment] = ()
    notes: Sequence[Note] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeatureFailure:
    """Why a video has no features: a short error class, and a message that says what was found and what to do."""

    error: str
    message: str


class FeatureMaker(Protocol):
    """Extract features of videos as a dataset's features were extracted. Called from several threads."""

    def prepare(self) -> None:
        """Load the models that the first video would otherwise wait for."""

    def make(
        self,
        videos: Iterable[Video],
        *,
        window: float | None,
        hop: float | None,
        longer_than: float,
        workers: int,
        timeout: float,
        memory: int | None,
    ) -> Iterator[VideoFeatures | FeatureFailure]:
        """Yield one result a video, in order. Reading starts with the call, not with the first `next`.

        Args:
            videos: Files and transcripts.
            window: Seconds of a window; None: no windows.
            hop: Maximum seconds between the starts of two windows.
            longer_than: Seconds; only longer videos get windows.
            workers: Worker processes that read the media; 0: read in this process.
            timeout: Seconds that a worker may take for one file.
            memory: Bytes that a worker may use; None: no limit.
        """


def find_maker() -> Callable[..., FeatureMaker]:
    """Return the registered constructor of a `FeatureMaker`.

    It is called with the content of dataset.json and the modalities that the network uses, and with the keywords
    `tokens`, `language`, `recogniser`, `change_text` and `allow_download`; see
    `extractors.inference.feature_maker.FeatureMaker`.

    Raises:
        ValueError: None is registered; the message says what to do.
    """
    registered = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    if not registered:
        raise ValueError(
            f"nothing here makes features of videos (entry point group {ENTRY_POINT_GROUP}): install DashFusion with "
            "`pip install -e .` (again, after an update), or predict from features (Predictor.from_features)"
        )
    return cast("Callable[..., FeatureMaker]", registered[0].load())
