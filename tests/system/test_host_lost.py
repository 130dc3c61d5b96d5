"""A host that dies with runs queued for it alone: others take what they can, the rest is told at once."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.system.service import Service, ended, kill_pid, run, serving, submit, until

pytestmark = pytest.mark.processes

ZONE = {"zone": "a"}


@pytest.fixture
def service() -> Iterator[Service]:
    """Three hosts of one slot each, two of them in the zone."""
    with serving(workers=0, CLINVK_WORKER__CONCURRENCY="1", CLINVK_SERVER__HANGUP_GRACE_SECS="0") as service:
        for _ in range(2):
            service.worker(CLINVK_WORKER__LABELS="zone=a")
        service.worker()
        yield service


def kill_host(service: Service, host: str) -> None:
    proc = service.workers[int(host.removeprefix("host"))]
    pid = service.celery_of(proc)
    proc.kill()
    kill_pid(pid)


def post(base: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{base}/api/v1/{path}", json=body, headers=headers, timeout=60)


def test_what_may_run_elsewhere_does_and_what_may_not_is_told_long_before_it_would_be_overdue(service):
    base = service.apis[0][1]
    hanging = [submit(base, "x", "--hang", labels=ZONE, ephemeral=True) for _ in range(2)]
    until(lambda: all(run(base, id)["status"] == "running" for id in hanging))
    where = {run(base, id)["host"]: id for id in hanging}
    assert set(where) == {"host0", "host1"}  # spread, without anybody having said so
    key = {"idempotency-key": "first"}
    first = post(base, "prompt", {"backend": "echo", "prompt": "hello"}, **key).json()
    session = httpx.get(f"{base}/api/v1/sessions/{first['session_id']}").json()
    assert session["host"] == "host2"
    bound = submit(base, "bound", labels=ZONE, ephemeral=True)
    submit(base, "x", "--hang", ephemeral=True)
    until(lambda: any(one["running"] for one in workers(base) if one["host"] == "host2"))
    url = f"sessions/{first['session_id']}/resume"
    turn = post(base, url, {"prompt": "again"}, prefer="respond-async").json()["id"]
    chosen = str(queue_of(service, bound)).partition("@")[2]
    other = ({"host0", "host1"} - {chosen}).pop()
    begun = time.monotonic()
    for host in (chosen, "host2"):
        kill_host(service, host)

    told = ended(base, turn)
    until(lambda: queue_of(service, bound) == f"echo@{other}", 30)
    httpx.delete(f"{base}/api/v1/runs/{where[other]}")
    served = ended(base, bound)

    assert time.monotonic() - begun < 30  # queue.max_wait_secs is 600
    assert told["result"]["error_code"] == "session_host_unavailable", told
    assert (served["status"], served["host"], served["attempt"]) == ("succeeded", other, 1)

    kill_host(service, other)
    until(lambda: not workers(base), 20)
    again = post(base, "prompt", {"backend": "echo", "prompt": "hello"}, **key)
    assert (again.status_code, again.json()["output"]) == (200, "hello")
    assert again.json()["run_id"] == first["run_id"]
    fresh = post(base, "prompt", {"backend": "echo", "prompt": "hello"})
    assert fresh.status_code == 503


def workers(base: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{base}/api/v1/workers").json()["workers"]
    return found


def queue_of(service: Service, run_id: str) -> str:
    client = service.redis.client()
    try:
        return str((client.hget(f"clinvk:run:{run_id}", "queue") or b"").decode())
    finally:
        client.close()


def test_a_caller_who_comes_back_without_waiting_leaves_a_run_that_outlives_him(service):
    base = service.apis[0][1]
    body = {"backend": "echo", "prompt": "stay", "extra": ["--delay-ms=1500"], "ephemeral": True}
    key = {"idempotency-key": "k"}
    with httpx.stream(
        "POST", f"{base}/api/v1/prompt", json={**body, "output_format": "stream-json"}, headers=key, timeout=30
    ) as first:
        id = first.headers["x-run-id"]
        joined = httpx.post(
            f"{base}/api/v1/prompt",
            json={**body, "output_format": "stream-json"},
            headers={**key, "prefer": "respond-async"},
        )
        assert (joined.status_code, joined.json()["id"]) == (202, id)
    # The first caller has hung up in the middle.
    assert ended(base, id)["status"] == "succeeded"


def test_a_flow_that_was_ended_since_its_caller_had_gone_begins_anew_for_the_same_key(service):
    base = service.apis[0][1]
    body = {"tasks": [{"backend": "echo", "prompt": "x y", "extra": ["--delay-ms=1000"]}]}
    key = {"idempotency-key": "f"}
    with httpx.stream(
        "POST", f"{base}/api/v1/parallel", json=body, headers={**key, "accept": "text/event-stream"}, timeout=30
    ) as gone:
        first = gone.headers["x-run-id"]
    until(lambda: flow(base, first)["status"] == "cancelled")

    again = post(base, "parallel", body, **key).json()
    third = post(base, "parallel", body, **key).json()

    assert (again["status"], again["results"][0]["output"]) == ("succeeded", "x y")
    assert first != again["flow_id"] == third["flow_id"]
    assert post(base, "parallel", {"tasks": [{"backend": "echo", "prompt": "z"}]}, **key).status_code == 400


def test_a_host_that_comes_back_with_its_name_does_not_resurrect_what_has_been_ended():
    with serving(workers=1) as service:
        base = service.apis[0][1]
        id = submit(base, "x", "--hang", ephemeral=True)
        until(lambda: run(base, id)["status"] == "running")
        kill_host(service, "host0")
        told = ended(base, id)
        assert told["result"]["error_code"] == "worker_lost"

        service.restart_worker(0)
        after = until(lambda: answered(post(base, "prompt", {"backend": "echo", "prompt": "y"})), 30)

        assert after["output"] == "y"
        assert run(base, id) == told
        assert run(base, after["run_id"])["host"] == "host0"


def answered(answer: httpx.Response) -> dict[str, Any] | None:
    return answer.json() if answer.status_code == 200 else None


def test_a_chain_over_hosts_that_share_no_backend_is_refused_and_one_host_lost_in_the_middle_is_told(tmp_path):
    cli = tmp_path / "claude"
    cli.write_text(CLAUDE)
    cli.chmod(0o755)
    with serving(workers=0) as service:
        service.worker("--backends", "echo")
        service.worker("--backends", "claude", CLINVK_BACKENDS__CLAUDE__COMMAND=str(cli))
        base = service.apis[0][1]
        step = {"backend": "echo", "prompt": "one"}
        steps = [step, {"backend": "claude", "prompt": "two"}, {"backend": "echo", "prompt": "three"}]
        apart = post(base, "chain", {"steps": steps, "pass_working_dir": True})
        assert apart.status_code == 503, apart.text
        assert "steps[1]" in apart.json()["detail"]
        assert "host1" in apart.json()["detail"]
        assert int(apart.headers["retry-after"]) >= 1
        assert post(base, "chain", {"steps": steps}).json()["completed_steps"] == 3  # without it they may differ

        service.worker(CLINVK_BACKENDS__CLAUDE__COMMAND=str(cli))
        service.worker(CLINVK_BACKENDS__CLAUDE__COMMAND=str(cli))
        steps[0] = {**step, "extra": ["--hang"]}
        body = {"steps": steps, "pass_working_dir": True}
        id = post(base, "chain", body, prefer="respond-async").json()["flow_id"]
        first = until(lambda: results(base, id)[0].get("run_id"))
        until(lambda: run(base, first)["status"] == "running")
        where = run(base, first)["host"]
        assert where in ("host2", "host3")

        begun = time.monotonic()
        kill_host(service, where)
        until(lambda: flow(base, id)["status"] != "running", 40)

        assert time.monotonic() - begun < 30
        assert [one["error_code"] for one in results(base, id)] == [
            "worker_lost",
            "session_host_unavailable",
            "session_host_unavailable",
        ]


CLAUDE = """#!/bin/sh
cat > /dev/null
echo '{"type":"result","subtype":"success","is_error":false,"result":"hi","session_id":"0b2bd9a3-1111-4222-8333-944445555666","num_turns":1,"usage":{"input_tokens":1,"output_tokens":1}}'
"""


def flow(base: str, id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{base}/api/v1/flows/{id}", timeout=30).json()
    return found


def results(base: str, id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = flow(base, id)["results"]
    return found
