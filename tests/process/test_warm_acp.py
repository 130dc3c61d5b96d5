"""Runs on a resident gemini that asks, refuses and falls silent; with a stand-in that speaks its protocol."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.run import Status, Turn
from tests.process.warm import World, cause, host_of, text
from tests.servers import RedisServer
from worker.warm import gemini

pytestmark = [pytest.mark.usefixtures("subreaper"), pytest.mark.redis]

HISTORY = (Turn(role="user", text="earlier"), Turn(role="assistant", text="yes"))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    server = RedisServer(fsync="no")
    yield server
    server.close()


@pytest.fixture
def on_warm(server: RedisServer, tmp_path: Path) -> Callable[..., None]:
    client = server.client()
    client.flushall()
    client.close()

    def go(test: Callable[[World], Awaitable[None]], **more: Any) -> None:
        async def main() -> None:
            world = World(server.url, tmp_path, backend="gemini", **more)
            await world.open()
            try:
                async with asyncio.timeout(60):
                    await test(world)
            finally:
                await world.close()

        asyncio.run(main())
        assert not list((tmp_path / "clinvk" / "runs").iterdir())

    return go


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ("proceed_always proceed_once cancel", {"outcome": "selected", "optionId": "cancel"}),
        ("proceed_once", {"outcome": "cancelled"}),
        ("", {"outcome": "cancelled"}),
    ],
)
def test_whatever_asks_is_denied_and_shown_as_a_tool_that_failed(on_warm, options, answer):
    async def test(world: World) -> None:
        await world.heat()
        run = await world.run(f"permit {options}")

        assert run.status is Status.SUCCEEDED
        assert json.loads(text(run)) == {"outcome": answer}
        events = [json.loads(line) for line in await world.store.events.read(run.spec.id, after=0)]
        used, result = [event for event in events if event["type"].startswith("tool_")]
        assert (used["type"], used["content"]["name"]) == ("tool_use", "write_file")
        assert (result["type"], result["content"]["is_error"]) == ("tool_result", True)

    on_warm(test)


def test_what_nobody_answers_is_told_so_and_the_run_goes_on(on_warm):
    async def test(world: World) -> None:
        await world.heat()

        assert text(await world.run("odd")) == "-32601"
        assert world.state.ends == {}

    on_warm(test)


@pytest.mark.parametrize("start", ["version", "mute:initialize", "login:initialize"])
def test_one_that_speaks_another_protocol_or_nothing_serves_nobody(on_warm, monkeypatch, start):
    monkeypatch.setattr(gemini.GeminiDriver, "start_within_s", 1.0)

    async def test(world: World) -> None:
        assert text(await world.run()) == "cold"
        while world.state.kept:
            await asyncio.sleep(0.005)

        assert text(await world.run()) == "cold"
        assert world.state.misses == {"first": 1, "failing": 1}
        assert world.state.ends == {"start": 1}

    on_warm(test, start=start)


@pytest.mark.parametrize("method", ["session/new", "session/set_model", "session/set_mode"])
def test_one_that_does_not_answer_is_ended_and_the_run_goes_cold(on_warm, monkeypatch, method):
    monkeypatch.setattr(gemini, "_CALL_S", 0.3)
    mode = {"approval_mode": "auto"} if method == "session/set_mode" else {}

    async def test(world: World) -> None:
        await world.heat(**mode)

        assert text(await world.run(**mode)) == "cold"
        while not world.state.ends:
            await asyncio.sleep(0.005)
        assert world.state.ends == {"hung": 1}
        assert world.state.misses["gone"] == 1

    on_warm(test, start=f"mute:{method}")


def test_a_model_that_is_refused_goes_cold_and_the_process_goes_on(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        first = await world.run()

        assert text(await world.run(model="refused")) == "cold"
        assert host_of(await world.run()) == host_of(first)
        assert world.state.misses == {"first": 1, "refused": 1}

    on_warm(test)


def test_a_history_that_is_not_said_again_goes_cold(on_warm, monkeypatch):
    monkeypatch.setattr(gemini, "_TOLD_S", 0.3)

    async def test(world: World) -> None:
        await world.heat()

        assert text(await world.run(history=HISTORY)) == "cold"
        assert text(await world.run()).endswith("warm")
        assert world.state.misses == {"first": 1, "refused": 1}

    on_warm(test, start="silent")


def test_a_history_is_said_again_before_the_prompt_and_is_no_part_of_the_answer(on_warm):
    async def test(world: World) -> None:
        await world.heat()

        assert text(await world.run(history=HISTORY)).startswith("say ")

    on_warm(test)


@pytest.mark.parametrize(("env", "ends"), [({}, {"login": 1}), ({"GEMINI_API_KEY": "k"}, {})])
def test_a_refused_login_is_a_cause_and_renews_the_process_where_files_may_have_changed(on_warm, env, ends):
    async def test(world: World) -> None:
        await world.heat()

        assert cause(await world.run("login")) == "login"
        while ends and world.state.kept:
            await asyncio.sleep(0.005)
        assert world.state.ends == ends

    on_warm(test, env=env)


def test_a_login_that_is_refused_before_the_turn_goes_cold_and_renews_the_process(on_warm):
    async def test(world: World) -> None:
        await world.heat()

        assert text(await world.run()) == "cold"
        while world.state.kept:
            await asyncio.sleep(0.005)
        assert world.state.ends == {"login": 1}

    on_warm(test, start="login:session/new")


def test_a_cancelled_turn_ends_and_its_neighbours_go_on(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        mine, ending = await world.begin("hang")
        other, neighbour = await world.begin("hang")
        await world.speaking(mine)
        await world.speaking(other)
        world.cancel(mine)

        assert (await ending).status is Status.CANCELLED
        assert not neighbour.done()
        world.cancel(other)
        assert (await neighbour).status is Status.CANCELLED
        assert world.state.ends == {}

    on_warm(test)
