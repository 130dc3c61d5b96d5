"""Claude's spares beside processes of its own: the same to callers and to the model, nothing left, nothing shared."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.mockllm import MockLLM
from tests.system import clis
from tests.system.service import START_S, Service, kill_pid, living, prompt, serving, stream, until

pytestmark = [pytest.mark.clis, pytest.mark.processes]

Side = tuple[Service, MockLLM]
FREE = {"approval_mode": "none", "sandbox_mode": "full", "backend": "claude", "ephemeral": True}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


@contextlib.contextmanager
def claude(way: str, size: int, **config: str) -> Iterator[Side]:
    clis.command("claude")
    config["CLINVK_BACKENDS__CLAUDE__WARM__SIZE"] = str(size)
    with MockLLM() as mock, serving(workers=0, **config) as service:
        clis.install(service, "claude", mock.url, way)
        service.worker()
        yield service, mock


@pytest.fixture(scope="module")
def warm() -> Iterator[tuple[Service, MockLLM]]:
    with clis.serving_clis("warm", ["claude"]) as made:
        yield made


def test_limits_that_only_a_start_can_set_hold_on_a_spare(warm):
    service, mock = warm
    limits = {**FREE, "max_turns": 1, "max_tokens": 1234}
    prompt(service.apis[0][1], "[[mock:tool]] run", **limits)
    until(lambda: any(b"--max-turns" in clis.cmdline(pid) for pid in clis.spares(service)), START_S)
    clis.spares_wait(service)

    found = prompt(service.apis[0][1], "[[mock:tool]] run", **limits)

    assert found["error_cause"] == "max_turns", found
    assert mock.requests[-1].body["max_tokens"] == 1234
    assert "/runs/warm_" in json.dumps(mock.requests[-1].body)


def test_a_cancel_kills_a_tool_to_its_last_grandchild(warm):
    service, _ = warm
    base = service.apis[0][1]
    clis.spares_wait(service)
    spares = clis.spares(service)
    command = "(setsid+sleep+32771+&);sleep+0.4;(env+-i+/usr/bin/setsid+/bin/sh+-c+'sleep+32771'+&);sh+-c+'sleep+32771'"
    following = stream(base, f"[[mock:tool cmd={command}]] run", **FREE)
    run_id = following.run_id
    until(lambda: len(clis.sleeping(service, 32771)) == 3)
    assert set(living(f"CLINVK_RUN={run_id}"))  # its tools are known as the run's

    httpx.delete(f"{base}/api/v1/runs/{run_id}", timeout=30)

    assert following.rest()[-1]["content"]["code"] == "cancelled"
    assert clis.sleeping(service, 32771) == []
    assert not living(f"CLINVK_RUN={run_id}")
    assert len([pid for pid in spares if not Path(f"/proc/{pid}").exists()]) == 1  # the one that it was on


def test_one_that_is_killed_in_the_middle_of_its_run_fails_it_and_the_next_is_served(warm):
    service, _ = warm
    base = service.apis[0][1]
    clis.spares_wait(service)
    spares = clis.spares(service)
    following = stream(base, "[[mock:text n=400 ms=40]] go", backend="claude", ephemeral=True)
    while following.next()["type"] != "message":
        pass
    for pid in spares:
        kill_pid(pid)

    last = following.rest()[-1]

    assert (last["type"], last["content"]["code"]) == ("error", "backend_error")
    assert "signal 9" in last["content"]["message"]
    assert prompt(base, "[[mock:text n=2]] next", backend="claude", ephemeral=True)["output"] == "tok0 tok1 "


@pytest.mark.parametrize("scope", ["tenant", "host"])
def test_what_one_tenant_said_reaches_no_other(scope):
    keys = '[{"key": "ka", "name": "a"}, {"key": "kb", "name": "b"}]'
    config = {"CLINVK_SERVER__API_KEYS": keys, "CLINVK_BACKENDS__CLAUDE__WARM__SCOPE": scope}
    config["CLINVK_LOG__LEVEL"] = "debug"  # by which it is known that each kind has its spare
    with claude("warm", 4, **config) as (service, mock):
        base = service.apis[0][1]

        def ask(key: str, text: str, **fields: Any) -> dict[str, Any]:
            body = {"backend": "claude", "prompt": text, **fields}
            answer = httpx.post(base + "/api/v1/prompt", json=body, headers={"x-api-key": key}, timeout=60)
            assert answer.json().get("exit_code") == 0, answer.text
            return dict(answer.json())

        for number in range(3):
            ask("ka", f"[[mock:text]] CANARY-{number}", ephemeral=True, system_prompt=f"CANARY-{number}")
            ask("ka", "[[mock:tool cmd=echo+CANARY+>+kept;echo+CANARY+>+$TMPDIR/kept]] run", **FREE)
        before = len(mock.requests)
        for _ in range(4):
            clis.spares_wait(service, 4)
            ask("kb", "[[mock:tool cmd=ls+-aR+.+$TMPDIR;env]] look", **FREE)

        shown = json.dumps([request.body for request in mock.requests[before:]])
        assert len(mock.requests) == before + 8
        assert "CANARY" not in shown
        assert "kept" not in shown
        looks = [request for request in mock.requests[before:] if "/runs/warm_" in json.dumps(request.body)]
        assert len(looks) >= 4  # two for each run on a spare
        assert clis.holding(service.folder / "host0" / ".clinvk", "CANARY") == []


def test_a_worker_that_is_killed_leaves_no_spare_and_one_that_is_told_to_end_takes_them_with_it():
    with claude("warm", 2) as (service, _):
        base = service.apis[0][1]
        prompt(base, "[[mock:text]] before", **FREE)
        clis.spares_wait(service, 2)
        spares = clis.spares(service)
        following = stream(base, "[[mock:tool cmd=sh+-c+'sleep+32773']] run", **FREE)
        following.run_id  # noqa: B018  # waits for the stream to be open
        until(lambda: clis.sleeping(service, 32773))
        os.kill(service.celery_of(service.workers[0]), signal.SIGKILL)

        until(lambda: not clis.sleeping(service, 32773) and not any(Path(f"/proc/{pid}").exists() for pid in spares), 5)

        # The old instance may be forgotten before its successor is announced.
        until(lambda: prompt(base, "[[mock:text]] before", **FREE)["status"] == 200, START_S)
        clis.spares_wait(service, 2)
        spares = clis.spares(service)
        service.workers[0].send(signal.SIGTERM)
        service.workers[0].wait(20)

        assert spares
        assert not any(Path(f"/proc/{pid}").exists() for pid in spares)
        assert not list((service.folder / "host0" / ".clinvk" / "runs").iterdir())
