"""GET /metrics: what is counted, that requests choose no label, and what the pool says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from flows.serving.app import protected, public, uploads
from flows.serving.errors import REASONS
from flows.serving.security import OPEN_PATHS, PATHS
from flows.serving.telemetry import create_registry, format_metrics
from flows.serving.worker import Upload
from tests.flows.serving.test_security import BEGIN, FORM, TOKEN, ask
from tests.flows.serving.test_worker_pool import begun

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flows.serving.worker_pool import ScoringPool


def scrape(client: Any, **headers: str) -> dict[tuple[str, frozenset[str]], float]:
    """Samples by name and label values."""
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    return read_samples(answer.text)


def read_samples(text: str) -> dict[tuple[str, frozenset[str]], float]:
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.values())): s.value for family in families for s in family.samples}


def pool_samples(pool: ScoringPool) -> Mapping[tuple[str, frozenset[str]], float]:
    return read_samples(format_metrics(create_registry(pool), "")[0].decode())


def change(before: Mapping[Any, float], after: Mapping[Any, float], name: str, *labels: str) -> float:
    key = (name, frozenset(labels))
    return after[key] - before.get(key, 0.0)


def test_requests_refusals_and_the_seconds_of_a_clip_are_counted(client, clip):
    before = scrape(client)
    for content in (clip.read_bytes(), b"no clip"):
        client.post("/predict", files={"file": ("a.mp4", content)}, data={"text": "It was fine."})
    client.get("/health")
    after = scrape(client)
    assert change(before, after, "dashfusion_requests_total", "/predict", "200") == 1
    assert change(before, after, "dashfusion_requests_total", "/predict", "415") == 1
    assert change(before, after, "dashfusion_requests_total", "/health", "200") == 1
    assert change(before, after, "dashfusion_refusals_total", "not_media") == 1
    for part in ("queue", "decode", "features", "transcribe", "model"):
        assert change(before, after, "dashfusion_part_seconds_count", part) == 1, part
    for part in ("decode", "features", "model"):
        assert change(before, after, "dashfusion_part_seconds_sum", part) > 0, part
    assert after["dashfusion_worker_memory_bytes", frozenset({"0"})] > 100 << 20
    assert after["process_resident_memory_bytes", frozenset()] > 0


def test_no_request_chooses_a_label(client):
    def series() -> set[tuple[str, frozenset[str]]]:
        return set(scrape(client))

    client.get("/nowhere")
    client.get("/model", headers={"Host": "evil.example"})
    client.request("BREW", "/pot")
    series()  # counts itself
    before = series()
    for number in range(20):
        client.get(f"/nowhere/{number}%0A{{}}")
        client.request(f"METHOD{number}", f'/{number}"')
        client.get("/model", headers={"Host": f"evil{number}.example"})
    assert series() == before
    used = {label for name, labels in before if name == "dashfusion_refusals_total" for label in labels}
    assert used <= set(REASONS)


def test_every_route_has_a_label_of_its_own(new_client):
    routes = [*new_client().app._app.routes, *public.routes, *protected.routes, *uploads.routes]
    assert {route.path for route in routes if isinstance(route, Route)} == set(PATHS)


def test_metrics_need_the_token_as_the_model_does(new_client):
    client = new_client(token=TOKEN)
    assert client.get("/metrics").status_code == 401 and "/metrics" not in OPEN_PATHS
    assert scrape(client, Authorization=f"Bearer {TOKEN}")


def test_a_client_that_leaves_is_no_refusal(new_client):
    client = new_client()
    before = scrape(client)
    ask(client.app, [BEGIN], FORM, leaves=True)
    after = scrape(client)
    assert change(before, after, "dashfusion_requests_total", "/predict", "499") == 1
    assert {key: value for key, value in after.items() if key[0] == "dashfusion_refusals_total"} == {
        key: value for key, value in before.items() if key[0] == "dashfusion_refusals_total"
    }


def test_the_queue_is_what_waits_for_a_worker(scoring_pool, clip, long_clip):
    def length() -> float:
        return pool_samples(scoring_pool)["dashfusion_queue_length", frozenset()]

    first = begun(scoring_pool.score(Upload(long_clip, "long.mp4", "It was fine.")))
    second, third = (scoring_pool.score(Upload(clip, "a.mp4", "It was fine.")) for _ in range(2))
    assert length() == 2
    second.cancel()
    assert length() == 1, "whoever leaves the queue is no longer counted"
    third.result(timeout=120)
    assert first.done() and length() == 0
    with scoring_pool.admit():
        assert pool_samples(scoring_pool)["dashfusion_uploads", frozenset()] == 1
    assert pool_samples(scoring_pool)["dashfusion_uploads_limit", frozenset()] == 9


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0", "text/plain;version=0.0.4"])
def test_scrapers_get_the_format_that_they_ask_for(client, accept):
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith(accept.partition(";")[0] or "text/plain")
    assert ("# EOF" in answer.text) == accept.startswith("application/openmetrics")


def test_an_error_of_the_server_is_counted(new_client, clip, monkeypatch):
    monkeypatch.setattr("flows.serving.app.to_document", fail_with(KeyError("secret")))
    client = new_client()
    client._transport.raise_server_exceptions = False
    before = scrape(client)
    client.post("/predict", files={"file": ("a.mp4", clip.read_bytes())})
    after = scrape(client)
    assert change(before, after, "dashfusion_requests_total", "/predict", "500") == 1
    assert change(before, after, "dashfusion_refusals_total", "internal") == 1


def fail_with(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail
