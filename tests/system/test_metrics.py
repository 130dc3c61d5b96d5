"""`/metrics` over real processes: whichever replica is asked, the runs of all are counted."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.system.service import prompt, serving


def read(base: str, **headers: str) -> dict[tuple[str, str], float]:
    answer = httpx.get(base + "/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, sample.labels.get("status", "")): sample.value
        for found in text_string_to_metric_families(answer.text)
        for sample in found.samples
    }


def test_each_replica_counts_the_runs_of_all():
    with serving(apis=2, CLINVK_SERVER__METRICS_ENABLED="true") as service:
        one, two = (base for _, base in service.apis)
        prompt(one, "hello")
        prompt(one, "hello", "--exit-code=1")

        first, second = read(one), read(two)

        for seen in (first, second):
            assert seen["clinvk_runs_ended_total", "succeeded"] == 1
            assert seen["clinvk_runs_ended_total", "failed"] == 1
            assert seen["clinvk_run_duration_seconds_count", ""] == 2
            assert seen["clinvk_worker_slots", ""] == 8
        assert first["clinvk_http_requests_total", "200"] == 2
        assert ("process_resident_memory_bytes", "") in first


def test_it_is_there_only_where_it_is_wanted_and_only_for_those_who_run_it():
    with serving(workers=0) as service:
        assert httpx.get(service.apis[0][1] + "/metrics").status_code == 404
    with serving(workers=0, CLINVK_SERVER__METRICS_ENABLED="true", CLINVK_API_KEYS="k") as service:
        base = service.apis[0][1]
        assert httpx.get(base + "/metrics").status_code == 401
        assert httpx.get(base + "/metrics", headers={"x-api-key": "k"}).status_code == 403
