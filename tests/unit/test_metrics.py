"""What has been counted and told, as Prometheus reads it."""

from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api.families import Store, of_processes, of_store
from api.metrics import Found
from api.seen import stamp_s
from shared.event import Message, encode
from shared.host import BackendState, Instance, Readiness, Vitals
from shared.store.runs import Line
from shared.warm import WarmState

TOTALS = {
    "ended|claude|succeeded|": 2,  # by an older version
    "ended|claude|succeeded||": 3,
    "ended|claude|failed|backend_login|login": 1,
    "tokens|claude|input": 40,
    "cost_microusd|claude": 1_250_000,
    "lease_lost|claude": 4,
    "mended|hint": 2,
    "http|POST|/api/v1/prompt|200": 7,
    "gap|slow": 1,
    "first_byte|/api/v1/prompt|0.0025": 6,
    "first_byte|/api/v1/prompt|+Inf": 1,
    "first_byte_us|/api/v1/prompt": 90_000_000,
    "relay_lag||0.001": 3,
    "relay_lag_us|": 1500,
    "first|claude|0.25": 1,
    "first_ms|claude": 200,
    "wait|claude|0.05": 2,
    "wait|claude|1": 2,
    "wait_ms|claude": 1500,
    "took|claude|+Inf": 4,
    "took_ms|claude": 9000,
    "from_a_newer_version|x": 1,
}

ONE_WORKER = ("backend", "claude", "host", "h", "pid", "1")
WARM = WarmState(
    kept=3, ready=2, running=5, memory_bytes=700, hits=11, misses={"first": 2, "size": 9}, starts=4, ends={"idle": 1}
)


def scrape(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    """(name, label, value, ...) -> value, read back by Prometheus' own parser."""
    registry = CollectorRegistry()
    registry.register(Found(families))
    return {
        (sample.name, *(word for pair in sorted(sample.labels.items()) for word in pair)): sample.value
        for found in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in found.samples
    }


def store(**given) -> Store:
    state = BackendState(name="claude", readiness=Readiness.READY, slots=8, warm=WARM)
    fleet = [
        Instance(id=f"i{n}", host="h", pid=n, version="0", started_at=0, slots=8, running=n, backends=(state,))
        for n in (1, 2)
    ]
    fields = {
        "totals": TOTALS,
        "counts": {"waiting": 5},
        "lines": {"claude": Line(2, 1.5, 3, 2.5), "claude@h": Line(3, 9.0), "codex": Line()},
        "oldest_s": 9.5,
        "swept_s": 0.4,
        "fleet": fleet,
        "apis": [],
        "drained": frozenset(),
        "round_trip_s": 0.001,
        "memory_bytes": 10,
        "memory_max_bytes": 0,
        **given,
    }
    return Store(**fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (
            (
                "clinvk_runs_ended_total",
                "backend",
                "claude",
                "cause",
                "login",
                "code",
                "backend_login",
                "status",
                "failed",
            ),
            1,
        ),
        (("clinvk_tokens_total", "backend", "claude", "kind", "input"), 40),
        (("clinvk_cost_usd_total", "backend", "claude"), 1.25),
        (("clinvk_lease_losses_total", "backend", "claude"), 4),
        (("clinvk_lease_losses_total", "backend", "codex"), 0),  # told before one is lost, so that the first is seen
        (("clinvk_sweep_mended_total", "what", "hint"), 2),
        (("clinvk_relay_gap_fills_total", "reason", "slow"), 1),
        (("clinvk_http_requests_total", "method", "POST", "route", "/api/v1/prompt", "status", "200"), 7),
        (("clinvk_http_first_byte_seconds_bucket", "le", "0.0025", "route", "/api/v1/prompt"), 6),
        (("clinvk_http_first_byte_seconds_count", "route", "/api/v1/prompt"), 7),
        (("clinvk_http_first_byte_seconds_sum", "route", "/api/v1/prompt"), 90),
        (("clinvk_relay_lag_seconds_count",), 3),
        (("clinvk_relay_lag_seconds_sum",), 0.0015),
        (("clinvk_run_first_event_seconds_bucket", "backend", "claude", "le", "0.25"), 1),
        (("clinvk_run_wait_seconds_bucket", "backend", "claude", "le", "0.5"), 2),
        (("clinvk_run_wait_seconds_bucket", "backend", "claude", "le", "1"), 4),
        (("clinvk_run_wait_seconds_sum", "backend", "claude"), 1.5),
        (("clinvk_run_duration_seconds_count", "backend", "claude"), 4),
        (("clinvk_runs", "status", "waiting"), 5),
        (("clinvk_queue_depth", "backend", "claude"), 5),
        (("clinvk_queue_oldest_seconds", "backend", "claude"), 9),
        (("clinvk_queue_depth", "backend", "codex"), 0),
        (("clinvk_slots_wanted", "backend", "claude"), 3),
        (("clinvk_slots_wanted_seconds", "backend", "claude"), 2.5),
        (("clinvk_waiting_oldest_seconds",), 9.5),
        (("clinvk_sweep_age_seconds",), 0.4),
        (("clinvk_worker_slots", "host", "h"), 16),
        (("clinvk_worker_running", "host", "h"), 3),
        (("clinvk_worker_instances", "host", "h", "version", "0"), 2),
        (("clinvk_backend_ready", "backend", "claude", "host", "h"), 2),
        (("clinvk_warm_kept", *ONE_WORKER), 3),
        (("clinvk_warm_running", *ONE_WORKER), 5),
        (("clinvk_warm_memory_bytes", *ONE_WORKER), 700),
        (("clinvk_warm_hits_total", *ONE_WORKER), 11),
        (("clinvk_warm_starts_total", *ONE_WORKER), 4),
        (("clinvk_warm_misses_total", *ONE_WORKER, "reason", "first"), 2),
        (("clinvk_warm_misses_total", *ONE_WORKER, "reason", "size"), 9),
        (("clinvk_warm_ends_total", *ONE_WORKER, "reason", "idle"), 1),
        (("clinvk_backend_state", "backend", "claude", "host", "h", "state", "ready"), 2),
    ],
    ids=lambda given: given[0] if isinstance(given, tuple) else "",
)
def test_what_was_counted_becomes_what_a_parser_reads(name, value):
    assert scrape(of_store(store()))[name] == value


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ([], 3),  # who scales from nothing
        ([Readiness.NOT_LOGGED_IN, Readiness.LIMITED], 0),
        ([Readiness.LIMITED, Readiness.READY], 3),
    ],
)
def test_no_slot_is_wanted_of_a_backend_that_no_host_can_run_now(told, wanted):
    fleet = [
        Instance(
            id=f"i{n}",
            host=f"h{n}",
            pid=1,
            version="0",
            started_at=0,
            slots=8,
            draining=True,  # what is drained says nothing against another
            backends=(BackendState(name="claude", readiness=readiness, slots=8),),
        )
        for n, readiness in enumerate(told)
    ]

    seen = scrape(of_store(store(fleet=fleet)))

    assert seen["clinvk_slots_wanted", "backend", "claude"] == wanted
    assert (seen["clinvk_slots_wanted_seconds", "backend", "claude"] > 0) == bool(wanted)
    assert seen["clinvk_queue_depth", "backend", "claude"] == 5


