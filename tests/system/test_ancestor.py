"""The ancestor's file and its way of being started, unchanged; what its documents show of bodies, headers and statuses."""

import json
import subprocess
import sys

import httpx
import pytest
import yaml

from tests.system.sdks.clients import HERE
from tests.system.service import CLINVK, START_S, Proc, Service, free_port, until

pytestmark = pytest.mark.processes

KEY = "your-api-key"
SERVER = {
    "host": "127.0.0.1",
    "port": 8080,
    "request_timeout_secs": 300,
    "read_timeout_secs": 30,
    "write_timeout_secs": 300,
    "idle_timeout_secs": 120,
    "rate_limit_enabled": False,
    "metrics_enabled": False,
}
HELLO = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Hello!"}]


def serve(service: Service, *words: str, **env: str) -> str:
    """`clinvk serve --host H --port P`, and more words."""
    port = free_port()
    words = ("serve", "--host", "127.0.0.1", "--port", str(port), *words)
    proc = Proc(list(words), service.env(**env), service.folder / f"api{len(service.apis)}.log")
    base = f"http://127.0.0.1:{port}"
    service.apis.append((proc, base))
    until(lambda: service._up(proc, base), START_S)
    return base


@pytest.fixture(scope="module")
def service():
    claude = json.dumps([sys.executable, "-I", "-S", str(HERE / "fake_claude.py")])
    codex = json.dumps([sys.executable, "-I", "-S", str(HERE / "fake_codex.py")])
    made = Service(CLINVK_BACKENDS__CLAUDE__COMMAND=claude, CLINVK_BACKENDS__CODEX__COMMAND=codex)
    try:
        made.worker()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def api(service):
    file = service.folder / "config.yaml"
    file.write_text(yaml.safe_dump({"server": SERVER}))
    base = serve(service, "--config", str(file), CLINVK_API_KEYS=f"{KEY},another")
    with httpx.Client(base_url=base, headers={"X-Api-Key": KEY}, timeout=30) as client:
        yield client


@pytest.mark.parametrize(("name", "value"), SERVER.items())
def test_each_documented_setting_means_what_it_says(service, tmp_path, name, value):

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"server": {name: value}}))
    shown = subprocess.run(
        [CLINVK, "config", "show", "--config", str(file)],
        env=service.env(),
        capture_output=True,
        timeout=30,
        check=True,
    )

    assert yaml.safe_load(shown.stdout)["server"][name] == value
    assert shown.stderr == b""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Api-Key": KEY}, 200),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"X-Api-Key": "another"}, 200),
        ({}, 401),
        ({"X-Api-Key": "wrong"}, 401),
        ({"Authorization": KEY}, 401),
        ({"Authorization": "Basic eDp5"}, 401),
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/backends", "/openai/v1/models", "/anthropic/v1/models"])
def test_a_key_is_taken_from_either_header(api, headers, status, path):
    answer = httpx.get(str(api.base_url) + path, headers=headers)

    assert answer.status_code == status
    if status == 401 and path.startswith("/api/"):
        assert answer.json()["error"]["code"] == "authentication_error"


def test_without_keys_nobody_needs_one(service):
    base = serve(service)

    body = {"backend": "claude", "prompt": "hello"}
    assert httpx.post(base + "/api/v1/prompt", json=body, timeout=30).status_code == 200


