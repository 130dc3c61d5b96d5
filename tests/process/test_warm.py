"""Runs on warm processes that misbehave: each ends truly, the others are harmed no more than must be, nothing is left."""

import asyncio
import os
import shutil
import signal
import sys

import msgspec
import pytest

from shared.run import Status
from tests.process import scripts
from tests.process.conftest import Pids
from tests.process.test_priority import is_low
from tests.process.warm import World, cause, host_of, text
from worker import tree
from worker.warm import codex, guest
from worker.warm import pool as pool_module
from worker.warm.resident import State

pytestmark = [pytest.mark.usefixtures("subreaper"), pytest.mark.redis]


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
    ("more", "reason", "says"),
    [
        ({"mode": "off"}, "off", "backends.codex.warm.mode is off"),
        ({"version": ""}, "version", "version of codex is not known"),
        ({"version": "0.168.9"}, "version", "codex 0.168.9 is older than 0.169.0"),
        ({"version": "new"}, "version", "codex new is older"),
    ],
)
def test_what_may_not_or_cannot_be_warm_is_never_started_and_it_is_said_why(on_warm, caplog, more, reason, says):
    async def test(world: World) -> None:
        for _ in range(2):
            assert text(await world.run()) == "cold"

        assert world.state.misses == {reason: 2}
        assert world.state.starts == 0
        assert says in (world.state.cold_because or "")

    on_warm(test, **more)
    lines = [row.getMessage() for row in caplog.records if "one process a run" in row.getMessage()]
    assert [says in line for line in lines] == ([True] if reason == "version" else [])


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
        (one,) = world.pool._kept["codex"]
        while one.process is None:
            await asyncio.sleep(0)
        assert is_low(one.process.pid)
        (tmp_path / "go").touch()
        await world.ready()

        assert not is_low(one.process.pid)
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
        usual = world.runner._limits  # the start of a CLI may take longer
        world.runner._limits = msgspec.structs.replace(usual, **limit)
        run = await world.run("hang")
        world.runner._limits = usual
        after = await world.run()

        assert run.outcome is not None
        assert run.outcome.failure is not None
        assert run.outcome.failure.code == "timeout"
        assert run.outcome.exit_code is None
        assert host_of(before) == host_of(after)

    on_warm(test)


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


@pytest.mark.parametrize("grown_mb", [110, 200])
def test_one_that_has_grown_is_replaced_and_its_run_goes_on(on_warm, monkeypatch, grown_mb):
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.05)

    async def test(world: World) -> None:
        await world.heat()
        (one,) = world.pool._kept["codex"]
        spec, task = await world.begin(f"grow {grown_mb}")
        await world.speaking(spec)
        while one.state is not State.DRAINING:
            await asyncio.sleep(0.005)
        while not world.state.ready:
            await world.run()
        assert text(await world.run()).endswith("warm")
        assert not task.done()
        world.cancel(spec)

        assert (await task).status is Status.CANCELLED
        while world.state.ends != {"memory": 1}:
            await asyncio.sleep(0.005)

    on_warm(test, max_rss_mb=100)


def test_one_that_leaks_without_end_is_ended_and_its_runs_are_told_why(on_warm, monkeypatch):
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.05)

    async def test(world: World) -> None:
        await world.heat()
        beside, other = await world.begin("hang")
        await world.speaking(beside)
        leak = await world.run("grow 400")

        for run in (leak, await other):
            assert run.outcome is not None
            assert run.outcome.failure is not None
            assert (run.outcome.failure.code, run.outcome.failure.cause) == ("backend_error", "out_of_memory")
            assert "100 were its limit" in run.outcome.failure.message
        while not world.state.ready:
            await world.run()
        assert text(await world.run()).endswith("warm")
        assert world.state.ends == {"leaked": 1}

    on_warm(test, max_rss_mb=100)


def test_with_little_memory_left_on_the_host_less_is_too_much(on_warm, monkeypatch):
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.05)

    async def test(world: World) -> None:
        await world.heat()
        spec, task = await world.begin("grow 200")
        await world.speaking(spec)
        world.short = True

        assert cause(await task) == "out_of_memory"

    on_warm(test, max_rss_mb=100)


