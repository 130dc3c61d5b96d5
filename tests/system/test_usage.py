"""What runs have used, asked for over HTTP: every kind of end, a cost that a CLI reported, and days that can be chosen."""

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared import names
from tests.system.service import serving, until

pytestmark = pytest.mark.redis

CLAUDE = json.dumps([sys.executable, "-I", "-S", str(Path(__file__).parent / "sdks" / "fake_claude.py")])
CLAUDES = {"input_tokens": 157 + 3 + 7, "output_tokens": 8, "cached_tokens": 7, "reasoning_tokens": 0}


class World:
    """A tenant whose first two runs were yesterday and whose others were today."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def run(self, backend: str, prompt: str = "hi", **more: Any) -> None:
        asked = {"backend": backend, "prompt": prompt, "ephemeral": True, **more}
        assert self.client.post("/api/v1/prompt", json=asked).status_code in (200, 502)

    def cancelled(self) -> None:
        asked = {"backend": "echo", "prompt": "hi", "extra": ["--hang"]}
        id = self.client.post("/api/v1/prompt", json=asked, headers={"prefer": "respond-async"}).json()["id"]
        self.client.delete(f"/api/v1/runs/{id}")
        until(lambda: self.client.get(f"/api/v1/runs/{id}").json()["status"] == "cancelled")

    def usage(self, **params: str) -> dict[str, Any]:
        answer = self.client.get("/api/v1/usage", params=params)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    config = {"CLINVK_API_KEYS": "k-1234", "CLINVK_BACKENDS__CLAUDE__COMMAND": CLAUDE}
    with (
        serving(**config) as service,
        httpx.Client(base_url=service.apis[0][1], headers={"x-api-key": "k-1234"}, timeout=30) as client,
    ):
        world = World(client)
        world.run("claude")
        world.run("echo", extra=["--exit-code=3"])
        store = service.redis.client()
        for name in store.keys("clinvk:usage:*:*"):
            day, tenant = name.decode().split(":")[2:]
            store.rename(name, names.usage(int(day) - 1, tenant))
            store.sadd(names.usage_tenants(int(day) - 1), tenant)
        store.close()
        world.run("claude")
        world.run("claude", "[[fake:think n=2 k=3]]")
        world.run("claude", "[[fake:die n=3]]")
        world.run("echo")
        world.cancelled()
        yield world


def runs(succeeded: int, failed: int, cancelled: int) -> dict[str, int]:
    total = succeeded + failed + cancelled
    return {"total": total, "succeeded": succeeded, "failed": failed, "cancelled": cancelled}


def test_failed_and_cancelled_runs_count_and_a_reported_cost_is_summed_by_day(world):
    yesterday, today = world.usage(by="day")["usage"]

    assert datetime.date.fromisoformat(today["day"]) - datetime.date.fromisoformat(
        yesterday["day"]
    ) == datetime.timedelta(1)
    assert (yesterday["runs"], yesterday["cost_usd"]) == (runs(1, 1, 0), 0.001)
    assert (today["runs"], today["cost_usd"]) == (runs(3, 1, 1), 0.002)
    assert yesterday["token_usage"]["output_tokens"] >= CLAUDES["output_tokens"]


def test_a_backend_by_itself_has_its_own_tokens_and_only_a_cost_that_it_told(world):
    claude, echo = world.usage(by="backend")["usage"]

    assert (claude["backend"], claude["runs"], claude["cost_usd"]) == ("claude", runs(3, 1, 0), 0.003)
    assert (echo["backend"], echo["runs"], echo["cost_usd"]) == ("echo", runs(1, 1, 1), None)
    assert claude["token_usage"]["reasoning_tokens"] == 3
    assert world.usage(by="backend", backend="claude")["usage"] == [claude]
    assert world.usage(backend="claude")["total"]["runs"] == claude["runs"]


def test_from_and_to_choose_days_both_of_them_counted(world):
    first, last = (row["day"] for row in world.usage(by="day")["usage"])

    assert world.usage()["total"]["runs"] == runs(4, 2, 1)
    assert world.usage(**{"from": first, "to": last})["total"]["runs"] == runs(4, 2, 1)
    only = world.usage(**{"from": first, "to": first})
    assert (only["from"], only["to"], only["total"]["runs"]) == (first, first, runs(1, 1, 0))
    assert world.usage(**{"from": last})["total"]["runs"] == runs(3, 1, 1)
    assert world.usage(to=first)["total"]["cost_usd"] == 0.001
    assert world.usage(**{"from": "2020-01-01", "to": "2020-12-31"}) == {
        "from": "2020-01-01",
        "to": "2020-12-31",
        "by": ["day", "tenant", "key", "backend", "model"],
        "usage": [],
        "total": {**world.usage(key="nobody")["total"], "cost_usd": None},
    }
