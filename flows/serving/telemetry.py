"""Metrics in Prometheus's format, and the request log.

All metrics live in the server's process: scoring and examining processes answer over their pipes, so that no state is
shared between processes. Labels take their values from fixed sets, never from a request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from flows.serving.logs import Event

if TYPE_CHECKING:
    from flows.serving.worker_pool import ScoringPool

logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""Status, as in nginx, of a request whose client closed the connection before the response."""

OTHER_ROUTE = "other"
"""Route of requests for paths that do not exist, and of bytes that are not HTTP."""

QUIET_ROUTES = ("/health", "/metrics")
"""Routes that probes and scrapers request all the time; their successful requests are not logged."""

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

disable_created_metrics()  # one more series for each counter, which nothing uses

REQUESTS = Counter("dashfusion_requests", "HTTP requests by route and status.", ("route", "status"), registry=None)
REFUSALS = Counter("dashfusion_refusals", "Error responses by reason, their code.", ("reason",), registry=None)
PART_SECONDS = Histogram(
    "dashfusion_part_seconds",
    "Seconds of an upload by part: queue (waiting for a worker), and decode, features, transcribe and model "
    "(the network) of the scored ones.",
    ("part",),
    buckets=BUCKETS,
    registry=None,
)


class PoolCollector:
    """Gauges of a scoring pool, read when they are collected."""

    def __init__(self, pool: ScoringPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        pool = self._pool
        yield GaugeMetricFamily("dashfusion_uploads", "Uploads being received, queued or scored.", pool.waiting)
        yield GaugeMetricFamily("dashfusion_uploads_limit", "Uploads beyond which requests get 503.", pool.capacity)
        yield GaugeMetricFamily("dashfusion_queue_length", "Uploads that wait for a worker.", pool.queued)
        memory = GaugeMetricFamily(
            "dashfusion_worker_memory_bytes", "Resident memory of a scoring process; 0: not running.", labels=["worker"]
        )
        for number, size in enumerate(pool.worker_memory()):
            memory.add_metric([str(number)], size)
        yield memory


def create_registry(pool: ScoringPool) -> CollectorRegistry:
    """Return a registry of all metrics, and of the server process's memory, CPU time and open files."""
    registry = CollectorRegistry()
    for metric in (REQUESTS, REFUSALS, PART_SECONDS, PoolCollector(pool)):
        registry.register(metric)
    ProcessCollector(registry=registry)
    return registry


def format_metrics(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics in the format that an Accept header asks for, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def observe_parts(seconds: Mapping[str, float]) -> None:
    """Record the seconds of parts of an upload."""
    for part, value in seconds.items():
        PART_SECONDS.labels(part).observe(value)


def record_request(method: str, route: str, status: int, error: str | None, seconds: float) -> None:
    """Count a request and log it.

    Args:
        method: HTTP method.
        route: Path of a route, or `OTHER_ROUTE`.
        status: HTTP status, or `CLIENT_CLOSED`.
        error: Code of an error response, a key of `flows.serving.errors.REASONS`.
        seconds: Time from the request's head to the end of the response.
    """
    REQUESTS.labels(route, str(status)).inc()
    if error:
        REFUSALS.labels(error).inc()
    level = logging.WARNING if status >= 500 else logging.INFO
    if status < 400 and route in QUIET_ROUTES:
        level = logging.DEBUG
    fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 3)}
    message = f"{method} {route} {status}{f' {error}' if error else ''} in {seconds:.3f} s"
    logger.log(level, message, extra=Event("request", fields | ({"error": error} if error else {})).as_extra())
