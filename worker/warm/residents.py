"""The policy for processes that serve many runs: one for each kind that has come, where it is worth its place."""

import asyncio

from worker.warm.demand import Demand
from worker.warm.keeper import Keeper
from worker.warm.resident import Resident, State
from worker.warm.shelf import Kind, Shelf
from worker.warm.worth import Worth

_HALF_S = 300.0
_LOYALTY = 2.0  # how much more a kind must have come lately than the one whose place it takes
_UNUSED = ("idle", "size", "scarce")  # ends that say nothing against the process itself


class Residents(Keeper):
    """With fewer places than kinds it is never dearer than cold: the places stay with those that have them, and a kind
    whose last one ended without having served a run has to come more often before another is started."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self._demand = Demand(_HALF_S)
        self._worth = Worth()
        shelf.gone = self._gone

    def ask(self, kind: Kind) -> None:
        self._demand.ask(kind, asyncio.get_running_loop().time())

    def lack(self, kind: Kind) -> str:
        mine = self.shelf.of(kind)
        if any(one.state is State.STARTING for one in mine):
            return "starting"
        if any(one.state is State.READY for one in mine):
            return "busy"
        if self.shelf.sulks.about(kind, asyncio.get_running_loop().time()):
            return "failing"
        if self.shelf.commons.short():
            return "memory"
        if not self._worth.pays(kind):
            return "rare"
        if self.shelf.commons.starting(spares=False):
            return "starting"
        if not self._room(kind):
            return "size"
        self.shelf.start(kind)
        return "first"

    def taken(self, resident: Resident) -> None:
        most = self.shelf.recycle_after
        if most == 1:  # such a one needs no successor to go
            resident.drain("used")
        elif resident.served >= most:
            resident.retiring = resident.retiring or "recycle"
            self.shelf.commons.wake.set()

    def _gone(self, resident: Resident) -> None:
        if resident.served:
            self._worth.used(resident.key)
        elif resident.why in _UNUSED:
            self._worth.unused(resident.key)

    def tend(self) -> bool:
        """A successor for each that is to go; it goes when that is ready."""
        living = self.shelf.living()
        fresh = {one.key: one.state for one in living if not one.retiring}
        for one in living:
            if not one.retiring or not isinstance(one.key, Kind):
                continue
            if fresh.get(one.key) is State.READY:
                one.drain(one.retiring)
            elif one.key not in fresh and not self.shelf.commons.short() and self._room(one.key):
                self.shelf.start(one.key)
        return False

    def _room(self, kind: Kind) -> bool:
        """Whether one may be started now; room for it is made by ending one that nobody is on, if need be."""
        shelf, now = self.shelf, asyncio.get_running_loop().time()
        if shelf.commons.closing or shelf.sulks.about(kind, now) or shelf.commons.starting(spares=False):
            return False
        counted = [one for one in shelf.living() if not one.retiring]
        if len(counted) < shelf.size:
            return True
        idle = [one for one in counted if one.running == 0 and one.key != kind]
        if not idle:
            return False
        last = min(idle, key=lambda one: (self._demand.score(one.key, now), one.idle_since))
        if self._demand.score(kind, now) <= _LOYALTY * self._demand.score(last.key, now):
            return False
        last.drain("size")
        return True
