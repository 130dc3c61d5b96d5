"""Sessions of the real CLIs: a further turn knows the first, wherever it is asked for, and nothing is left of a deleted one."""

import json
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.system import clis
from tests.system.clis import both
from tests.system.service import Service, prompt, until

pytestmark = [pytest.mark.clis, pytest.mark.processes]


@pytest.fixture(scope="module")
def service(way: str) -> Iterator[Service]:
    with clis.serving_clis(way, clis.CLIS if way == "cold" else clis.WARM, apis=2) as (service, _):
        yield service


@both()
def test_a_second_turn_through_another_replica_and_a_restarted_worker_holds_the_first(service, backend):
    one, two = (base for _, base in service.apis)
    first = prompt(one, "[[mock:text n=3]] remember the TEAPOT", backend=backend)
    assert first["exit_code"] == 0, first
    old = service.workers.pop()
    old.send(signal.SIGTERM)
    old.wait(20)
    service.restart_worker(0)
    url = f"{two}/api/v1/sessions/{first['session_id']}"
    until(lambda: ready(two, backend))

    second = httpx.post(url + "/resume", json={"prompt": "[[mock:seen]] and now?"}, timeout=60).json()

    assert second["exit_code"] == 0, second
    told = json.loads(second["output"])
    assert any("remember the TEAPOT" in text for text in told["users"])
    assert "and now?" in told["users"][-1]
    session = httpx.get(url).json()
    assert (session["status"], session["turn_count"]) == ("completed", 2)
    home = service.folder / "host0"
    assert clis.holding(home, "TEAPOT")
    assert httpx.delete(url).json()["deleted"] is True
    until(lambda: clis.holding(home, "TEAPOT") == [])


@both()
@pytest.mark.parametrize("fields", [{}, {"ephemeral": True}])
def test_nothing_of_an_erased_run_is_on_its_host(service, backend, fields):
    base, home = service.apis[0][1], service.folder / "host0"
    until(lambda: ready(base, backend))
    for asked in ("[[mock:seen]] CANARY", "[[mock:status code=400]] CANARY"):
        body = {"system_prompt": "CANARY of the system", **fields}
        run_id = prompt(base, asked, backend=backend, **body)["run_id"]
        assert ("ephemeral" in fields) or clis.holding(home, "CANARY")

        erased = httpx.delete(f"{base}/api/v1/runs/{run_id}", params={"erase": "true"}, timeout=30)

        assert erased.status_code == 200, erased.text
        until(lambda: clis.holding(home, "CANARY") == [])


def ready(base: str, backend: str) -> bool:
    """By a list that is read anew: others may still have a worker that has just ended."""
    workers = httpx.get(f"{base}/api/v1/workers").json()["workers"]
    return any(entry["name"] == backend and entry["state"] == "ready" for one in workers for entry in one["backends"])
