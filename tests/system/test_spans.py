"""OpenTelemetry spans from HTTP through the queue to the CLI, as a collector of our own on loopback receives them."""

import gzip
import http.server
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from shared import spans
from tests.system.service import prompt, serving, until

pytestmark = [pytest.mark.redis, pytest.mark.processes]

TRACE, ABOVE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "xyzzy-canary"
SHOWS = '["sh", "-c", "cat >/dev/null; echo $TRACEPARENT >&2; exit 3"]'


class Collector:
    """OTLP over HTTP: keeps the spans that come, by name."""

    def __init__(self) -> None:
        self.spans: list = []
        self.services: dict[str, set[str]] = {}
        self.raw = b""
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += scope.spans
                self.services.setdefault(names["service.name"], set()).update(s.name for s in scope.spans)

    def named(self, name: str) -> list:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


def told(span) -> dict:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_followed_through_the_queue_to_its_cli(collector):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serving(CLINVK_BACKENDS__ECHO__COMMAND=SHOWS, **env) as service:
        base = service.apis[0][1]
        answer = httpx.post(
            base + "/api/v1/prompt",
            json={"backend": "echo", "prompt": CANARY},
            headers={"traceparent": f"00-{TRACE}-{ABOVE}-01", "tracestate": "a=1"},
            timeout=30,
        )
        httpx.get(base + "/readyz")
        until(lambda: collector.named("POST /api/v1/prompt") and collector.named("run echo"))

    (served,), (queued,) = collector.named("POST /api/v1/prompt"), collector.named("queue echo")
    (ran,), (cli,) = collector.named("run echo"), collector.named("cli echo")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert served.parent_span_id.hex() == ABOVE
    assert answer.headers["traceparent"] == f"00-{TRACE}-{served.span_id.hex()}-01"
    assert queued.parent_span_id == ran.parent_span_id == served.span_id
    assert cli.parent_span_id == ran.span_id
    assert f"00-{TRACE}-{cli.span_id.hex()}-01" in answer.json()["error"]
    assert (
        served.start_time_unix_nano
        <= queued.end_time_unix_nano
        <= cli.start_time_unix_nano
        <= cli.end_time_unix_nano
        <= ran.end_time_unix_nano
    )
    assert told(served)["http.response.status_code"] == 200
    assert told(served)["http.route"] == "/api/v1/prompt"
    assert told(served)["clinvk.run_id"] == told(ran)["clinvk.run_id"] == answer.headers["x-run-id"]
    assert (told(ran)["clinvk.status"], told(ran)["clinvk.cause"]) == ("failed", "crashed")
    assert ran.status.message == "backend_error"
    assert CANARY.encode() not in collector.raw
    assert collector.services["clinvk-api"] == {"POST /api/v1/prompt"}
    assert collector.services["clinvk-worker"] == {"queue echo", "run echo", "cli echo"}


def test_what_is_left_is_sent_at_the_end_and_who_is_not_sampled_is_not_followed(collector):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with serving(**env) as service:
        base = service.apis[0][1]
        headers = {"traceparent": f"00-{TRACE}-{ABOVE}-00"}
        unsampled = httpx.post(
            base + "/api/v1/prompt", json={"backend": "echo", "prompt": "x"}, headers=headers, timeout=30
        )
        prompt(base, "y")
        for process in (service.workers[0], service.apis[0][0]):
            process.send(signal.SIGTERM)
            assert process.wait() == 0

    assert len(collector.named("run echo")) == 1
    assert collector.named("run echo")[0].trace_id.hex() != TRACE
    assert len(collector.named("POST /api/v1/prompt")) == 1
    assert unsampled.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert unsampled.headers["traceparent"].endswith("-00")


def test_a_collector_that_is_away_harms_nothing_and_holds_nobody_up():
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serving(**env) as service:
        assert prompt(service.apis[0][1], "x")["output"] == "x"
        process = service.apis[0][0]
        process.send(signal.SIGTERM)
        assert process.wait(8) == 0


def test_without_the_packages_it_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)

    made = spans.create("clinvk-api", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})

    assert made is None
    assert "pip install 'clinvk[otel]'" in caplog.text


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_nothing_is_made_where_nothing_is_wanted(environ, said, caplog):
    assert spans.create("clinvk-api", environ) is None
    assert said in caplog.text
