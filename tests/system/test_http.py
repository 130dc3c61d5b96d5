"""The native surface, against the whole service."""

import json
import signal

import httpx
import pytest

from tests.system.service import ended, follow, prompt, run, serving, stream, submit, until, whole

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def service():
    with serving(workers=3, apis=2) as made:
        yield made


@pytest.fixture
def base(service):
    return service.apis[0][1]


def test_json_ndjson_sse_and_202_tell_the_same(service, base):
    two = service.apis[1][1]
    text = "one two  three\n"

    answer = prompt(base, text)
    lines = stream(base, text).rest()
    run_id = submit(base, text)
    with httpx.stream(
        "POST",
        base + "/api/v1/prompt",
        json={"backend": "echo", "prompt": text},
        headers={"accept": "text/event-stream"},
        timeout=30,
    ) as sse:
        blocks = sse.read().decode().strip().split("\n\n")

    assert answer["output"] == whole(lines) == ended(two, run_id)["result"]["output"] == text
    assert sse.headers["content-type"].startswith("text/event-stream")
    assert (sse.headers["cache-control"], sse.headers["x-accel-buffering"]) == ("no-cache", "no")
    events = []
    for number, block in enumerate(blocks, 1):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append(json.loads(fields["data"]))
        assert (int(fields["id"]), fields["event"]) == (number, events[-1]["type"])
    assert whole(events) == text
    assert set(lines[0]) == {"type", "backend", "session_id", "timestamp", "sequence", "content"}


def test_a_late_follower_on_another_replica_sees_all_of_it_from_any_position(service, base):
    two = service.apis[1][1]
    run_id = prompt(base, "a b c")["run_id"]

    events = follow(two, run_id).rest()
    resumed = httpx.get(f"{two}/api/v1/runs/{run_id}/events", headers={"last-event-id": "2"}, timeout=30).text

    assert whole(events) == "a b c"
    assert resumed.startswith("id: 3\n")
    assert follow(two, run_id, after=len(events)).rest() == []


def test_a_run_is_listed_read_and_cancelled(service, base):
    run_id = submit(base, "stay", "--hang", metadata={"k": "v"})
    until(lambda: run(base, run_id)["status"] == "running")

    listed = httpx.get(base + "/api/v1/runs?limit=5").json()
    answer = httpx.delete(f"{service.apis[1][1]}/api/v1/runs/{run_id}")

    assert run_id in [r["id"] for r in listed["runs"]]
    assert answer.status_code == 202
    found = ended(base, run_id)
    assert (found["status"], found["metadata"]) == ("cancelled", {"k": "v"})
    assert httpx.delete(f"{base}/api/v1/runs/{run_id}").status_code == 200


def test_a_cli_that_fails_is_reported_and_not_a_success(base):
    found = prompt(base, "x", "--exit-code=3")

    assert (found["status"], found["exit_code"], found["error_code"]) == (200, 3, "backend_error")
    assert "told to fail" in found["error"]
    last = stream(base, "x", "--exit-code=3").rest()[-1]
    assert (last["type"], last["content"]["code"]) == ("error", "backend_error")


