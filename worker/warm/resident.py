"""One warm process from its start to its end."""

import asyncio
import enum
import logging
from collections.abc import Callable, Hashable, Sequence

from shared.errors import ClinvkError
from worker import tree
from worker.backends.base import Exit, Launch, Place
from worker.process import Process
from worker.stage import lay_out, take_back
from worker.warm import memory, priority
from worker.warm.driver import Driver
from worker.warm.rpc import Refused
from worker.warm.wire import Gone, Wire

_log = logging.getLogger(__name__)

_ENDED = 255
_LEAVE_S = 1.0  # between the end of its stdin and SIGKILL


class State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # takes no more runs; ends when the last one has ended
    DEAD = "dead"


class Resident:
    """`live` is its whole life, run as a task by the pool; everything else only says what is to happen.

    It is *ready* once it was greeted. A run that is on it holds it by `take` and `release`.
    """

    def __init__(
        self,
        id: str,
        driver: Driver,
        key: Hashable,
        place: Place,
        *,
        instance: str,
        changed: Callable[[], None],
        max_bytes: int = 0,
    ) -> None:
        self.id = id
        self.driver = driver
        self.key = key
        self.place = place
        self.stamp: Hashable = None  # of the host as it was at its start
        self.state = State.STARTING
        self.why = ""  # it ends: recycle, idle, size, memory, leaked, scarce, stale, login, ...
        self.detail = ""  # for people, in words of ours
        self.said = ""  # the CLI's own last words: for an admin, never for a log
        self.retiring = ""  # why another is to take its place, while it still serves
        self.running = 0
        self.served = 0
        self.idle_since = asyncio.get_running_loop().time()
        self.memory_bytes = 0  # with all below it
        self.own_bytes = 0  # the CLI's own, without what its runs have started
        self.cause = ""  # of the failure of the runs that were on it, where it was ended for what it did
        self.process: Process | None = None
        self.mark = tree.Mark(id, 0)
        self.wire: Wire | None = None
        self.own: list[tree.Seen] = []
        self.guests: dict[str, int] = {}  # the tags of the runs on it, by the runs' ids
        self._instance = instance
        self._max_bytes = max_bytes
        self._changed = changed
        self._over = asyncio.Event()
        self._gone = asyncio.Event()
        self._at_once = False

    # -- what is to happen

    def take(self) -> None:
        self.running += 1
        self.served += 1

    def release(self) -> None:
        self.running -= 1
        self.idle_since = asyncio.get_running_loop().time()
        if self.state is State.DRAINING and self.running == 0:
            self._over.set()
        self._changed()

    def drain(self, why: str, detail: str = "") -> None:
        """No more runs; its end when the last has ended. The first reason stands."""
        self.why = self.why or why
        self.detail = self.detail or detail
        if self.state in (State.STARTING, State.READY):
            self.state = State.DRAINING
        if self.running == 0:
            self._over.set()

    def condemn(self, why: str, detail: str = "", *, cause: str = "") -> None:
        """It is of no use any more, whoever is on it. `cause`: these runs fail of it, with the detail as their message."""
        if cause and not self.cause:  # why its runs fail goes before why it was to take no more
            self.why, self.detail, self.cause = why, detail, cause
        self.why = self.why or why
        self.detail = self.detail or detail
        if self.state is not State.DEAD:
            self.state = State.DRAINING
        self._at_once = True
        self._over.set()

    async def gone(self) -> None:
        """Returns when nothing of it lives; its strands have ended by then."""
        await self._gone.wait()

    def look(self) -> None:
        """How much memory it holds."""
        if self.process is not None and self.state is not State.DEAD:
            below = tree.below([self.process.pid])
            known = {(seen.pid, seen.start) for seen in self.own}
            own = [self.process.pid, *(seen.pid for seen in below if (seen.pid, seen.start) in known)]
            self.memory_bytes = self._held([self.process.pid, *(seen.pid for seen in below)])
            self.own_bytes = self._held(own) if len(own) <= len(below) else self.memory_bytes

    def _held(self, pids: Sequence[int]) -> int:
        held = memory.rss(pids)
        return memory.pss(pids) or held if held > self._max_bytes // 2 else held

    # -- its life

    async def live(self, launch: Launch) -> None:
        exit = Exit(code=-1)
        try:
            lay_out(launch)
            process = await Process.start(
                launch, run_id=self.id, instance=self._instance, scratch=self.place.scratch, kept=True
            )
            priority.lower(process.pid)
            self.process, self.mark = process, process.mark
            async with process:
                exit = await self._serve(process)
            self.detail = self.detail or f"exit code {exit.code}"
            self.said = self.said or exit.stderr.strip()[-300:]
        except (ClinvkError, OSError) as error:
            self.condemn("start", str(error))
        finally:
            self.state = State.DEAD
            self.process = None
            if self.wire is not None:
                # What it has written to stderr may be of other runs, and for none of several is it an end in good order.
                shared = Exit(
                    code=exit.code if exit.code < 0 else _ENDED,
                    stderr=self.detail if self.cause else "",
                    cause=self.cause,
                )
                self.wire.end(exit if self.driver.single else shared)
            take_back(launch)
            self._gone.set()

    async def _serve(self, process: Process) -> Exit:
        self.wire = wire = self.driver.connect(process)
        reading = asyncio.create_task(wire.read(), name=f"read-{self.id}")
        living = asyncio.create_task(self._greeted(process), name=f"greet-{self.id}")
        over = asyncio.create_task(self._over.wait(), name=f"over-{self.id}")  # also while it is greeted
        tasks = {reading, living, over}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                error = reading.exception()
                if error is None:
                    self.condemn("start" if self.state is State.STARTING else "crashed")
                elif isinstance(error, Gone):
                    self.condemn("hung", str(error))
                else:
                    raise error
            if not self._at_once:  # nobody is on it
                process.stdin.end()
                await asyncio.wait({reading}, timeout=_LEAVE_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await process.end(grace_s=0, fast=True)
        return await process.wait()

    async def _greeted(self, process: Process) -> None:
        """Until it is to end."""
        try:
            async with asyncio.timeout(self.driver.start_within_s):
                await self.driver.greet(self)
        except (Gone, Refused, TimeoutError) as error:
            self.said = error.message if isinstance(error, Refused) else ""
            self.condemn("start", str(error) or f"it was not ready within {self.driver.start_within_s:g} s")
            return
        priority.restore(process.pid)
        self.own = tree.below([process.pid])
        self.look()  # the next regular look is seconds away, and until then it would seem to hold nothing
        if self.state is State.STARTING:
            self.state = State.READY
            self.idle_since = asyncio.get_running_loop().time()
        self._changed()
        await self._over.wait()
