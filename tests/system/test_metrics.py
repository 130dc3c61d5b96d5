"""`/metrics` over real processes: whichever replica is asked, and whatever was restarted, the figures are the fleet's."""

import signal

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.system.service import kill_pid, prompt, serving, stream, until

ON = {"CLINVK_SERVER__METRICS_ENABLED": "true"}


def read(base: str, **headers: str) -> dict[tuple[str, ...], float]:
    """(name, label, value, ...) -> value."""
    answer = httpx.get(base + "/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, *(word for pair in sorted(sample.labels.items()) for word in pair)): sample.value
        for found in text_string_to_metric_families(answer.text)
        for sample in found.samples
    }


def total(seen: dict[tuple[str, ...], float], name: str, *words: str) -> float:
    return sum(value for key, value in seen.items() if key[0] == name and set(words) <= set(key[1:]))


def test_each_replica_tells_the_runs_requests_and_processes_of_all():
    with serving(apis=2, **ON) as service:
        one, two = (base for _, base in service.apis)
        prompt(one, "hello")
        prompt(one, "hello", "--exit-code=1")
        stream(one, "hello there").rest()

        # The other replica hears of the requests within a second or two.
        until(lambda: total(read(two), "clinvk_http_requests_total", "/api/v1/prompt", "200") == 3)
        first, second = until(lambda: (read(one), read(two)))

        for seen in (first, second):
            assert total(seen, "clinvk_runs_ended_total", "succeeded") == 2
            assert total(seen, "clinvk_runs_ended_total", "failed", "crashed", "echo") == 1
            assert total(seen, "clinvk_run_duration_seconds_count") == 3
            assert total(seen, "clinvk_run_first_event_seconds_count", "echo") == 3
            assert total(seen, "clinvk_http_first_byte_seconds_count", "/api/v1/prompt") == 3
            assert seen["clinvk_worker_slots", "host", "host0"] == 8
            assert seen["clinvk_store_up",] == 1
            assert seen["clinvk_store_memory_bytes",] > 0
            assert seen["clinvk_queue_depth", "backend", "echo"] == 0
            roles = [key[key.index("role") + 1] for key in seen if key[0] == "clinvk_process_resident_memory_bytes"]
            assert sorted(roles) == ["api", "api", "worker"]
            assert total(seen, "clinvk_process_resident_memory_bytes", "worker") > 10_000_000


def test_counts_go_on_over_a_restart_of_the_replica_that_made_them():
    with serving(workers=0, **ON) as service:
        process, base = service.apis[0]
        httpx.get(base + "/api/v1/nothing")
        httpx.get(base + "/api/v1/runs/run_made_up")
        process.send(signal.SIGTERM)
        process.wait()

        seen = read(service.api())

    assert total(seen, "clinvk_http_requests_total", "none", "404") == 1
    assert total(seen, "clinvk_http_requests_total", "/api/v1/runs/{run_id}", "404") == 1


def test_what_a_caller_makes_up_is_no_label():
    with serving(workers=0, **ON) as service:
        base = service.apis[0][1]
        for method in ("BREW", "PROPFIND", "MKCALENDAR", "GET"):
            httpx.request(method, f"{base}/made-up-{method}/x?made=up", headers={"host": "made-up.localhost"})

        seen = until(lambda: (found := read(base)) and total(found, "clinvk_http_requests_total", "none") and found)

    counted = [key for key in seen if key[0].startswith("clinvk_http_requests_total")]
    methods = {key[key.index("method") + 1] for key in counted}
    assert {"other", "GET"} <= methods <= {"other", "GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}
    assert not [key for key in seen if "made" in " ".join(key).lower() or "BREW" in key]


def test_open_streams_lag_gaps_and_a_lost_worker_are_seen():
    with serving(**ON) as service:
        base = service.apis[0][1]
        follower = stream(base, "a b c d e f g h", "--delay-ms=50", "--hang")
        while "h" not in str(follower.next()["content"].get("text")):
            pass

        assert total(read(base), "clinvk_streams_open") == 1
        assert total(read(base), "clinvk_relay_lag_seconds_count") >= 1
        kill_pid(service.celery_of(service.workers[0]))
        follower.rest()
        seen = until(lambda: (found := read(base)) and total(found, "clinvk_sweep_mended_total", "lease") and found)

    assert total(seen, "clinvk_lease_losses_total", "echo") == 1
    assert total(seen, "clinvk_runs_ended_total", "failed", "worker_lost") == 1
    assert total(seen, "clinvk_streams_open") == 0
    assert 0 <= total(seen, "clinvk_sweep_age_seconds") < 5


def test_without_redis_it_still_tells_what_it_knows():
    with serving(workers=0, **ON) as service:
        base = service.apis[0][1]
        service.redis.kill()

        seen = httpx.get(base + "/metrics", timeout=30).text
        service.redis.start()

        assert "clinvk_store_up 0.0" in seen
        assert "clinvk_process_resident_memory_bytes" in seen
        assert "clinvk_runs_ended" not in seen
        assert until(lambda: read(base)["clinvk_store_up",]) == 1


def test_it_is_there_only_where_it_is_wanted_and_only_for_those_who_run_it():
    with serving(workers=0) as service:
        assert httpx.get(service.apis[0][1] + "/metrics").status_code == 404
    with serving(workers=0, CLINVK_SERVER__METRICS_ENABLED="true", CLINVK_API_KEYS="k") as service:
        base = service.apis[0][1]
        assert httpx.get(base + "/metrics").status_code == 401
        assert httpx.get(base + "/metrics", headers={"x-api-key": "k"}).status_code == 403
