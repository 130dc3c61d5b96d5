"""What the store has counted, as Prometheus reads it."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api.metrics import _Found, family, of_store
from shared.host import BackendState, Instance, Readiness

TOTALS = {
    "ended|claude|succeeded|": 3,
    "ended|claude|failed|backend_login": 1,
    "tokens|claude|input": 40,
    "wait|claude|0.05": 2,
    "wait|claude|1": 2,
    "wait_ms|claude": 1500,
    "took|claude|+Inf": 4,
    "took_ms|claude": 9000,
}


def test_totals_become_counters_and_histograms_that_a_parser_reads():
    state = BackendState(name="claude", readiness=Readiness.READY, slots=8)
    fleet = [
        Instance(id=f"i{n}", host="h", pid=1, version="0", started_at=0, slots=8, running=n, backends=(state,))
        for n in (1, 2)
    ]
    registry = CollectorRegistry()
    registry.register(_Found(of_store(TOTALS, {"waiting": 5}, 2.5, fleet)))

    seen = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for found in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in found.samples
    }

    claude = ("backend", "claude")
    assert seen["clinvk_runs_ended_total", (claude, ("code", ""), ("status", "succeeded"))] == 3
    assert seen["clinvk_runs_ended_total", (claude, ("code", "backend_login"), ("status", "failed"))] == 1
    assert seen["clinvk_tokens_total", (claude, ("kind", "input"))] == 40
    assert seen["clinvk_run_wait_seconds_bucket", (claude, ("le", "0.5"))] == 2
    assert seen["clinvk_run_wait_seconds_bucket", (claude, ("le", "1"))] == 4
    assert seen["clinvk_run_wait_seconds_count", (claude,)] == 4
    assert seen["clinvk_run_wait_seconds_sum", (claude,)] == 1.5
    assert seen["clinvk_run_duration_seconds_count", (claude,)] == 4
    assert seen["clinvk_runs", (("status", "waiting"),)] == 5
    assert seen["clinvk_queue_oldest_seconds", ()] == 2.5
    assert seen["clinvk_worker_slots", (("host", "h"),)] == 16
    assert seen["clinvk_backend_ready", (claude, ("host", "h"))] == 2


def test_a_label_is_never_what_a_caller_made_up():
    assert family("/api/v1/runs/run_123/events") == "/api/v1/runs"
    assert family("/api/v1/runsx") == "other"
    assert family("/evil/" + "x" * 100) == "other"
