"""Brings runs' events to their followers in this process: one pub/sub connection, every gap filled from the stream.

A pub/sub message is only a live copy of what a run's stream already holds. A follower knows its position; what is
doubled it drops, and where something is missing (late join, reconnect, Redis restart, its own buffer too full) it
reads the stream until it has caught up.
"""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable

from redis.exceptions import RedisError

from shared import names
from shared.errors import InvalidRequest, LogExpired, NotFound, StoreUnavailable
from shared.event import is_last
from shared.redis import Redis
from shared.store.events import Events
from shared.store.followers import Followers

_log = logging.getLogger(__name__)

_BUFFER_BYTES = 256 * 1024  # a follower that is slower than this is served from the stream
_QUIET_S = 3.0
_BREATH_S = 2.0
_PAGE = 500


class Follower:
    """One reader of one run's events. `position` is the sequence of the last event that `next` gave out."""

    def __init__(self, relay: "Relay", run_id: str, position: int, *, behind: bool) -> None:
        self.run_id = run_id
        self.position = position
        self.ended = False
        self.live = False  # whether what `next` gave out last came live, and was not read from the stream
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self._relay = relay
        self._lines: list[bytes] = []
        self._bytes = 0
        self._tail = position  # of what is buffered
        self._behind = behind
        self._again = False  # something came while the stream was being read
        self._new = not behind  # its submit may still be under way when the stream's end is asked for
        self._gone = False
        self._woken = False
        self._late = False
        self._wake = asyncio.Event()

    async def next(self, wait_s: float) -> list[bytes]:
        """The events that have come, as encoded lines, at least one; empty when none came within `wait_s` or the
        run has ended.

        Raises: LogExpired where events it has not seen are no longer kept; StoreUnavailable.
        """
        if self.ended:
            return []
        timer = self._loop.call_later(wait_s, self._time_out)
        try:
            return await self._next()
        finally:
            timer.cancel()

    async def _next(self) -> list[bytes]:
        self._late = False
        while True:
            self.live = not self._behind
            if self._behind:
                lines = await self._catch_up()
            else:
                lines, self._lines, self._bytes = self._lines, [], 0
            if lines:
                self.position += len(lines)
                self.ended = is_last(lines[-1])
                return lines
            if self._behind:
                continue
            if self._gone:
                raise LogExpired(f"the run {self.run_id} is no longer kept")
            self._wake.clear()
            if self._woken:
                self._woken = False
                return []
            if self._late:
                return []
            await self._wake.wait()

    def _time_out(self) -> None:
        self._late = True
        self._wake.set()

    async def _catch_up(self) -> list[bytes]:
        self._again = False
        lines = await self._relay.events.read(self.run_id, after=self.position, count=_PAGE)
        self._tail = self.position + len(lines)
        if not lines and not self._again:
            self._behind = False
        return lines

    def hear(self, first: int, lines: list[bytes]) -> None:
        """A live copy came."""
        self.heard_at = self._loop.time()
        if self._behind:
            self._again = True
            return
        known = self._tail - first + 1  # how many of them are here already
        if known >= len(lines):
            return
        if known < 0:
            self.fall_behind("missed")
            return
        fresh = lines[known:] if known else lines
        self._lines += fresh
        self._bytes += sum(map(len, fresh))
        self._tail += len(fresh)
        if self._bytes > _BUFFER_BYTES and len(self._lines) > 1:
            self.fall_behind("slow")
        self._wake.set()

    def compare(self, end: int | None) -> None:
        """`end` is the sequence of the stream's last event; None: the run is gone."""
        self.heard_at = self._loop.time()
        if end is None and self._new:
            self._new = False
        elif end is None:
            self._gone = True
            self._wake.set()
        elif end > self._tail:
            self.fall_behind("silence")

    def fall_behind(self, why: str) -> None:
        """What comes next is read from the stream. `why`: missed, slow, silence, reconnect, or nothing for who asked."""
        if why and not self._behind:
            self._relay.count(f"gap|{why}")
        self._lines, self._bytes = [], 0
        self._behind = self._again = True
        self._tail = self.position
        self._wake.set()

    async def skip(self) -> None:
        """Goes to the last event, for who wants the end alone. Raises: LogExpired where the run is gone."""
        (end,) = await self._relay.events.ends([self.run_id])
        if end is None:
            raise LogExpired(f"the run {self.run_id} is no longer kept")
        self.position = max(self.position, end - 1)
        self.fall_behind("")

    def wake(self) -> None:
        self._woken = True
        self._wake.set()

    async def close(self) -> bool:
        """Returns whether the run lives on with nobody following it who must."""
        return await self._relay.drop(self)


