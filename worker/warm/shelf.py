"""The warm processes of one backend: their starts and their ends, and what is counted of them."""

import asyncio
import contextvars
import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from shared.config import Warm
from shared.errors import ClinvkError
from shared.ids import new_id
from shared.warm import WarmState
from worker import stamps
from worker.warm.driver import Driver
from worker.warm.resident import Resident, State
from worker.warm.sulks import SOON, SULK_S, Sulks
from worker.workspace import Workspaces

_log = logging.getLogger(__name__)

_FAR = 1.5  # times its limit of memory: it does not wait for a successor
_CEILING = 3.0  # times its limit: it does not wait for its runs either
_BAD = ("crashed", "hung", "leaked", "leftovers", "refused", "login")


class Kind(NamedTuple):
    """Two runs of one kind may be served by the same process."""

    backend: str
    tenant: str | None  # None: of all
    command: tuple[str, ...]
    fixed: Any  # the driver's `Plan.fixed`


class Commons:
    """What all shelves of a worker share. `wake` makes whoever tends them look at once."""

    def __init__(
        self, workspaces: Workspaces, instance: str, *, calm: Callable[[], bool], short: Callable[[], bool]
    ) -> None:
        self.workspaces = workspaces
        self.instance = instance
        self.calm = calm
        self.short = short
        self.wake = asyncio.Event()
        self.closing = False
        self.shelves: list[Shelf] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def starting(self, *, spares: bool = True) -> bool:
        """Whether one is being started: one at a time, since they cost the runs their cores."""
        return any(
            one.state is State.STARTING
            for shelf in self.shelves
            if spares or not shelf.driver.single
            for one in shelf.kept
        )


class Shelf:
    """`gone` is told of each that has ended."""

    def __init__(self, driver: Driver, warm: Warm, commons: Commons) -> None:
        self.driver = driver
        self.warm = warm
        self.commons = commons
        self.kept: list[Resident] = []
        self.sulks = Sulks()
        self.hits = 0
        self.misses: Counter[str] = Counter()
        self.gone: Callable[[Resident], None] = lambda _: None
        self._starts = 0
        self._ends: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return self.driver.name

    @property
    def size(self) -> int:
        return self.warm.size or self.driver.size

    @property
    def recycle_after(self) -> int:
        return self.warm.recycle_after or self.driver.recycle_after

    @property
    def _max_bytes(self) -> int:
        return (self.warm.max_rss_mb or self.driver.max_rss_mb) << 20

    def of(self, kind: Kind) -> list[Resident]:
        return [one for one in self.kept if one.key == kind]

    def living(self) -> list[Resident]:
        """Those that serve runs or will."""
        return [one for one in self.kept if one.state in (State.STARTING, State.READY)]

    def stamp(self, kind: Kind) -> Hashable:
        """Of the host as a process of this kind would find it at its start."""
        return stamps.of_command(kind.command), self.driver.stamp(kind.fixed)

    def pick(self, kind: Kind) -> Resident | None:
        """One that can take a run now. Those of yesterday take none any more."""
        stamp = self.stamp(kind)
        able = []
        for one in self.of(kind):
            if one.state is not State.READY:
                continue
            if one.stamp != stamp:
                one.drain("stale")
            elif one.running < self.driver.at_once:
                able.append(one)
        return min(able, key=lambda one: (bool(one.retiring), one.running), default=None)

    # -- their lives

    def start(self, kind: Kind) -> None:
        id = new_id("warm")
        try:
            place = self.commons.workspaces.make(id, None, None)
            launch = self.driver.launch(kind.fixed, place)
        except ClinvkError as error:
            self._sulk(kind, error.message)
            self.commons.workspaces.remove(id)
            return
        resident = Resident(
            id,
            self.driver,
            kind,
            place,
            instance=self.commons.instance,
            changed=self.commons.wake.set,
            max_bytes=self._max_bytes,
        )
        resident.stamp = self.stamp(kind)
        self.kept.append(resident)
        self._starts += 1
        nobody = contextvars.Context()  # its log lines are of no run, also not of the one that it was started for
        task = asyncio.get_running_loop().create_task(resident.live(launch), name=f"warm-{id}", context=nobody)
        self.commons.tasks.add(task)
        task.add_done_callback(lambda done: self._ended(resident, kind, done), context=nobody)

    def _ended(self, resident: Resident, kind: Kind, task: "asyncio.Task[None]") -> None:
        self.commons.tasks.discard(task)
        self.kept.remove(resident)
        self.commons.workspaces.remove(resident.id)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a warm %s failed inside the worker", self.name, exc_info=error)
            resident.condemn("start", type(error).__name__)
        why = resident.why or "shutdown"
        self._ends[why] += 1
        if self.commons.closing:
            return
        bad = why in _BAD
        if why == "start":
            self._sulk(kind, resident.detail or "it ended before it was ready", resident.said)
        elif not bad or resident.served >= SOON:
            self.sulks.well(kind)
        elif self.sulks.too_soon(kind):
            self._sulk(kind, f"it ended too soon ({why}) again and again")
        level = logging.WARNING if bad else logging.DEBUG if why == "used" else logging.INFO
        _log.log(level, "a warm %s ended after %d runs: %s (%s)", self.name, resident.served, why, resident.detail)
        self.gone(resident)
        self.commons.wake.set()

    def _sulk(self, kind: Kind, why: str, said: str = "") -> None:
        """`said`: the CLI's own words, which `GET /api/v1/workers` shows and no log does."""
        self.sulks.failed(kind, f"{why}: {said}" if said else why, asyncio.get_running_loop().time())
        _log.warning("%s is carried out by one process a run for %g s: %s", self.name, SULK_S, why)

    def look(self, *, short: bool) -> None:
        """Ends those that hold too much, and those that nobody needs."""
        now = asyncio.get_running_loop().time()
        for one in list(self.kept):
            if one.state not in (State.READY, State.DRAINING):
                continue
            one.look()
            # Of a spare's run it is the run's own memory, as it is cold.
            if not self.driver.single and one.own_bytes > self._max_bytes * (_FAR if short else _CEILING):
                held = f"it held {one.own_bytes >> 20} MB, {self._max_bytes >> 20} were its limit"
                one.condemn("leaked", held, cause="out_of_memory")
            if one.state is not State.READY:
                continue
            if one.own_bytes > self._max_bytes * _FAR:
                one.drain("memory")
            elif one.own_bytes > self._max_bytes:
                one.retiring = one.retiring or "memory"
                self.commons.wake.set()
            elif one.running == 0 and now - one.idle_since > self.warm.idle_secs:
                one.drain("idle")
            elif one.running == 0 and short:
                one.drain("scarce")

    # -- telling

    def state(self, cold_because: str | None) -> WarmState:
        """`cold_because`: a reason that is none of the processes'."""
        return WarmState(
            kept=len(self.kept),
            ready=sum(one.state is State.READY for one in self.kept),
            running=sum(one.running for one in self.kept),
            memory_bytes=sum(one.memory_bytes for one in self.kept),
            hits=self.hits,
            misses=dict(self.misses),
            starts=self._starts,
            ends=dict(self._ends),
            cold_because=cold_because or self.sulks.why(asyncio.get_running_loop().time()),
        )
