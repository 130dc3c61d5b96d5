"""The real CLIs through the whole service, against the project's own mock of their vendors' APIs."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.ids import new_id
from shared.redis import Redis
from shared.run import RunSpec
from shared.store import Limits, create_scripts
from shared.store.runs import Runs
from tests.fakes.mockllm import MockLLM
from tests.system import clis
from tests.system.service import Service, ended, living, prompt, run, serving, stream, until, whole

pytestmark = [pytest.mark.clis, pytest.mark.processes]

CLIS = ("claude", "codex", "gemini")


class World:
    def __init__(self, service: Service, mock: MockLLM) -> None:
        self.service = service
        self.mock = mock
        self.base = service.apis[0][1]

    def ask(self, backend: str, text: str, **fields: Any) -> dict[str, Any]:
        return prompt(self.base, text, backend=backend, **fields)

    def seen(self, backend: str, text: str, **fields: Any) -> dict[str, Any]:
        """What the model was sent."""
        found = self.ask(backend, text, **fields)
        assert found["status"] == 200, found
        assert found["exit_code"] == 0, found
        return json.loads(found["output"])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    commands = {backend: clis.command(backend) for backend in CLIS}
    with MockLLM() as mock, serving(workers=0, CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS="60") as service:
        for backend, command in commands.items():
            env = clis.environment(backend, mock.url) | {"IS_SANDBOX": "1"}
            service.config[f"CLINVK_BACKENDS__{backend.upper()}__COMMAND"] = json.dumps(command)
            service.config[f"CLINVK_BACKENDS__{backend.upper()}__ENV"] = json.dumps(env)
        clis.codex_home(service.folder / "host0", mock.url)
        service.worker()
        yield World(service, mock)


@pytest.mark.parametrize("backend", CLIS)
def test_text_streams_and_ends_with_its_usage(world, backend):
    events = stream(world.base, "[[mock:text n=8 ms=40]] hello", backend=backend).rest()

    assert whole(events) == "".join(f"tok{i} " for i in range(8))
    usage = events[-1]["content"]["token_usage"]
    assert (usage["cached_tokens"], usage["output_tokens"]) == (7, 8)
    assert usage["input_tokens"] == (110 if backend == "claude" else 100)
    pieces = [e for e in events if e["type"] == "message"]
    assert len(pieces) == (1 if backend == "codex" else 8)


@pytest.mark.parametrize("backend", ["claude", "gemini"])
def test_the_first_token_comes_in_under_half_of_the_runs_time(world, backend):
    begun = time.monotonic()
    following = stream(world.base, "[[mock:text n=60 ms=40]] hello", backend=backend)
    while following.next()["type"] != "message":
        pass
    first = time.monotonic() - begun
    following.rest()

    assert first < (time.monotonic() - begun) / 2 + 0.5


@pytest.mark.parametrize("backend", CLIS)
@pytest.mark.parametrize("text", ["--help", "@/etc/hostname", "/status", "é 漢字 🪐 \u2028 'q' \"d\" $HOME `x` \\n"])
def test_any_prompt_reaches_the_model_as_it_is(world, backend, text):
    asked = f"{text} [[mock:seen]] {text}"

    told = world.seen(backend, asked, ephemeral=True)

    assert told["tail"].endswith(asked)
    assert world.mock.requests[-1].last.rstrip().endswith(asked)


@pytest.mark.parametrize("backend", CLIS)
def test_a_megabyte_goes_in_and_comes_out_whole(world, backend):
    asked = "[[mock:seen]] " + "".join(f"{i:07d} " for i in range(125_000))

    told = world.seen(backend, asked, ephemeral=True)
    answered = world.ask(backend, "[[mock:text n=256 size=4096]] go", ephemeral=True)

    assert told["length"] >= len(asked)
    assert any(r.last.endswith(asked) for r in world.mock.requests[-3:])
    assert answered["exit_code"] == 0, answered["error"]
    assert len(answered["output"]) == 256 * 4096


@pytest.mark.parametrize("backend", CLIS)
def test_a_system_prompt_reaches_the_model_as_one(world, backend):
    told = world.seen(backend, "[[mock:seen]] hi", system_prompt="You are a TEAPOT.", ephemeral=True)

    assert "You are a TEAPOT." in told["system"]


@pytest.mark.parametrize("backend", ["claude", "codex"])
def test_thinking_is_an_event_of_its_own_and_never_text(world, backend):
    events = stream(world.base, "[[mock:think n=3]] hi", backend=backend).rest()

    assert whole(events) == "tok0 tok1 tok2 "
    assert "".join(e["content"]["text"] for e in events if e["type"] == "thinking") == "thought0 thought1 thought2 "


@pytest.mark.parametrize("backend", CLIS)
def test_a_tool_runs_where_the_mode_permits_it(world, backend):
    fields = {"approval_mode": "none", "sandbox_mode": "full"}

    events = stream(world.base, "[[mock:tool cmd=echo+hello-from-tool]] run", backend=backend, **fields).rest()

    assert whole(events).endswith("tok4 ")
    results = [e["content"] for e in events if e["type"] == "tool_result"]
    assert [r["output"].strip() for r in results] == ["hello-from-tool"]
    assert [e["type"] for e in events if e["type"].startswith("tool")] == ["tool_use", "tool_result"]


@pytest.mark.parametrize("backend", CLIS)
def test_nothing_is_written_in_a_read_only_sandbox(world, backend, tmp_path):
    os.chmod(tmp_path, 0o777)
    asked = f"[[mock:tool cmd=touch+{tmp_path}/written]] run"

    found = world.ask(backend, asked, workdir=str(tmp_path), sandbox_mode="read-only", approval_mode="none")

    assert found["status"] == 200, found
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("backend", CLIS)
@pytest.mark.parametrize(
    ("code", "causes"),
    [
        (401, {"login"}),
        (429, {"rate_limited"}),
        (500, {"vendor_error", "overloaded"}),
        (404, {"unknown_model"}),
    ],
)
def test_a_vendors_refusal_is_a_failure_with_its_cause_in_seconds(world, backend, code, causes):
    begun = time.monotonic()

    found = world.ask(backend, f"[[mock:status code={code}]] hi", ephemeral=True)

    assert found["error_cause"] in causes, found
    assert found["error"]
    limit_s = 40 if (backend, code) == ("codex", 500) else 20
    assert time.monotonic() - begun < limit_s


@pytest.mark.parametrize("backend", CLIS)
def test_a_second_turn_holds_the_first_and_counts_its_own_usage(world, backend):
    first = world.ask(backend, "[[mock:text n=3]] remember the TEAPOT")
    record = asyncio.run(on_runs(world, lambda runs: runs.get(first["run_id"])))
    spec = RunSpec(
        id=new_id("run"),
        tenant="default",
        backend=backend,
        prompt="[[mock:seen]] and now?",
        session_id=first["session_id"],
        resume=record.outcome.backend_session_id,
        prior_usage=record.outcome.usage if backend == "codex" else None,
    )

    asyncio.run(on_runs(world, lambda runs: runs.add(spec, backend, follower=None, max_depth=10)))

    found = ended(world.base, spec.id)["result"]
    assert found["exit_code"] == 0, found
    told = json.loads(found["output"])
    assert any("remember the TEAPOT" in text for text in told["users"])
    assert "and now?" in told["users"][-1]
    assert found["token_usage"]["output_tokens"] == 1
    assert found["token_usage"]["input_tokens"] <= 110


async def on_runs(world: World, ask: Any) -> Any:
    redis = Redis(world.service.redis.url)
    try:
        return await ask(Runs(create_scripts(redis, Limits(lease_s=4))))
    finally:
        await redis.aclose()


@pytest.mark.parametrize("backend", CLIS)
def test_a_stream_that_is_cut_is_never_a_false_success(world, backend):
    events = stream(world.base, "[[mock:drop n=6]] hi", backend=backend, ephemeral=True).rest(90)

    if events[-1]["type"] == "done":  # it asked again in another way and got the whole
        assert whole(events) == "".join(f"tok{i} " for i in range(6))
    else:
        assert events[-1]["content"]["message"]


@pytest.mark.parametrize("backend", CLIS)
def test_a_refused_connection_comes_back_in_seconds(world, backend, tmp_path):
    url = "http://127.0.0.1:9"  # discard: nobody listens
    with serving(workers=0, CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS="60") as service:
        env = clis.environment(backend, url)
        service.config[f"CLINVK_BACKENDS__{backend.upper()}__COMMAND"] = json.dumps(clis.command(backend))
        service.config[f"CLINVK_BACKENDS__{backend.upper()}__ENV"] = json.dumps(env)
        clis.codex_home(service.folder / "host0", url)
        service.worker()

        found = prompt(service.apis[0][1], "hi", backend=backend, ephemeral=True)

        assert found.get("error_cause", found.get("error")) not in ("", None, "timed_out"), found


@pytest.mark.parametrize("backend", CLIS)
def test_a_cancel_in_the_middle_of_a_shell_tool_leaves_no_process(world, backend):
    fields = {"approval_mode": "none", "sandbox_mode": "full"}
    following = stream(world.base, "[[mock:tool cmd=tail+-f+/dev/null]] run", backend=backend, **fields)
    run_id = following.run_id
    while following.next()["type"] != "tool_use":
        pass
    until(tailing)

    httpx.delete(f"{world.base}/api/v1/runs/{run_id}", timeout=30)

    assert following.rest()[-1]["content"]["code"] == "cancelled"
    assert run(world.base, run_id)["status"] == "cancelled"
    until(lambda: not living(f"CLINVK_RUN={run_id}") and not tailing(), 5)


def tailing() -> list[int]:
    """The processes of the tool."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{name}/cmdline").read_bytes() == b"tail\0-f\0/dev/null\0":
                    found.append(int(name))
    return found


