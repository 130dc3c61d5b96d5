"""The policy for processes that serve one run each: some wait for the kinds of runs that come most."""

import asyncio
import logging
from collections import Counter

from worker.warm.keeper import Keeper
from worker.warm.reserve import Reserve
from worker.warm.resident import Resident
from worker.warm.shelf import Kind, Shelf

_log = logging.getLogger(__name__)


class Spares(Keeper):
    """None is started for a run that has come, and all only while the host is calm."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self._reserve = Reserve()
        self._known = False  # whether the last kind had come before
        self._lacking = 0  # kinds without all their spares, as it was last said

    def ask(self, kind: Kind) -> None:
        self._known = self._reserve.ask(kind, asyncio.get_running_loop().time())

    def lack(self, kind: Kind) -> str:  # noqa: ARG002  # which are wanted, `tend` asks the reserve
        self.shelf.commons.wake.set()
        return "spent" if self._known else "first"

    def taken(self, resident: Resident) -> None:
        resident.drain("used")
        self.shelf.commons.wake.set()

    def tend(self) -> bool:
        shelf, commons, now = self.shelf, self.shelf.commons, asyncio.get_running_loop().time()
        waiting = shelf.living()
        have = Counter(one.key for one in waiting)
        shares = self._reserve.shares(shelf.size, have, now, shelf.warm.idle_secs)
        lacking = [
            kind
            for kind, count in shares.items()
            if isinstance(kind, Kind) and have[kind] < count and not shelf.sulks.about(kind, now)
        ]
        if len(lacking) != self._lacking:
            self._lacking = len(lacking)
            _log.debug("%d kinds of %s lack a spare", len(lacking), shelf.name, extra={"lacking": len(lacking)})
        if not lacking or commons.starting() or commons.closing or commons.short():
            return False
        if not commons.calm():
            return True
        if len(waiting) >= shelf.size:
            spared = [one for one in waiting if have[one.key] > shares.get(one.key, 0)]
            min(spared, key=lambda one: one.idle_since).drain("size")
        shelf.start(lacking[0])
        return False
