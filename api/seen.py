"""What an API process sees of its own work: requests, streams, the relay's lag and gaps."""

import asyncio
import contextlib
import datetime
import logging
import time
from collections.abc import Iterator

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api.layers import answered
from shared.errors import StoreUnavailable
from shared.host import Vitals
from shared.store.hosts import Hosts
from shared.tally import Tally
from shared.vitals import Watch

_log = logging.getLogger(__name__)

_TELL_S = 2.0
_LIFE_S = 10.0
_SAMPLE_S = 0.02  # at most one event's lag is looked at in so long
_STAMP = b'"timestamp":"'
_STAMP_CHARS = 24
_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class Seen:
    """`run` makes it known to the other replicas."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._tally: Tally | None = None
        self._requests = 0
        self._streams = 0
        self._next_sample = 0.0  # monotonic

    def count(self, name: str) -> None:
        if self._tally is not None:
            self._tally.add(name)

    def answered(self, method: str, route: str, status: int, took_s: float) -> None:
        if self._tally is not None:
            method = method if method in _METHODS else "other"
            self._tally.add(f"http|{method}|{route}|{status}")
            self._tally.observe("first_byte", route, took_s)

    def refused(self, status: int) -> None:
        """By the connection, before it had a method or a route."""
        self.count(f"http|other|none|{status}")

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """One is under way."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """One is open."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def delivered(self, line: bytes) -> None:
        """An event that came live has been given to the socket; of many only some are looked at."""
        now = time.monotonic()
        if self._tally is None or now < self._next_sample:
            return
        self._next_sample = now + _SAMPLE_S
        at_s = stamp_s(line)
        if at_s is not None:
            self._tally.observe("relay_lag", "", max(time.time() - at_s, 0.0))

    def vitals(self, followers: int) -> Vitals:
        return self._watch.look(requests=self._requests, streams=self._streams, followers=followers)

    async def flush(self) -> None:
        """Raises: StoreUnavailable."""
        if self._tally is not None:
            await self._tally.flush()

    async def run(self, tally: Tally, hosts: Hosts, api: str) -> None:
        """Until cancelled; what it does not expect is logged, and it begins anew."""
        self._tally = tally
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(tally.run(), name="tally")
                    group.create_task(self._watch.run(), name="watch")
                    group.create_task(self._tell(hosts, api), name="tell")
            except* Exception:  # noqa: BLE001  # the edge of a task that nobody waits for
                _log.exception("looking at itself met what it does not expect; it goes on")
            await asyncio.sleep(_TELL_S)

    async def _tell(self, hosts: Hosts, api: str) -> None:
        while True:
            try:
                await hosts.tell(api, self.vitals(0), life_s=_LIFE_S)
            except StoreUnavailable as error:
                _log.debug("vitals wait: %s", error.message)
            await asyncio.sleep(_TELL_S)


def stamp_s(line: bytes) -> float | None:
    """When an encoded event happened, by its worker's clock; None where that cannot be read."""
    at = line.find(_STAMP)
    if at < 0:
        return None
    at += len(_STAMP)
    try:
        return datetime.datetime.fromisoformat(line[at : at + _STAMP_CHARS].decode()).timestamp()
    except ValueError:
        return None


class Measured:
    """The layer that counts requests, by the template of their route: what a caller makes up is no label."""

    def __init__(self, app: ASGIApp, seen: Seen) -> None:
        self._app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                took_s = time.monotonic() - begun
                route = scope.get("path_template") or "none"
                self._seen.answered(str(scope.get("method")), route, answered(scope, message["status"]), took_s)
            await send(message)

        with self._seen.request():
            await self._app(scope, receive, sending)
