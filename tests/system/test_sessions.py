"""Sessions over HTTP: made by prompts, listed, found by their beginning, gone on with in every way, one turn at a time."""

import json
from typing import Any

import httpx
import pytest

from tests.system.service import kill_pid, serving, until

pytestmark = pytest.mark.processes


def post(base: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{base}/api/v1/{path}", json=body, headers=headers, timeout=60)


def begin(base: str, text: str, *extra: str, **more: Any) -> dict[str, Any]:
    answer = post(base, "prompt", {"backend": "echo", "prompt": text, "extra": list(extra), **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def session(base: str, id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{base}/api/v1/sessions/{id}").json()
    return found


@pytest.fixture(scope="module")
def service():
    with serving(workers=1, CLINVK_SESSION__DEFAULT_TAGS="team,blue") as service:
        yield service


@pytest.fixture
def base(service) -> str:
    return service.apis[0][1]


def test_every_prompt_makes_one_with_the_ancestors_fields_unless_it_is_ephemeral(base, tmp_path):
    before = httpx.get(f"{base}/api/v1/sessions").json()["total"]
    made = begin(base, "say  this\nto me", metadata={"n": 1})
    begin(base, "not this", ephemeral=True)
    begin(base, "nor this", dry_run=True)

    found = session(base, made["session_id"])

    assert httpx.get(f"{base}/api/v1/sessions").json()["total"] == before + 1
    expected = {
        "id": made["session_id"], "backend": "echo", "model": "echo-1", "initial_prompt": "say  this\nto me",
        "title": "say this to me", "status": "completed", "turn_count": 1, "tags": ["team", "blue"],
        "metadata": {"n": 1}, "working_dir": "", "host": "host0",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["token_usage"]["output_tokens"] > 0
    assert found["created_at"] <= found["last_used"]


def test_lists_are_filtered_and_paged_with_an_honest_total(base):
    def listed(query: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{base}/api/v1/sessions?{query}").json()
        return found

    begin(base, "well")
    begin(base, "badly", "--exit-code=3")
    whole = listed("backend=echo")

    assert whole["total"] == len(whole["sessions"]) >= 2
    assert {one["status"] for one in listed("status=error")["sessions"]} == {"error"}
    parts = [listed(f"limit=1&offset={n}") for n in range(whole["total"])]
    assert [part["sessions"][0]["id"] for part in parts] == [one["id"] for one in whole["sessions"]]
    assert {part["total"] for part in parts} == {whole["total"]}
    assert listed("backend=claude")["total"] == 0
    assert httpx.get(f"{base}/api/v1/sessions?status=done").status_code == 400


def test_the_beginning_of_an_id_will_do_where_it_begins_no_other(base):
    made = begin(base, "x")["session_id"]
    begin(base, "y")

    assert session(base, made[:-3])["id"] == made
    assert httpx.get(f"{base}/api/v1/sessions/ses_").status_code == 400
    for short in ("s", "ses_", made[:7]):  # too little of it to delete anything by
        assert httpx.delete(f"{base}/api/v1/sessions/{short}").status_code == 400
    assert httpx.delete(f"{base}/api/v1/sessions/{made[:-3]}").json() == {"deleted": True, "id": made}
    for answer in (httpx.get, httpx.delete):
        assert answer(f"{base}/api/v1/sessions/{made}").status_code == 404
    assert post(base, f"sessions/{made}/resume", {"prompt": "more"}).status_code == 404


def test_a_turn_is_asked_for_whole_as_a_stream_or_for_later_and_keeps_the_options_of_the_first(base):
    made = begin(base, "x", "--think")
    url = f"sessions/{made['session_id']}/resume"
    whole = post(base, url, {"prompt": "a"}).json()
    lines = post(base, url, {"prompt": "b", "output_format": "stream-json"}).text.splitlines()
    events = [json.loads(line) for line in lines]
    sse = post(base, url, {"prompt": "c"}, accept="text/event-stream")
    later = post(base, url, {"prompt": "d", "extra": []}, prefer="respond-async")
    assert later.status_code == 202
    until(lambda: session(base, made["session_id"])["status"] == "completed")

    assert whole["output"] == "a"
    assert "".join(e["content"]["text"] for e in events if e["type"] == "message") == "b"
    assert "thinking" in {e["type"] for e in events}  # by the flag of the first turn
    assert {e["session_id"] for e in events} == {made["session_id"]}
    assert events[-1]["type"] == "done"
    assert sse.headers["content-type"].startswith("text/event-stream")
    record = f"{base}/api/v1/runs/{later.json()['id']}"
    assert httpx.get(record).json()["result"]["output"] == "d"
    told = httpx.get(f"{record}/events", headers={"accept": "application/x-ndjson"}).text
    assert '"type":"thinking"' not in told  # what it says itself goes before
    assert session(base, made["session_id"])["turn_count"] == 5


def test_a_second_turn_waits_for_the_first_and_a_session_in_use_is_not_deleted(base):
    made = begin(base, "x")["session_id"]
    url = f"sessions/{made}/resume"
    first = post(base, url, {"prompt": "one", "extra": ["--hang"]}, prefer="respond-async").json()["id"]
    until(lambda: httpx.get(f"{base}/api/v1/runs/{first}").json()["status"] == "running")
    second = post(base, url, {"prompt": "two"}, prefer="respond-async").json()["id"]

    assert httpx.get(f"{base}/api/v1/runs/{second}").json()["status"] == "waiting"
    assert session(base, made)["status"] == "active"
    assert httpx.delete(f"{base}/api/v1/sessions/{made}").status_code == 409
    httpx.delete(f"{base}/api/v1/runs/{first}")
    until(lambda: httpx.get(f"{base}/api/v1/runs/{second}").json()["status"] == "succeeded")

    found = session(base, made)
    assert (found["status"], found["turn_count"]) == ("completed", 3)


def test_where_the_operator_wants_it_a_second_turn_is_refused_and_a_killed_worker_ends_the_first_truly():
    with serving(CLINVK_SESSION__REFUSE_BUSY="true") as service:
        base = service.apis[0][1]
        made = begin(base, "x")["session_id"]
        url = f"sessions/{made}/resume"
        turn = post(base, url, {"prompt": "one", "extra": ["--hang"]}, prefer="respond-async").json()["id"]
        until(lambda: httpx.get(f"{base}/api/v1/runs/{turn}").json()["status"] == "running")

        busy = post(base, url, {"prompt": "two"})
        kill_pid(service.celery_of(service.workers[0]))

        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "conflict")
        until(lambda: session(base, made)["status"] == "error", 20)
        assert until(lambda: post(base, url, {"prompt": "three"}).json().get("output"), 20) == "three"
