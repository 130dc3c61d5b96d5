"""What is erased is nowhere afterwards: not in a name, not in a value of the store, not on the host."""

import contextlib
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.service import Service, follow, run, serving, submit, until

CANARY = "canary-4711"
KEY = {"idempotency-key": "a key of mine"}


@pytest.fixture(scope="module")
def service():
    with serving() as service:
        base = service.apis[0][1]
        until(lambda: httpx.get(base + "/api/v1/backends").json()["backends"])
        yield service


def everything(service: Service) -> bytes:
    """All names and values of the store, as they come."""
    client = service.redis.client()
    found = []
    for name in client.scan_iter(count=1000):
        found.append(name)
        match client.type(name):
            case b"string":
                found.append(client.get(name) or b"")  # it may expire meanwhile
            case b"hash":
                found += [part for pair in client.hgetall(name).items() for part in pair]
            case b"list":
                found += client.lrange(name, 0, -1)
            case b"set":
                found += client.smembers(name)
            case b"zset":
                found += client.zrange(name, 0, -1)
            case b"stream":
                found += [part for _, fields in client.xrange(name) for pair in fields.items() for part in pair]
            case b"none":  # it has expired, or been taken, since it was found
                found.remove(name)
            case other:
                raise AssertionError(other)
    client.close()
    return b"\n".join(found)


def ask(service: Service, method: str, path: str, **more: Any) -> httpx.Response:
    return httpx.request(method, service.apis[0][1] + path, timeout=60, **more)


def on_disk(service: Service, word: str) -> list[str]:
    """Files of the host whose name or text holds it, but for logs of this test."""
    found = []
    for folder, _, files in os.walk(service.folder / "host0"):
        for name in [folder, *(os.path.join(folder, one) for one in files)]:
            with_text = False
            with contextlib.suppress(FileNotFoundError):  # its host may be removing it just now
                with_text = Path(name).is_file() and word.encode() in Path(name).read_bytes()
            if word in name or with_text:
                found.append(name)
    return found


def traces(service: Service, *ids: str) -> list[str]:
    """Which of the words are still in the store. The ids of what was erased stand in the audit log alone."""
    client = service.redis.client()
    client.delete("clinvk:audit")
    client.close()
    text = everything(service)
    return [word for word in (CANARY, *ids) if word.encode() in text]


def body(**more: Any) -> dict[str, Any]:
    return {"backend": "echo", "prompt": f"say {CANARY}", "metadata": {"note": CANARY}, "ephemeral": True, **more}


def test_nothing_is_left_of_a_run_its_session_and_its_idempotency_record(service, tmp_path):
    said = ask(service, "POST", "/api/v1/prompt", json=body(ephemeral=False), headers=KEY).json()
    id, session = said["run_id"], said["session_id"]
    assert CANARY in said["output"]
    assert traces(service) == [CANARY]
    assert on_disk(service, session)

    erased = ask(service, "DELETE", f"/api/v1/runs/{id}?erase=true")

    assert (erased.status_code, erased.json()) == (200, {"erased": True, "id": id})
    until(lambda: traces(service, id, session) == [])  # the chore that names the session is done by its host
    until(lambda: on_disk(service, session) == [])
    for path in (f"/api/v1/runs/{id}", f"/api/v1/runs/{id}/events", f"/api/v1/sessions/{session}"):
        assert ask(service, "GET", path).status_code == 404
    assert ask(service, "DELETE", f"/api/v1/runs/{id}?erase=true").status_code == 404
    anew = ask(service, "POST", "/api/v1/prompt", json=body(prompt="another"), headers=KEY).json()
    assert anew["run_id"] != id, "the key is free again"
    ask(service, "DELETE", f"/api/v1/runs/{anew['run_id']}?erase=true")


def test_the_session_that_goes_with_its_run_stands_in_the_audit_log_too(service):
    said = ask(service, "POST", "/api/v1/prompt", json=body(ephemeral=False)).json()

    ask(service, "DELETE", f"/api/v1/runs/{said['run_id']}?erase=true")

    entries = ask(service, "GET", "/api/v1/audit").json()["entries"]
    told = {(entry["action"], entry["target"], entry["result"]) for entry in entries}
    assert ("session.delete", said["session_id"], "deleted") in told
    assert ("run.erase", said["run_id"], "erased") in told


