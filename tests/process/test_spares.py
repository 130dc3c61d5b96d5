"""Spare processes of claude: used once, replaced when they die, ended truly; with a stand-in that speaks its protocol."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.config import BackendConfig, Config, Warm
from shared.run import Outcome, RunSpec
from shared.warm import WarmState
from tests.process.conftest import Pids
from worker import tree
from worker.stage import Stage
from worker.warm.claude import ClaudeDriver
from worker.warm.pool import Pool

pytestmark = [pytest.mark.usefixtures("subreaper")]

# Says what it was told of the settings as its answer. Its prompt, or a file `mode` beside it, makes it behave badly.
CLI = """
import json, os, subprocess, sys
here = os.path.dirname(os.path.abspath(__file__))
def say(**it):
    sys.stdout.write(json.dumps(it) + "\\n"); sys.stdout.flush()
def note(name, pid):
    with open(here + "/pids", "a") as file:
        file.write(f"{name} {pid}\\n")
def mode():
    return open(here + "/mode").read() if os.path.exists(here + "/mode") else ""
if mode() == "die":
    sys.exit(4)
note(f"cli{os.getpid()}", os.getpid())
told = []
for line in sys.stdin:
    said = json.loads(line)
    if said["type"] == "control_request":
        kind = said["request"]["subtype"]
        if mode() == "mute":
            continue
        if kind != "get_settings" and mode() == "deaf":
            continue
        if kind == "interrupt":
            say(type="result", subtype="error_during_execution", is_error=True)
        refused = mode() == kind
        told.append(said["request"])
        say(type="control_response", response={"subtype": "error" if refused else "success",
            "request_id": said["request_id"], "error": "not this time"})
        continue
    text = said["message"]["content"][-1]["text"]
    say(type="system", subtype="init", session_id="s", model="m", cwd=os.getcwd())
    if text == "die":
        sys.stderr.write("it went wrong\\n"); os._exit(3)
    if text == "tool":
        subprocess.Popen(["/bin/sh", "-c", f"echo tool $$ >> {here}/pids; trap '' TERM INT HUP; exec sleep 300"],
            start_new_session=True, stdin=subprocess.DEVNULL)
        continue
    if text == "hang":
        note("hangs", os.getpid())
        continue
    answer = json.dumps({"told": told, "cwd": os.getcwd(), "pid": os.getpid(), "tmp": os.environ["TMPDIR"]})
    say(type="assistant", message={"id": "1", "model": "m", "content": [{"type": "text", "text": answer}]})
    say(type="result", subtype="success", is_error=False, result=answer, num_turns=1, usage={"input_tokens": 1})
