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
    kept = [path for path in home.rglob("*.json*") if says(path, "TEAPOT")]
    assert kept
    assert httpx.delete(url).json()["deleted"] is True
    until(lambda: not any(path.exists() for path in kept if not shared(path)))


def ready(base: str, backend: str) -> bool:
    backends = httpx.get(f"{base}/api/v1/backends").json()["backends"]
    return any(entry["name"] == backend and entry["available"] for entry in backends)


def says(path, text: str) -> bool:
    return path.is_file() and text in path.read_text(errors="replace")


def shared(path) -> bool:
    """Files that a CLI keeps for all sessions together are its own affair."""
    return path.name in ("history.jsonl", ".claude.json")
