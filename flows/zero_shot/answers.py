"""The raw answers of a chat model: what they say, and the file that keeps them.

A file of JSON lines: the first describes what was asked of whom, each of the others is the answer on one clip. Lines
are appended one by one, so that a killed run loses at most the answers that had not arrived.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

FOLDER = "zero_shot"
"""Folder of the answers, in that of the studies' results."""

SCHEMA_VERSION = 1

MAX_RAW = 16_384
"""Characters of an answer that are kept; a longer one is unparsable."""

Status = Literal["answered", "refused", "unparsable", "out_of_range"]

NOT_ANSWERED: dict[Status, str] = {
    "refused": "refused",
    "unparsable": "unparsable",
    "out_of_range": "out of range",
}
"""Status of an answer without a usable score -> its name."""

_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(I(?:'|\u2019)?m sorry|I am sorry|I cannot|I can(?:'|\u2019)?t|I am unable|I(?:'|\u2019)m unable|as an AI)\b"
    r"|无法|不能|抱歉|对不起",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Request:
    """What all answers of a file have in common.

    Attributes:
        model: Name of the model, as the endpoint was asked for it.
        url: Base URL of the endpoint.
        prompt: Instruction that preceded every transcript.
        temperature: Temperature of the sampling.
        max_tokens: Maximum tokens of an answer.
        corpus: Name of the corpus.
        split: Split whose clips were asked about.
        label_range: Scale that the prompt names.
    """

    model: str
    url: str
    prompt: str
    temperature: float
    max_tokens: int
    corpus: str
    split: str
    label_range: tuple[float, float]

    @property
    def file_name(self) -> str:
        """Name of the file: another one for each different request."""
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", self.model).strip("-.")[:60] or "model"
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"{slug}-{digest}.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """An endpoint's answer on one clip.

    Attributes:
        clip_id: The clip.
        text_sha256: SHA-256 of the transcript that was sent.
        status: Whether it is a score within the scale.
        score: The score; None for any other status, also out of range.
        raw: The answer as it came, at most `MAX_RAW` characters.
        finish_reason: Why the model stopped, such as stop or length; empty if the endpoint does not say.
        model: Model that answered, as the endpoint names it; empty if it does not.
        time: When it arrived (ISO 8601).
        seconds: Time from request to answer.
        prompt_tokens, completion_tokens: Tokens that the endpoint counted; None if it does not count.
    """

    clip_id: str
    text_sha256: str
    status: Status
    score: float | None
    raw: str
    finish_reason: str
    model: str
    time: str
    seconds: float
    prompt_tokens: int | None
    completion_tokens: int | None


def read_score(
    raw: str, label_range: tuple[float, float], finish_reason: str = "", refusal: bool = False
) -> tuple[Status, float | None]:
    """Return what an answer says: a score only if it is nothing but one.

    `{"score": 1.5}`, also in a Markdown fence, or a number alone. No number is picked out of prose, where it may be the
    transcript's, and none is clipped to the scale.

    Args:
        raw: Answer of the model.
        label_range: Scale that the prompt named.
        finish_reason: Why the model stopped; `content_filter` is a refusal.
        refusal: Whether the endpoint marked the answer as a refusal.
    """
    text = raw.strip()
    if refusal or finish_reason == "content_filter":
        return "refused", None
    if len(raw) <= MAX_RAW:
        fenced = _FENCED.fullmatch(text)
        score = _number(fenced[1] if fenced else text)
        if score is not None:
            low, high = label_range
            return ("answered", score) if low <= score <= high else ("out_of_range", None)
    return ("refused" if _REFUSAL.search(text[:MAX_RAW]) else "unparsable"), None


def _number(text: str) -> float | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, Mapping):
        value = value["score"] if set(value) == {"score"} else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        score = float(value)
    except OverflowError:
        return None
    return score if math.isfinite(score) else None


def text_hash(text: str) -> str:
    """Return the SHA-256 of a transcript."""
    return hashlib.sha256(text.encode()).hexdigest()


def start_file(path: Path, request: Request) -> None:
    """Write the first line if there is no file, and cut off a line that a killed run left incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        line = {"schema_version": SCHEMA_VERSION, **asdict(request)}
        path.write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    elif len(whole) < len(content):
        with path.open("rb+") as file:
            file.truncate(len(whole))


def append_answer(path: Path, answer: Answer) -> None:
    """Append an answer to a file of `start_file`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")


def read_answers(path: Path) -> tuple[Request, dict[tuple[str, str], Answer]]:
    """Read a file: the request, and (clip id, hash of its transcript) -> answer.

    An incomplete last line is left out.

    Raises:
        ValueError: The file holds something else; the message names file and line.
    """
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if not lines:
        raise ValueError(f"{path}: holds no answers; delete it, and ask again")
    answers: dict[tuple[str, str], Answer] = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            if number == 1:
                if values.pop("schema_version") != SCHEMA_VERSION:
                    raise ValueError("another version of the file")
                low, high = values.pop("label_range")
                request = Request(**values, label_range=(float(low), float(high)))
            else:
                answer = Answer(**values)
                answers[answer.clip_id, answer.text_sha256] = answer
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: no answer of a chat model ({error}); delete the line") from error
    return request, answers


def answer_files(studies: Path) -> Iterator[Path]:
    """Yield the files of answers in the folder of the studies' results, by name."""
    yield from sorted((Path(studies) / FOLDER).glob("*.jsonl"))