ENDPOINTS = [
    (
        "POST",
        "/api/v1/prompt",
        {"backend": "claude", "prompt": "hello"},
        {"session_id", "backend", "exit_code", "duration_ms", "output", "error", "token_usage"},
    ),
    (
        "POST",
        "/api/v1/parallel",
        {"tasks": [{"backend": "claude", "prompt": "hello"}]},
        {"total_tasks", "completed", "failed", "total_duration_ms", "results"},
    ),
    (
        "POST",
        "/api/v1/chain",
        {"steps": [{"backend": "claude", "prompt": "hello"}, {"backend": "codex", "prompt": "{{previous}}"}]},
        {"total_steps", "completed_steps", "failed_step", "total_duration_ms", "results"},
    ),
    (
        "POST",
        "/api/v1/compare",
        {"prompt": "hello", "backends": ["claude", "codex"]},
        {"prompt", "backends", "results", "total_duration_ms"},
    ),
    ("GET", "/api/v1/backends", None, {"backends"}),
    ("GET", "/api/v1/sessions", None, {"sessions", "total", "limit", "offset"}),
    ("GET", "/openai/v1/models", None, {"object", "data"}),
    (
        "POST",
        "/openai/v1/chat/completions",
        {"model": "claude", "messages": HELLO},
        {"id", "object", "created", "model", "choices", "usage"},
    ),
    (
        "POST",
        "/anthropic/v1/messages",
        {"model": "claude", "max_tokens": 1024, "messages": HELLO[1:]},
        {"id", "type", "role", "content", "model", "stop_reason", "usage"},
    ),
    ("GET", "/health", None, {"status", "version", "uptime", "uptime_millis", "backends", "session_store"}),
    ("GET", "/api/v1/health", None, {"status", "version", "uptime", "uptime_millis", "backends", "session_store"}),
    ("GET", "/openapi.json", None, {"openapi", "info", "paths"}),
]


@pytest.mark.parametrize(("method", "path", "body", "fields"), ENDPOINTS, ids=[one[1] for one in ENDPOINTS])
def test_each_endpoint_answers_200_with_its_fields_and_a_request_id(api, method, path, body, fields):
    answer = api.request(method, path, json=body)

    assert answer.status_code == 200, answer.text
    assert fields <= set(answer.json())
    assert answer.headers["X-Request-ID"]
    assert api.request(method, path, json=body, headers={"X-Request-ID": "mine-1"}).headers["X-Request-ID"] == "mine-1"


def test_the_page_is_there_and_metrics_only_where_they_are_enabled(service, api):
    assert api.get("/docs").headers["content-type"].startswith("text/html")
    assert api.get("/metrics").status_code == 404
    base = serve(service, CLINVK_SERVER__METRICS_ENABLED="true")
    assert httpx.get(base + "/metrics").status_code == 200


def test_a_session_is_listed_read_resumed_and_deleted(api):
    made = api.post("/api/v1/prompt", json={"backend": "claude", "prompt": "hello"}).json()["session_id"]
    fields = {
        "id", "backend", "created_at", "last_used", "working_dir", "model", "initial_prompt", "status", "turn_count",
        "token_usage", "tags", "title", "metadata",
    }  # fmt: skip

    assert made in [one["id"] for one in api.get("/api/v1/sessions").json()["sessions"]]
    assert fields <= set(api.get(f"/api/v1/sessions/{made}").json())
    assert api.post(f"/api/v1/sessions/{made}/resume", json={"prompt": "on"}).status_code == 200
    assert api.delete(f"/api/v1/sessions/{made}").json() == {"deleted": True, "id": made}
    assert api.get(f"/api/v1/sessions/{made}").status_code == 404


