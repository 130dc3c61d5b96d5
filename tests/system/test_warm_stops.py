"""Cancels that come early, on the real CLIs' warm ways: the run ends at once, and its neighbours on the process go on."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system import clis
from tests.system.service import ended, prompt, stream, submit, until

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


@pytest.mark.parametrize("way", clis.WAYS)
def test_a_thread_that_codex_was_killed_over_while_it_lay_aside_goes_on_and_can_be_erased(way):
    with clis.serving_clis(way, ["codex"]) as (service, mock):
        base, home = service.apis[0][1], service.folder / "host0" / ".codex"
        first = prompt(base, "[[mock:text n=2]] TEAPOT", backend="codex")
        url = f"{base}/api/v1/sessions/{first['session_id']}"

        def lay_aside() -> Path:
            """As a process that died between laying aside and taking up leaves it."""
            (path,) = [found for found in home.glob("sessions/*/*/*/*.jsonl") if b"TEAPOT" in found.read_bytes()]
            thread = path.stem[-36:]
            env = clis.environment("codex", mock.url) | {"HOME": str(home.parent), "PATH": "/usr/bin:/bin"}
            subprocess.run([*clis.command("codex"), "archive", thread], env=env, check=True, timeout=30)
            (aside,) = (home / "archived_sessions").glob(f"*{thread}*")
            return aside

        aside = lay_aside()
        answer = httpx.post(f"{url}/resume", json={"prompt": "[[mock:seen]] two"}, timeout=60).json()
        assert answer["exit_code"] == 0, answer
        assert "TEAPOT" in str(json.loads(answer["output"])["users"])
        assert not aside.exists()
        if way == "warm":
            until(lambda: clis.warm_state(service, "codex")["hits"] == 2)

        aside = lay_aside()
        httpx.delete(url, timeout=30)
        until(lambda: not aside.exists())
