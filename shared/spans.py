"""OpenTelemetry spans, where an OTLP endpoint is configured; else nothing is imported and nothing made.

The names of the environment are OpenTelemetry's own (OTEL_EXPORTER_OTLP_ENDPOINT and its kind); its SDK reads them.
"""

import logging
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal

from shared.trace import Trace

_log = logging.getLogger(__name__)

Kind = Literal["server", "internal", "consumer", "client"]
Value = str | int | float | bool

_CLOSE_WITHIN_S = 3.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Span:
    """One that is under way. `place` is where what follows belongs."""

    def __init__(self, span: Any, state: str) -> None:
        self._span = span
        made = span.get_span_context()
        self.place = Trace(f"{made.trace_id:032x}", f"{made.span_id:016x}", int(made.trace_flags), state)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, **attributes: Value | None) -> None:
        """`run__id` is `run.id`. Never a word of a prompt."""
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name.replace("__", "."), value)

    def end(self, error: str | None = None) -> None:
        from opentelemetry.trace import Status, StatusCode

        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


class Spans:
    """Makes and sends them, from a thread of the SDK's own."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("clinvk", version("clinvk"))

    def begin(self, name: str, above: Trace | None, kind: Kind = "internal", *, ago_s: float = 0.0) -> Span:
        """`ago_s`: how long ago it began."""
        from opentelemetry import trace

        context = None
        if above is not None:
            parent = trace.SpanContext(
                int(above.trace_id, 16),
                int(above.span_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(above.flags),
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        at = time.time_ns() - int(ago_s * 1e9)
        span = self._tracer.start_span(name, context, trace.SpanKind[kind.upper()], start_time=at)
        return Span(span, above.state if above is not None else "")

    def close(self) -> None:
        """Sends what is left; does not wait long for a collector that is away."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(_CLOSE_WITHIN_S)


def create(service: str, environ: Mapping[str, str]) -> Spans | None:
    """None where no endpoint is configured, or it cannot be served, which is logged: nobody's runs are to fail for it."""
    if not any(environ.get(name) for name in _ENDPOINTS) or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        _log.warning("no spans: this program speaks OTLP as http/protobuf, not %r (%s)", protocol, _PROTOCOLS[1])
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _log.warning(
            "no spans: %s is set, but %s is not installed: pip install 'clinvk[otel]'", _ENDPOINTS[1], error.name
        )
        return None
    told = {"service.version": version("clinvk")}
    if not environ.get("OTEL_SERVICE_NAME"):
        told["service.name"] = service
    provider = TracerProvider(resource=Resource.create(told), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _log.info("spans go to %s", next(environ[name] for name in _ENDPOINTS if environ.get(name)))
    return Spans(provider)
