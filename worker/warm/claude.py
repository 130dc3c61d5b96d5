"""Claude's warm way: a spare process that waits for its run, serves that one alone and is thrown away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable
from pathlib import Path
from typing import Any, Self

from worker import stamps
from worker.backends.base import Exit, Launch, Parser, Place
from worker.backends.claude_spare import (
    READY,
    Kind,
    Orders,
    interrupt,
    kind_of,
    lasting,
    orders,
    state_file,
    unfit,
    watched,
)
from worker.course import Course, to_its_end
from worker.process import Process
from worker.stage import Prepared
from worker.warm.control import Control
from worker.warm.driver import Cold, Driver, Plan
from worker.warm.resident import Resident
from worker.warm.rpc import Refused
from worker.warm.wire import Gone, Strand, Wire

_TOLD_WITHIN_S = 5.0
_INTERRUPTED_WITHIN_S = 1.5
_GONE_WITHIN_S = 8.0
_SHY_S = 600.0  # after a directory was refused
_SHY = 256  # directories
_HOMES = 4


class ClaudeDriver(Driver):
    """Keeps in mind the directories that a spare has refused, as one whose settings only a start can read."""

    name = "claude"
    least = (2, 1, 329)
    size = 2
    single = True
    at_once = 1

    def __init__(self) -> None:
        self._shy: dict[str, float] = {}
        self._accounts: dict[str, tuple[stamps.Stamp | None, int]] = {}

    def plan(self, prepared: Prepared) -> Plan | Cold:
        spec = prepared.spec
        if why := unfit(spec):
            return Cold(why)
        if self._shy.get(prepared.place.cwd, 0) > asyncio.get_running_loop().time():
            return Cold("directory")
        kind = kind_of(spec, prepared.settings, prepared.place, prepared.env)
        return Plan(kind, orders(spec, prepared.settings, prepared.place, prepared.launch, kind))

    def stamp(self, fixed: Any) -> Hashable:
        kind: Kind = fixed
        env = dict(kind.env)
        return (*map(stamps.of_file, watched(env)), self._account(state_file(env)))

    def launch(self, fixed: Any, place: Place) -> Launch:
        kind: Kind = fixed
        return kind.launch(place)

    def connect(self, process: Process) -> Wire:
        wire = Control(process)
        wire.expect({READY: None})  # its launch asks it
        return wire

    async def greet(self, resident: Resident) -> None:
        await _control(resident).answers(limit_s=self.start_within_s)

    async def open(self, resident: Resident, plan: Plan, prepared: Prepared) -> tuple[Course, Parser]:
        told: Orders = plan.what
        course = Spare(resident, told.message, prepared.spec.id)
        try:
            await _control(resident).ask(dict(told.settings), limit_s=_TOLD_WITHIN_S)
        except BaseException as error:
            if isinstance(error, Gone):
                resident.condemn("hung", str(error))
            elif isinstance(error, Refused):
                resident.condemn("refused", str(error))
                if isinstance(plan.fixed, Kind) and plan.fixed.parked:
                    self._avoid(prepared.place.cwd)
            await course.close()
            raise
        return course, prepared.backend.parser(prepared.spec)

    def _account(self, path: str) -> Hashable:
        """Of a file that each start writes: it is read where it has been changed, and only a part of it counts."""
        stamp = stamps.of_file(path)
        seen, found = self._accounts.pop(path, (None, 0))
        if seen != stamp:
            try:
                found = hash(lasting(Path(path).read_bytes()))
            except OSError:
                found = 0
        self._accounts[path] = (stamp, found)
        if len(self._accounts) > _HOMES:
            del self._accounts[next(iter(self._accounts))]
        return found

    def _avoid(self, folder: str) -> None:
        self._shy.pop(folder, None)
        self._shy[folder] = asyncio.get_running_loop().time() + _SHY_S
        if len(self._shy) > _SHY:
            del self._shy[next(iter(self._shy))]


class Spare(Course):
    """The one run of a spare. Its lines, its exit and what it leaves behind are those of a process of its own."""

    def __init__(self, resident: Resident, message: bytes, run_id: str) -> None:
        self._resident = resident
        self._message = message
        self._run_id = run_id
        self._wire = _control(resident)
        self._strand = Strand()
        self._begun = self._closed = False
        resident.take()
        self._wire.attach(self._strand)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def begin(self) -> None:
        if self._strand.exit is None:
            self._begun = True
            self._wire.say(self._message)

    def chunks(self) -> AsyncIterator[bytes]:
        return self._strand.chunks()

    async def wait(self) -> Exit:
        return await self._strand.ended()

    async def end(self, *, grace_s: float, fast: bool = False) -> None:
        if self._begun and self._strand.exit is None and not fast and grace_s > 0:
            self._wire.say(interrupt())
            self._wire.hang_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(grace_s, _INTERRUPTED_WITHIN_S)):
                    await self._strand.ended()
        await self._kill()

    async def close(self) -> None:
        """Also for one that was opened and never entered."""
        if not self._closed:
            self._closed = True
            await to_its_end(self._finish(), f"end-{self._run_id}")

    async def _finish(self) -> None:
        try:
            await self._kill()
        finally:
            self._strand.deafen()
            self._resident.release()

    async def _kill(self) -> None:
        """With all that it has started; where it has ended, nothing of it lives already."""
        if self._strand.exit is None:
            self._resident.condemn("used")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GONE_WITHIN_S):
                    await self._resident.gone()
            self._strand.end(Exit(code=-9))


def _control(resident: Resident) -> Control:
    wire = resident.wire
    if not isinstance(wire, Control):
        raise Gone("it has not been started")
    return wire
