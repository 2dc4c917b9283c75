"""The extractor interface: what an extractor is given and returns, and how its features are described."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from media.container import MediaError, MissingStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path


class ExtractionError(Exception):
    """A clip's modality cannot be extracted. The message names what was found and what to do."""


class MissingModality(ExtractionError):
    """The clip simply has no such modality: no audio stream, no video stream, an empty transcript.

    Not a failure: the clip keeps a row with T = 0, and it does not count against `max_failed_fraction`.
    """


@dataclass(frozen=True, slots=True)
class Source:
    """What an extractor may look at: one clip's media file and transcript."""

    clip_id: str
    media: Path | None
    text: str
    language: str
    duration: float | None


@dataclass(frozen=True, slots=True)
class FeatureSequence:
    """Features of one modality of one clip.

    Attributes:
        values: [T, D] float32, finite; T = 0 means that the modality is missing.
        start, end: [T] float32, seconds from the clip's start, half-open.
        valid: [T] bool; False where measured but not usable (no face in the frame, unvoiced).
        token_ids: [T] int32, text only.
        word_index: [T] int32, text only: index of the transcript's word, -1 for special tokens.

    Raises:
        ExtractionError: shapes disagree, or a value is not finite (the message names the first one).
    """

    values: np.ndarray
    start: np.ndarray
    end: np.ndarray
    valid: np.ndarray
    token_ids: np.ndarray | None = None
    word_index: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ExtractionError(f"values must be [T, D], found shape {self.values.shape}")
        steps = len(self.values)
        for name in ("start", "end", "valid", "token_ids", "word_index"):
            array = getattr(self, name)
            if array is not None and array.shape != (steps,):
                raise ExtractionError(f"{name} must be [{steps}] like values, found shape {array.shape}")
        finite = np.isfinite(self.values)
        if not finite.all():
            bad = np.argwhere(~finite)
            step, dim = bad[0]
            raise ExtractionError(
                f"{len(bad)} values are NaN or infinite, the first at step {step} "
                f"({self.start[step]:.2f} s), feature {dim}"
            )

    def __len__(self) -> int:
        return len(self.values)


@runtime_checkable
class Extractor(Protocol):
    """One modality's features from clips.

    Attributes:
        modality: text, audio or vision.
        feature_names: D names, in the order of the values' columns.
        signature: changes whenever the output could: name, version, options, and what the weights are.

    One that is faster with several clips at a time says so by an attribute `batched`; the others get them one by one.
    """

    modality: str
    feature_names: tuple[str, ...]
    signature: str

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order; a clip that fails yields its error and never stops the others."""
        ...


class MediaCondition(Protocol):
    """A condition that media are brought into before an extractor sees them: a corruption at some level.

    Attributes:
        signature: changes whenever the written media could.
    """

    @property
    def signature(self) -> str: ...

    def write_media(self, media: Path, clip_id: str, out: Path) -> Path:
        """Write the clip's media in this condition to `out` (without suffix) and return the file's path."""
        ...


def make_signature(name: str, version: int, options: Mapping[str, Any], weights: str = "") -> str:
    """`<name>-v<version>-<12 hex digits>` over everything that the output depends on.

    `version` is raised by hand when an extractor's code changes its output; `weights` identifies model files
    (a hash, or a library version that carries them).
    """
    payload = json.dumps([name, version, dict(options), weights], sort_keys=True, default=str)
    return f"{name}-v{version}-{hashlib.sha256(payload.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Feature:
    """Features of one meaning.

    Attributes:
        names: as in the extractor's `feature_names`; one `*` stands for the numbers of a model's columns.
        meaning: what is measured, and which way is up.
        unit: of the values.
    """

    names: tuple[str, ...]
    meaning: str
    unit: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an extractor's features are made.

    Attributes:
        source: library and method.
        rate: steps a second, and where a step lies.
        window: what one step sees.
        valid: when a step is.
        features: every feature, in the order of the columns.
        extra: the optional dependency that the extractor needs, empty for none.
    """

    source: str
    rate: str
    window: str
    valid: str
    features: tuple[Feature, ...]
    extra: str = ""


def numbered(prefix: str, count: int, first: int = 0) -> tuple[str, ...]:
    """`count` names: `prefix` with the numbers from `first` on."""
    return tuple(f"{prefix}{i}" for i in range(first, first + count))


Result = TypeVar("Result")
"""A feature sequence, or what becomes one."""


def extract_each(
    sources: Iterable[Source], extract_media: Callable[[Path], Result]
) -> Iterator[Result | ExtractionError]:
    """`extract_media` of each source's media file; its media and extraction errors become results.

    No media file, or one without the stream in question, is a missing modality. Any other exception is a
    mistake in a program, not in a clip, and passes through.
    """
    for source in sources:
        result: Result | ExtractionError
        try:
            if source.media is None:
                raise MissingModality(f"{source.clip_id}: no media file")
            result = extract_media(source.media)
        except MissingStream as error:
            result = MissingModality(str(error))
        except MediaError as error:
            result = ExtractionError(str(error))
            result.__cause__ = error
        except ExtractionError as error:
            result = error
        yield result