"""


class House:
    """A pool with a stage, as a worker has them."""

    def __init__(self, folder: Path, **warm: Any) -> None:
        self.folder = folder
        (folder / "cli.py").write_text(CLI)
        command = [sys.executable, "-S", "-E", str(folder / "cli.py")]
        backend = BackendConfig(enabled=True, command=command, warm=Warm(**warm))
        config = Config(backends={"claude": backend})
        self.stage = Stage(config, folder / "clinvk", {"HOME": str(folder), "PATH": "/usr/bin:/bin"})
        self.calm = True
        self.short = False
        self.pool = Pool(
            config,
            {"claude": ClaudeDriver()},
            self.stage.workspaces,
            lambda *_: "2.1.329",
            instance="ins_1",
            calm=lambda: self.calm,
            short=lambda: self.short,
        )
        self.count = 0

    def mode(self, word: str) -> None:
        (self.folder / "mode").write_text(word)

    @property
    def state(self) -> WarmState:
        return self.pool.states()["claude"]

    async def ready(self, count: int) -> None:
        await until(lambda: self.state.ready == count)

    async def run(self, prompt: str = "say", end: bool = False, **fields: Any) -> Outcome | None:
        """None: it would have gone cold. `end`: it is ended once it is under way."""
        self.count += 1
        spec = RunSpec(**{"id": f"run_{self.count}", "tenant": "t", "backend": "claude", "prompt": prompt} | fields)
        prepared = self.stage.prepare(spec)
        try:
            opened = await self.pool.open(prepared)
            if opened is None:
                return None
            course, parser = opened
            async with course:
                await course.begin()
                if end:
                    async for chunk in course.chunks():
                        parser.feed(chunk)
                        break
                    await course.end(grace_s=5)
                async for chunk in course.chunks():
                    parser.feed(chunk)
                return parser.finish(await course.wait())[1]
        finally:
            prepared.clean()

    async def warm(self, prompt: str = "say", **fields: Any) -> Outcome:
        found = await self.run(prompt, **fields)
        assert found is not None, self.state
        return found


async def until(what: Callable[[], Any], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not what():
            await asyncio.sleep(0.002)


@pytest.fixture
def on_pool(tmp_path: Path, pids: Pids) -> Callable[..., None]:
    def go(test: Callable[[House], Awaitable[None]], **warm: Any) -> None:
        async def main() -> None:
            house = House(tmp_path, **warm)
            tending = asyncio.create_task(house.pool.run())
            try:
                async with asyncio.timeout(60):
                    await test(house)
            finally:
                tending.cancel()
                await house.pool.close()
                house.stage.workspaces.close()
            assert not list((tmp_path / "clinvk" / "runs").iterdir())

        asyncio.run(main())
        assert not pids.alive(*pids.lines().values())

    return go


def answer(outcome: Outcome) -> dict[str, Any]:
    assert outcome.failure is None, outcome.failure
    found: dict[str, Any] = json.loads(outcome.output)
    return found


def test_nothing_is_started_before_a_first_run_and_each_serves_one(on_pool, pids):
    async def test(house: House) -> None:
        assert not pids.lines()
        assert await house.run() is None
        await house.ready(2)

        seen = [answer(await house.warm()) for _ in range(2)]
        await house.ready(2)
        seen.append(answer(await house.warm()))

        assert len({entry["pid"] for entry in seen}) == 3
        assert len({entry["cwd"] for entry in seen}) == 3
        assert house.state.hits == 3
        assert house.state.misses == {"first": 1}
        assert set(house.state.ends) == {"used"}

    on_pool(test, size=2)


def test_a_run_is_told_all_that_is_its_own(on_pool):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)

        found = answer(await house.warm(model="m", effort="high", approval_mode="auto", system_prompt="S"))

        assert [request["subtype"] for request in found["told"]] == [
            "get_settings",
            "apply_flag_settings",
            "set_permission_mode",
            "initialize",
        ]
        assert found["told"][1]["settings"] == {"env": {"CLINVK_RUN": "run_2"}, "model": "m", "effortLevel": "high"}
        assert found["told"][3]["systemPrompt"] == ["S"]
        assert found["tmp"] == found["cwd"].removesuffix("work") + "tmp"

    on_pool(test, size=1)


def test_another_tenant_has_spares_of_its_own_unless_the_host_says_so(on_pool):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)

        assert await house.run(tenant="u") is None

    async def shared(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)

        assert await house.run(tenant="u") is not None

    on_pool(test, size=1)
    on_pool(shared, size=1, scope="host")


def test_a_callers_directory_is_claimed(on_pool, tmp_path):
    (tmp_path / "project").mkdir()
    where = str(tmp_path / "project")

    async def test(house: House) -> None:
        house.stage.workspaces._user_home = "/nowhere"
        assert await house.run(workdir=where) is None
        await house.ready(1)

        found = answer(await house.warm(workdir=where))

        assert found["told"][1] == {"subtype": "claim_session", "cwd": where, "permission_mode": "default"}

    on_pool(test, size=1)


def test_a_directory_that_is_refused_goes_cold_from_then_on(on_pool, tmp_path):
    (tmp_path / "project").mkdir()
    where = str(tmp_path / "project")

    async def test(house: House) -> None:
        assert await house.run(workdir=where) is None
        await house.ready(1)
        house.mode("claim_session")

        assert await house.run(workdir=where) is None
        await house.ready(1)
        assert await house.run(workdir=where) is None

        assert house.state.misses == {"first": 1, "refused": 1, "directory": 1}
        assert house.state.ends == {"refused": 1}

    on_pool(test, size=1)


@pytest.mark.parametrize("mode", ["apply_flag_settings", "set_permission_mode", "initialize"])
def test_a_setting_that_is_refused_means_that_the_spare_never_sees_the_prompt(on_pool, mode):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)
        house.mode(mode)

        assert await house.run(approval_mode="always") is None

        assert house.state.misses["refused"] == 1

    on_pool(test, size=1)


def test_one_that_does_not_answer_in_time_is_ended_and_the_run_goes_cold(on_pool, monkeypatch):
    monkeypatch.setattr("worker.warm.claude._TOLD_WITHIN_S", 0.2)

    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)
        house.mode("deaf")

        assert await house.run() is None
        house.mode("")
        await house.ready(1)

        assert house.state.misses == {"first": 1, "gone": 1}
        assert house.state.ends == {"hung": 1}

    on_pool(test, size=1)


def test_a_spare_that_dies_before_its_run_is_replaced(on_pool, pids):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)
        (first,) = pids.lines().values()
        os.kill(first, signal.SIGKILL)
        await until(lambda: house.state.starts == 2)
        await house.ready(1)

        assert await house.run() is not None

        assert house.state.ends == {"crashed": 1, "used": 1}

    on_pool(test, size=1)


def test_one_that_never_gets_ready_is_given_up_and_the_operator_is_told(on_pool, monkeypatch):
    monkeypatch.setattr(ClaudeDriver, "start_within_s", 0.3)

    async def test(house: House) -> None:
        house.mode("mute")
        assert await house.run() is None
        await until(lambda: house.state.ends)

        assert await house.run() is None

        assert house.state.starts == 1
        assert house.state.cold_because

    on_pool(test, size=1)


def test_a_cli_that_cannot_start_is_not_tried_again_and_again(on_pool):
    async def test(house: House) -> None:
        house.mode("die")
        assert await house.run() is None
        await until(lambda: house.state.cold_because)

        for _ in range(5):
            assert await house.run() is None

        assert house.state.starts == 1

    on_pool(test, size=1)


def test_a_crash_in_the_middle_of_a_run_is_that_runs_failure_with_its_exit_code(on_pool):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)

        found = await house.warm("die")

        assert found.exit_code == 3
        assert found.failure is not None
        assert found.failure.code == "backend_error"
        assert "it went wrong" in found.failure.message
        await house.ready(1)
        assert await house.run() is not None

    on_pool(test, size=1)


def test_an_interrupt_comes_first_and_no_tool_outlives_it(on_pool, pids):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)

        found = await house.warm("tool", end=True)

        assert found.failure is not None
        assert found.failure.cause == "interrupted"  # the CLI's own word: it was asked, not killed
        assert pids.gone(*pids.expect("tool"))

    on_pool(test, size=1)


def test_one_that_does_not_hear_an_interrupt_is_killed(on_pool, pids, monkeypatch):
    monkeypatch.setattr("worker.warm.claude._INTERRUPTED_WITHIN_S", 0.2)

    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)
        (pid,) = [pid for name, pid in pids.lines().items() if name.startswith("cli")]
        going = asyncio.create_task(house.warm("hang", end=True))
        await until(lambda: "hangs" in pids.lines())
        house.calm = False
        os.kill(pid, signal.SIGSTOP)

        found = await going

        assert found.exit_code == -signal.SIGKILL
        assert pids.gone(pid)

    on_pool(test, size=1)


def test_a_run_that_is_given_up_before_it_began_leaves_nothing(on_pool, pids):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)
        house.calm = False
        house.mode("deaf")
        going = asyncio.create_task(house.run())
        await until(lambda: house.state.running)
        going.cancel()

        with pytest.raises(asyncio.CancelledError):
            await going

        assert not pids.alive(*pids.lines().values())
        assert house.state.running == 0

    on_pool(test, size=1)


def test_none_is_started_while_the_host_is_busy_or_short_of_memory(on_pool):
    async def test(house: House) -> None:
        house.calm = False
        assert await house.run() is None
        await asyncio.sleep(0)
        assert await house.run() is None
        assert house.state.starts == 0
        assert house.state.misses == {"first": 1, "spent": 1}

        house.short, house.calm = True, True
        assert await house.run() is None
        assert house.state.starts == 0

        house.short = False
        assert await house.run() is None
        await house.ready(1)

    on_pool(test, size=1)


def test_one_whose_login_or_settings_have_changed_is_not_used(on_pool, tmp_path):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)
        old = house.pool._kept["claude"][0]
        (tmp_path / ".claude").mkdir()
        (tmp_path / ".claude" / "settings.json").write_text("{}")

        assert await house.run() is None
        await until(lambda: house.state.ready == 1 and house.pool._kept["claude"][0] is not old)

        assert await house.run() is not None
        assert house.state.ends["stale"] == 1

    on_pool(test, size=1)


def test_another_account_makes_one_stale_and_the_clis_own_counting_does_not(on_pool, tmp_path):
    state = tmp_path / ".claude.json"

    async def test(house: House) -> None:
        state.write_text('{"numStartups": 1, "oauthAccount": {"accountUuid": "a"}}')
        assert await house.run() is None
        await house.ready(1)
        state.write_text('{"numStartups": 22, "oauthAccount": {"accountUuid": "a"}, "projects": {"/x": {}}}')
        assert await house.run() is not None
        await house.ready(1)
        state.write_text('{"numStartups": 23, "oauthAccount": {"accountUuid": "b"}}')

        assert await house.run() is None
        assert house.state.misses == {"first": 1, "spent": 1}
        await until(lambda: house.state.ends.get("stale"))

    on_pool(test, size=1)


def test_one_that_waits_for_long_is_renewed_only_while_it_is_asked_for(on_pool, monkeypatch):
    monkeypatch.setattr("worker.warm.pool._LOOK_S", 0.05)

    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)
        await until(lambda: house.state.ends.get("idle"))
        await until(lambda: not house.state.kept)

    on_pool(test, size=1, idle_secs=0.3)


def test_switched_off_none_is_kept(on_pool):
    async def test(house: House) -> None:
        assert await house.run() is None
        assert await house.run() is None
        assert house.state.misses == {"off": 2}

    on_pool(test, mode="off")


def test_a_spare_that_waits_is_no_stray_and_carries_a_tag_of_its_own(on_pool, pids):
    async def test(house: House) -> None:
        assert await house.run() is None
        await house.ready(1)
        resident = house.pool._kept["claude"][0]
        assert resident.process is not None
        pid = resident.process.pid

        assert tree.tag_of(pid) == resident.mark.tag
        assert pid not in [seen.pid for seen in tree.strays()]

    on_pool(test, size=1)
