"""Live, ready and degraded are told apart, by real processes; and asking costs next to nothing."""

import os
import signal
import threading
import time

import httpx
import pytest

from tests.system.service import serving, until

pytestmark = [pytest.mark.redis, pytest.mark.processes]


def asked(base: str, path: str) -> tuple[int, str]:
    answer = httpx.get(base + path, timeout=10)
    return answer.status_code, answer.json()["status"]


def test_without_a_worker_it_is_degraded_and_still_ready():
    with serving(workers=0, CLINVK_API_KEYS="k") as service:
        base = service.apis[0][1]

        assert asked(base, "/livez") == (200, "alive")
        assert asked(base, "/readyz") == (200, "degraded")
        assert httpx.get(base + "/readyz").json()["reasons"] == ["no worker is connected"]
        assert asked(base, "/health") == (200, "degraded")
        assert httpx.head(base + "/livez").status_code == 200

        service.worker()
        assert until(lambda: asked(base, "/readyz") == (200, "ready"))
        assert asked(base, "/health") == (200, "ok")


def test_without_redis_it_lives_and_is_not_ready():
    with serving() as service:
        base = service.apis[0][1]
        service.redis.kill()

        assert until(lambda: asked(base, "/readyz") == (503, "unready"))
        assert asked(base, "/livez") == (200, "alive")
        assert asked(base, "/health") == (503, "unhealthy")
        service.redis.start()
        assert until(lambda: asked(base, "/readyz") == (200, "ready"), 30)


def test_a_redis_that_does_not_answer_is_told_within_the_patience_of_a_probe():
    with serving(workers=0) as service:
        base = service.apis[0][1]
        os.kill(service.redis.process.pid, signal.SIGSTOP)
        try:
            threading.Event().wait(0.6)  # the last look is fresh for half a second
            begun = time.monotonic()
            assert asked(base, "/readyz") == (503, "unready")
            assert time.monotonic() - begun < 3
            assert asked(base, "/livez") == (200, "alive")
        finally:
            os.kill(service.redis.process.pid, signal.SIGCONT)
        assert until(lambda: asked(base, "/readyz")[0] == 200)


def test_a_redis_that_refuses_writes_makes_it_unready():
    with serving(workers=0) as service:
        base = service.apis[0][1]
        client = service.redis.client()
        client.config_set("min-replicas-to-write", 1)

        assert until(lambda: asked(base, "/readyz") == (503, "unready"), 30)
        assert "no write" in httpx.get(base + "/readyz").json()["reasons"][0]
        client.config_set("min-replicas-to-write", 0)
        client.close()
        assert until(lambda: asked(base, "/readyz")[0] == 200)


def test_a_thousand_questions_cost_the_store_a_few_looks():
    with serving(workers=0) as service:
        base = service.apis[0][1]
        client = service.redis.client()
        with httpx.Client(base_url=base) as http:
            http.get("/readyz")
            before = client.info("commandstats").get("cmdstat_zcard", {}).get("calls", 0)
            begun = time.monotonic()
            for _ in range(300):
                http.get("/readyz")
                http.get("/health")
                http.get("/livez")
            took_s = time.monotonic() - begun
        looks = client.info("commandstats")["cmdstat_zcard"]["calls"] - before
        client.close()

        assert looks <= 5 * (took_s / 0.5 + 2)


def test_probes_leave_no_line_in_the_log_unless_they_fail():
    with serving(workers=0) as service:
        base = service.apis[0][1]
        asked(base, "/livez")
        asked(base, "/readyz")
        httpx.get(base + "/livez/nothing")

        lines = until(lambda: "/livez/nothing" in service.logs() and service.logs())

        assert "GET /livez 200" not in lines
        assert "GET /readyz 200" not in lines
