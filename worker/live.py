"""The runs that this worker carries out now, and the publisher that sends their events in shared round trips."""

import asyncio
import logging
import time

from shared import event
from shared.errors import StoreUnavailable
from shared.event import Content, Message
from shared.run import Failure
from shared.store.events import Batch, Events
from shared.store.runs import Claim
from worker.run_spans import RunSpans

_log = logging.getLogger(__name__)

_FLUSH_EVENTS = 500  # an unbounded burst overruns the subscribers' output buffers in Redis
_FLUSH_BYTES = 1 << 20
_JOIN_CHARS = 4096
_PENDING_BYTES = 4 << 20  # of one run; above it its output is not read
_LINE = 2  # times the limit for events: a line that does not end
_RAW = 16  # times it: all that a CLI prints, of which much may be no event
_LINE_BYTES = 1 << 20  # at least, however small the limit


class Live:
    """One run between its claim and its end. `stop` says why it must end before the CLI does.

    Its events hold no more than `max_bytes`: what is over is cut, and the run ends as `output_too_large`.
    """

    def __init__(self, claim: Claim, claimed_at: float, max_bytes: int, spans: RunSpans | None = None) -> None:
        self.claim = claim
        self.spans = spans or RunSpans(None, claim, "")
        self.spec = claim.spec
        self.renewed_at = claimed_at  # monotonic; when the last renewal that worked was sent
        self.sent = claim.sequence  # of the last event that Redis has
        self.pending: list[bytes] = []
        self._tail: Message | None = None  # behind all that is pending
        self.pending_bytes = 0
        self.total_bytes = 0
        self.max_bytes = max_bytes
        self.max_raw_bytes = max(max_bytes, _LINE_BYTES) * _RAW
        self.full = False
        self._raw_bytes = 0
        self._line_bytes = 0  # of the line that has not ended
        self.closing = False
        self.failure: Failure | None = None
        self.fast = False
        self.lost = False
        self.alive_at = claimed_at  # monotonic; when the CLI last said something
        self.stopped = asyncio.Event()
        self.drained = asyncio.Event()

    def stop(self, failure: Failure, *, fast: bool = False) -> None:
        """The first reason stands; `fast` leaves no time for a graceful end."""
        if self.failure is None:
            self.failure = failure
        self.fast = self.fast or fast
        self.stopped.set()
        self.drained.set()

    def lose(self, failure: Failure) -> None:
        """The attempt is no longer ours: whatever it still does, nobody hears of it."""
        self.lost = True
        self.stop(failure, fast=True)

    def overflow(self) -> None:
        """It has put out too much: nothing more of it is kept."""
        self.full = True
        message = f"the run put out more than {self.max_bytes} bytes (runs.max_output_bytes)"
        self.stop(Failure("output_too_large", message, "output_too_large"), fast=True)

    def read(self, data: bytes) -> None:
        """Counts what the CLI has printed, of which the parser may make nothing for long."""
        end = data.rfind(b"\n")
        self._raw_bytes += len(data)
        self._line_bytes = (0 if end >= 0 else self._line_bytes) + len(data) - end - 1
        if self._line_bytes > max(self.max_bytes, _LINE_BYTES) * _LINE or self._raw_bytes > self.max_raw_bytes:
            self.overflow()

    def add(self, content: Content) -> None:
        """Text that comes while a round trip is under way goes into one event."""
        tail = self._tail
        if isinstance(content, Message) and content.is_partial:
            if tail is not None and len(tail.text) < _JOIN_CHARS:
                content = Message(tail.text + content.text, content.role, is_partial=True)
            else:
                self.seal()
            self._tail = content
            if self.total_bytes + len(content.text) > self.max_bytes:
                self.seal()
            return
        self.seal()
        self._encode(content)

    def seal(self) -> None:
        """What is pending is ready to be sent."""
        tail, self._tail = self._tail, None
        if tail is not None:
            self._encode(tail)

    def _encode(self, content: Content) -> None:
        if self.full:
            return
        line = self._line(content)
        if self.total_bytes + len(line) > self.max_bytes:
            self.overflow()
            if not isinstance(content, Message):
                return
            line = self._line(
                Message(cut(content.text, self.max_bytes - self.total_bytes), content.role, is_partial=True)
            )
        self.pending.append(line)
        self.pending_bytes += len(line)
        self.total_bytes += len(line)

    def _line(self, content: Content) -> bytes:
        return event.encode(
            content,
            backend=self.spec.backend,
            session_id=self.spec.session_id or "",
            sequence=self.sent + len(self.pending) + 1,
            at_s=time.time(),
        )


def cut(text: str, max_bytes: int) -> str:
    return text if len(text) * 4 <= max_bytes else text.encode(errors="ignore")[:max_bytes].decode(errors="ignore")


class Publisher:
    """Flushes at once; what comes in while a round trip is under way goes into the next one. Owns one task."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._dirty: dict[str, Live] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def touch(self, live: Live) -> None:
        """The run has events to send."""
        self._dirty[live.spec.id] = live
        self._wake.set()

    async def room(self, live: Live) -> None:
        """Waits until few enough of the run's bytes are pending, so that its output is not read faster than sent.
        A run that is to end waits for nobody."""
        while live.pending_bytes > _PENDING_BYTES and not live.stopped.is_set():
            live.drained.clear()
            self.touch(live)
            await live.drained.wait()

    async def settle(self, live: Live) -> None:
        """After this no flush carries events of the run: what is pending goes with its end."""
        live.closing = True
        live.seal()
        self._dirty.pop(live.spec.id, None)
        await self._idle.wait()

    async def run(self) -> None:
        while True:
            while self._dirty:
                if not await self._flush():
                    await asyncio.sleep(0.2)
            await self._wake.wait()
            self._wake.clear()

    async def _flush(self) -> bool:
        batches: list[Batch] = []
        lives: list[Live] = []
        count = size = 0
        for run_id, live in list(self._dirty.items()):
            if count >= _FLUSH_EVENTS or size >= _FLUSH_BYTES:
                break
            if live.closing or live.lost:  # its end takes what is pending, or nobody does
                del self._dirty[run_id]
                continue
            live.seal()
            lines: list[bytes] = []
            for line in live.pending:
                if lines and (count >= _FLUSH_EVENTS or size >= _FLUSH_BYTES):
                    break
                lines.append(line)
                count += 1
                size += len(line)
            if len(lines) == len(live.pending):
                del self._dirty[run_id]
            if lines:
                batches.append(Batch(run_id, live.claim.token, live.sent + 1, lines))
                lives.append(live)
        if not batches:
            return True
        self._idle.clear()
        try:
            lost = set(await self._events.append(batches))
        except Exception as error:
            for live in lives:
                if not live.closing:
                    self._dirty[live.spec.id] = live
            if not isinstance(error, StoreUnavailable):
                raise
            _log.log(error.level, "events wait: %s", error.message)
            return False
        finally:
            self._idle.set()
        for batch, live in zip(batches, lives, strict=True):
            del live.pending[: len(batch.lines)]
            live.sent += len(batch.lines)
            live.pending_bytes -= sum(map(len, batch.lines))
            live.drained.set()
            if batch.run_id in lost:
                live.lose(Failure("worker_lost", "another attempt or an end came first", "worker_lost"))
        return True
