"""A fleet of hosts that differ: where runs land, what is told of hosts, what becomes of one that goes."""

import signal
import stat
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.system.service import BASE_ENV, START_S, Service, kill_pid, serving, until

# Stands in for any CLI: its host's name is its answer, in claude's own form; codex and gemini are told apart by name.
CLI = r"""#!/bin/sh
cat > /dev/null
case "$0" in
*/codex) echo '{"type":"thread.started","thread_id":"t"}'
  echo '{"type":"item.completed","item":{"id":"i","type":"agent_message","text":"codex on '"$HOST"'"}}'
  echo '{"type":"turn.completed","usage":{"input_tokens":1,"output_tokens":1}}' ;;
*/gemini) echo '{"type":"init","session_id":"s","model":"m"}'
  echo '{"type":"message","role":"assistant","content":"gemini on '"$HOST"'","delta":true}'
  echo '{"type":"result","status":"success","stats":{"input_tokens":1,"output_tokens":1,"total_tokens":2}}' ;;
*) if [ -e "$HOME/broken" ]; then
    echo '{"type":"result","subtype":"success","is_error":true,"api_error_status":'"$(cat "$HOME/broken")"',"result":"no"}'
    exit 1
  fi
  echo '{"type":"assistant","message":{"id":"m","content":[{"type":"text","text":"claude on '"$HOST"'"}]}}'
  echo '{"type":"result","subtype":"success","is_error":false,"result":"claude on '"$HOST"'","num_turns":1}' ;;
esac
"""


def host(service: Service, number: int, *clis: str) -> None:
    """A worker of its own HOME and PATH; its host's name is `host{number}`."""
    folder = service.folder / f"bin{number}"
    folder.mkdir(exist_ok=True)
    for name in clis:
        path = folder / name
        path.write_text(CLI.replace("$HOST", f"host{number}"))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    assert len(service.workers) == number
    service.worker(PATH=f"{folder}:{BASE_ENV['PATH']}")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(workers=0, CLINVK_WORKER__PASS_OVER_SECS="60") as service:
        host(service, 0, "claude")
        host(service, 1, "codex", "gemini")
        host(service, 2, "claude", "codex", "gemini")
        yield service


@pytest.fixture
def base(service) -> str:
    return service.apis[0][1]


def prompt(base: str, backend: str, **more: Any) -> httpx.Response:
    body = {"backend": backend, "prompt": "x", "ephemeral": True, **more}
    return httpx.post(f"{base}/api/v1/prompt", json=body, timeout=60)


def state(base: str, name: str, backend: str) -> str:
    for worker in httpx.get(f"{base}/api/v1/workers").json()["workers"]:
        if worker["host"] == name:
            return next(one["state"] for one in worker["backends"] if one["name"] == backend)
    return "gone"


def test_each_run_lands_where_its_cli_is(base):
    for backend, hosts in (
        ("claude", {"host0", "host2"}),
        ("codex", {"host1", "host2"}),
        ("gemini", {"host1", "host2"}),
    ):
        for _ in range(6):
            answer = prompt(base, backend)
            assert answer.status_code == 200, answer.text
            said, _, where = answer.json()["output"].partition(" on ")
            assert said == backend
            assert where in hosts


def test_a_comparison_lands_where_it_can(base):
    body = {"prompt": "x", "backends": ["claude", "codex", "gemini"]}

    answer = httpx.post(f"{base}/api/v1/compare", json=body, timeout=60).json()

    assert [one["output"].split(" on ")[0] for one in answer["results"]] == ["claude", "codex", "gemini"]


def test_the_fleet_says_what_each_host_can_do(base):
    assert state(base, "host0", "claude") == "ready"
    assert state(base, "host0", "codex") == "not_installed"
    assert state(base, "host1", "claude") == "not_installed"


