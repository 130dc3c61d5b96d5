"""Runs carried out by the real runner and publisher, with CLIs that behave badly, on a real server."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.config import BackendConfig, Config
from shared.redis import Redis
from shared.run import Failure, Run, RunSpec, Status
from tests.process.conftest import Pids
from tests.servers import RedisServer
from tests.store.store import Store
from worker.live import Publisher
from worker.runner import Limits, Runner
from worker.stage import Stage

pytestmark = [pytest.mark.usefixtures("subreaper"), pytest.mark.redis]

LIMIT = 1 << 20
SAY = 'echo \'{"type":"text","text":"word"}\'; '
DONE = 'echo \'{"type":"result","input_tokens":1,"output_tokens":1}\'; '


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    server = RedisServer(fsync="no")
    yield server
    server.close()


class World:
    """A runner over one store. Echo's CLI is a shell script of the test's."""

    def __init__(self, url: str, folder: Path, **limits: Any) -> None:
        self.store = Store(Redis(url), lease_s=30)
        self.cli = folder / "cli.sh"
        config = Config(backends={"echo": BackendConfig(enabled=True, command=str(self.cli))})
        stage = Stage(config, folder / "clinvk", {"HOME": str(folder), "PATH": "/usr/bin:/bin"})
        self.publisher = Publisher(self.store.events)
        made = {"lease_s": 30, "timeout_s": 60, "idle_s": 60, "max_output_bytes": LIMIT, "end_grace_s": 0.5, **limits}
        self.runner = Runner(self.store.runs, self.publisher, stage, Limits(**made), host="h", instance="ins_1")

    def script(self, text: str) -> None:
        self.cli.write_text(f"#!/bin/sh\n{text}\n")
        self.cli.chmod(0o755)

    async def get(self, spec: RunSpec) -> Run:
        found = await self.store.runs.get(spec.id)
        assert found is not None
        return found

    async def carry_out(self, text: str | None = None) -> Run:
        if text is not None:
            self.script(text)
        spec = await self.store.add()
        assert await self.runner.carry_out(spec.id, "echo")
        return await self.get(spec)


@pytest.fixture
def on_runner(server: RedisServer, tmp_path: Path) -> Callable[..., None]:
    client = server.client()
    client.flushall()
    client.close()

    def go(test: Callable[[World], Awaitable[None]], **limits: Any) -> None:
        async def main() -> None:
            world = World(server.url, tmp_path, **limits)
            publishing = asyncio.create_task(world.publisher.run())
            try:
                async with asyncio.timeout(60):
                    await world.store.worker()
                    await test(world)
            finally:
                publishing.cancel()
                await world.store.redis.aclose()

        asyncio.run(main())

    return go


def test_a_run_is_carried_out(on_runner):
    async def test(world: World) -> None:
        run = await world.carry_out(SAY + DONE)

        assert run.status is Status.SUCCEEDED
        assert run.outcome is not None
        assert (run.outcome.output, run.outcome.exit_code) == ("word", 0)

    on_runner(test)


def test_a_cli_that_is_gone_is_a_backend_that_is_not_available_and_says_when_to_ask_again(on_runner):
    async def test(world: World) -> None:
        run = await world.carry_out()

        assert run.outcome is not None
        failure = run.outcome.failure
        assert failure is not None
        assert (failure.code, failure.retry_after_s) == ("backend_unavailable", 30)

    on_runner(test)


def test_one_that_cannot_be_started_likewise(on_runner):
    async def test(world: World) -> None:
        world.cli.write_text("#!/nowhere/sh\n")
        world.cli.chmod(0o755)
        run = await world.carry_out()

        assert run.outcome is not None
        assert run.outcome.failure is not None
        assert run.outcome.failure.code == "backend_unavailable"
        assert run.outcome.exit_code is None

    on_runner(test)


# -- how much


@pytest.mark.parametrize(
    "script",
    [
        "exec cat /dev/zero",  # no line ever ends
        "exec yes",  # lines that are no events
        'exec yes \'{"type":"text","text":"word"}\'',
        SAY + "trap '' INT TERM; cat /dev/zero",
        f"head -c {3 * LIMIT} /dev/zero; {SAY + DONE}",  # it would succeed
    ],
)
def test_a_cli_that_prints_without_end_is_ended(on_runner, script):
    async def test(world: World) -> None:
        run = await world.carry_out(script)

        assert run.status is Status.FAILED
        assert run.outcome is not None
        assert run.outcome.failure is not None
        assert run.outcome.failure.code == "output_too_large"
        assert run.outcome.exit_code is None
        assert len(run.outcome.output.encode()) <= LIMIT

    on_runner(test)


@pytest.mark.parametrize("newline", ["\n", ""])
def test_one_line_with_more_text_than_is_allowed_is_no_success(on_runner, tmp_path, newline):
    text = json.dumps({"type": "text", "text": "é" * (LIMIT * 3 // 4)}, ensure_ascii=False)
    (tmp_path / "text").write_text(text + newline)

    async def test(world: World) -> None:
        script = f"cat {tmp_path}/text; "
        run = await world.carry_out(DONE + script if not newline else script + DONE)

        assert run.outcome is not None
        assert run.outcome.failure is not None
        assert run.outcome.failure.code == "output_too_large"
        assert run.outcome.exit_code is None
        assert len(run.outcome.output.encode()) <= LIMIT
        stored = sum(map(len, await world.store.events.read(run.id, after=0)))
        assert stored < LIMIT + 2000

    on_runner(test)


# -- at once


def test_of_a_backend_run_no_more_at_once_than_it_may(on_runner, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def test(world: World) -> None:
        world.script(f"{SAY} read x < {fifo}; {DONE}")
        first, second = await world.store.add(), await world.store.add()
        carried = [asyncio.create_task(world.runner.carry_out(spec.id, "echo")) for spec in (first, second)]
        while (await world.get(first)).sequence == 0:
            await asyncio.sleep(0)

        assert world.runner.running == {"echo": 1}
        assert (await world.get(second)).status is Status.QUEUED
        for one in carried:  # what is written while the first still holds its end is read by nobody
            await asyncio.to_thread(fifo.write_text, "go\n")
            assert await one
        assert (await world.get(second)).status is Status.SUCCEEDED

    on_runner(test, at_once={"echo": 1})


def test_what_waits_for_a_slot_goes_back_when_the_worker_is_to_end(on_runner, tmp_path, pids: Pids):
    async def test(world: World) -> None:
        world.script(f"{SAY} exec sleep 300")
        first, second = await world.store.add(), await world.store.add()
        carried = [asyncio.create_task(world.runner.carry_out(spec.id, "echo")) for spec in (first, second)]
        while (await world.get(first)).sequence == 0:
            await asyncio.sleep(0)

        await world.runner.drain(0)

        assert await asyncio.gather(*carried) == [True, False]
        assert (await world.get(second)).status is Status.QUEUED

    on_runner(test, at_once={"echo": 1})


# -- whose end it was


def test_a_cli_that_fails_by_itself_has_an_exit_code(on_runner):
    async def test(world: World) -> None:
        run = await world.carry_out(SAY + "exit 3")

        assert run.outcome is not None
        assert run.outcome.exit_code == 3

    on_runner(test)


@pytest.mark.parametrize("trap", ["", "trap 'exit 0' INT TERM; "])
@pytest.mark.parametrize("limit", [{"timeout_s": 0.3}, {"idle_s": 0.3}])
def test_one_that_was_ended_by_the_worker_has_none(on_runner, limit, trap):
    async def test(world: World) -> None:
        run = await world.carry_out(SAY + DONE + trap + "sleep 300 & wait")

        assert run.status is Status.FAILED
        assert run.outcome is not None
        assert run.outcome.failure is not None
        assert run.outcome.failure.code == "timeout"
        assert run.outcome.exit_code is None

    on_runner(test, **limit)


def test_one_that_was_cancelled_has_none(on_runner):
    async def test(world: World) -> None:
        world.script(SAY + DONE + "trap 'exit 0' INT TERM; sleep 300 & wait")
        spec = await world.store.add()
        carried = asyncio.create_task(world.runner.carry_out(spec.id, "echo"))
        while (await world.get(spec)).sequence == 0:
            await asyncio.sleep(0)

        world.runner.order(f"cancel {spec.id} x".encode(), lambda _: Failure("cancelled", "it was", "cancelled"))

        assert await carried
        run = await world.get(spec)
        assert run.status is Status.CANCELLED
        assert run.outcome is not None
        assert run.outcome.exit_code is None

    on_runner(test)