class Relay:
    """Owned by the app: `async with relay`. `api` is this process' id; `count` is told why a follower fell behind."""

    def __init__(
        self,
        redis: Redis,
        events: Events,
        followers: Followers,
        api: str,
        *,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.count = count
        self.api = api
        self.events = events
        self._redis = redis
        self._followers = followers
        self._local: defaultdict[str, set[Follower]] = defaultdict(set)
        self._strange: set[str] = set()
        self._listening = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._kept_at = 0.0  # monotonic

    async def __aenter__(self) -> "Relay":
        await self._followers.renew()
        self._kept_at = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._listen(), name="relay"),
            asyncio.create_task(self._keep(), name="relay-keep"),
        ]
        async with asyncio.timeout(10):
            await self._listening.wait()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            await self._followers.end()

    @property
    def listening(self) -> bool:
        """Whether live copies come."""
        return self._listening.is_set()

    @property
    def silent_s(self) -> float:
        """Since the store last took a write of this process, which is tried every other second."""
        return time.monotonic() - self._kept_at

    @property
    def open(self) -> int:
        """How many followers there are."""
        return sum(map(len, self._local.values()))

    def wake_all(self) -> None:
        """Every waiting `next` looks up once."""
        for group in self._local.values():
            for follower in group:
                follower.wake()

    def expect(self, run_id: str) -> Follower:
        """Follows a run that is about to be submitted with this process as its follower."""
        follower = Follower(self, run_id, 0, behind=False)
        self._local[run_id].add(follower)
        return follower

    async def follow(self, run_id: str, after: int = 0) -> Follower:
        """Follows a run from the event behind position `after`.

        Raises: NotFound, StoreUnavailable.
        """
        follower = Follower(self, run_id, after, behind=True)
        self._local[run_id].add(follower)
        try:
            found = await self._followers.add(run_id)
            if found is None:
                raise NotFound("run", run_id)
            status, last = found
            if after > last:
                raise InvalidRequest(
                    f"the run {run_id} has only {last} events so far; {after} is beyond the last", field="after"
                )
            follower.ended = status.final and after >= last
        except BaseException:
            self._forget(follower)
            raise
        return follower

    async def let_go(self, run_id: str) -> None:
        """The store forgets that this process follows the run, unless somebody here does. Raises: StoreUnavailable."""
        if run_id not in self._local:
            await self._followers.remove(run_id)

    async def drop(self, follower: Follower) -> bool:
        if not self._forget(follower) or follower.ended:  # the end of a run has let its followers go
            return False
        try:
            return await self._followers.remove(follower.run_id)
        except StoreUnavailable:
            return False  # `_keep` will see that the store knows of a run that nobody here follows

    def _forget(self, follower: Follower) -> bool:
        """Returns whether it was the last one of its run here."""
        group = self._local.get(follower.run_id)
        if group is None or follower not in group:
            return False
        group.discard(follower)
        if group:
            return False
        del self._local[follower.run_id]
        return True

    async def _listen(self) -> None:
        channel = names.live(self.api)
        silent = False  # one line for each outage
        while True:
            try:
                async for payload in self._redis.subscribe(channel):
                    silent = False
                    if payload is not None:
                        self._hear(payload)
                        continue
                    self._listening.set()
                    for group in self._local.values():
                        for follower in group:
                            follower.fall_behind("reconnect")
            except (RedisError, OSError) as error:
                self._listening.clear()
                _log.log(
                    logging.DEBUG if silent else logging.WARNING, "live events interrupted: %s", type(error).__name__
                )
                silent = True
                await asyncio.sleep(0.2)

    def _hear(self, payload: bytes) -> None:
        lines = payload.split(b"\n")
        at = 0
        while at < len(lines):
            run_id, first, count = lines[at].split(b" ")
            begin, at = at + 1, at + 1 + int(count)
            group = self._local.get(run_id.decode())
            if group:
                for follower in group:
                    follower.hear(int(first), lines[begin:at])

    async def _keep(self) -> None:
        """Keeps this process' followers counting, and lets no follower miss anything in silence."""
        while True:
            try:
                stored = await self._followers.renew()
                self._kept_at = time.monotonic()
                await self._reconcile(stored)
                await self._compare_quiet()
            except StoreUnavailable as error:
                _log.log(error.level, "cannot keep followers: %s", error.message)
            await asyncio.sleep(_BREATH_S)

    async def _reconcile(self, stored: set[str]) -> None:
        # Seen twice in a row, so that a submit under way is not taken for a leftover.
        strange = {run_id for run_id in stored if run_id not in self._local}
        for run_id in strange & self._strange:
            await self._followers.remove(run_id)
        self._strange = strange
        for run_id in [run_id for run_id in self._local if run_id not in stored]:
            if any(not follower.ended for follower in self._local.get(run_id, ())):
                await self._followers.add(run_id)  # the store took us for dead while we were away

    async def _compare_quiet(self) -> None:
        now = asyncio.get_running_loop().time()
        quiet = [
            run_id
            for run_id, group in self._local.items()
            if any(now - follower.heard_at > _QUIET_S and not follower.ended for follower in group)
        ]
        for start in range(0, len(quiet), _PAGE):
            page = quiet[start : start + _PAGE]
            for run_id, end in zip(page, await self.events.ends(page), strict=True):
                for follower in self._local.get(run_id, ()):
                    follower.compare(end)