def test_what_a_runs_tool_holds_is_not_held_against_the_process(on_warm, monkeypatch, pids: Pids):
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.05)
    code = "import time; data = b'x' * (400 << 20); time.sleep(300)"
    large = f'{sys.executable} -S -E -c "{code}"'

    async def test(world: World) -> None:
        await world.heat()
        spec, task = await world.begin(f"tool {large}")
        while world.state.memory_bytes < 400 << 20:
            await asyncio.sleep(0.005)
        await world.run()
        world.cancel(spec)

        assert (await task).status is Status.CANCELLED
        assert (world.state.hits, world.state.ready, world.state.ends) == (2, 1, {})

    on_warm(test, max_rss_mb=100)


def test_one_whose_login_has_changed_takes_no_more_runs(on_warm, tmp_path):
    async def test(world: World) -> None:
        await world.heat()
        for name in ("auth.json", "config.toml"):
            (tmp_path / ".codex").mkdir(exist_ok=True)
            (tmp_path / ".codex" / name).write_text("# another")
            assert text(await world.run()) == "cold"
            await world.ready()
            assert text(await world.run()).endswith("warm")

        assert world.state.ends == {"stale": 2}

    on_warm(test)


def test_one_whose_cli_was_replaced_takes_no_more_runs(on_warm, tmp_path):
    cli = tmp_path / "cli" / "appserver.py"

    async def test(world: World) -> None:
        await world.heat()
        shutil.copy(cli, cli.with_suffix(".new"))
        cli.with_suffix(".new").rename(cli)
        assert text(await world.run()) == "cold"
        await world.ready()
        assert text(await world.run()).endswith("warm")
        assert world.state.ends == {"stale": 1}

        (tmp_path / "cli" / "package.json").write_text('{"name": "@openai/codex", "version": "0.100.0"}')
        assert text(await world.run()) == "cold"
        assert world.state.misses["version"] == 1

    on_warm(test)


def test_a_login_that_is_not_taken_may_have_been_replaced_in_a_new_process(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        assert cause(await world.run("unauthorized")) == "login"
        assert text(await world.run()) == "cold"
        await world.ready()

        assert text(await world.run()).endswith("warm")
        assert world.state.ends == {"login": 1}

    on_warm(test)


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


def test_the_least_used_gives_way_to_one_that_comes_more_where_there_is_room_for_no_more(on_warm):
    async def test(world: World) -> None:
        await world.heat(tenant="a")
        for _ in range(2):
            assert text(await world.run(tenant="b")) == "cold"
        while world.state.ends != {"size": 1} or world.state.ready != 1:
            await asyncio.sleep(0.005)

        assert text(await world.run(tenant="b")).endswith("warm")
        assert world.state.misses == {"first": 2, "size": 1}

    on_warm(test, size=1)


def test_with_more_tenants_than_places_those_that_have_one_keep_it(on_warm):
    async def test(world: World) -> None:
        for _ in range(4):
            for tenant in "abc":
                await world.run(tenant=tenant)
                while world.state.ready < world.state.kept:
                    await asyncio.sleep(0.002)

        assert (world.state.starts, world.state.hits) == (2, 6)
        assert world.state.misses == {"first": 2, "size": 4}
        assert world.state.ends == {}

    on_warm(test, size=2)


def test_where_one_has_waited_in_vain_more_runs_must_come_before_another_is_started(on_warm, monkeypatch):
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.05)

    async def test(world: World) -> None:
        await world.heat()
        while world.state.kept:
            await asyncio.sleep(0.005)

        assert text(await world.run()) == "cold"
        assert world.state.starts == 1
        assert text(await world.run()) == "cold"
        assert world.state.starts == 2
        assert world.state.misses == {"first": 2, "rare": 1}

    on_warm(test, idle_secs=0.1)


def test_one_that_is_busy_does_not_give_way(on_warm):
    async def test(world: World) -> None:
        await world.heat(tenant="a")
        spec, task = await world.begin("hang", tenant="a")
        await world.speaking(spec)
        for _ in range(5):
            assert text(await world.run(tenant="b")) == "cold"

        assert world.state.misses == {"first": 1, "size": 5}
        world.cancel(spec)
        await task

    on_warm(test, size=1)


# -- the end


def test_the_end_of_the_worker_does_not_wait_for_a_start(on_warm, tmp_path):
    async def test(world: World) -> None:
        assert text(await world.run()) == "cold"
        (one,) = world.pool._kept["codex"]
        while one.process is None:
            await asyncio.sleep(0)
        begun = asyncio.get_running_loop().time()
        await world.pool.close()

        assert asyncio.get_running_loop().time() - begun < 3
        assert world.state.ends == {"shutdown": 1}

    on_warm(test, start=f"slow:{tmp_path}/never")


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
