"""Runs that must end at any moment on a warm process, and one run's trouble that is no other run's."""

import asyncio
import os
import signal

import pytest

from shared.ids import new_id
from shared.run import Run, Status
from tests.process import scripts
from tests.process.conftest import Pids
from tests.process.warm import World, cause, host_of, text
from worker.warm import codex

pytestmark = [pytest.mark.usefixtures("subreaper"), pytest.mark.redis]


async def within(run: "asyncio.Task[Run]", limit_s: float) -> Run:
    async with asyncio.timeout(limit_s):
        return await run


async def neighbour_ends(world: World, spec, task: "asyncio.Task[Run]") -> None:
    """It was under way until now, and its process hears of its end."""
    assert not task.done()
    world.cancel(spec)
    assert (await within(task, 2)).status is Status.CANCELLED
    assert world.state.ends == {}


# -- a stop at any moment


@pytest.mark.parametrize("prompt", ["hang", "coming {never}", "shy {soon}"])
def test_a_cancel_before_the_cli_has_told_of_the_turn_ends_that_run_alone(on_warm, tmp_path, prompt):
    async def test(world: World) -> None:
        await world.heat()
        beside, other = await world.begin("hang")
        await world.speaking(beside)
        spec, task = await world.begin(prompt.format(never=tmp_path / "never", soon=tmp_path / "soon"))
        await world.held(spec)
        if prompt != "hang":
            await world.speaking(spec, 1)
        world.cancel(spec)
        await asyncio.sleep(0)  # it is told so, then comes what it waits for
        (tmp_path / "soon").touch()

        assert (await within(task, 2)).status is Status.CANCELLED
        await neighbour_ends(world, beside, other)

    on_warm(test)


def test_a_cancel_at_any_step_of_the_loop_ends_that_run_alone(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        beside, other = await world.begin("hang")
        await world.speaking(beside)
        for steps in range(40):
            spec, task = await world.begin("hang")
            await world.held(spec)
            for _ in range(steps):
                await asyncio.sleep(0)
            world.cancel(spec)
            assert (await within(task, 3)).status is Status.CANCELLED
        await neighbour_ends(world, beside, other)

    on_warm(test)


@pytest.mark.parametrize("how", ["cancelled", "lost", "late"])
def test_a_run_that_must_end_while_it_is_opened_ends_and_does_nothing_in_any_way(on_warm, tmp_path, how):
    async def test(world: World) -> None:
        await world.heat()
        host = host_of(await world.run())
        os.kill(host, signal.SIGSTOP)
        try:
            # A run by a process of its own would have an output.
            spec, task = await world.begin(f"tool touch {tmp_path}/done", timeout_s=0.2 if how == "late" else None)
            await world.held(spec)
            await asyncio.sleep(0)
            if how == "cancelled":
                world.cancel(spec)
            elif how == "lost":
                await world.store.redis("HSET", f"clinvk:run:{spec.id}", "token", "another")
                await world.runner._renew()
            run = await within(task, 1)
        finally:
            os.kill(host, signal.SIGCONT)

        if how != "lost":
            assert text(run) == ""
            assert cause(run) == {"cancelled": "cancelled", "late": "timed_out"}[how]
        assert host_of(await world.run()) == host
        assert not (tmp_path / "done").exists()
        assert world.state.ends == {}
        assert world.state.misses == {"first": 1}

    on_warm(test)


def test_a_process_that_does_not_answer_is_found_out_though_its_run_has_ended(on_warm, monkeypatch):
    monkeypatch.setattr(codex, "_CALL_S", 0.5)

    async def test(world: World) -> None:
        await world.heat()
        os.kill(host_of(await world.run()), signal.SIGSTOP)
        spec, task = await world.begin("say")
        await world.held(spec)
        world.cancel(spec)
        assert (await task).status is Status.CANCELLED
        while not world.state.ends:
            await asyncio.sleep(0.005)

        assert world.state.ends == {"hung": 1}

    on_warm(test)


# -- one run's trouble


def test_a_refused_turn_of_a_session_harms_no_other(on_warm):
    async def test(world: World) -> None:
        await world.heat()
        beside, other = await world.begin("hang")
        await world.speaking(beside)
        _, task = await world.begin("refuse", session_id=new_id("ses"))

        assert (await task).status is Status.FAILED
        await neighbour_ends(world, beside, other)
        assert world.state.ready == 1

    on_warm(test)


def test_a_session_that_is_not_let_go_of_ends_its_process_when_the_others_have_ended(on_warm, tmp_path):
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "appserver.py.archives").touch()

    async def test(world: World) -> None:
        await world.heat()
        beside, other = await world.begin("hang")
        await world.speaking(beside)
        _, task = await world.begin("say", session_id=new_id("ses"))

        assert (await task).status is Status.SUCCEEDED
        assert world.state.ready == 0
        await neighbour_ends(world, beside, other)
        while world.state.kept:
            await asyncio.sleep(0.005)
        assert world.state.ends == {"refused": 1}

    on_warm(test)


