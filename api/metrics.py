"""`/metrics` for Prometheus: what the store has counted of all runs, the fleet now, and this API process."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from api.context import context_of
from shared.errors import PermissionDenied
from shared.host import Instance

_LE = ("0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "300", "600", "1800", "3600", "+Inf")


class HttpMetrics:
    """This process' requests. Labels are bounded: a path is told by its route's family."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "clinvk_http_requests", "Requests answered", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "clinvk_http_first_byte_seconds", "From a request to its answer's head", ("route",), registry=self.registry
        )
        self._open = Gauge("clinvk_http_requests_open", "Requests and streams under way", registry=self.registry)

    def begun(self) -> None:
        self._open.inc()

    def answered(self, method: str, path: str, status: int, took_s: float) -> None:
        route = family(path)
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(took_s)

    def ended(self) -> None:
        self._open.dec()


_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_FAMILIES = (
    "/api/v1/prompt",
    "/api/v1/parallel",
    "/api/v1/chain",
    "/api/v1/compare",
    "/api/v1/runs",
    "/api/v1/flows",
    "/api/v1/sessions",
    "/api/v1/backends",
    "/api/v1/workers",
    "/openai/v1/chat/completions",
    "/openai/v1/responses",
    "/openai/v1/models",
    "/anthropic/v1/messages",
    "/anthropic/v1/models",
    "/health",
    "/metrics",
)


def family(path: str) -> str:
    """The route's name, never what a caller made up."""
    return next((one for one in _FAMILIES if path == one or path.startswith(one + "/")), "other")


class Measured:
    """The layer that counts requests."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                took_s = time.monotonic() - begun
                self._metrics.answered(str(scope.get("method")), scope["path"], message["status"], took_s)
            await send(message)

        self._metrics.begun()
        try:
            await self._app(scope, receive, sending)
        finally:
            self._metrics.ended()


class _Found:
    """A collector of what has been fetched already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families


def of_store(
    totals: Mapping[str, int], counts: Mapping[str, int], oldest_s: float, fleet: Iterable[Instance]
) -> list[Metric]:
    """The families that are the same whichever replica is asked."""
    ended = CounterMetricFamily("clinvk_runs_ended", "Runs by how they ended", labels=("backend", "status", "code"))
    tokens = CounterMetricFamily("clinvk_tokens", "Tokens of ended runs", labels=("backend", "kind"))
    backends: set[str] = set()
    for name, count in totals.items():
        what, backend, *rest = name.split("|")
        backends.add(backend)
        if what == "ended":
            ended.add_metric((backend, *rest), count)
        elif what == "tokens":
            tokens.add_metric((backend, *rest), count)
    found: list[Metric] = [ended, tokens]
    for what, metric, text in (
        ("wait", "clinvk_run_wait_seconds", "From the request to the start of a run"),
        ("took", "clinvk_run_duration_seconds", "From the start of a run to its end"),
    ):
        histogram = HistogramMetricFamily(metric, text, labels=("backend",))
        for backend in sorted(backends):
            sum_so_far, buckets = 0, []
            for le in _LE:
                sum_so_far += totals.get(f"{what}|{backend}|{le}", 0)
                buckets.append((le, float(sum_so_far)))
            histogram.add_metric((backend,), buckets, totals.get(f"{what}_ms|{backend}", 0) / 1000)
        found.append(histogram)
    runs = GaugeMetricFamily("clinvk_runs", "Runs that have not ended", labels=("status",))
    for status, number in counts.items():
        runs.add_metric((status,), number)
    age = GaugeMetricFamily("clinvk_queue_oldest_seconds", "For how long the first waiting run has waited", oldest_s)
    return [*found, runs, age, *_of_fleet(fleet)]


def _of_fleet(fleet: Iterable[Instance]) -> list[Metric]:
    slots = GaugeMetricFamily("clinvk_worker_slots", "Runs that instances can carry at once", labels=("host",))
    running = GaugeMetricFamily("clinvk_worker_running", "Runs that instances carry", labels=("host",))
    ready = GaugeMetricFamily("clinvk_backend_ready", "Instances that can run a backend", labels=("backend", "host"))
    sums: dict[str, list[int]] = {}
    states: dict[tuple[str, str], int] = {}
    for instance in fleet:
        both = sums.setdefault(instance.host, [0, 0])
        both[0] += instance.slots
        both[1] += instance.running
        for state in instance.backends:
            key = (state.name, instance.host)
            good = state.readiness.value == "ready" and not instance.draining
            states[key] = states.get(key, 0) + int(good)
    for host, (most, now) in sums.items():
        slots.add_metric((host,), most)
        running.add_metric((host,), now)
    for labels, number in states.items():
        ready.add_metric(labels, number)
    return [slots, running, ready]


@get("/metrics")
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Raises: NotFoundException where it is not enabled; PermissionDenied; StoreUnavailable."""
    ctx = context_of(request)
    if not ctx.config.server.metrics_enabled:
        raise NotFoundException
    if not request.scope["state"].get("admin"):
        raise PermissionDenied("only a key with `role: admin` may read the metrics")
    families = of_store(
        await ctx.runs.totals(),
        await ctx.runs.counts(),
        await ctx.runs.oldest_s(ctx.now()),
        await ctx.dispatch.fleet(fresh=True),
    )
    registry = CollectorRegistry()
    registry.register(_Found(families))
    body = generate_latest(request.app.state.http_metrics.registry) + generate_latest(registry)
    return Response(body, media_type=CONTENT_TYPE_LATEST)
