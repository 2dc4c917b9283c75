"""Requests that Schemathesis makes of the server's OpenAPI schema, fitting it and not: all are answered as it says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

TOKEN = "correct-horse-battery"
HEADERS = {"Host": "127.0.0.1", "Authorization": f"Bearer {TOKEN}"}
FIT, UNFIT = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture
def described(new_client) -> Any:
    """The schema of a server that asks for a token."""
    app = new_client(token=TOKEN).app
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "127.0.0.1"})


@pytest.mark.parametrize(
    ("method", "path", "mode", "with_clip", "count"),
    [
        ("POST", "/predict", FIT, False, 50),
        ("POST", "/predict", FIT, True, 25),
        ("POST", "/predict", UNFIT, False, 50),
        ("POST", "/predict", UNFIT, True, 25),
        ("GET", "/model", FIT, False, 5),
        ("GET", "/health", FIT, False, 5),
    ],
)
def test_every_request_is_answered_as_the_schema_says(
    described, scoring_pool, uploads, clip, method, path, mode, with_clip, count
):
    answered = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if with_clip and "file" in case.body:
            case.body["file"] = clip.read_bytes()
        answer = case.call(headers=HEADERS)
        # What makes a file a clip, and which levels a checkpoint knows, no schema can say; a clip may mend a request.
        unsaid = [positive_data_acceptance, *([negative_data_rejection] if with_clip else [])]
        case.validate_response(answer, headers=HEADERS, excluded_checks=unsaid)
        answered.append(answer.status_code)

    ask()
    assert max(answered) < 500
    assert (200 in answered) or not (mode is FIT and (with_clip or method == "GET"))
    assert scoring_pool.waiting == 0 and not list(uploads.iterdir())
