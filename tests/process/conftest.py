"""What the tests of processes share: a record of every pid, so that each is waited for and none outlives its test."""

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.warm import World
from tests.servers import RedisServer
from worker import tree


def until(what: Callable[[], Any], limit_s: float = 10.0) -> Any:
    """Asks again until it is so; for files, which give no event without more machinery than they are worth."""
    deadline = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < deadline, "not within the limit"
        select.select([], [], [], 0.002)
    return found


class Pids:
    """Scripts write `NAME PID` lines into `file`; each process is then held by a descriptor."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.fds: dict[int, int] = {}

    def lines(self) -> dict[str, int]:
        if not self.file.exists():
            return {}
        pairs = [line.split() for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for _, pid in pairs:
            self.hold(int(pid))
        return {name: int(pid) for name, pid in pairs}

    def hold(self, pid: int) -> None:
        if pid > 0 and pid not in self.fds:
            with contextlib.suppress(OSError):
                self.fds[pid] = os.pidfd_open(pid)

    def expect(self, *names: str, limit_s: float = 10.0) -> list[int]:
        """Waits for the processes of these names to have told their pids."""
        found = until(lambda: set(names) <= set(self.lines()) and self.lines(), limit_s)
        return [found[name] for name in names]

    def alive(self, *pids: int) -> list[int]:
        return [pid for pid in pids if pid in self.fds and not self._ended(pid, 0)]

    def gone(self, *pids: int, limit_s: float = 1.0) -> bool:
        """Whether all of them end within the limit."""
        deadline = time.monotonic() + limit_s
        return all(pid not in self.fds or self._ended(pid, deadline - time.monotonic()) for pid in pids)

    def _ended(self, pid: int, limit_s: float) -> bool:
        poll = select.poll()
        poll.register(self.fds[pid], select.POLLIN)
        return bool(poll.poll(max(limit_s, 0) * 1000))

    def close(self) -> None:
        self.lines()
        for fd in self.fds.values():
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Pids]:
    found = Pids(tmp_path / "pids")
    yield found
    found.close()


@pytest.fixture
def subreaper() -> Iterator[None]:
    """This process stands for a worker: orphans come to it, and none is left when the test ends.

    What was started before, such as the Redis of other tests, is no orphan and is not to be ended as one."""
    tree.become_subreaper()
    before = set(tree.orphans())
    tree.own.update(before)
    yield
    tree.own.difference_update(before)
    left = still_there(before)
    tree.become_subreaper(on=False)
    tree.kill(left)
    assert not left, f"left behind: {left}"
    assert not tree.own


def still_there(before: set[int]) -> list[tree.Seen]:
    """Orphans that do not end within a moment; those that do are reaped."""
    deadline = time.monotonic() + 0.5
    while True:
        left = [pid for pid in tree.orphans() if pid not in before and not tree.reap(pid)]
        if not left or time.monotonic() > deadline:
            return [seen for pid in left if (seen := tree.look(pid)) is not None]
        select.select([], [], [], 0.002)


@pytest.fixture(scope="module")
def warm_store() -> Iterator[RedisServer]:
    server = RedisServer(fsync="no")
    yield server
    server.close()


@pytest.fixture
def on_warm(warm_store: RedisServer, tmp_path: Path) -> Callable[..., None]:
    client = warm_store.client()
    client.flushall()
    client.close()

    def go(test: Callable[[World], Awaitable[None]], **more: Any) -> None:
        async def main() -> None:
            world = World(warm_store.url, tmp_path, **more)
            await world.open()
            try:
                async with asyncio.timeout(60):
                    await test(world)
            finally:
                await world.close()

        asyncio.run(main())
        assert not list((tmp_path / "clinvk" / "runs").iterdir())

    return go
