"""Sends a run's events to one client as they come, and notices when it hangs up."""

import abc
import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from litestar import Response
from litestar.types import Receive, Scope, Send

from api.relay import Follower
from api.seen import Seen
from shared.errors import ClinvkError

_log = logging.getLogger(__name__)

# The ASGI extension that breaks an answer off; the server would complain of one that is simply left unfinished.
BREAK = "clinvk.break"

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


# Some clients split lines as Python's `str.splitlines` does, and some CLIs do so as clients.
_BREAKS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def one_line(data: bytes) -> bytes:
    """JSON in which nothing can be taken for the end of a line."""
    for raw, escaped in _BREAKS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def with_id(told: bytes, id: bytes) -> bytes:
    """Gives the last of some server-sent events an id, so that whoever has the id has all of them."""
    at = told.rfind(b"\n\n", 0, len(told) - 2)
    at = 0 if at < 0 else at + 2
    return told[:at] + b"id: " + id + b"\n" + told[at:]


class Renderer(abc.ABC):
    """Writes one run's events in one dialect. `events` gets each once and in order."""

    media_type = "text/event-stream; charset=utf-8"

    @property
    def over(self) -> bool:
        """Whether nothing may follow what has been written, though the run goes on."""
        return False

    def opening(self) -> bytes:
        """The first bytes of the stream, before any event."""
        return b""

    @abc.abstractmethod
    def events(self, lines: Sequence[bytes], first: int) -> bytes:
        """Encoded events, of which the first has this sequence."""

    @abc.abstractmethod
    def heartbeat(self) -> bytes:
        """What the dialect's clients pass over, in a silence."""

    @abc.abstractmethod
    def broken(self, error: ClinvkError, sequence: int) -> bytes:
        """The stream's end where its events cannot be had any more; `sequence` would be the next."""


class EventStream:
    """An ASGI answer. `first` are events that came while the status was held; `release` is told at the end, in any case.

    A relay that fails breaks the connection off, since clients take a clean end for a whole answer.
    """

    def __init__(
        self,
        follower: Follower,
        first: list[bytes],
        *,
        renderer: Renderer,
        heartbeat_s: float,
        headers: Mapping[str, str],
        release: Callable[[Follower], Awaitable[None]],
        closing: asyncio.Event,
        seen: Seen,
    ) -> None:
        self._follower = follower
        self._first = first
        self._renderer = renderer
        self._heartbeat_s = heartbeat_s
        self._headers = [(k.encode(), v.encode()) for k, v in headers.items()]
        self._release = release
        self._closing = closing
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # ASGI
        body = asyncio.create_task(self._body(send), name=f"stream-{self._follower.run_id}")
        gone = asyncio.create_task(hung_up(receive), name="hung-up")
        try:
            with self._seen.stream():
                await asyncio.wait({body, gone}, return_when=asyncio.FIRST_COMPLETED)
            if body.done() and not body.result():
                _log.info(
                    "the stream is broken off: this replica shuts down, and its follower comes back through another"
                )
                extensions: Mapping[str, Any] = scope.get("extensions") or {}
                if BREAK in extensions:
                    extensions[BREAK]()
        finally:
            for task in (body, gone):
                task.cancel()
            await asyncio.gather(body, gone, return_exceptions=True)
            await self._release(self._follower)

    async def _body(self, send: Send) -> bool:
        """Returns whether the answer is whole."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        follower = self._follower
        renderer = self._renderer
        await self._send(send, self._begun())  # by no name of this frame: it may be as large as the request was
        try:
            while not follower.ended and not renderer.over and not self._closing.is_set():
                lines = await follower.next(self._heartbeat_s)
                if lines:
                    await self._send(send, renderer.events(lines, follower.position - len(lines) + 1))
                    if follower.live:
                        self._seen.delivered(lines[-1])
                elif not self._closing.is_set():
                    await self._send(send, renderer.heartbeat())
        except ClinvkError as error:
            await self._send(send, renderer.broken(error, follower.position + 1))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return True
        # Where this process shuts down first, a client must not take the answer for whole.
        if not follower.ended and not renderer.over:
            return False
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True

    def _begun(self) -> bytes:
        """What is said at once."""
        begun, first = self._renderer.opening(), self._first
        if first:
            begun += self._renderer.events(first, self._follower.position - len(first) + 1)
        self._first = []
        return begun

    @staticmethod
    async def _send(send: Send, body: bytes) -> None:
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})


class Streaming(Response[Any]):
    """What a route returns so that Litestar runs an `EventStream` as it is."""

    def __init__(self, stream: EventStream) -> None:
        super().__init__(None)
        self._stream = stream

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        return self._stream


async def hung_up(receive: Receive) -> None:
    """Returns when the client has gone; the request's body must have been read."""
    while True:
        if (await receive())["type"] == "http.disconnect":
            return


async def unless_gone(receive: Receive, work: "asyncio.Task[object]") -> bool:
    """Waits for `work` or the client's hang-up; False: the client is gone and `work` has been cancelled."""
    gone = asyncio.create_task(hung_up(receive), name="hung-up")
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([gone, work])
