"""What the server counts, for Prometheus."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send


FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50, 100)  # seconds
CLIENT_LEFT = 499  # what is counted where the client closed the connection before the answer began

ENGINE_GAUGES = {
    "running": "answers that are being computed",
    "waiting": "questions that wait for their turn",
    "conversations": "conversations that are kept",
    "conversation_bytes": "bytes of the kept conversations and features",
    "files": "videos and pictures whose features are kept",
}
ENGINE_COUNTERS = {
    "answered": "questions that were answered",
    "failed": "questions that failed",
    "cancelled": "questions whose client left",
    "generated_tokens": "tokens of answers",
    "tracked_frames": "frames whose masks were computed",
    "read_tokens": "tokens of prompts that were read",
    "reused_tokens": "tokens of prompts that were known from an earlier question",
}


class EngineCollector:
    """Reads the engine's own numbers when they are asked for."""

    def __init__(self, status: Callable[[], Any]):
        self.status = status

    def describe(self) -> list[Metric]:
        return []  # the numbers are not asked for before the engine is there

    def collect(self) -> Iterator[Metric]:
        status = self.status()
        if status is None:
            return
        values = vars(status)
        for name, text in ENGINE_GAUGES.items():
            yield GaugeMetricFamily(f"sama_engine_{name}", text, value=values[name])
        for name, text in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"sama_engine_{name}", text, value=values[name])


class Metrics:
    """
    The counters of one server, in a registry of their own.

    Args:
        status (`Callable`): returns the engine's status, `None` while there is no engine.
    """

    def __init__(self, status: Callable[[], Any]):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sama_requests",
            "requests by route, method and status",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.received = Counter("sama_received_bytes", "bytes of request bodies", registry=self.registry)
        self.sent = Counter("sama_sent_bytes", "bytes of response bodies", registry=self.registry)
        self.first_token = Histogram(
            "sama_first_token_seconds",
            "seconds from a question's arrival to the first piece of its answer",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(EngineCollector(status))

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)

    def first_token_timer(self) -> Callable[[], None]:
        """Starts a clock; the returned function stops it."""
        started = time.monotonic()
        return lambda: self.first_token.observe(time.monotonic() - started)


class MetricsMiddleware:
    """Counts requests and bytes."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = CLIENT_LEFT

        async def count_received() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                self.metrics.received.inc(len(message.get("body", b"")))
            return message

        async def count_sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                self.metrics.sent.inc(len(message.get("body", b"")))
            await send(message)

        try:
            await self.app(scope, count_received, count_sent)
        except Exception:
            status = 500
            raise
        finally:
            # Neither label may be a text of the client: each new one would stay in memory
            known = scope["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")
            method = scope["method"] if known else "other"
            self.metrics.requests.labels(route_label(scope), method, str(status)).inc()


def route_label(scope: Scope) -> str:
    """The template of a route, `/v1/files/{file_id}`."""
    route = scope.get("route")
    if isinstance(route, Route):
        return route.path
    return "page" if isinstance(scope.get("endpoint"), StaticFiles) else "other"
