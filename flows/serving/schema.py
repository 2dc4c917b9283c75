"""Pydantic models of the server's responses, for its OpenAPI schema. Keys are those of `dashfusion predict --json`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.serving.errors import REASONS
from model.prediction.results import SENTIMENTS

MODALITY = Literal["text", "audio", "vision"]

Contributions = Annotated[
    dict[MODALITY, float],
    Field(description="Change of the score by each modality, against the score without it; empty for one modality"),
]


class Interval(BaseModel):
    """Prediction interval, which contains the true label with probability `level`."""

    level: float = Field(description="Coverage probability, such as 0.9")
    low: float
    high: float
    clips: int = Field(description="Number of clips that calibrate the interval")


class OutlierTest(BaseModel):
    """Whether the clip is like the training clips."""

    p_value: float = Field(description="Fraction of clips like the validation clips that are at least as far off")
    clips: int = Field(description="Number of validation clips that the test is based on")
    modalities: list[MODALITY] = Field(description="Modalities unlike the training clips'; empty if it is no outlier")


class Score(BaseModel):
    """Sentiment of a clip or window; null if no modality is usable."""

    score: float | None = Field(description="Sentiment within the label range, negative to positive")
    raw_score: float | None = Field(description="The network's output, which may slightly exceed the label range")
    sentiment: Literal[SENTIMENTS] | None = Field(  # type: ignore[valid-type]  # a tuple is a valid Literal at run time
        description="Three-class sentiment"
    )
    label_class: str | None = Field(alias="class", description="The corpus's finest class")
    interval: Interval | None = Field(
        description="Null if the checkpoint has no calibration for these modalities, or for an outlier"
    )
    outlier_test: OutlierTest | None = Field(description="Null if the checkpoint cannot tell")
    used: list[MODALITY] = Field(description="Modalities that the score is based on")
    contributions: Contributions


class Window(Score):
    """A window of the clip."""

    start: float = Field(description="Seconds from the clip's start")
    end: float = Field(description="Seconds from the clip's start")
    text: str = Field(description="Transcript of the window")


class Notice(BaseModel):
    """A warning about the score's reliability."""

    code: str = Field(description="Stable, such as no_face")
    message: str = Field(description="Explanation for people")


class Frame(BaseModel):
    """A still frame of the video."""

    time: float = Field(description="Seconds from the clip's start")
    image: str = Field(description="JPEG, as a data URI")


class Result(Score):
    """A scored clip."""

    file: str = Field(description="Name of the uploaded file")
    error: None = Field(description="Always null: clips that cannot be scored get an error response")
    scored_by: Literal["clip", "windows"] = Field(
        description="clip: the network saw the whole clip at once; windows: mean over the windows of a clip that is "
        "much longer than training clips"
    )
    duration: float | None = Field(description="Seconds")
    text: str = Field(description="Transcript; empty if unknown")
    text_source: Literal["", "given", "file", "asr"] = Field(description="Source of the transcript; empty without one")
    windows: list[Window] = Field(description="Time line of a long clip, in order; empty for a short clip")
    warnings: list[Notice]
    seconds: dict[str, float] = Field(
        description="Time spent on decode, features, transcribe and model; these may overlap"
    )
    frames: list[Frame] = Field(
        default=[], description="Evenly spaced frames; only in the response to a request with frames=true"
    )


class Checkpoint(BaseModel):
    """The checkpoint that scored the clip."""

    model_config = ConfigDict(protected_namespaces=())

    path: str = Field(description="Name of the checkpoint folder")
    corpus: str = Field(description="Training corpus")
    generated: bool | None = Field(
        description="Whether its videos are generated: then scores of real people mean nothing; null if unknown"
    )
    language: str = Field(description="ISO 639-1 code")
    label_range: tuple[float, float] = Field(description="Lowest and highest label")
    seed: int
    epoch: int


class Prediction(BaseModel):
    """Output of `dashfusion predict --json` for one file."""

    schema_version: int
    model: Checkpoint
    level: float = Field(description="Interval level")
    results: list[Result] = Field(min_length=1, max_length=1, description="Exactly one, for the uploaded file")


class Limits(BaseModel):
    """Upload limits."""

    bytes: int = Field(description="Maximum request size")
    seconds: float = Field(description="Maximum clip duration")


class ModelFacts(BaseModel):
    """The checkpoint and the upload limits."""

    notice: str | None = Field(description="What to state before any score; null if there is nothing")
    corpus: str = Field(description="Training corpus")
    generated: bool | None = Field(description="Whether its videos are generated; null if unknown")
    language: str = Field(description="ISO 639-1 code of the expected spoken language")
    label_range: tuple[float, float] = Field(description="Lowest and highest label")
    classes: dict[str, str] = Field(description="Name in words of each value of a result's `class`")
    modalities: list[MODALITY] = Field(description="Modalities that the model uses")
    extractors: dict[MODALITY, str] = Field(description="Feature extractor of each modality")
    seed: int
    epoch: int
    metrics: dict[str, float | None] = Field(description="Validation metrics of the selected epoch")
    levels: list[float] = Field(description="Available interval levels; empty if there are none")
    clip_seconds: dict[str, float | None] = Field(description="Statistics of the training clips' durations")
    recogniser: str | None = Field(description="Speech recogniser for clips without a text; null if there is none")
    limits: Limits


class Health(BaseModel):
    """Server status."""

    status: Literal["ok", "stopping"]
    workers: int = Field(description="Number of scoring processes")
    waiting: int = Field(description="Uploads being received, queued or scored")


class Error(BaseModel):
    """Error response."""

    error: Literal[tuple(REASONS)] = Field(  # type: ignore[valid-type]  # a tuple is a valid Literal at run time
        description="Stable code, for programs"
    )
    message: str = Field(description="What was found and what to do, for people")


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for these statuses, described by their error codes."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        codes = [f"- `{error}`: {reason.meaning}" for error, reason in REASONS.items() if reason.status == status]
        responses[status] = {"model": Error, "description": "\n".join(codes)}
        if status == 503:
            seconds = {"schema": {"type": "integer"}, "description": "Seconds to wait before the next try, if busy"}
            responses[status]["headers"] = {"Retry-After": seconds}
    return responses
