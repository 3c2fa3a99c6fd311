"""/healthz and /metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COUNTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What /metrics shows; one registry per app."""

    def __init__(self, waiting: Callable[[], float], memory: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "flmm_requests", "Answered requests.", ("method", "path", "status"), **own
        )
        self.seconds = Histogram(
            "flmm_request_seconds",
            "From a request's head to the end of its answer.",
            ("path",),
            buckets=SECONDS,
            **own,
        )
        self.batch_requests = Histogram(
            "flmm_batch_requests", "Requests grounded in one batch.", buckets=COUNTS, **own
        )
        self.batch_phrases = Histogram(
            "flmm_batch_phrases", "Phrases grounded in one batch.", buckets=COUNTS, **own
        )
        self.tokens = Counter("flmm_generated_tokens", "Tokens of answers.", **own)
        Gauge("flmm_waiting_requests", "Requests that wait for the model.", **own).set_function(
            waiting
        )
        Gauge(
            "flmm_request_memory_bytes", "Held by bodies and images of requests.", **own
        ).set_function(memory)

    def grounded(self, requests: int, phrases: int) -> None:
        """Count a batch."""
        self.batch_requests.observe(requests)
        self.batch_phrases.observe(phrases)


health = APIRouter(tags=["status"])
metrics = APIRouter(tags=["status"])


@health.get("/healthz", summary="Whether the server can answer")
async def healthz(request: Request) -> Response:
    """200 while the thread that owns the models runs, else 503."""
    alive = request.app.state.service.worker.alive
    return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)


@metrics.get("/metrics", summary="Metrics for Prometheus")
async def show_metrics(request: Request) -> Response:
    """Counts of requests, durations, sizes of batches, the queue, and the process."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    body = encode(request.app.state.service.metrics.registry)
    return Response(body, media_type=content_type)
