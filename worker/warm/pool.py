"""All warm processes of this worker: which run gets one, when one is started, and when it ends."""

import asyncio
import contextlib
import contextvars
import logging
import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping

from shared.config import Config, Warm
from shared.errors import ClinvkError
from shared.ids import new_id
from shared.warm import WarmState
from worker.backends.base import Parser
from worker.course import Course
from worker.stage import Prepared
from worker.warm import memory
from worker.warm.calm import EVERY_S
from worker.warm.driver import Cold, Driver, Plan
from worker.warm.reserve import Reserve
from worker.warm.resident import Resident, State
from worker.warm.rpc import Refused
from worker.warm.wire import Gone
from worker.workspace import Workspaces

_log = logging.getLogger(__name__)

_LOOK_S = 5.0
_SULK_S = 300.0  # after a start that failed, or ends that come too soon
_SOON = 5  # runs; a process that ends before it has served so many has not been worth its start
_SOON_TIMES = 3
_FAR = 1.5  # times its limit: it does not wait for a successor
_KINDS = 64  # of runs whose next warm process is thought of before they come
_BAD = ("crashed", "hung", "leftovers", "refused")

Version = Callable[[str, tuple[str, ...]], str | None]
"""(backend, command) -> the version of the CLI, where a package says it beside the binary."""