def test_counts_of_an_older_version_are_summed_with_nothing_lost():
    seen = scrape(of_store(store()))

    assert (
        sum(value for name, value in seen.items() if name[0] == "clinvk_runs_ended_total" and "succeeded" in name) == 5
    )


def test_processes_are_told_apart_and_a_host_is_told_once():
    mine = Vitals(role="api", host="a", pid=1, version="1", started_at=5, rss_bytes=7, streams=3, memory_bytes=9)
    other = Vitals(role="worker", host="a", pid=2, version="1", started_at=5, loop_lag_s=0.5, disk_free_bytes=4)

    seen = scrape(of_processes([mine, other]))

    assert seen["clinvk_process_resident_memory_bytes", "host", "a", "pid", "1", "role", "api"] == 7
    assert seen["clinvk_process_loop_lag_seconds", "host", "a", "pid", "2", "role", "worker"] == 0.5
    assert seen["clinvk_streams_open", "host", "a", "pid", "1"] == 3
    assert ("clinvk_streams_open", "host", "a", "pid", "2") not in seen
    assert seen["clinvk_host_memory_bytes", "host", "a"] == 9
    assert seen["clinvk_host_disk_free_bytes", "host", "a", "role", "worker"] == 4
    assert seen["clinvk_build_info", "role", "api", "version", "1"] == 1


def test_an_event_tells_when_it_happened():
    line = encode(Message("hi"), backend="echo", session_id="", sequence=3, at_s=1_700_000_000.25)

    assert stamp_s(line) == 1_700_000_000.25
    assert stamp_s(b'{"lane":1,"run_id":"r","event":' + line + b"}") == 1_700_000_000.25
    assert stamp_s(b"{}") is None
    assert stamp_s(b'{"timestamp":"never"}') is None
