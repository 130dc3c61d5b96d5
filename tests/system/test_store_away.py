"""What callers see when Redis is full or away: a refusal in their own words, soon, and the truth once it is back."""

import time

import httpx
import pytest

from tests.system.service import Service, ended, prompt, serving, stream, submit, until, whole

pytestmark = pytest.mark.processes

SAY = [{"role": "user", "content": "x"}]
SUBMITS = {
    "/api/v1/prompt": {"backend": "echo", "prompt": "x"},
    "/api/v1/parallel": {"tasks": [{"backend": "echo", "prompt": "x"}]},
    "/api/v1/chain": {"steps": [{"backend": "echo", "prompt": "x"}]},
    "/api/v1/compare": {"backends": ["echo"], "prompt": "x"},
    "/openai/v1/chat/completions": {"model": "echo", "messages": SAY},
    "/openai/v1/responses": {"model": "echo", "input": "x"},
    "/anthropic/v1/messages": {"model": "echo", "max_tokens": 9, "messages": SAY},
}


def full(service: Service, is_full: bool) -> None:
    client = service.redis.client()
    client.config_set("maxmemory", "1" if is_full else "0")
    client.close()


def refused(answer: httpx.Response) -> None:
    body = answer.json()
    assert answer.status_code == body["status"] == 503
    assert (int(answer.headers["retry-after"]) >= 1, answer.headers["x-should-retry"]) == (True, "true")
    if answer.url.path.startswith("/anthropic/"):
        assert (body["type"], body["error"]["type"]) == ("error", "overloaded_error")
    elif answer.url.path.startswith("/openai/"):
        assert (body["error"]["code"], body["error"]["type"]) == ("store_unavailable", "server_error")
    else:
        assert body["error"]["code"] == "store_unavailable"


def test_a_full_redis_refuses_what_is_new_in_every_dialect_and_what_is_there_is_still_to_be_had():
    with serving() as service:
        base = service.apis[0][1]
        run_id = prompt(base, "before")["run_id"]
        full(service, True)

        for path, body in SUBMITS.items():
            answer = httpx.post(base + path, json=body, timeout=20)
            refused(answer)
            assert answer.json()["detail"] == "the store is full"
            streamed = body if path.startswith("/api/") else body | {"stream": True}
            refused(httpx.post(base + path, json=streamed, headers={"accept": "text/event-stream"}))
        assert httpx.get(f"{base}/api/v1/runs/{run_id}").json()["result"]["output"] == "before"
        assert "event: done" in httpx.get(f"{base}/api/v1/runs/{run_id}/events").text
        assert httpx.get(base + "/api/v1/backends").status_code == 200
        assert httpx.get(base + "/health").json()["status"] in ("ok", "degraded")
        assert httpx.delete(f"{base}/api/v1/runs/{run_id}").status_code == 200
        full(service, False)

        assert prompt(base, "after")["output"] == "after"


def test_a_run_under_way_in_a_full_redis_waits_keeps_its_lease_and_loses_nothing():
    with serving() as service:
        base = service.apis[0][1]
        words = " ".join(f"w{number}" for number in range(30))
        following = stream(base, words, "--delay-ms=50")
        first = following.next()
        full(service, True)
        short = 1.5 * 4  # a lease and a half
        begun = time.monotonic()
        until(lambda: time.monotonic() - begun > short)
        full(service, False)

        assert whole([first, *following.rest()]) == words
        assert ended(base, following.run_id)["status"] == "succeeded"


def test_a_run_under_way_in_a_full_redis_can_be_cancelled():
    with serving() as service:
        base = service.apis[0][1]
        run_id = submit(base, "stay", "--hang")
        until(lambda: httpx.get(f"{base}/api/v1/runs/{run_id}").json()["status"] == "running")
        full(service, True)

        assert httpx.delete(f"{base}/api/v1/runs/{run_id}").status_code == 202
        assert ended(base, run_id)["status"] == "cancelled"


def test_the_limit_of_a_full_redis_is_as_exact_as_ever_and_that_of_one_that_is_away_holds_in_each_process():
    limits = {
        "CLINVK_SERVER__RATE_LIMIT_ENABLED": "true",
        "CLINVK_SERVER__RATE_LIMIT_RPS": "0.01",
        "CLINVK_SERVER__RATE_LIMIT_BURST": "4",
    }
    with serving(workers=0, apis=2, **limits) as service:
        one, two = (base for _, base in service.apis)
        full(service, True)
        asked = [httpx.get(base + "/api/v1/backends") for base in (one, two) * 3]
        assert [answer.status_code for answer in asked] == [200] * 4 + [429] * 2

        service.redis.kill()
        asked = [httpx.get(one + "/openai/v1/models", timeout=20) for _ in range(6)]
        assert [answer.status_code for answer in asked] == [503] * 4 + [429] * 2
        for answer in asked[:4]:
            refused(answer)
        assert int(asked[-1].headers["retry-after"]) > 30
        assert asked[-1].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_redis_that_is_away_is_told_to_every_caller_within_its_time_out_and_health_says_so():
    with serving() as service:
        base = service.apis[0][1]
        run_id = prompt(base, "x")["run_id"]
        service.redis.kill()

        with httpx.Client(timeout=20) as client:
            for method, path, body in [
                *(("POST", path, body) for path, body in SUBMITS.items()),
                ("GET", f"/api/v1/runs/{run_id}", None),
                ("GET", f"/api/v1/runs/{run_id}/events", None),
                ("GET", "/api/v1/sessions", None),
                ("DELETE", f"/api/v1/runs/{run_id}", None),
                ("GET", "/anthropic/v1/models", None),
            ]:
                begun = time.monotonic()
                refused(client.request(method, base + path, json=body))
                assert time.monotonic() - begun < 7
            health = client.get(base + "/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        service.redis.start()

        until(lambda: httpx.get(base + "/health").status_code == 200)
        assert until(lambda: prompt(base, "after").get("output") == "after", 30)
