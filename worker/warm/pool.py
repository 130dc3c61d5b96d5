"""All warm processes of this worker: which run gets one, and who looks after them."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from shared.config import Config
from shared.warm import WarmState, switched_off
from worker.backends.base import Parser
from worker.course import Course
from worker.stage import Prepared
from worker.warm import memory
from worker.warm.calm import EVERY_S
from worker.warm.driver import Cold, Driver
from worker.warm.keeper import Keeper
from worker.warm.residents import Residents
from worker.warm.rpc import Refused
from worker.warm.shelf import Commons, Kind, Shelf
from worker.warm.spares import Spares
from worker.warm.wire import Gone
from worker.workspace import Workspaces

_log = logging.getLogger(__name__)

_LOOK_S = 5.0
_CLOSE_S = 5.0

Version = Callable[[str], str | None]
"""The version of a backend's CLI as it lies on this host now; None where it is not known, empty where the CLI is not
here. Quick."""


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
        self._version = version
        self._commons = Commons(workspaces, instance, calm=calm, short=short)
        self._keepers: dict[str, Keeper] = {}
        self._told: dict[str, str | None] = {}  # why a CLI cannot be kept, as it was last said
        for name, driver in drivers.items():
            shelf = Shelf(driver, config.backend(name).warm, self._commons)
            self._commons.shelves.append(shelf)
            self._keepers[name] = Spares(shelf) if driver.single else Residents(shelf)
        self._kept = {shelf.name: shelf.kept for shelf in self._commons.shelves}

    # -- runs

    async def open(self, prepared: Prepared) -> tuple[Course, Parser] | None:
        """A course on a warm process; None: the run goes cold."""
        keeper = self._keepers.get(prepared.spec.backend)
        if keeper is None:
            return None
        found = await self._open(keeper, prepared)
        if isinstance(found, Cold):
            keeper.shelf.misses[found.reason] += 1
            _log.debug("by a process of its own: %s", found.reason, extra={"way": found.reason})
            return None
        keeper.shelf.hits += 1
        _log.debug("by a warm %s", keeper.shelf.name, extra={"way": "warm"})
        return found

    async def _open(self, keeper: Keeper, prepared: Prepared) -> tuple[Course, Parser] | Cold:
        shelf, driver = keeper.shelf, keeper.shelf.driver
        if shelf.warm.mode == "off" or self._commons.closing:
            return Cold("off")
        if (why := self._too_old(shelf)) != self._told.get(shelf.name):
            self._told[shelf.name] = why
            if why is not None:
                _log.warning("%s is carried out by one process a run: %s", shelf.name, why)
        if why is not None:
            return Cold("version")
        plan = driver.plan(prepared)
        if isinstance(plan, Cold):
            return plan
        tenant = prepared.spec.tenant if shelf.warm.scope == "tenant" else None
        kind = Kind(driver.name, tenant, prepared.settings.command, plan.fixed)
        keeper.ask(kind)
        resident = shelf.pick(kind)
        if resident is None:
            return Cold(keeper.lack(kind))
        try:
            return await driver.open(resident, plan, prepared)
        except Refused as error:
            _log.warning("a run goes another way than the warm %s: %s", driver.name, error)
            return Cold("refused")
        except Gone as error:
            resident.condemn("hung", str(error))
            return Cold("gone")
        finally:
            keeper.taken(resident)

    def _too_old(self, shelf: Shelf) -> str | None:
        """Why this CLI cannot be kept, for people."""
        driver, found = shelf.driver, self._version(shelf.name)
        if found is None:
            return f"the version of {driver.name} is not known: no package.json beside it, and --version says none"
        if found and _numbers(found) < driver.least:
            least = ".".join(map(str, driver.least))
            return f"{driver.name} {found} is older than {least}, the first that can be kept running"
        return None

    # -- keeping

    async def run(self) -> None:
        """Looks after them until cancelled."""
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            self._commons.wake.clear()
            waiting = [keeper.tend() for keeper in self._keepers.values()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S if any(waiting) else _LOOK_S):
                    await self._commons.wake.wait()
            if loop.time() - looked_at >= _LOOK_S:
                looked_at = loop.time()
                short = self._commons.short()
                for shelf in self._commons.shelves:
                    shelf.look(short=short)

    async def close(self) -> None:
        """Ends all of them; the runs on them must have ended."""
        self._commons.closing = True
        for every in self._kept.values():
            for one in every:
                one.drain("shutdown")
        tasks = self._commons.tasks
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- telling

    def states(self) -> dict[str, WarmState]:
        """By backend, of those that have a warm way."""
        return {shelf.name: shelf.state(self._cold_because(shelf)) for shelf in self._commons.shelves}

    def _cold_because(self, shelf: Shelf) -> str | None:
        if shelf.warm.mode == "off":
            return switched_off(shelf.name)
        return self._too_old(shelf)


def _numbers(version: str) -> tuple[int, ...]:
    """2.1.329-linux-x64 -> (2, 1, 329)"""
    parts = version.split("-", maxsplit=1)[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
