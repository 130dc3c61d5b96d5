"""Chooses where a run goes: the queue of its backend, or that of one host."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from shared import names
from shared.errors import TryLater
from shared.host import Capabilities, Instance
from shared.routing import KNOWN_BACKENDS, Able, check, common, fitting, gone, matching, nobody
from shared.run import RunSpec
from shared.store.hosts import Hosts, offers

_FRESH_S = 1.0


class Place(msgspec.Struct, frozen=True):
    """The queue for a run, and what carries it out there is able to: nothing is known where it waits for a worker."""

    queue: str
    able: Capabilities = Capabilities()


class Placing:
    """Knows the live fleet, at most a second old. `wait`: runs may wait for a worker that is not there.

    What must go to one host goes to the one that has the most room: by what its instances carry, what waits for it,
    and what has been sent there since either was asked for.
    """

    def __init__(self, hosts: Hosts, *, wait: bool) -> None:
        self._hosts = hosts
        self._wait = wait
        self._fleet: list[Instance] = []
        self._bound: dict[str, int] = {}
        self._sent: Counter[str] = Counter()
        self._last: dict[str, int] = {}
        self._count = 0
        self._at = -1e9
        self._refresh = asyncio.Lock()

    @property
    def waits(self) -> bool:
        return self._wait

    async def fleet(self, *, fresh: bool = False) -> list[Instance]:
        """The live instances."""
        if fresh or time.monotonic() - self._at > _FRESH_S:
            async with self._refresh:
                if fresh or time.monotonic() - self._at > _FRESH_S:
                    self._fleet, self._bound = await self._hosts.list(), await self._hosts.bound()
                    self._sent.clear()
                    self._at = time.monotonic()
        return self._fleet

    async def place(self, spec: RunSpec) -> Place:
        """Raises: BackendNotFound, BackendUnavailable, BackendLimited, and what `check` raises."""
        able = matching(await self.fleet(), spec) or matching(await self.fleet(fresh=True), spec)
        if not able:
            if self._wait and spec.backend in KNOWN_BACKENDS:
                return self.nowhere(spec)
            raise nobody(self._fleet, spec)
        fit = fitting(able, spec)
        if spec.labels or len(fit) < len(able):  # not every host that listens to the common queue would do
            return self._roomiest(spec, fit)
        return Place(names.queue(spec.backend), fit[0][1].capabilities)

    async def place_together(self, lanes: Sequence[RunSpec]) -> Place:
        """For the first of several runs that must all be carried out on one host.

        Raises: as `place`, with the lane."""
        try:
            hosts, fit = common(await self.fleet(fresh=True), lanes)
        except TryLater:
            if self._wait and all(spec.backend in KNOWN_BACKENDS for spec in lanes):
                return Place(names.queue(lanes[0].backend, ""))
            raise
        if len({spec.backend for spec in lanes}) > 1 or any(spec.labels for spec in lanes):
            return self._roomiest(lanes[0], fit)
        others = [one for one in offers(self._fleet, lanes[0].backend) if one[0].host not in hosts]
        return self._roomiest(lanes[0], fit) if others else Place(names.queue(lanes[0].backend), fit[0][1].capabilities)

    async def stay(self, spec: RunSpec, host: str) -> Place:
        """For a run whose directory is on a host. Raises: SessionHostUnavailable, BackendLimited, as `check`."""
        fleet = await self.fleet(fresh=True)
        here = [state for instance, state in offers(fleet, spec.backend) if instance.host == host]
        if not here:
            raise gone(fleet, spec, host)
        check(spec, here[0].capabilities)
        return Place(names.queue(spec.backend, host), here[0].capabilities)

    @staticmethod
    def nowhere(spec: RunSpec) -> Place:
        """Where a run waits that no worker takes now: what any host may take, at the common queue; what has labels,
        at the queue of no host, until the sweep finds one."""
        return Place(names.queue(spec.backend, "" if spec.labels else None))

    def _roomiest(self, spec: RunSpec, fit: Sequence[Able]) -> Place:
        by_host: dict[str, list[Able]] = {}
        for one in fit:
            by_host.setdefault(one[0].host, []).append(one)
        host = min(by_host, key=lambda name: (self._load(spec.backend, by_host[name]), self._last.get(name, 0)))
        self._count += 1
        self._last[host] = self._count
        self._sent[host] += 1
        return Place(names.queue(spec.backend, host), by_host[host][0][1].capabilities)

    def _load(self, backend: str, here: Sequence[Able]) -> float:
        """How full a host is: as a whole, or of this backend, whichever is more."""
        host = here[0][0].host
        sent = self._sent[host]
        waits = sum(count for queue, count in self._bound.items() if queue.endswith(f"@{host}"))
        whole = sum(instance.running for instance, _ in here) + waits + sent
        of_backend = sum(state.running for _, state in here) + self._bound.get(names.queue(backend, host), 0) + sent
        return max(
            whole / max(sum(instance.slots for instance, _ in here), 1),
            of_backend / max(sum(state.slots for _, state in here), 1),
        )