def test_max_turns_is_a_cause(world):
    fields = {"approval_mode": "none", "max_turns": 1, "sandbox_mode": "full"}

    for backend in ("claude", "gemini"):
        found = world.ask(backend, "[[mock:tool]] run", **fields)

        assert found["error_cause"] == "max_turns", found


def test_max_tokens_reaches_claude(world):
    assert world.seen("claude", "[[mock:seen]] hi", max_tokens=1234, ephemeral=True)["max_tokens"] == 1234


def test_what_a_cli_cannot_hold_is_refused_and_what_it_lacks_is_said(world):
    refused = world.ask("gemini", "hi", sandbox_mode="workspace", approval_mode="none")
    body = {"backend": "codex", "prompt": "[[mock:text]] hi", "max_turns": 3, "ephemeral": True}
    answer = httpx.post(world.base + "/api/v1/prompt", json=body, timeout=60)

    assert (refused["status"], refused["error"]["code"]) == (400, "not_enforceable")
    assert answer.headers["x-clinvk-not-enforced"] == "max_turns"


@pytest.mark.parametrize("backend", CLIS)
def test_an_ephemeral_run_leaves_nothing_in_its_directories(world, backend):
    found = world.ask(backend, "[[mock:text]] hi", ephemeral=True)

    home = world.service.folder / "host0" / ".clinvk"
    assert not list((home / "runs").glob(f"{found['run_id']}*"))
    assert found["session_id"] == ""


def test_runs_at_once_do_not_mix(world):
    import concurrent.futures

    def one(i: int) -> str:
        backend = CLIS[i % 3]
        return str(world.seen(backend, f"number-{i}-end [[mock:seen]]", ephemeral=True)["tail"])

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for i, tail in enumerate(pool.map(one, range(9))):
            assert f"number-{i}-end" in tail
