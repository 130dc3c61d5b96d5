"""Cancels that come early, on the real CLIs' warm ways: the run ends at once, and its neighbours on the process go on."""

import time
from typing import Any

import httpx
import pytest

from tests.system import clis
from tests.system.service import ended, stream, submit, until

pytestmark = [pytest.mark.clis, pytest.mark.processes]

LONG = "[[mock:text n=4000 ms=50]] go"


@pytest.mark.parametrize("backend", ["codex", "gemini"])
def test_runs_that_are_cancelled_at_any_moment_end_and_the_one_beside_them_goes_on(backend):
    with clis.serving_clis("warm", [backend]) as (service, _):
        base = service.apis[0][1]
        staying = stream(base, LONG, backend=backend, ephemeral=True)
        while staying.next()["type"] != "message":
            pass

        found: list[dict[str, Any]] = []
        for number in range(16):
            # A session's thread of codex takes an interrupt by name only when its turn has begun.
            run_id = submit(base, LONG, backend=backend, ephemeral=number % 4 == 0)
            time.sleep(number * 0.005)  # the moment is what is tried
            httpx.delete(f"{base}/api/v1/runs/{run_id}", timeout=30)
            found.append(ended(base, run_id))
        state = until(lambda: (seen := clis.warm_state(service, backend)).get("hits", 0) > 1 and seen)

        assert {one["status"] for one in found} == {"cancelled"}
        assert state["ends"] == {}
        assert staying.next()["type"] == "message"
        httpx.delete(f"{base}/api/v1/runs/{staying.run_id}", timeout=30)
        assert staying.rest()[-1]["content"]["code"] == "cancelled"


def test_a_prompt_that_codex_refuses_in_a_session_harms_no_other():
    with clis.serving_clis("warm", ["codex"]) as (service, _):
        base = service.apis[0][1]
        staying = stream(base, LONG, backend="codex", ephemeral=True)
        while staying.next()["type"] != "message":
            pass

        refused = ended(base, submit(base, "x" * 1_100_000, backend="codex"))

        assert refused["result"]["error_cause"] == "prompt_too_large", refused
        assert staying.next()["type"] == "message"
        httpx.delete(f"{base}/api/v1/runs/{staying.run_id}", timeout=30)
        assert staying.rest()[-1]["content"]["code"] == "cancelled"
        assert clis.warm_state(service, "codex")["ends"] == {}