REFUSED = [
    ("POST", "/api/v1/prompt", {"backend": "claude"}, 400, "invalid_request", "prompt"),
    ("POST", "/api/v1/prompt", {"prompt": "x"}, 400, "invalid_request", "backend"),
    ("POST", "/api/v1/prompt", {"backend": "claude", "prompt": 5}, 400, "invalid_request", "prompt"),
    ("POST", "/api/v1/parallel", {"tasks": []}, 400, "invalid_request", "tasks"),
    ("POST", "/api/v1/prompt", {"backend": "gemini", "prompt": "x"}, 503, "backend_unavailable", None),
    ("GET", "/api/v1/sessions/nothing", None, 404, "not_found", None),
    ("GET", "/api/v1/nothing", None, 404, "not_found", None),
    ("POST", "/openai/v1/chat/completions", {"messages": HELLO}, 400, "invalid_request", None),
    ("POST", "/openai/v1/chat/completions", {"model": "claude"}, 400, "invalid_request", None),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code", "field"), REFUSED)
def test_each_error_has_its_status_and_the_documented_body(api, method, path, body, status, code, field):
    answer = api.request(method, path, json=body)
    error = answer.json()["error"]

    assert (answer.status_code, error["code"]) == (status, code)
    assert error["message"]
    if path.startswith("/api/"):
        assert set(error) == {"code", "message", "details"}
        assert field is None or (error["details"]["field"], bool(error["details"]["issue"])) == (field, True)


def test_too_many_requests_are_429(service):
    base = serve(
        service,
        CLINVK_SERVER__RATE_LIMIT_ENABLED="true",
        CLINVK_SERVER__RATE_LIMIT_RPS="0.1",
        CLINVK_SERVER__RATE_LIMIT_BURST="2",
    )

    answers = [httpx.get(base + "/api/v1/backends") for _ in range(3)]

    assert [one.status_code for one in answers] == [200, 200, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "max_tokens": 4096, "temperature": 0.7, "top_p": 0.5, "n": 3, "stream": False, "stop": ["x"],
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"1": 2}, "user": "me",
    }.items(),
)  # fmt: skip
def test_each_documented_field_of_a_chat_is_taken(api, name, value):
    answer = api.post("/openai/v1/chat/completions", json={"model": "claude", "messages": HELLO, name: value})

    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == 1


def test_a_dry_run_of_a_chat_runs_nothing(api):
    answer = api.post("/openai/v1/chat/completions", json={"model": "claude", "messages": HELLO, "dry_run": True})

    assert answer.status_code == 200, answer.text


def test_a_chat_answer_has_each_documented_field(api):
    found = api.post("/openai/v1/chat/completions", json={"model": "gpt-4", "messages": HELLO}).json()

    assert (found["object"], found["model"]) == ("chat.completion", "gpt-4")
    assert found["id"].startswith("chatcmpl-")
    assert isinstance(found["created"], int)
    (choice,) = found["choices"]
    assert (choice["index"], choice["message"]["role"], choice["finish_reason"]) == (0, "assistant", "stop")
    assert choice["message"]["content"]
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_chat_stream_is_as_it_is_shown(api):
    answer = api.post("/openai/v1/chat/completions", json={"model": "claude", "messages": HELLO, "stream": True})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert lines[-1] == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


def test_a_messages_answer_has_each_documented_field(api):
    body = {"model": "claude-3-sonnet-20240229", "max_tokens": 1024, "messages": HELLO[1:]}
    found = api.post("/anthropic/v1/messages", json=body).json()

    assert (found["type"], found["role"], found["model"]) == ("message", "assistant", "claude-3-sonnet-20240229")
    assert (found["id"][:4], found["stop_reason"]) == ("msg_", "end_turn")
    assert (found["content"][0]["type"], bool(found["content"][0]["text"])) == ("text", True)
    assert {"input_tokens", "output_tokens"} <= set(found["usage"])


@pytest.mark.parametrize(
    ("model", "backend"),
    [("claude", "claude"), ("codex", "codex"), ("claude-sonnet-4", "claude"), ("gpt-4", "codex"), ("other", "claude")],
)
def test_the_model_chooses_the_backend(api, model, backend):
    answer = api.post("/openai/v1/chat/completions", json={"model": model, "messages": HELLO})

    assert (answer.status_code, answer.headers["x-clinvk-backend"]) == (200, backend)


def test_models_are_listed_in_the_documented_shape(api):
    found = api.get("/openai/v1/models").json()

    assert found["object"] == "list"
    for one in found["data"]:
        assert one == {"id": one["id"], "object": "model", "created": 1704067200, "owned_by": "clinvoker"}
    assert {"claude", "codex"} <= {one["id"] for one in found["data"]}


def test_the_document_names_the_operation_as_the_ancestors_does(api):
    told = api.get("/openapi.json").json()["paths"]["/openai/v1/chat/completions"]["post"]

    assert (told["operationId"], told["summary"], told["tags"]) == (
        "create-chat-completion",
        "Create chat completion",
        ["OpenAI"],
    )
