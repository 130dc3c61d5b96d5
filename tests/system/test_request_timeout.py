"""`server.request_timeout_secs`: it ends a whole answer that takes too long, and no stream."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.system.service import Service, ended, serving, submit, until, whole

pytestmark = pytest.mark.processes

LIMIT_S = 1.0
WORDS = "a b c d e f g h i j"
TAKES_S = 0.4 * 10
SAY = [{"role": "user", "content": WORDS}]
NATIVE = {"backend": "echo", "prompt": WORDS}
CHAT = {"model": "echo", "messages": SAY}
ANSWER = {"model": "echo", "input": WORDS}
MESSAGE = {"model": "echo", "max_tokens": 99, "messages": SAY}
FLOWS = {
    "/api/v1/parallel": {"tasks": [NATIVE]},
    "/api/v1/chain": {"steps": [NATIVE]},
    "/api/v1/compare": {"backends": ["echo"], "prompt": WORDS},
}
WHOLE: dict[str, dict[str, Any]] = {
    "/api/v1/prompt": NATIVE,
    **FLOWS,
    "/openai/v1/chat/completions": CHAT,
    "/openai/v1/responses": ANSWER,
    "/anthropic/v1/messages": MESSAGE,
}
SSE = {"accept": "text/event-stream"}
STREAMS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("/api/v1/prompt", NATIVE, SSE),
    ("/api/v1/prompt", {**NATIVE, "output_format": "stream-json"}, {}),
    *((path, body, SSE) for path, body in FLOWS.items()),
    ("/openai/v1/chat/completions", {**CHAT, "stream": True}, {}),
    ("/openai/v1/responses", {**ANSWER, "stream": True}, {}),
    ("/anthropic/v1/messages", {**MESSAGE, "stream": True}, {}),
]


@pytest.fixture(scope="module")
def service():
    config = {
        "CLINVK_SERVER__REQUEST_TIMEOUT_SECS": str(LIMIT_S),
        "CLINVK_SERVER__HANGUP_GRACE_SECS": "0.5",
        "CLINVK_SERVER__HEARTBEAT_SECS": "0.3",
        "CLINVK_BACKENDS__ECHO__EXTRA_FLAGS": "--delay-ms=400",
        "CLINVK_WORKER__CONCURRENCY": "20",
    }
    with serving(**config) as made:
        yield made


def asked(service: Service, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[httpx.Response, float]:
    begun = time.monotonic()
    answer = httpx.post(service.apis[0][1] + path, json=body, headers=headers, timeout=60)
    return answer, time.monotonic() - begun


def test_a_whole_answer_that_takes_longer_is_504_in_every_dialect_and_its_run_is_not_left_running(service):
    with ThreadPoolExecutor(len(WHOLE) + 1) as pool:
        told = {path: pool.submit(asked, service, path, body, {}) for path, body in WHOLE.items()}

    for path, done in told.items():
        answer, took_s = done.result()
        body = answer.json()
        assert (answer.status_code, body["status"]) == (504, 504), (path, answer.text)
        assert "no answer within 1 s (server.request_timeout_secs)" in body["detail"], path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-should-retry"] == "false"  # its run was ended, and would begin anew
        assert took_s > LIMIT_S * 0.9, path
        error = body["error"]
        if path.startswith("/anthropic/"):
            assert (body["type"], error["type"]) == ("error", "timeout_error")
        elif path.startswith("/openai/"):
            assert (error["code"], error["type"]) == ("timeout", "server_error")
        else:
            assert error["code"] == "timeout"
    run_id = told["/api/v1/prompt"].result()[0].headers["x-run-id"]
    assert ended(service.apis[0][1], run_id)["status"] == "cancelled"


def test_a_session_resumed_as_a_whole_is_held_to_it_too(service):
    base = service.apis[0][1]
    run_id = submit(base, "a")
    session = until(lambda: ended(base, run_id)["session_id"])

    answer, _ = asked(service, f"/api/v1/sessions/{session}/resume", {"prompt": WORDS}, {})

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_streams_of_every_dialect_outlive_it_many_times_over(service):
    with ThreadPoolExecutor(len(STREAMS)) as pool:
        told = [pool.submit(asked, service, *one) for one in STREAMS]

    for (path, _, _), done in zip(STREAMS, told, strict=True):
        answer, took_s = done.result()  # one that is cut short raises
        assert answer.status_code == 200, (path, answer.text)
        assert took_s > TAKES_S * 0.8 > LIMIT_S * 2, path
        data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith(("data: ", "{"))]
        if path == "/api/v1/prompt":
            assert whole([json.loads(line) for line in data]) == WORDS
        elif path in FLOWS:
            assert json.loads(data[-1])["type"] == "done", data[-1]
        elif path.endswith("/completions"):
            assert data[-1] == "[DONE]"
        else:
            assert json.loads(data[-1])["type"] in ("response.completed", "message_stop")
        assert "timeout" not in answer.text


def test_a_run_that_is_followed_outlives_it(service):
    base = service.apis[0][1]

    answer = httpx.get(f"{base}/api/v1/runs/{submit(base, WORDS)}/events", headers=SSE, timeout=60)

    data = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert whole(data) == WORDS
