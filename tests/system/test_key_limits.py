"""What each key may do, as its callers see it, on real processes."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.service import Service, serving, until

KEYS: list[dict[str, Any]] = [
    {"key": "k-all", "name": "team"},
    {"key": "k-codex", "name": "team", "allowed_backends": ["codex"]},
    {"key": "k-plain", "name": "team", "allow_extra_flags": False},
    {"key": "k-slow", "name": "team", "rate_limit_rps": 0.1, "rate_limit_burst": 2},
    {"key": "k-two", "name": "team", "max_concurrent_runs": 2},
    {"key": "k-boss", "name": "ops", "role": "admin"},
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    allowed = tmp_path_factory.mktemp("allowed")
    keys = [*KEYS, {"key": "k-dir", "name": "team", "allowed_workdir_prefixes": [str(allowed)]}]
    with serving(CLINVK_SERVER__API_KEYS=json.dumps(keys)) as service:
        service.allowed = allowed
        until(lambda: get(service, "k-all", "/api/v1/backends").json()["backends"])  # an API's view is a second old
        yield service


def ask(service: Service, key: str, path: str = "/api/v1/prompt", **body: Any) -> httpx.Response:
    given = {"backend": "echo", "prompt": "hi", **body} if path == "/api/v1/prompt" else body
    return httpx.post(service.apis[0][1] + path, json=given, headers={"x-api-key": key}, timeout=60)


def get(service: Service, key: str, path: str) -> httpx.Response:
    return httpx.get(service.apis[0][1] + path, headers={"authorization": f"Bearer {key}"}, timeout=60)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/v1/prompt", {}, "backend"),
        ("/api/v1/parallel", {"tasks": [{"backend": "echo", "prompt": "x"}]}, "tasks[0].backend"),
        ("/api/v1/chain", {"steps": [{"backend": "echo", "prompt": "x"}]}, "steps[0].backend"),
        ("/api/v1/compare", {"prompt": "x", "backends": ["echo"]}, "backends[0].backend"),
        ("/openai/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "x"}]}, "model"),
        ("/openai/v1/responses", {"model": "echo", "input": "x"}, "model"),
        (
            "/anthropic/v1/messages",
            {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
            "",
        ),
    ],
)
def test_a_backend_that_a_key_may_not_use_is_403_and_named_on_every_surface(service, path, body, field):
    answer = ask(service, "k-codex", path, **body)

    told = answer.json()
    assert answer.status_code == 403, answer.text
    assert "'echo'" in told["detail"]
    assert "codex" in told["detail"]
    error = told["error"]
    assert field in (error.get("param"), error.get("details", {}).get("field"), "")


def test_lists_show_a_key_only_what_it_may_use(service):
    for path, names in (
        ("/api/v1/backends", lambda told: [one["name"] for one in told["backends"]]),
        ("/openai/v1/models", lambda told: [one["id"] for one in told["data"]]),
        ("/anthropic/v1/models", lambda told: [one["id"] for one in told["data"]]),
    ):
        assert "echo" in names(get(service, "k-all", path).json())
        assert "echo" not in names(get(service, "k-codex", path).json())
    assert get(service, "k-codex", "/openai/v1/models/echo").status_code == 404


def test_flags_of_the_clis_need_a_key_that_may_pass_them(service):
    refused = ask(service, "k-plain", extra=["--think"])

    assert refused.status_code == 403
    assert refused.json()["error"]["details"]["field"] == "extra"
    assert ask(service, "k-all", extra=["--think"]).status_code == 200


def test_a_directory_outside_is_refused_before_the_queue_and_through_a_link_by_the_worker(service, tmp_path):
    inside, outside = service.allowed / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (service.allowed / "link").symlink_to(outside)

    assert ask(service, "k-dir", workdir=str(inside)).status_code == 200
    assert ask(service, "k-dir").status_code == 200, "a fresh directory of its own is always allowed"
    early = ask(service, "k-dir", workdir=str(outside))
    late = ask(service, "k-dir", workdir=str(service.allowed / "link"))
    assert (early.status_code, early.json()["error"]["code"]) == (403, "permission_denied")
    assert (late.status_code, late.json()["error"]["code"]) == (403, "permission_denied")
    assert "run_id" not in early.json()["error"]["details"]
    assert late.json()["error"]["details"]["run_id"]
    assert ask(service, "k-all", workdir=str(outside)).status_code == 200


def test_a_session_of_one_key_does_not_take_another_where_it_may_not_go(service, tmp_path):
    session = ask(service, "k-all", workdir=str(tmp_path)).json()["session_id"]

    answer = ask(service, "k-dir", f"/api/v1/sessions/{session}/resume", prompt="x")

    assert answer.status_code == 403


def test_a_key_has_a_rate_of_its_own_where_nobody_else_is_limited(service):
    answers = [get(service, "k-slow", "/api/v1/backends") for _ in range(3)]

    assert [one.status_code for one in answers] == [200, 200, 429]
    assert answers[0].headers["ratelimit-limit"] == "2"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 10
    assert "ratelimit-limit" not in get(service, "k-all", "/api/v1/backends").headers


def test_runs_above_a_keys_window_wait_and_then_go_on(service):
    base, headers = service.apis[0][1] + "/api/v1", {"x-api-key": "k-two", "prefer": "respond-async"}
    hangs = {"backend": "echo", "prompt": "x", "extra": ["--hang"]}
    first = [httpx.post(base + "/prompt", json=hangs, headers=headers, timeout=30).json()["id"] for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, service, "k-two") for _ in range(3)]

        def seen() -> list[str]:
            return [one["status"] for one in get(service, "k-all", "/api/v1/runs").json()["runs"][:5]]

        until(lambda: sorted(seen()) == ["running"] * 2 + ["waiting"] * 3)
        assert ask(service, "k-all").status_code == 200, "another key of the tenant goes past"
        for id in first:
            httpx.delete(f"{base}/runs/{id}", headers=headers, timeout=30)
        assert [one.result().status_code for one in answers] == [200] * 3


def test_a_killed_worker_leaves_no_slot_of_a_key_behind():
    keys = json.dumps([{"key": "k", "max_concurrent_runs": 1}])
    with serving(CLINVK_SERVER__API_KEYS=keys) as service:
        body = {"backend": "echo", "prompt": "x", "extra": ["--hang"]}
        headers = {"x-api-key": "k", "prefer": "respond-async"}
        base = service.apis[0][1]
        first = httpx.post(base + "/api/v1/prompt", json=body, headers=headers, timeout=30).json()["id"]
        until(lambda: get(service, "k", f"/api/v1/runs/{first}").json()["status"] == "running")

        service.workers[0].kill()
        service.worker()

        assert ask(service, "k").status_code == 200
        assert get(service, "k", f"/api/v1/runs/{first}").json()["result"]["error_code"] == "worker_lost"


def put(file: Path, text: str) -> None:
    """In one step: a file that is being written may be read while it is empty."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def test_keys_of_a_file_change_in_a_running_service(tmp_path):
    file = tmp_path / "keys"
    file.write_text("old team\n")
    with serving(workers=0, CLINVK_SERVER__API_KEYS_FILE=str(file)) as service:
        assert get(service, "old", "/api/v1/runs").status_code == 200

        put(file, "new team\n")
        until(lambda: get(service, "old", "/api/v1/runs").status_code == 401)  # a wrong key is soon told to wait
        assert get(service, "new", "/api/v1/runs").status_code == 200

        put(file, "")
        until(lambda: "COULD NOT BE READ AGAIN" in service.logs())
        assert get(service, "new", "/api/v1/runs").status_code == 200
        assert get(service, "nobody", "/api/v1/runs").status_code == 401