def test_a_drained_host_takes_nothing_until_it_is_put_back(base):
    drained = httpx.post(f"{base}/api/v1/workers/host2/drain", timeout=30)
    assert drained.json() == {"host": "host2", "draining": True}
    try:
        # From the answer on nothing goes there: whoever waits for its runs to end may then stop it.
        assert not reachable(base, "host2")
        assert {prompt(base, "claude").json()["output"] for _ in range(5)} == {"claude on host0"}
    finally:
        httpx.post(f"{base}/api/v1/workers/host2/undrain")
    until(lambda: reachable(base, "host2"))
    assert httpx.post(f"{base}/api/v1/workers/nowhere/drain").status_code == 404


def reachable(base: str, name: str) -> bool:
    backends = httpx.get(f"{base}/api/v1/backends").json()["backends"]
    return any(
        one["host"] == name and one["state"] == "ready" and not one.get("draining")
        for entry in backends
        for one in entry["hosts"]
    )


@pytest.mark.parametrize(("status", "marked"), [("401", "not_logged_in"), ("429", "limited")])
def test_a_host_whose_login_or_quota_fails_is_passed_over(service, base, status, marked):
    broken = service.folder / "host0" / "broken"
    broken.write_text(status)
    try:
        until(lambda: prompt(base, "claude").status_code != 200 or state(base, "host0", "claude") != "ready")
        until(lambda: state(base, "host0", "claude") == marked)
        answers = [prompt(base, "claude") for _ in range(5)]
        assert {one.json().get("output", one.text) for one in answers} == {"claude on host2"}
    finally:
        broken.unlink()
        old = service.workers[0]
        old.send(signal.SIGTERM)
        old.wait(20)
        service.workers[0] = again(service, 0)
    until(lambda: state(base, "host0", "claude") == "ready", START_S)


def again(service: Service, number: int) -> Any:
    proc = service.restart_worker(number, PATH=f"{service.folder / f'bin{number}'}:{BASE_ENV['PATH']}")
    service.workers.remove(proc)
    return proc


def test_a_host_that_is_killed_is_passed_over_and_comes_back(service, base):
    old = service.workers[1]
    kill_pid(service.celery_of(old))
    old.kill()

    until(lambda: state(base, "host1", "codex") == "gone", 20)
    assert {prompt(base, "codex").json()["output"] for _ in range(3)} == {"codex on host2"}
    service.workers[1] = again(service, 1)
    until(lambda: state(base, "host1", "codex") == "ready", START_S)

    assert until(lambda: prompt(base, "gemini").json()["output"] == "gemini on host1", 20)


def test_nobody_offers_it_is_told_at_once_and_a_limit_of_all_is_the_vendors():
    with serving(workers=0, CLINVK_WORKER__PASS_OVER_SECS="60") as service:
        base = service.apis[0][1]
        assert prompt(base, "claude").status_code == 503
        host(service, 0, "claude")
        assert until(lambda: prompt(base, "claude").status_code == 200)
        (service.folder / "host0" / "broken").write_text("429")
        prompt(base, "claude")
        until(lambda: state(base, "host0", "claude") == "limited")

        answer = until(lambda: limited(prompt(base, "claude")))

        assert answer.json()["error"]["code"] == "backend_limited"
        assert 1 <= int(answer.headers["retry-after"]) <= 60


def limited(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 429 else None


def test_where_the_operator_wants_it_a_run_waits_for_a_worker():
    with serving(workers=0, CLINVK_QUEUE__WAIT_FOR_WORKER="true") as service:
        base = service.apis[0][1]
        body = {"backend": "claude", "prompt": "x"}
        made = httpx.post(f"{base}/api/v1/prompt", json=body, headers={"prefer": "respond-async"}).json()
        record = httpx.get(f"{base}/api/v1/runs/{made['id']}").json()
        assert (record["status"], record["position"]) == ("waiting", 1)

        host(service, 0, "claude")

        until(lambda: httpx.get(f"{base}/api/v1/runs/{made['id']}").json()["status"] == "succeeded")