def test_what_says_that_it_is_of_a_run_that_is_none_ends_with_the_process(on_warm, pids: Pids):
    far = scripts.stay("far", pids.file)
    inner = f"setsid env -i PATH=/usr/bin:/bin CLINVK_RUN=run_bogus sh -c '{far}' </dev/null >/dev/null 2>&1 &"

    async def test(world: World) -> None:
        await world.heat()
        spec, ending = await world.begin(f"late ( ( {inner} ) & ); sleep 0.1")
        found = await asyncio.to_thread(pids.expect, "far")
        await world.speaking(spec)
        world.cancel(spec)
        assert (await ending).status is Status.CANCELLED

        while world.state.kept:
            await asyncio.sleep(0.005)
        assert pids.gone(*found)
        assert world.state.ends == {"leftovers": 1}

    on_warm(test)


def test_a_run_whose_events_cannot_be_stored_in_time_is_cut_off_and_holds_nobody_back(on_warm, tmp_path):
    async def test(world: World) -> None:
        await world.heat()
        beside, other = await world.begin("hang")
        await world.speaking(beside)
        spec, flood = await world.begin(f"flood {tmp_path}/told")
        await world.speaking(spec)
        world.tasks[0].cancel()  # as if Redis took no events
        while not (tmp_path / "told").exists():  # its CLI is told to stop
            await asyncio.sleep(0.005)

        await neighbour_ends(world, beside, other)
        assert not flood.done()
        world.tasks.append(asyncio.create_task(world.publisher.run()))
        assert cause(await within(flood, 10)) == "output_too_large"
        assert host_of(await world.run()) == world.host
        assert world.state.ends == {}

    on_warm(test, max_output_bytes=1 << 30)


@pytest.mark.parametrize("model", ["odd", "foul"])
def test_an_answer_that_cannot_be_read_sends_that_run_another_way(on_warm, model):
    async def test(world: World) -> None:
        await world.heat()
        before = await world.run()
        assert text(await world.run(model=model)) == "cold"

        assert host_of(await world.run()) == host_of(before)
        assert world.state.misses == {"first": 1, "refused": 1}

    on_warm(test)


@pytest.mark.parametrize("what", ["foul", "noisy"])
def test_lines_that_cannot_be_read_harm_nobody_where_others_can(on_warm, what):
    async def test(world: World) -> None:
        await world.heat()
        run = await world.run(what)

        assert run.status is Status.SUCCEEDED
        assert world.state.ends == {}

    on_warm(test)


def test_a_session_whose_process_died_while_it_was_laid_aside_goes_on_in_both_ways(on_warm, tmp_path):
    (tmp_path / "cli").mkdir()
    dies = tmp_path / "cli" / "appserver.py.dies"
    dies.touch()
    folder = tmp_path / ".codex" / "archived_sessions"

    async def test(world: World) -> None:
        await world.heat()
        _, task = await world.begin("say", session_id=new_id("ses"))
        first = await task
        assert first.status is Status.SUCCEEDED
        (left,) = folder.iterdir()
        while world.state.kept:
            await asyncio.sleep(0.005)
        dies.unlink()

        assert first.outcome is not None
        more = {"session_id": new_id("ses"), "resume": first.outcome.backend_session_id}
        _, task = await world.begin("say", **more)
        assert text(await task) == "cold"
        assert not list(folder.iterdir())
        left.touch()
        await world.ready()
        _, task = await world.begin("say", **more | {"session_id": new_id("ses")})
        assert text(await task).endswith("warm")
        assert not list(folder.iterdir())

    on_warm(test)
