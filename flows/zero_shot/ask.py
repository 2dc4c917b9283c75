"""Ask a chat endpoint about the clips of a split, and keep every answer."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.zero_shot.answers import (
    MAX_RAW,
    Answer,
    Request,
    append_answer,
    read_answers,
    read_score,
    start_file,
    text_hash,
)
from flows.zero_shot.client import ChatClient, EndpointError, EndpointRefusedError

PROMPT = Path(__file__).with_name("prompt.txt")

TEMPERATURE = 0.0

MAX_FAILURES = 5
"""Clips in a row without any response after which the others are not asked."""


@dataclass(frozen=True)
class AskSummary:
    """What came of asking.

    Attributes:
        path: File of the answers.
        answers: Clip id -> answer, of all clips that have one.
        asked: Clips that were asked now.
        failed: Clip id -> why it got no response; it is asked again by the next run.
        stopped: Whether the endpoint failed so often that the other clips were not asked.
        no_text: Clips without a transcript, which are not asked.
    """

    path: Path
    answers: Mapping[str, Answer]
    asked: int
    failed: Mapping[str, str]
    stopped: bool
    no_text: int

    @property
    def counts(self) -> Counter[str]:
        """Number of the answers by their status."""
        return Counter(answer.status for answer in self.answers.values())


def make_prompt(label_range: tuple[float, float]) -> str:
    """Return the instruction for a scale."""
    low, high = label_range
    return PROMPT.read_text(encoding="utf-8").strip().format(low=f"{low:g}", high=f"{high:g}")


def chat_request(request: Request, text: str) -> dict[str, Any]:
    """Return the body of the request on one transcript, which is quoted as JSON: it cannot end its message."""
    return {
        "model": request.model,
        "messages": [
            {"role": "system", "content": request.prompt},
            {"role": "user", "content": json.dumps({"transcript": text}, ensure_ascii=False)},
        ],
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
    }


def ask_clips(
    client: ChatClient,
    request: Request,
    texts: Mapping[str, str],
    path: Path,
    workers: int = 4,
    progress: Callable[[int], None] = lambda count: None,
) -> AskSummary:
    """Ask about every clip that has no answer yet, several at a time. A clip with an answer is never asked again.

    Args:
        client: The endpoint.
        request: What to ask.
        texts: Clip id -> transcript.
        path: File of the answers.
        workers: Requests at a time.
        progress: Called with 1 after each clip that was asked.

    Raises:
        ValueError: The file holds something else, another run is writing it, or the endpoint refuses such requests.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        with lock.acquire(timeout=0):
            start_file(path, request)
            return _ask_missing(client, request, texts, path, workers, progress)
    except Timeout as error:
        raise ValueError(f"{path}: another run is asking the same; wait for it to end") from error


def _ask_missing(
    client: ChatClient,
    request: Request,
    texts: Mapping[str, str],
    path: Path,
    workers: int,
    progress: Callable[[int], None],
) -> AskSummary:
    known = read_answers(path)[1]
    answers = {clip: known[key] for clip, text in texts.items() if (key := (clip, text_hash(text))) in known}
    spoken = [clip for clip, text in texts.items() if text.strip()]
    missing = [clip for clip in spoken if clip not in answers]
    failed: dict[str, str] = {}
    waiting, in_a_row, refused = iter(missing), 0, None
    with ThreadPoolExecutor(workers, thread_name_prefix="ask") as pool:
        # No more requests are under way than workers; they are waited for, since their answers are paid for
        running: dict[Future[Answer], str] = {}
        while True:
            go_on = in_a_row < MAX_FAILURES and refused is None
            for clip in islice(waiting, workers - len(running)) if go_on else ():
                running[pool.submit(_ask, client, request, clip, texts[clip])] = clip
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                clip = running.pop(future)
                try:
                    answer = future.result()
                except EndpointError as error:
                    failed[clip], in_a_row = str(error), in_a_row + 1
                except EndpointRefusedError as error:
                    refused = error
                else:
                    in_a_row = 0
                    append_answer(path, answer)
                    answers[clip] = answer
                progress(1)
    if refused is not None:
        raise refused
    asked = sum(clip in answers or clip in failed for clip in missing)
    return AskSummary(path, answers, asked, failed, in_a_row >= MAX_FAILURES, len(texts) - len(spoken))


def _ask(client: ChatClient, request: Request, clip_id: str, text: str) -> Answer:
    began = time.monotonic()
    reply = client.ask(chat_request(request, text))
    status, score = read_score(reply.content, request.label_range, reply.finish_reason, reply.refusal)
    return Answer(
        clip_id=clip_id,
        text_sha256=text_hash(text),
        status=status,
        score=score,
        raw=reply.content[:MAX_RAW],
        finish_reason=reply.finish_reason,
        model=reply.model,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 3),
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )
