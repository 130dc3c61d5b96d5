"""Claude's spares beside processes of its own: the same to callers and to the model, nothing left, nothing shared."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.mockllm import MockLLM
from tests.system import clis
from tests.system.service import Service, kill_pid, living, prompt, run, serving, stream, until, whole

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
def sides() -> Iterator[dict[str, Side]]:
    with clis.serving_clis("cold", ["claude"]) as cold, clis.serving_clis("warm", ["claude"]) as warm:
        yield {"cold": cold, "warm": warm}


def told(side: Side, text: str, **fields: Any) -> tuple[str, list[str]]:
    """What a caller sees, and what the model was sent, without what differs between any two runs."""
    service, mock = side
    before = len(mock.requests)
    events = stream(service.apis[0][1], text, backend="claude", **fields).rest(60)
    whole(events)
    seen: list[tuple[str, Any]] = []
    for event in events:
        kind, content = event["type"], event["content"]
        if kind in ("message", "thinking") and seen and seen[-1][0] == kind:  # in how many pieces is chance
            seen[-1][1]["text"] += content["text"]
        elif kind != "progress":
            seen.append((kind, content))
    runs = httpx.get(service.apis[0][1] + "/api/v1/runs?limit=1", timeout=30).json()["runs"]
    result = run(service.apis[0][1], runs[0]["id"])["result"]
    outcome = {name: result.get(name) for name in ("output", "exit_code", "error", "error_cause", "token_usage")}
    return plain([seen, outcome], side), [plain(request.body, side) for request in mock.requests[before:]]


def plain(value: Any, side: Side) -> str:
    """Without ids, directories, ports and times."""
    folder = str(side[0].folder)
    text = json.dumps(value).replace(side[1].url, "MOCK").replace(folder, "FOLDER")
    text = text.replace(re.sub(r"[^A-Za-z0-9]", "-", folder), "FOLDER")
    text = re.sub(r"\b(runs|sessions)([/-])(warm|run|ses)[_-][0-9a-v]{24}", "PLACE", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UUID", text)
    text = re.sub(r'device_id\\":\\"[0-9a-f]{64}', "DEVICE", text)
    return re.sub(r'"(duration|timestamp|retry_after_s|backend_session_id|session_id)": ?[^,}]+', "", text)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("[[mock:text n=8 ms=5]] hello", {"ephemeral": True}),
        ("[[mock:text n=2]] hello", {}),
        ("[[mock:think n=3]] hi", {"ephemeral": True, "model": "claude-sonnet-4-6", "system_prompt": "A TEAPOT."}),
        ("[[mock:text]] hi", {"ephemeral": True, "approval_mode": "always", "sandbox_mode": "read-only"}),
        ("[[mock:tool cmd=touch+denied]] run", {"ephemeral": True}),
        ("[[mock:tool cmd=touch+denied]] run", {"approval_mode": "always"}),
        ("[[mock:tool cmd=echo+done;exit+3]] run", {**FREE, "backend": "claude"}),
        ("[[mock:status code=429]] hi", {"ephemeral": True}),
        ("[[mock:status code=404]] hi", {}),
    ],
)
def test_callers_and_the_model_see_the_same(sides, text, fields):
    fields = {name: value for name, value in fields.items() if name != "backend"}
    clis.spares_wait(sides["warm"][0])

    cold, asked = told(sides["cold"], text, **fields)
    warm, asked_warm = told(sides["warm"], text, **fields)

    assert warm == cold
    assert asked_warm == asked
    assert asked


def test_limits_that_only_a_start_can_set_hold_on_a_spare(sides):
    service, mock = sides["warm"]
    limits = {**FREE, "max_turns": 1, "max_tokens": 1234}
    prompt(service.apis[0][1], "[[mock:tool]] run", **limits)
    until(lambda: any(b"--max-turns" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in clis.spares(service)))
    clis.spares_wait(service)

    found = prompt(service.apis[0][1], "[[mock:tool]] run", **limits)

    assert found["error_cause"] == "max_turns", found
    assert mock.requests[-1].body["max_tokens"] == 1234
    assert "/runs/warm_" in json.dumps(mock.requests[-1].body)


def test_most_runs_of_this_page_were_warm_ones(sides):
    seen = until(lambda: (found := clis.warm_state(sides["warm"][0], "claude")).get("hits", 0) >= 9 and found)

    assert set(seen["misses"]) <= {"first", "spent"}, seen
    assert not {"crashed", "hung", "refused", "start"} & set(seen["ends"]), seen


def sleeping(seconds: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == f"sleep\0{seconds}\0".encode():
                found.append(int(path.parent.name))
    return found


def test_a_cancel_kills_a_tool_to_its_last_grandchild(sides):
    service, _ = sides["warm"]
    base = service.apis[0][1]
    clis.spares_wait(service)
    spares = clis.spares(service)
    command = "(setsid+sleep+32771+&);sleep+0.4;(env+-i+/usr/bin/setsid+/bin/sh+-c+'sleep+32771'+&);sh+-c+'sleep+32771'"
    following = stream(base, f"[[mock:tool cmd={command}]] run", **FREE)
    run_id = following.run_id
    until(lambda: len(sleeping(32771)) == 3)
    assert set(living(f"CLINVK_RUN={run_id}"))  # its tools are known as the run's

    httpx.delete(f"{base}/api/v1/runs/{run_id}", timeout=30)

    assert following.rest()[-1]["content"]["code"] == "cancelled"
    assert sleeping(32771) == []
    assert not living(f"CLINVK_RUN={run_id}")
    assert len([pid for pid in spares if not Path(f"/proc/{pid}").exists()]) == 1  # the one that it was on


def test_one_that_is_killed_in_the_middle_of_its_run_fails_it_and_the_next_is_served(sides):
    service, _ = sides["warm"]
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
        for path in (service.folder / "host0" / ".clinvk").rglob("*"):
            assert not path.is_file() or b"CANARY" not in path.read_bytes(), path


def test_a_worker_that_is_killed_leaves_no_spare_and_one_that_is_told_to_end_takes_them_with_it():
    with claude("warm", 2) as (service, _):
        base = service.apis[0][1]
        prompt(base, "[[mock:text]] before", **FREE)
        clis.spares_wait(service, 2)
        spares = clis.spares(service)
        following = stream(base, "[[mock:tool cmd=sh+-c+'sleep+32773']] run", **FREE)
        following.run_id  # noqa: B018  # waits for the stream to be open
        until(lambda: sleeping(32773))
        os.kill(service.celery_of(service.workers[0]), signal.SIGKILL)

        until(lambda: not sleeping(32773) and not any(Path(f"/proc/{pid}").exists() for pid in spares), 5)

        prompt(base, "[[mock:text]] before", **FREE)
        clis.spares_wait(service, 2)
        spares = clis.spares(service)
        service.workers[0].send(signal.SIGTERM)
        service.workers[0].wait(20)

        assert spares
        assert not any(Path(f"/proc/{pid}").exists() for pid in spares)
        assert not list((service.folder / "host0" / ".clinvk" / "runs").iterdir())
