"""The extractor interface: the input and output of an extractor, its errors, and the description of its features.

An extractor is a class with the attributes and the method of `Extractor`; see CONTRIBUTING.md for how to register one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from media.container import MediaError, MissingStreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path


IMPORTED = ".imported"
"""End of an extractor's name, after the modality, for features that came with the corpus."""


class ExtractionError(Exception):
    """A modality of a clip cannot be extracted. The message states the cause and a remedy."""


class MissingModalityError(ExtractionError):
    """The clip does not have the modality: no audio stream, no video stream, or an empty transcript.

    Not a failure: the clip keeps a row with T = 0 and does not count towards `max_failed_fraction`.
    """


@dataclass(frozen=True, slots=True)
class Source:
    """Input of an extractor: the media file and the transcript of one clip.

    Attributes:
        clip_id: identifier of the clip, for messages.
        media: media file; None if the clip has none.
        text: transcript.
        language: ISO 639-1 code of the transcript's language.
        duration: seconds; None if unknown.
    """

    clip_id: str
    media: Path | None
    text: str
    language: str
    duration: float | None


@dataclass(frozen=True, slots=True)
class FeatureSequence:
    """Features of one modality of one clip.

    Attributes:
        values: [T, D] float32, finite; T = 0 if the modality is missing.
        start, end: [T] float32, seconds from the clip's start, half-open.
        valid: [T] bool; False for steps that were measured but are not usable (no face in the frame, unvoiced).
        token_ids: [T] int32, text only.
        word_index: [T] int32, text only: index of the step's word in the transcript, -1 for special tokens.

    Raises:
        ExtractionError: the shapes disagree, or a value is not finite (the message names the first one).
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
    """Extractor of one modality's features.

    Clips are passed one at a time, unless the extractor has an attribute `batched` that is true. An extractor with an
    attribute `identity` has the versions of its libraries recorded with its features, see `Identity`.

    Attributes:
        modality: text, audio or vision.
        feature_names: names of the D columns of `FeatureSequence.values`, in order.
        signature: identifier that changes whenever the output could; see `make_signature`.
    """

    modality: str
    feature_names: tuple[str, ...]
    signature: str

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order; a clip that fails yields its error and does not affect the others."""
        ...


def make_signature(name: str, version: int, options: Mapping[str, Any], weights: str = "") -> str:
    """Return `<name>-v<version>-<12 hex digits>`, the digits a hash of everything that the output depends on.

    Args:
        name: registered name of the extractor.
        version: number to raise by hand when a change of the extractor's code changes its output.
        options: options that change the output.
        weights: hash of the model files. Versions of libraries are recorded beside the signature, see `Identity`.
    """
    payload = json.dumps([name, version, dict(options), weights], sort_keys=True, default=str)
    return f"{name}-v{version}-{hashlib.sha256(payload.encode()).hexdigest()[:12]}"


_COVERED_RELEASES = {
    "librosa": ("0.11", range(1), range(20)),
    "opensmile": ("2", range(6, 16), range(10)),
    "transformers": ("5", range(100), range(10)),
}
"""Releases of the libraries whose versions signatures used to cover: those that DashFusion allowed then."""


@dataclass(frozen=True)
class Identity:
    """What decides an extractor's output.

    Attributes:
        name, version, options, weights: see `make_signature`.
        libraries: distributions that compute the output; their versions are recorded with it.
        covered: the one of them whose version signatures covered until DashFusion 0.1; empty: none.
    """

    name: str
    version: int
    options: Mapping[str, Any]
    weights: str = ""
    libraries: tuple[str, ...] = ()
    covered: str = ""

    @cached_property
    def signature(self) -> str:
        """Signature of the output."""
        return make_signature(self.name, self.version, self.options, self.weights)

    @cached_property
    def earlier_signatures(self) -> Mapping[str, str]:
        """Signatures that covered a library's version -> this library and version.

        A hash cannot be read, but the versions in question are few: all of them are tried.
        """
        if not self.covered:
            return {}
        major, minors, patches = _COVERED_RELEASES[self.covered]
        releases = [major] if len(minors) == 1 else [f"{major}.{minor}" for minor in minors]
        libraries = [f"{self.covered} {release}.{patch}" for release in releases for patch in patches]
        return {
            make_signature(self.name, self.version, self.options, f"{self.weights} {library}".strip()): library
            for library in libraries
        }

    def made(self, signature: str) -> bool:
        """Return whether features with this signature, or results in a folder of this name, are the extractor's."""
        return signature == self.signature or signature in self.earlier_signatures

    def library_versions(self) -> dict[str, str]:
        """Return the installed versions of the libraries."""
        return {name: metadata.version(name) for name in self.libraries}


def identity_of(extractor: Extractor) -> Identity | None:
    """Return the extractor's `identity`; None for an extractor of another package that has only a signature."""
    return getattr(extractor, "identity", None)


def made_by(extractor: Extractor, signature: str) -> bool:
    """Return whether features with this signature are the extractor's, in this or an earlier form of it."""
    identity = identity_of(extractor)
    return signature == extractor.signature or (identity is not None and identity.made(signature))


Result = TypeVar("Result")
"""A feature sequence, or an intermediate result from which the extractor makes one."""


def extract_each(
    sources: Iterable[Source], extract_media: Callable[[Path], Result]
) -> Iterator[Result | ExtractionError]:
    """Yield `extract_media(source.media)` for each source, or the media or extraction error that it raised.

    A source without a media file, or without the stream in question, yields a `MissingModalityError`. Any other
    exception is a programming error and propagates.
    """
    for source in sources:
        result: Result | ExtractionError
        try:
            if source.media is None:
                raise MissingModalityError(f"{source.clip_id}: no media file")
            result = extract_media(source.media)
        except MissingStreamError as error:
            result = MissingModalityError(str(error))
        except MediaError as error:
            result = ExtractionError(str(error))
            result.__cause__ = error
        except ExtractionError as error:
            result = error
        yield result


@dataclass(frozen=True, slots=True)
class Feature:
    """Description of one feature, or of several that measure the same thing.

    Attributes:
        names: names as in `Extractor.feature_names`; `*` stands for the column numbers of a model's hidden states.
        meaning: measured quantity, with the direction of its sign.
        unit: unit of the values.
    """

    names: tuple[str, ...]
    meaning: str
    unit: str


@dataclass(frozen=True, slots=True)
class FeatureDescription:
    """Documentation of an extractor's features, from which `docs/features.md` is generated.

    Attributes:
        source: library and method.
        rate: steps per second, and the position of a step in time.
        window: stretch of the clip that influences one step.
        valid: condition under which a step is valid.
        features: all features, in the order of the columns.
        extra: optional dependency group that the extractor needs; empty if none.
    """

    source: str
    rate: str
    window: str
    valid: str
    features: tuple[Feature, ...]
    extra: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all features, in the order of the columns."""
        return tuple(name for feature in self.features for name in feature.names)


def numbered(prefix: str, count: int, first: int = 0) -> tuple[str, ...]:
    """Return `count` names: `prefix` followed by consecutive numbers from `first`."""
    return tuple(f"{prefix}{i}" for i in range(first, first + count))


class MediaCondition(Protocol):
    """A modification of the media before extraction, such as noise at a given level."""

    @property
    def signature(self) -> str:
        """Identifier that changes whenever the written media could."""
        ...

    def write_media(self, media: Path, clip_id: str, out: Path) -> Path:
        """Write the modified media of a clip to `out`, a path without suffix, and return the path of the file."""
        ...