@pytest.mark.parametrize(
    ("fields", "status", "code", "field"),
    [
        ({"backend": "nope"}, 400, "backend_not_found", "backend"),
        ({"backend": "claude"}, 503, "backend_unavailable", None),
        ({"prompt": " "}, 400, "invalid_request", "prompt"),
        ({"work_dir": "/tmp"}, 400, "invalid_request", "work_dir"),
        ({"workdir": "tmp"}, 400, "invalid_request", "workdir"),
        ({"workdir": "/etc"}, 400, "invalid_request", None),
        ({"workdir": "/nonexistent/x"}, 400, "invalid_request", None),
        ({"extra": ["--no-such"]}, 400, "unsupported_parameter", "extra[0]"),
        ({"timeout_secs": -1}, 400, "invalid_request", "timeout_secs"),
        ({"labels": {"gpu": "yes"}}, 503, "backend_unavailable", None),
    ],
)
def test_what_cannot_work_is_refused_and_says_why(base, fields, status, code, field):
    answer = httpx.post(base + "/api/v1/prompt", json={"backend": "echo", "prompt": "x", **fields})
    body = answer.json()

    assert (answer.status_code, body["error"]["code"]) == (status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    if field:
        assert body["error"]["details"]["field"] == field


def test_framework_errors_have_the_same_shape(base):
    for method, path, status in [("GET", "/nope", 404), ("PUT", "/api/v1/prompt", 405), ("GET", "/api/v1/runs/x", 404)]:
        answer = httpx.request(method, base + path)

        assert (answer.status_code, answer.json()["error"]["code"] != "") == (status, True)
    broken = httpx.post(base + "/api/v1/prompt", content=b"{")
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_request")
    large = httpx.post(base + "/api/v1/prompt", content=b"x" * 11_000_000)
    assert large.status_code == 413
    assert "10485760 bytes (server.max_request_body_bytes)" in large.json()["detail"]
    assert "openai" not in httpx.get(base + "/openai/v1/nope").json()["error"]
    assert httpx.get(base + "/anthropic/v1/nope").json()["type"] == "error"


@pytest.mark.parametrize(
    ("method", "path", "has"),
    [
        ("PUT", "/api/v1/prompt", "POST"),
        ("POST", "/api/v1/runs/run_1", "DELETE, GET"),
        ("DELETE", "/v1/messages", "POST"),
    ],
)
def test_a_method_that_a_path_has_not_is_405_and_says_which_it_has(base, method, path, has):
    answer = httpx.request(method, base + path)

    assert answer.status_code == 405
    assert set(has.split(", ")) <= set(answer.headers["allow"].split(", ")) <= {*has.split(", "), "OPTIONS", "HEAD"}
    assert f"has no {method}, but {answer.headers['allow']}" in answer.json()["detail"]


def test_a_sane_request_id_is_kept_and_the_run_is_named(base):
    body = {"backend": "echo", "prompt": "x"}
    answer = httpx.post(base + "/api/v1/prompt", json=body, headers={"x-request-id": "my-id-1"}, timeout=30)
    strange = httpx.get(base + "/health", headers={"x-request-id": "a b"})

    assert (answer.headers["x-request-id"], answer.headers["request-id"]) == ("my-id-1", "my-id-1")
    assert answer.headers["x-run-id"] == answer.json()["run_id"]
    assert strange.headers["x-request-id"].startswith("req_")


def test_a_dry_run_shows_the_command_line_of_the_worker(base):
    found = prompt(base, "SECRET", "--delay-ms=5", dry_run=True)

    assert "echo_cli.py" in found["output"]
    assert "--delay-ms=5" in found["output"]
    assert "SECRET" not in found["output"]


def test_a_megabyte_of_any_text_goes_through(base):
    text = "é漢🪐\u2028 " * 100_000

    assert prompt(base, text[:300_000])["output"] == text[:300_000]


def test_backends_and_health_speak_of_the_live_fleet(base):
    backends = {b["name"]: b for b in httpx.get(base + "/api/v1/backends").json()["backends"]}
    health = httpx.get(base + "/api/v1/health").json()

    assert (backends["echo"]["available"], backends["claude"]["available"]) == (True, False)
    assert {h["host"] for h in backends["echo"]["hosts"]} == {"host0", "host1", "host2"}
    assert (health["status"], health["workers"]) == ("ok", 3)


def test_fifty_streams_at_once_do_not_mix(service):
    bases = [base for _, base in service.apis]
    streams = [stream(bases[i % 2], f"stream {i} says {i * i}", "--delay-ms=20") for i in range(50)]

    for i, following in enumerate(streams):
        assert whole(following.rest()) == f"stream {i} says {i * i}"


def test_keys_are_needed_once_there_are_any_and_tenants_do_not_see_each_other():
    with serving(CLINVK_SERVER__API_KEYS="[{key: ka, name: a}, {key: kb, name: b}]") as service:
        base = service.apis[0][1]
        body = {"backend": "echo", "prompt": "x"}
        refused = httpx.post(base + "/api/v1/prompt", json=body)
        mine = httpx.post(base + "/api/v1/prompt", json=body, headers={"authorization": "Bearer ka"}, timeout=30)
        run_id = mine.json()["run_id"]
        other = {"x-api-key": "kb"}

        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "authentication_error")
        assert mine.status_code == 200
        assert httpx.get(f"{base}/api/v1/runs/{run_id}", headers=other).status_code == 404
        assert httpx.get(f"{base}/api/v1/runs/{run_id}/events", headers=other).status_code == 404
        assert httpx.delete(f"{base}/api/v1/runs/{run_id}", headers=other).status_code == 404
        assert httpx.get(base + "/api/v1/runs", headers=other).json()["runs"] == []
        assert httpx.get(base + "/health").status_code == 200
        assert httpx.get(base + "/api/v1/backends", headers={"x-api-key": "no"}).status_code == 401


def test_with_redis_away_the_caller_is_told_to_try_later():
    with serving() as service:
        base = service.apis[0][1]
        service.redis.kill()

        answer = httpx.post(base + "/api/v1/prompt", json={"backend": "echo", "prompt": "x"}, timeout=30)
        health = httpx.get(base + "/health", timeout=30)

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"]
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        service.redis.start()
        assert until(lambda: prompt(base, "back").get("output") == "back", 30)
        service.workers[0].send(signal.SIGTERM)