class Pool:
    """Lives in the runner's loop; `run` and `close` belong to whoever made it."""

    def __init__(
        self,
        config: Config,
        drivers: Mapping[str, Driver],
        workspaces: Workspaces,
        version: Version,
        *,
        instance: str,
        calm: Callable[[], bool] = lambda: True,
        short: Callable[[], bool] = memory.short,
    ) -> None:
        self._config = config
        self._drivers = drivers
        self._workspaces = workspaces
        self._version = version
        self._instance = instance
        self._short = short
        self._kept: dict[str, list[Resident]] = {name: [] for name in drivers}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self._hits: Counter[str] = Counter()
        self._misses: dict[str, Counter[str]] = {name: Counter() for name in drivers}
        self._starts: Counter[str] = Counter()
        self._ends: dict[str, Counter[str]] = {name: Counter() for name in drivers}
        self._versions: dict[tuple[str, ...], str | None] = {}
        self._sulks: dict[Hashable, tuple[float, str]] = {}  # until when no other is started, and why
        self._soon: Counter[Hashable] = Counter()
        self._wanted: dict[Hashable, tuple[Driver, Hashable]] = {}  # kinds of runs that have come, the last one last
        self._reserves = {name: Reserve() for name, driver in drivers.items() if driver.single}
        self._calm = calm

    # -- runs

    async def open(self, prepared: Prepared) -> tuple[Course, Parser] | None:
        """A course on a warm process; None: the run goes cold."""
        name = prepared.spec.backend
        driver = self._drivers.get(name)
        if driver is None:
            return None
        found = await self._open(driver, prepared)
        if isinstance(found, Cold):
            self._misses[name][found.reason] += 1
            return None
        self._hits[name] += 1
        return found

    async def _open(self, driver: Driver, prepared: Prepared) -> tuple[Course, Parser] | Cold:
        warm = self._config.backend(driver.name).warm
        if warm.mode == "off" or self._closing:
            return Cold("off")
        if not self._new_enough(driver, prepared.settings.command):
            return Cold("version")
        plan = driver.plan(prepared)
        if isinstance(plan, Cold):
            return plan
        key = self._key(driver, warm, plan, prepared)
        known = self._remember(driver, key, plan.fixed)
        stamp = driver.stamp(plan.fixed)
        for one in self._kept[driver.name]:
            if one.key == key and one.stamp != stamp and one.state is State.READY:
                one.drain("stale")
        resident = self._pick(driver, key)
        if resident is None and driver.single:
            self._wake.set()
            return Cold("spent" if known else "first")
        if resident is None:
            return Cold(self._want(driver, warm, key, plan.fixed))
        try:
            opened = await driver.open(resident, plan, prepared)
        except Refused as error:
            _log.warning("a run goes another way than the warm %s: %s", driver.name, error)
            return Cold("refused")
        except Gone as error:
            resident.condemn("hung", str(error))
            return Cold("gone")
        finally:
            self._taken(driver, warm, resident)
        return opened

    def _remember(self, driver: Driver, key: Hashable, fixed: Hashable) -> bool:
        """Whether one of this kind has come before."""
        if driver.single:
            return self._reserves[driver.name].ask(key, fixed, asyncio.get_running_loop().time())
        known = self._wanted.pop(key, None) is not None
        self._wanted[key] = (driver, fixed)
        if len(self._wanted) > _KINDS:
            del self._wanted[next(iter(self._wanted))]
        return known

    def _key(self, driver: Driver, warm: Warm, plan: Plan, prepared: Prepared) -> Hashable:
        command = prepared.settings.command
        try:
            at = os.stat(command[0])  # noqa: PTH116  # pathlib doubles its cost; another CLI is another process
            file = (at.st_ino, at.st_mtime_ns)
        except OSError:
            file = (0, 0)
        tenant = prepared.spec.tenant if warm.scope == "tenant" else None
        return (driver.name, tenant, command, file, plan.fixed)

    def _pick(self, driver: Driver, key: Hashable) -> Resident | None:
        able = [
            one
            for one in self._kept[driver.name]
            if one.key == key and one.state is State.READY and one.running < driver.at_once
        ]
        return min(able, key=lambda one: (bool(one.retiring), one.running), default=None)

    def _taken(self, driver: Driver, warm: Warm, resident: Resident) -> None:
        most = warm.recycle_after or driver.recycle_after
        if driver.single or most == 1:  # such a one needs no successor to go
            resident.drain("used")
        elif resident.served >= most:
            resident.retiring = resident.retiring or "recycle"
        if resident.retiring or self._free(driver, resident.key) < driver.reserve:
            self._wake.set()

    def _free(self, driver: Driver, key: Hashable) -> int:
        return sum(
            one.key == key
            and one.state in (State.STARTING, State.READY)
            and not one.retiring
            and one.running < driver.at_once
            for one in self._kept[driver.name]
        )

    # -- starting

    def _new_enough(self, driver: Driver, command: tuple[str, ...]) -> bool:
        if command not in self._versions:
            self._versions[command] = self._version(driver.name, command)
        told = self._versions[command]
        return told is not None and _numbers(told) >= driver.least

    def _want(self, driver: Driver, warm: Warm, key: Hashable, fixed: Hashable) -> str:
        """Starts one where it may; the reason why this run has none."""
        if any(one.key == key and one.state is State.STARTING for one in self._kept[driver.name]):
            return "starting"
        if any(one.key == key and one.state is State.READY for one in self._kept[driver.name]):
            return "busy"
        if self._sulking(key):
            return "failing"
        if self._short():
            return "memory"
        if not self._may_start(driver, warm, key):
            return "size"
        self._start(driver, warm, key, fixed)
        return "first"

    def _sulking(self, key: Hashable) -> bool:
        until, _ = self._sulks.get(key, (0.0, ""))
        return asyncio.get_running_loop().time() < until

    def _may_start(self, driver: Driver, warm: Warm, key: Hashable) -> bool:
        """Room for one more, made by ending one that nobody is on, if need be."""
        if self._closing or self._sulking(key):
            return False
        if any(one.state is State.STARTING and not one.driver.single for every in self._kept.values() for one in every):
            return False  # one at a time: they cost the runs their cores; spares come behind them
        counted = [
            one for one in self._kept[driver.name] if one.state in (State.STARTING, State.READY) and not one.retiring
        ]
        if len(counted) < (warm.size or driver.size):
            return True
        idle = [one for one in counted if one.running == 0 and one.key != key]
        if not idle:
            return False
        min(idle, key=lambda one: one.idle_since).drain("size")
        return True

    def _start(self, driver: Driver, warm: Warm, key: Hashable, fixed: Hashable) -> None:
        id = new_id("warm")
        try:
            place = self._workspaces.make(id, None, None)
            launch = driver.launch(fixed, place)
        except ClinvkError as error:
            self._sulk(key, error.message)
            self._workspaces.remove(id)
            return
        most = (warm.max_rss_mb or driver.max_rss_mb) << 20
        resident = Resident(id, driver, key, place, instance=self._instance, changed=self._wake.set, max_bytes=most)
        resident.stamp = driver.stamp(fixed)
        self._kept[driver.name].append(resident)
        self._starts[driver.name] += 1
        nobody = contextvars.Context()  # its log lines are of no run, also not of the one that it was started for
        task = asyncio.get_running_loop().create_task(resident.live(launch), name=f"warm-{id}", context=nobody)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(driver, resident, done), context=nobody)

    def _ended(self, driver: Driver, resident: Resident, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._kept[driver.name].remove(resident)
        self._workspaces.remove(resident.id)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a warm %s failed inside the worker", driver.name, exc_info=error)
            resident.condemn("start", type(error).__name__)
        why = resident.why or "shutdown"
        self._ends[driver.name][why] += 1
        if self._closing:
            return
        if why == "start":
            self._sulk(resident.key, resident.detail or "it ended before it was ready", resident.said)
        elif why in _BAD and resident.served < _SOON:
            self._soon[resident.key] += 1
            if self._soon[resident.key] >= _SOON_TIMES:
                self._sulk(resident.key, f"it ended too soon ({why}) again and again")
        else:
            self._soon.pop(resident.key, None)
        level = logging.WARNING if why in _BAD else logging.DEBUG if why == "used" else logging.INFO
        _log.log(level, "a warm %s ended after %d runs: %s (%s)", driver.name, resident.served, why, resident.detail)
        self._wake.set()

    def _sulk(self, key: Hashable, why: str, said: str = "") -> None:
        """`said`: the CLI's own words, which `GET /api/v1/workers` shows and no log does."""
        assert isinstance(key, tuple)
        self._soon.pop(key, None)
        told = f"{why}: {said}" if said else why
        self._sulks[key] = (asyncio.get_running_loop().time() + _SULK_S, told[:300])
        _log.warning("%s is carried out by one process a run for %g s: %s", key[0], _SULK_S, why)

    # -- keeping

    async def run(self) -> None:
        """Looks after them until cancelled."""
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            self._wake.clear()
            wait_s = self._tend()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            if loop.time() - looked_at >= _LOOK_S:
                looked_at = loop.time()
                self._look()

    def _tend(self) -> float:
        """Those that have a successor go, those that are wanted come. Returns when to look again, in seconds."""
        lacking = [driver for name, driver in self._drivers.items() if name in self._reserves and self._lacks(driver)]
        for key, (driver, fixed) in reversed(self._wanted.items()):
            warm = self._config.backend(driver.name).warm
            mine = [one for one in self._kept[driver.name] if one.key == key]
            if any(one.state is State.READY and not one.retiring for one in mine):
                for one in mine:
                    if one.retiring:
                        one.drain(one.retiring)
            wants = any(one.retiring for one in mine) or driver.reserve > 1
            if (
                wants
                and self._free(driver, key) < min(driver.reserve, warm.size or driver.size)
                and not self._short()
                and self._may_start(driver, warm, key)
            ):
                self._start(driver, warm, key, fixed)
        return EVERY_S if lacking else _LOOK_S

    def _lacks(self, driver: Driver) -> bool:
        """Starts a spare that is wanted; whether one is that cannot be started before the host is calm."""
        warm = self._config.backend(driver.name).warm
        waiting = [one for one in self._kept[driver.name] if one.state in (State.STARTING, State.READY)]
        have = Counter(one.key for one in waiting)
        reserve, size = self._reserves[driver.name], warm.size or driver.size
        shares = reserve.shares(size, have, asyncio.get_running_loop().time(), warm.idle_secs)
        lacking = [key for key, count in shares.items() if have[key] < count and not self._sulking(key)]
        starting = any(one.state is State.STARTING for every in self._kept.values() for one in every)
        if not lacking or starting or self._closing or self._short():
            return False
        if not self._calm():
            return True
        if len(waiting) >= size:
            spared = [one for one in waiting if have[one.key] > shares.get(one.key, 0)]
            min(spared, key=lambda one: one.idle_since).drain("size")
        self._start(driver, warm, lacking[0], reserve.fixed(lacking[0]))
        return False

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        short = self._short()
        for name, every in self._kept.items():
            warm, driver = self._config.backend(name).warm, self._drivers[name]
            most = (warm.max_rss_mb or driver.max_rss_mb) << 20
            for one in list(every):
                if one.state is not State.READY:
                    continue
                one.look()
                if one.memory_bytes > most * _FAR:
                    one.drain("memory")
                elif one.memory_bytes > most:
                    one.retiring = one.retiring or "memory"
                    self._wake.set()
                elif one.running == 0 and now - one.idle_since > warm.idle_secs:
                    one.drain("idle")
                    self._wanted.pop(one.key, None)
                elif one.running == 0 and short:
                    one.drain("scarce")

    async def close(self) -> None:
        """Ends all of them; the runs on them must have ended."""
        self._closing = True
        for every in self._kept.values():
            for one in every:
                one.drain("shutdown")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LOOK_S)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- telling

    def states(self) -> dict[str, WarmState]:
        """By backend, of those that have a warm way."""
        return {name: self._state(name) for name in self._drivers}

    def _state(self, name: str) -> WarmState:
        every = self._kept[name]
        now = asyncio.get_running_loop().time()
        why = [
            why
            for key, (until, why) in self._sulks.items()
            if isinstance(key, tuple) and key[0] == name and until > now
        ]
        return WarmState(
            kept=len(every),
            ready=sum(one.state is State.READY for one in every),
            running=sum(one.running for one in every),
            memory_bytes=sum(one.memory_bytes for one in every),
            hits=self._hits[name],
            misses=dict(self._misses[name]),
            starts=self._starts[name],
            ends=dict(self._ends[name]),
            cold_because=why[-1] if why else None,
        )


def _numbers(version: str) -> tuple[int, ...]:
    """2.1.329-linux-x64 -> (2, 1, 329)"""
    parts = version.split("-", maxsplit=1)[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
