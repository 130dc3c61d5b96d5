"""Runs on warm processes that misbehave: each ends truly, the others are harmed no more than must be, nothing is left."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.run import Status
from tests.process import scripts
from tests.process.conftest import Pids
from tests.process.warm import World, cause, host_of, text
from tests.servers import RedisServer
from worker import tree
from worker.warm import codex, guest
from worker.warm import pool as pool_module

pytestmark = [pytest.mark.usefixtures("subreaper"), pytest.mark.redis]


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
            world = World(server.url, tmp_path, **more)
            await world.open()
            try:
                async with asyncio.timeout(60):
                    await test(world)
            finally:
                await world.close()

        asyncio.run(main())
        assert not list((tmp_path / "clinvk" / "runs").iterdir())

    return go


# -- which way


def test_the_first_run_goes_cold_and_the_next_is_warm_with_its_text_as_it_comes(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        run = await world.run("say")

        assert run.status is Status.SUCCEEDED
        assert text(run).endswith("warm")
        assert run.outcome is not None
        assert (run.outcome.exit_code, run.outcome.turns) == (0, 1)
        assert run.outcome.usage is not None
        assert (run.outcome.usage.input_tokens, run.outcome.usage.output_tokens) == (10, 2)
        assert (world.state.hits, world.state.misses, world.state.starts) == (1, {"first": 1}, 1)

    on_warm(test)


def test_many_at_once_share_one_process_and_keep_their_answers_apart(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        runs = await asyncio.gather(*[world.run(f"word{i}") for i in range(30)])

        assert [text(run).split()[0] for run in runs] == [f"word{i}" for i in range(30)]
        assert len({host_of(run) for run in runs}) == 1
        assert world.state.starts == 1

    on_warm(test)


@pytest.mark.parametrize(
    ("more", "fields", "reason"),
    [
        ({"mode": "off"}, {}, "off"),
        ({"version": ""}, {}, "version"),
        ({"version": "0.168.9"}, {}, "version"),
        ({"version": "new"}, {}, "version"),
    ],
)
def test_what_may_not_or_cannot_be_warm_is_never_started(on_warm, more, fields, reason):
    async def test(world: World) -> None:
        for _ in range(2):
            assert text(await world.run(**fields)) == "cold"

        assert world.state.misses == {reason: 2}
        assert world.state.starts == 0

    on_warm(test, **more)


def test_little_memory_starts_nothing_and_ends_what_is_idle(on_warm, monkeypatch):
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.05)

    async def test(world: World) -> None:
        world.short = True
        assert text(await world.run()) == "cold"
        assert (world.state.misses, world.state.starts) == ({"memory": 1}, 0)

        world.short = False
        await world.heat()
        world.short = True
        while world.state.kept:
            await asyncio.sleep(0.005)
        assert world.state.ends == {"scarce": 1}

    on_warm(test)


@pytest.mark.parametrize("start", ["exit", "refuse"])
def test_one_that_cannot_be_started_is_told_of_and_not_tried_again_soon(on_warm, start):
    async def test(world: World) -> None:
        assert text(await world.run()) == "cold"
        while world.state.kept:
            await asyncio.sleep(0.005)

        assert text(await world.run()) == "cold"
        assert world.state.misses == {"first": 1, "failing": 1}
        assert world.state.starts == 1
        assert world.state.cold_because

    on_warm(test, start=start)


def test_a_slow_start_holds_nobody_back(on_warm, tmp_path):
    async def test(world: World) -> None:
        assert text(await world.run()) == "cold"
        assert text(await world.run()) == "cold"
        assert world.state.misses == {"first": 1, "starting": 1}
        (tmp_path / "go").touch()
        await world.ready()

        assert text(await world.run()).endswith("warm")

    on_warm(test, start=f"slow:{tmp_path}/go")


def test_a_thread_that_is_refused_goes_cold_and_the_others_go_on(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        first = await world.run()
        assert text(await world.run(model="refused")) == "cold"
        second = await world.run()

        assert host_of(first) == host_of(second)
        assert world.state.misses == {"first": 1, "refused": 1}

    on_warm(test)


def test_one_that_does_not_answer_is_ended_and_the_run_goes_cold(on_warm, monkeypatch):
    monkeypatch.setattr(codex, "_CALL_S", 0.3)

    async def test(world: World) -> None:
        await world.heat()
        first = await world.run()
        assert text(await world.run(model="mute")) == "cold"
        assert text(await world.run()) == "cold"
        await world.ready()
        second = await world.run()

        assert host_of(first) != host_of(second)
        assert world.state.ends == {"hung": 1}

    on_warm(test)


def test_a_turn_that_is_refused_is_a_failure_in_its_words(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        run = await world.run("refuse")

        assert run.status is Status.FAILED
        assert run.outcome is not None
        assert run.outcome.failure is not None
        assert "it will not" in run.outcome.failure.message
        assert world.state.ends == {}

    on_warm(test)


# -- one that misbehaves


def test_one_that_dies_fails_the_runs_on_it_and_the_next_is_served(on_warm, tmp_path):
    async def test(world: World) -> None:
        await world.heat()
        first, dying = await world.begin(f"die {tmp_path}/now")
        second, other = await world.begin("hang")
        await world.speaking(first)
        await world.speaking(second)
        (tmp_path / "now").touch()
        runs = [await dying, await other]

        for run in runs:
            assert run.status is Status.FAILED
            assert run.outcome is not None
            assert run.outcome.failure is not None
            assert (run.outcome.failure.code, run.outcome.failure.cause) == ("backend_error", "crashed")
            assert "too many requests" not in run.outcome.failure.message, "another run's words"
            assert run.outcome.output == "begun "
        assert text(await world.run()) == "cold"
        await world.ready()
        assert text(await world.run()).endswith("warm")
        assert world.state.ends == {"crashed": 1}

    on_warm(test)


def test_what_a_process_says_of_a_prompt_when_it_refuses_or_dies_is_in_no_log_line(on_warm, caplog):
    caplog.set_level("DEBUG")

    async def test(world: World) -> None:
        await world.heat()
        refused = await world.run("say", model="refused")
        died = await world.run("blurt xyzzy-canary")
        while world.state.kept:
            await asyncio.sleep(0.005)

        assert text(refused) == "cold"
        assert cause(died) == "crashed"
        assert (world.state.misses["refused"], world.state.ends) == (1, {"crashed": 1})
        assert "xyzzy" not in str(world.state)

    on_warm(test)
    said = [row.getMessage() for row in caplog.records]
    assert "a run goes another way than the warm codex: thread/start was refused (-32600)" in said
    assert "a warm codex ended after 2 runs: crashed (exit code 101)" in said
    assert not [line for line in said if "xyzzy" in line]


@pytest.mark.parametrize("limit", [{"idle_s": 0.3}, {"timeout_s": 0.3}])
def test_a_turn_that_hangs_ends_at_the_runs_limit_and_its_process_goes_on(on_warm, limit):
    async def test(world: World) -> None:
        await world.heat()
        before = await world.run()
        run = await world.run("hang")
        after = await world.run()

        assert run.outcome is not None
        assert run.outcome.failure is not None
        assert run.outcome.failure.code == "timeout"
        assert run.outcome.exit_code is None
        assert host_of(before) == host_of(after)

    on_warm(test, **limit)


def test_an_interrupt_that_is_not_answered_ends_the_process(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        deaf, ending = await world.begin("deaf")
        beside, other = await world.begin("hang")
        await world.speaking(deaf)
        await world.speaking(beside)
        world.cancel(deaf)

        assert (await ending).status is Status.CANCELLED
        assert cause(await other) == "crashed"
        assert text(await world.run()) == "cold"
        await world.ready()
        assert text(await world.run()).endswith("warm")
        assert world.state.ends == {"hung": 1}

    on_warm(test)


def test_lines_that_are_nothing_do_no_harm(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        run = await world.run("garbage")

        assert run.status is Status.SUCCEEDED
        assert text(run).startswith("garbage")

    on_warm(test)


@pytest.mark.parametrize("what", ["nonsense", "stray", "line"])
def test_one_that_talks_without_end_of_nothing_is_ended(on_warm, what):
    async def test(world: World) -> None:
        await world.heat()

        assert cause(await world.run(what)) == "crashed"
        assert world.state.ends == {"hung": 1}

    on_warm(test)


def test_a_run_with_too_much_output_ends_and_the_others_go_on(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        beside, other = await world.begin("hang")
        await world.speaking(beside)
        flood = await world.run("flood")

        assert cause(flood) == "output_too_large"
        world.cancel(beside)
        assert (await other).status is Status.CANCELLED
        assert world.state.ends == {}

    on_warm(test)


# -- cancel, and what a run leaves


def test_a_cancelled_run_leaves_no_process_and_its_neighbours_keep_theirs(on_warm, tmp_path, pids: Pids):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    stay, far = scripts.tool("stay", pids.file), scripts.daemon("far", pids.file)

    async def test(world: World) -> None:
        await world.heat()
        host = host_of(await world.run())
        mine, ending = await world.begin(f"tool {stay} read x < {fifo}; {far} wait")
        other, neighbour = await world.begin(f"tool {scripts.tool('other', pids.file)} wait")
        known, _ = await asyncio.to_thread(pids.expect, "stay", "other")
        while tree.tag_of(known) == tree.tag_of(host):  # as at first, when it has just been started
            await asyncio.sleep(0.005)
        await asyncio.to_thread(fifo.write_text, "go\n")
        found = await asyncio.to_thread(pids.expect, "stay", "far", "other")
        world.cancel(mine)

        assert (await ending).status is Status.CANCELLED
        assert pids.gone(*found[:2])
        assert pids.alive(found[2])
        world.cancel(other)
        assert (await neighbour).status is Status.CANCELLED
        assert pids.gone(found[2])
        assert world.state.ends == {}

    on_warm(test)


def test_what_nobody_can_tell_whose_it_is_ends_with_the_process_when_its_last_run_has_ended(on_warm, pids: Pids):
    async def test(world: World) -> None:
        await world.heat()
        beside, other = await world.begin("hang")
        await world.speaking(beside)
        spec, ending = await world.begin(f"late {scripts.daemon('far', pids.file)} sleep 0.1")
        found = await asyncio.to_thread(pids.expect, "far")
        await world.speaking(spec)
        world.cancel(spec)
        assert (await ending).status is Status.CANCELLED

        assert world.state.ready == 0
        assert not (await world.get(beside)).status.final
        world.cancel(beside)
        assert (await other).status is Status.CANCELLED
        while world.state.kept:
            await asyncio.sleep(0.005)
        assert pids.gone(*found)
        assert world.state.ends == {"leftovers": 1}

    on_warm(test)


# -- how long one is kept


def test_after_so_many_runs_another_takes_its_place(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        first, second = await world.run(), await world.run()
        assert host_of(first) == host_of(second)
        while world.state.ends != {"recycle": 1}:
            await asyncio.sleep(0.005)
        third = await world.run()

        assert host_of(third) != host_of(first)
        assert world.state.misses == {"first": 1}

    on_warm(test, recycle_after=2)


def test_it_is_never_recycled_under_a_run(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        spec, task = await world.begin("hang")
        await world.speaking(spec)
        await world.run()
        while world.state.starts < 2 or world.state.ready != 1:
            await asyncio.sleep(0.005)
        assert not task.done()
        world.cancel(spec)

        assert (await task).status is Status.CANCELLED
        while world.state.kept > 1:
            await asyncio.sleep(0.005)
        assert world.state.ends == {"recycle": 1}

    on_warm(test, recycle_after=2)


def test_one_that_nobody_needs_is_ended(on_warm, monkeypatch):
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.05)

    async def test(world: World) -> None:
        await world.heat()
        while world.state.kept:
            await asyncio.sleep(0.005)

        assert world.state.ends == {"idle": 1}

    on_warm(test, idle_secs=0.1)


def test_one_that_has_grown_is_replaced(on_warm, monkeypatch):
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.05)

    async def test(world: World) -> None:
        await world.heat()
        while not world.state.ends:
            await asyncio.sleep(0.005)

        assert set(world.state.ends) == {"memory"}

    on_warm(test, max_rss_mb=1)


def test_what_a_process_holds_is_known_as_soon_as_it_is_ready(on_warm):
    async def test(world: World) -> None:
        await world.heat()

        assert world.state.memory_bytes > 1 << 20

    on_warm(test)


@pytest.mark.parametrize(("scope", "count"), [("tenant", 2), ("host", 1)])
def test_tenants_share_a_process_only_where_the_operator_says_so(on_warm, scope, count):
    async def test(world: World) -> None:
        await world.heat(tenant="a")
        if scope == "tenant":
            assert text(await world.run(tenant="b")) == "cold"
            await world.ready(2)
        runs = [await world.run(tenant=tenant) for tenant in "abab"]

        assert len({host_of(run) for run in runs}) == count
        assert host_of(runs[0]) == host_of(runs[2])

    on_warm(test, scope=scope)


def test_the_least_used_gives_way_where_there_is_room_for_no_more(on_warm):
    async def test(world: World) -> None:
        await world.heat(tenant="a")
        assert text(await world.run(tenant="b")) == "cold"
        while world.state.ends != {"size": 1} or world.state.ready != 1:
            await asyncio.sleep(0.005)

        assert text(await world.run(tenant="b")).endswith("warm")

    on_warm(test, size=1)


def test_one_that_is_busy_does_not_give_way(on_warm):
    async def test(world: World) -> None:
        await world.heat(tenant="a")
        spec, task = await world.begin("hang", tenant="a")
        await world.speaking(spec)
        assert text(await world.run(tenant="b")) == "cold"

        assert world.state.misses == {"first": 1, "size": 1}
        world.cancel(spec)
        await task

    on_warm(test, size=1)


# -- the end


def test_a_killed_process_in_the_middle_of_two_runs(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        pid = host_of(await world.run())
        begun = [await world.begin("hang") for _ in range(2)]
        for spec, _ in begun:
            await world.speaking(spec)
        os.kill(pid, signal.SIGKILL)

        assert [cause(await task) for _, task in begun] == ["crashed", "crashed"]

    on_warm(test)


def test_a_run_whose_lease_is_lost_is_gone_within_its_second(on_warm, pids: Pids):
    async def test(world: World) -> None:
        await world.heat()
        spec, task = await world.begin(f"tool {scripts.tool('stay', pids.file)} wait")
        found = await asyncio.to_thread(pids.expect, "stay")
        await world.speaking(spec)
        await world.store.redis("HSET", f"clinvk:run:{spec.id}", "token", "another")
        begun = asyncio.get_running_loop().time()
        await world.runner._renew()
        await task

        assert asyncio.get_running_loop().time() - begun < 1.0
        assert pids.gone(*found)

    on_warm(test)


def test_a_hundred_runs_with_faults_among_them_end_once_and_leave_nothing(on_warm, tmp_path, monkeypatch, pids: Pids):
    monkeypatch.setattr(guest, "_INTERRUPT_S", 0.3)
    (tmp_path / "now").touch()
    faults = [
        "say",
        "hang",
        "say",
        f"die {tmp_path}/now",
        "garbage",
        "deaf",
        f"tool {scripts.tool('t', pids.file)} wait",
    ]

    async def one(world: World, number: int) -> Status:
        spec, task = await world.begin(faults[number % len(faults)])
        if faults[number % len(faults)].split()[0] in ("hang", "deaf", "tool"):
            while not task.done() and (await world.get(spec)).sequence < 2:
                await asyncio.sleep(0.005)
            world.cancel(spec)
        return (await task).status

    async def test(world: World) -> None:
        room = asyncio.Semaphore(8)

        async def held(number: int) -> Status:
            async with room:
                return await one(world, number)

        ends = await asyncio.gather(*[held(number) for number in range(100)])

        assert len(ends) == 100
        assert all(status.final for status in ends)

    on_warm(test)
