"""What the server takes and answers, for its OpenAPI schema: the keys are those of `dashfusion predict --json`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.serving.errors import REASONS, reasons_of
from model.prediction.results import SENTIMENTS

MODALITY = Literal["text", "audio", "vision"]

Share = Annotated[
    dict[MODALITY, float],
    Field(description="How much higher the score is with each modality than without it; empty where there is only one"),
]


class Interval(BaseModel):
    """Where the true label of such a clip lies in `level` of the cases."""

    level: float = Field(description="Share of the cases, such as 0.9")
    low: float
    high: float
    clips: int = Field(description="Validation clips whose errors say so")


class Score(BaseModel):
    """Sentiment of a clip or of a stretch of it; null where there is nothing to go by."""

    score: float | None = Field(description="Sentiment within the label range, negative to positive")
    raw_score: float | None = Field(description="The network's own number, which may lie a little outside the range")
    sentiment: Literal[SENTIMENTS] | None = Field(description="The corpus's classes of three")
    label_class: str | None = Field(alias="class", description="The corpus's finest class")
    interval: Interval | None = Field(description="Null where it is not known how far off such a score is")
    used: list[MODALITY] = Field(description="Modalities that the score is from")
    contributions: Share


class Window(Score):
    """A stretch of the clip."""

    start: float = Field(description="Seconds from the clip's start")
    end: float = Field(description="Seconds from the clip's start")
    text: str = Field(description="What is said in it")


class Notice(BaseModel):
    """What to know before trusting the score."""

    code: str = Field(description="Stable, such as no_face")
    message: str = Field(description="For people")


class Result(Score):
    """A scored clip."""

    file: str = Field(description="Name of the uploaded file, as its sender calls it")
    error: None = Field(description="Always null here: a clip that cannot be scored is answered with an error status")
    scored_by: Literal["clip", "windows"] = Field(
        description="clip: the network has seen all of it at once; windows: the mean over the windows of a clip that "
        "is far longer than the training's"
    )
    duration: float | None = Field(description="Seconds")
    text: str = Field(description="What is said, as far as is known")
    text_source: Literal["", "given", "file", "asr"] = Field(description="Where the text is from; empty without text")
    windows: list[Window] = Field(description="The time line of a long clip, in order; empty for a short one")
    warnings: list[Notice]
    seconds: dict[str, float] = Field(description="Spent on decode, features, transcribe and model; they may overlap")


class Checkpoint(BaseModel):
    """The model that scored."""

    model_config = ConfigDict(protected_namespaces=())

    path: str = Field(description="The checkpoint's folder, as the server was told it")
    corpus: str = Field(description="What it was trained on")
    language: str = Field(description="ISO 639-1 code")
    label_range: tuple[float, float] = Field(description="Least and greatest label")
    seed: int
    epoch: int


class Prediction(BaseModel):
    """What `dashfusion predict --json` prints for one file."""

    schema_version: int
    model: Checkpoint
    level: float = Field(description="Of the intervals")
    results: list[Result] = Field(min_length=1, max_length=1, description="One: that of the uploaded file")


class Limits(BaseModel):
    """What an upload may be."""

    bytes: int = Field(description="Of a request")
    seconds: float = Field(description="Of a clip")


class ModelFacts(BaseModel):
    """The checkpoint that the server scores with."""

    corpus: str = Field(description="What it was trained on")
    language: str = Field(description="ISO 639-1 code of what it expects to hear")
    label_range: tuple[float, float] = Field(description="Least and greatest label")
    modalities: list[MODALITY] = Field(description="Modalities that it looks at")
    extractors: dict[MODALITY, str] = Field(description="What makes the features of each modality")
    seed: int
    epoch: int
    metrics: dict[str, float | None] = Field(description="On the validation clips, after the epoch that was kept")
    levels: list[float] = Field(description="Levels that it has intervals for; empty: it has none")
    clip_seconds: dict[str, float | None] = Field(description="How long the training clips were")
    recogniser: str | None = Field(description="Hears what is said where no text is sent; null: nothing does")
    limits: Limits


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok", "stopping"]
    workers: int = Field(description="Processes that score")
    waiting: int = Field(description="Uploads that are on their way, in line, or being scored")


class Error(BaseModel):
    """Every answer but a success."""

    error: Literal[tuple(REASONS)] = Field(description="Stable, for programs")
    message: str = Field(description="What was found and what to do, for people")


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The schema's entries for these statuses, with the reasons that each is given for."""
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        told = "\n".join(f"- `{error}`: {meaning}" for error, meaning in reasons_of(status).items())
        answers[status] = {"model": Error, "description": told}
        if status == 503:
            seconds = {"schema": {"type": "integer"}, "description": "Seconds after which to try again, where busy"}
            answers[status]["headers"] = {"Retry-After": seconds}
    return answers
