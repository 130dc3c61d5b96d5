"""Flows and sessions over real processes: windows over the fleet, death in the middle, hosts that differ."""

import json
import signal
import stat
from typing import Any

import httpx
import pytest

from tests.system.service import kill_pid, serving, until


def post(base: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{base}/api/v1/{path}", json=body, headers=headers, timeout=60)


def echo(prompt: str, *extra: str, **more: Any) -> dict[str, Any]:
    return {"backend": "echo", "prompt": prompt, "extra": list(extra), **more}


def flow(base: str, id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{base}/api/v1/flows/{id}", timeout=30).json()
    return found


def statuses(base: str, id: str) -> list[str]:
    return [one["status"] for one in flow(base, id)["results"]]


@pytest.fixture(scope="module")
def service():
    with serving(workers=2, apis=2) as service:
        yield service


@pytest.fixture
def base(service) -> str:
    return service.apis[0][1]


def test_results_come_in_the_order_of_the_request_whatever_ended_first(base):
    tasks = [echo("slow one", "--delay-ms=300"), echo("two"), echo("three", "--exit-code=4")]

    answer = post(base, "parallel", {"tasks": tasks}).json()

    assert [one["output"] for one in answer["results"]] == ["slow one", "two", "three"]
    assert [one["exit_code"] for one in answer["results"]] == [0, 0, 4]
    assert (answer["total_tasks"], answer["completed"], answer["failed"]) == (3, 2, 1)
    assert answer["total_duration_ms"] >= 300


def test_fail_fast_cancels_what_runs_drops_what_waits_and_says_which(base):
    tasks = [echo("stay", "--hang"), echo("fail", "--exit-code=1"), echo("never"), echo("never")]

    answer = post(base, "parallel", {"tasks": tasks, "max_parallel": 2, "fail_fast": True}).json()

    assert [one["status"] for one in answer["results"]] == ["cancelled", "failed", "cancelled", "cancelled"]
    assert answer["results"][0]["error_cause"] == "failed_fast"
    for one in answer["results"][2:]:
        record = httpx.get(f"{base}/api/v1/runs/{one['run_id']}").json()
        assert record.get("attempt", 0) == 0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("parallel", {"tasks": [echo("x"), {"backend": "echo"}]}, "tasks[1].prompt"),
        ("parallel", {"tasks": [echo("x", "--evil")]}, "tasks[0].extra[0]"),
        ("parallel", {"tasks": []}, "tasks"),
        ("parallel", {"tasks": [echo("x")], "max_parallel": 0}, "max_parallel"),
        ("chain", {"steps": [echo("{{previous}}")]}, "steps[0].prompt"),
        ("chain", {"steps": [echo("x"), echo("{{steps.b}}")]}, "steps[1].prompt"),
        ("chain", {"steps": [echo("x"), echo("{{session}}")]}, "steps[1].prompt"),
        ("chain", {"steps": [echo("x")], "pass_session_id": True}, "pass_session_id"),
        ("chain", {"steps": [echo("x", name="a"), echo("y", name="a")]}, "steps[1].name"),
        ("compare", {"prompt": "x", "backends": []}, "backends"),
        ("compare", {"prompt": " ", "backends": ["echo"]}, "prompt"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_it_before_anything_starts(base, path, body, field):
    before = httpx.get(base + "/api/v1/runs?limit=1").json()["total"]

    answer = post(base, path, body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["details"]["field"] == field
    assert httpx.get(base + "/api/v1/runs?limit=1").json()["total"] == before


def test_a_flow_streams_live_and_goes_on_from_any_event(base):
    answer = post(base, "parallel", {"tasks": [echo("a b"), echo("c d")]}, prefer="respond-async")
    assert answer.status_code == 202
    id = answer.json()["flow_id"]
    url = f"{base}/api/v1/flows/{id}/events"
    with httpx.stream("GET", url, headers={"accept": "application/x-ndjson"}, timeout=30) as stream:
        whole = [json.loads(line) for line in stream.iter_lines() if line]
    with httpx.stream("GET", url + "?after=3", headers={"accept": "application/x-ndjson"}, timeout=30) as stream:
        rest = [json.loads(line) for line in stream.iter_lines() if line]

    assert rest == whole[3:]
    assert whole[-1]["type"] == "done"
    for lane, text in ((0, "a b"), (1, "c d")):
        events = [one["event"] for one in whole[:-1] if one["lane"] == lane]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert "".join(e["content"]["text"] for e in events if e["type"] == "message") == text


def test_a_flow_that_is_asked_for_as_a_stream_is_one_and_is_taken_up_again_by_id(base):
    def events(answer: httpx.Response) -> list[tuple[int, dict[str, Any]]]:
        found = []
        for block in answer.text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                found.append((int(fields["id"]), json.loads(fields["data"])))
        return found

    body = {"steps": [echo("one two"), echo("{{previous}} three")]}
    whole = post(base, "chain", body, accept="text/event-stream")
    seen = events(whole)
    url = f"{base}/api/v1/flows/{whole.headers['x-run-id']}/events"
    rest = httpx.get(url, headers={"last-event-id": "3", "accept": "text/event-stream"}, timeout=30)

    assert whole.headers["content-type"].startswith("text/event-stream")
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))
    assert {event["lane"] for _, event in seen[:-1]} == {0, 1}
    texts = [e["event"]["content"]["text"] for _, e in seen[:-1] if e["event"]["type"] == "message" and e["lane"] == 1]
    assert "".join(texts) == "one two three"
    assert seen[-1][1]["type"] == "done"
    assert events(rest) == seen[3:]


def test_deleting_a_flow_ends_all_of_it(base):
    answer = post(base, "parallel", {"tasks": [echo("x", "--hang")] * 4, "max_parallel": 2}, prefer="respond-async")
    id = answer.json()["flow_id"]
    until(lambda: statuses(base, id).count("running") == 2)

    assert httpx.delete(f"{base}/api/v1/flows/{id}").status_code in (200, 202)

    until(lambda: flow(base, id)["status"] == "cancelled")
    assert statuses(base, id) == ["cancelled"] * 4


def test_an_ended_flow_asked_for_again_to_answer_later_shows_its_true_results(base):
    body = {"tasks": [echo("x"), echo("y")]}

    whole = post(base, "parallel", body, **{"idempotency-key": "again"}).json()
    again = post(base, "parallel", body, prefer="respond-async", **{"idempotency-key": "again"})

    assert again.status_code == 202
    assert again.json() == whole


def test_the_same_key_is_the_same_flow(base):
    body = {"tasks": [echo("x")]}
    first, second = (post(base, "parallel", body, **{"idempotency-key": "k1"}).json() for _ in range(2))
    other = post(base, "parallel", {"tasks": [echo("y")]}, **{"idempotency-key": "k1"})

    assert first["flow_id"] == second["flow_id"]
    assert other.status_code == 400


def test_a_chain_may_share_one_directory(service, base, tmp_path):
    script = tmp_path / "cli"
    script.write_text('#!/bin/sh\nread p; echo "$p" >> log; printf \'{"type":"text","text":"%s"}\\n\' "$(wc -l < log)"\n'
                      'echo \'{"type":"result"}\'\n')  # fmt: skip
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with serving(CLINVK_BACKENDS__ECHO__COMMAND=json.dumps([str(script)]), workers=2) as other:
        url = other.apis[0][1]
        steps = [echo("one\n"), echo("two\n"), echo("three\n")]
        apart = post(url, "chain", {"steps": steps}).json()
        shared = post(url, "chain", {"steps": steps, "pass_working_dir": True}).json()

        assert [one["output"].strip() for one in apart["results"]] == ["1", "1", "1"]
        assert [one["output"].strip() for one in shared["results"]] == ["1", "2", "3"]
        until(lambda: not list(other.folder.glob(f"host*/.clinvk/sessions/{shared['flow_id']}")), 15)


def test_a_chain_whose_worker_dies_in_step_three_says_so_and_repeats_nothing():
    with serving(workers=1) as service:
        base = service.apis[0][1]
        steps = [echo("1"), echo("2"), echo("3", "--hang"), echo("4"), echo("5")]
        answer = post(base, "chain", {"steps": steps, "stop_on_failure": True}, prefer="respond-async")
        id = answer.json()["flow_id"]
        until(lambda: statuses(base, id)[2] == "running")

        kill_pid(service.celery_of(service.workers[0]))

        until(lambda: flow(base, id)["status"] == "failed", 30)
        results = flow(base, id)["results"]
        assert [one["status"] for one in results] == ["succeeded", "succeeded", "failed", "cancelled", "cancelled"]
        assert results[2]["error_code"] == "worker_lost"
        for one in results[:3]:
            assert httpx.get(f"{base}/api/v1/runs/{one['run_id']}").json()["attempt"] == 1


def test_a_worker_that_dies_takes_only_its_own_lanes_along_and_nothing_is_run_twice():
    with serving(workers=2, CLINVK_WORKER__CONCURRENCY="3") as service:
        base = service.apis[0][1]
        tasks = [echo(f"t{n}", "--delay-ms=700") for n in range(12)]
        id = post(base, "parallel", {"tasks": tasks, "max_parallel": 4}, prefer="respond-async").json()["flow_id"]
        until(lambda: statuses(base, id).count("running") == 4)

        kill_pid(service.celery_of(service.workers[0]))

        until(lambda: flow(base, id)["status"] == "failed", 40)
        results = flow(base, id)["results"]
        lost = [one for one in results if one["status"] == "failed"]
        assert 1 <= len(lost) <= 3
        assert {one["error_code"] for one in lost} == {"worker_lost"}
        assert all(one["output"] == f"t{one['index']}" for one in results if one not in lost)
        attempts = {httpx.get(f"{base}/api/v1/runs/{one['run_id']}").json()["attempt"] for one in results}
        assert attempts == {1}


def test_a_chain_outlives_every_api_replica():
    with serving(workers=1, apis=2) as service:
        base = service.apis[0][1]
        steps = [echo("1"), echo("{{previous}} 2", "--delay-ms=800"), echo("{{previous}} 3")]
        id = post(base, "chain", {"steps": steps}, prefer="respond-async").json()["flow_id"]
        until(lambda: statuses(base, id)[1] == "running")

        for proc, _ in service.apis:
            proc.kill()
        base = service.api()

        until(lambda: flow(base, id)["status"] == "succeeded", 30)
        assert flow(base, id)["results"][2]["output"] == "1 2 3"


def test_a_session_goes_on_where_it_is_through_another_replica_and_a_restarted_worker(tmp_path):
    with serving(workers=2, apis=2) as service:
        one, two = (base for _, base in service.apis)
        first = post(one, "prompt", echo("hello", metadata={"a": 1})).json()
        session = httpx.get(f"{two}/api/v1/sessions/{first['session_id']}").json()
        assert (session["status"], session["turn_count"], session["metadata"]) == ("completed", 1, {"a": 1})
        number = int(session["host"].removeprefix("host"))
        old = service.workers[number]
        old.send(signal.SIGTERM)
        old.wait(20)

        away = post(two, f"sessions/{first['session_id']}/resume", {"prompt": "again"})
        assert away.status_code == 503, away.text
        assert away.json()["error"]["code"] == "session_host_unavailable"

        service.restart_worker(number)
        answer = until(lambda: ok(post(two, f"sessions/{first['session_id']}/resume", {"prompt": "again"})), 20)

        assert answer["output"] == "again"
        assert httpx.get(f"{one}/api/v1/runs/{answer['run_id']}").json()["host"] == session["host"]
        assert httpx.get(f"{one}/api/v1/sessions/{first['session_id']}").json()["turn_count"] == 2
        work = service.folder / session["host"] / ".clinvk" / "sessions" / first["session_id"]
        assert work.is_dir()
        assert httpx.delete(f"{one}/api/v1/sessions/{first['session_id']}").json()["deleted"] is True
        until(lambda: not work.exists(), 15)


def ok(answer: httpx.Response) -> dict[str, Any] | None:
    return answer.json() if answer.status_code == 200 else None


def test_a_dry_run_of_a_further_turn_shows_that_turn_and_is_none(tmp_path):
    claude = tmp_path / "claude"
    claude.write_text(CLAUDE)
    claude.chmod(0o755)
    with serving(CLINVK_BACKENDS__CLAUDE__COMMAND=str(claude)) as service:
        base = service.apis[0][1]
        first = until(lambda: ok(post(base, "prompt", {"backend": "claude", "prompt": "hello"})))

        shown = post(base, f"sessions/{first['session_id']}/resume", {"prompt": "again", "dry_run": True}).json()

        assert "0b2bd9a3-1111-4222-8333-944445555666" in shown["output"], shown
        session = httpx.get(f"{base}/api/v1/sessions/{first['session_id']}").json()
        assert (session["turn_count"], session["status"]) == (1, "completed")


CLAUDE = """#!/bin/sh
cat > /dev/null
echo '{"type":"system","subtype":"init","session_id":"0b2bd9a3-1111-4222-8333-944445555666","model":"m","tools":[]}'
echo '{"type":"result","subtype":"success","is_error":false,"result":"hi","session_id":"0b2bd9a3-1111-4222-8333-944445555666","num_turns":1,"usage":{"input_tokens":1,"output_tokens":1}}'
"""


def test_a_page_of_sessions_is_bounded_and_says_so(base):
    answer = httpx.get(f"{base}/api/v1/sessions?limit=10000").json()

    assert answer["limit"] == 500
    assert httpx.get(f"{base}/api/v1/sessions?limit=10001").status_code == 400