@pytest.mark.parametrize(
    ("path", "given", "headers"),
    [
        ("/api/v1/prompt", body(), {}),
        ("/api/v1/prompt", body(output_format="stream-json"), {}),
        ("/openai/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": CANARY}]}, {}),
        (
            "/openai/v1/chat/completions",
            {"model": "echo", "stream": True, "messages": [{"role": "user", "content": CANARY}]},
            {"x-stainless-retry-count": "0"},
        ),
        (
            "/openai/v1/responses",
            {"model": "echo", "input": CANARY, "metadata": {"a": CANARY}},
            KEY,
        ),
        (
            "/anthropic/v1/messages",
            {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": CANARY}]},
            {"x-stainless-retry-count": "1"},
        ),
    ],
)
def test_nothing_is_left_of_a_run_whichever_way_it_came(service, path, given, headers):
    id = ask(service, "POST", path, json=given, headers=headers).headers["x-run-id"]
    assert traces(service) == [CANARY]

    assert ask(service, "DELETE", f"/api/v1/runs/{id}?erase=true").status_code == 200

    assert traces(service, id) == []


def test_a_run_under_way_is_ended_first(service):
    base = service.apis[0][1]
    id = submit(base, CANARY, "--hang")
    follow(base, id).next()

    erased = ask(service, "DELETE", f"/api/v1/runs/{id}?erase=true")

    assert erased.json() == {"erased": True, "id": id}
    until(lambda: traces(service, id) == [])


def test_deleting_a_response_erases_it(service):
    made = ask(service, "POST", "/openai/v1/responses", json={"model": "echo", "input": CANARY}, headers=KEY).json()

    assert ask(service, "DELETE", f"/openai/v1/responses/{made['id']}").json()["deleted"] is True

    assert traces(service, made["id"].removeprefix("resp_")) == []


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("parallel", {"tasks": [body(), body()]}),
        ("compare", {"prompt": CANARY, "backends": ["echo", "claude"]}),
        ("chain", {"steps": [body(), body(prompt="{{previous}} again")], "pass_working_dir": True}),
    ],
)
def test_a_flow_is_erased_whole_and_its_runs_only_with_it(service, kind, given):
    flow = ask(service, "POST", f"/api/v1/{kind}", json=given, headers=KEY).json()
    ids = [one["run_id"] for one in flow["results"] if one.get("run_id")]

    alone = ask(service, "DELETE", f"/api/v1/runs/{ids[0]}?erase=true")
    assert alone.status_code == 409
    assert f"DELETE /api/v1/flows/{flow['flow_id']}?erase=true" in alone.json()["detail"]
    erased = ask(service, "DELETE", f"/api/v1/flows/{flow['flow_id']}?erase=true")

    assert erased.json() == {"erased": True, "id": flow["flow_id"]}
    until(lambda: traces(service, flow["flow_id"], *ids) == [])
    assert ask(service, "GET", f"/api/v1/flows/{flow['flow_id']}").status_code == 404


def test_a_flow_under_way_is_ended_first(service):
    tasks = [{"backend": "echo", "prompt": CANARY, "extra": ["--hang"]}, {"backend": "echo", "prompt": CANARY}]
    headers = {"prefer": "respond-async"}
    flow = ask(service, "POST", "/api/v1/parallel", json={"tasks": tasks, "max_parallel": 1}, headers=headers).json()
    first = until(lambda: ask(service, "GET", f"/api/v1/flows/{flow['flow_id']}").json()["results"][0].get("run_id"))
    until(lambda: run(service.apis[0][1], first)["status"] == "running")

    erased = ask(service, "DELETE", f"/api/v1/flows/{flow['flow_id']}?erase=true")

    assert erased.json() == {"erased": True, "id": flow["flow_id"]}
    assert traces(service, flow["flow_id"]) == []


def test_a_turn_is_not_erased_while_another_of_its_session_is_under_way(service):
    said = ask(service, "POST", "/api/v1/prompt", json=body(ephemeral=False)).json()
    more = {"prompt": CANARY, "extra": ["--hang"]}
    path = f"/api/v1/sessions/{said['session_id']}/resume"
    turn = ask(service, "POST", path, json=more, headers={"prefer": "respond-async"}).json()["id"]

    assert ask(service, "DELETE", f"/api/v1/runs/{said['run_id']}?erase=true").status_code == 409

    for id in (turn, said["run_id"]):
        assert ask(service, "DELETE", f"/api/v1/runs/{id}?erase=true").status_code == 200
    until(lambda: traces(service, said["session_id"]) == [])


def test_what_was_used_still_counts(service):
    before = ask(service, "GET", "/api/v1/usage").json()["total"]["runs"]["total"]
    id = ask(service, "POST", "/api/v1/prompt", json=body()).json()["run_id"]

    ask(service, "DELETE", f"/api/v1/runs/{id}?erase=true")

    assert ask(service, "GET", "/api/v1/usage").json()["total"]["runs"]["total"] == before + 1
