"""One client's connection: uvicorn's, held to limits of time and size that no client can outwait.

A request must have come whole within `read_s` of its first byte, a client must take some of its answer every `write_s`,
and a connection without a request is kept for `idle_s`. What is wrong before there is a request is answered in the
dialect's own shape.
"""

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api import errors
from api.refusals import Refusals
from api.stream import BREAK
from shared.ids import new_id

_log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 65_536
_MAX_HEADERS = 256
_SMALL_BODY_BYTES = 1 << 20  # which may always come
_FRAMING = 16  # bytes around each byte of a body that is sent in the smallest chunks, and more
_LINGER_S = 2.0  # a refusal is read before the connection is torn down, by who reads at all
_PROBE_S, _PROBES = 60, 4  # a connection that is silent for so long is asked, so often


class Limits(msgspec.Struct, frozen=True):
    read_s: float
    write_s: float
    idle_s: float

    @property
    def shortest_s(self) -> float:
        return min(self.read_s, self.write_s, self.idle_s)


class Bodies:
    """The bytes of all bodies in this process that have not come whole; `most_bytes` of them may be held."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0


class Connection(HttpToolsProtocol):
    """One timer, which looks at the shortest limit's end at the latest; what happens between only notes the time."""

    limits: Limits  # these three are set by `connection_class`
    refusals: Refusals
    bodies: Bodies

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._reading_since: float | None = None  # of the request whose end has not come
        self._in_body = False
        self._behind_head = False
        self._answering = 0  # requests whose answer is not complete
        self._received = self._head = self._body = 0  # bytes of the request that is being read
        self._held = 0  # of its body, which somebody waits for
        self._stalled: tuple[float, int] | None = None  # since when so much has been left to write
        self._ending_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(self.limits.shortest_s, self._check)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):  # a host that is gone says nothing
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # While a run is waited for, nothing is written: only these find a host that is lost meanwhile.
            probe_s = max(1, min(_PROBE_S, int(self.limits.write_s)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, probe_s // _PROBES))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
            unacknowledged_ms = min(int(self.limits.write_s * 1000), 2**31 - 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unacknowledged_ms)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._let_go()
        super().connection_lost(exc)

    # -- reading

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._ending_since is not None:
            return
        self._received += len(data)
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._without_upgrade()
                continue
            except httptools.HttpParserError:
                if self._head > _MAX_HEAD_BYTES or len(self.headers or ()) > _MAX_HEADERS:
                    self._refuse_head()
                else:
                    self._refuse(400, "this is no valid HTTP/1.1 request")
                return
            break
        beside_body = self._received - self._body * _FRAMING
        if self._reading_since is not None and beside_body > _MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._held > _SMALL_BODY_BYTES and self.bodies.held_bytes > self.bodies.most_bytes:
            self._refuse(
                503, f"large bodies of {self.bodies.most_bytes} bytes in all are still to come whole; try again"
            )

    def _without_upgrade(self) -> None:
        """An offer to speak something else is not taken up. The parser would take what follows for that, and read a
        request out of the body; so another is put behind the head."""
        self._behind_head = True
        framing = (b"content-length", b"transfer-encoding")
        lines = [name + b": " + value + b"\r\n" for name, value in self.headers if name in framing]
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n")
        finally:
            self._behind_head = False

    def on_message_begin(self) -> None:
        if self._behind_head:
            return
        self._received = self._head = self._body = 0
        self._idle_since = None
        self._reading_since = self.loop.time()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._behind_head:
            return
        self._head += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # which a trailer follows, and what `_without_upgrade` says again
            self._head += len(name) + len(value)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._behind_head:
            return
        if self._head > _MAX_HEAD_BYTES or len(self.headers) > _MAX_HEADERS:
            raise ValueError  # to `data_received`, by way of the parser
        super().on_headers_complete()
        if (cycle := self.cycle) is not None:  # the application has not begun yet
            extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
            extensions[BREAK] = lambda: self._break_off(cycle)
        self._answering += 1
        self._in_body = True

    def _break_off(self, cycle: RequestResponseCycle) -> None:
        """For an answer that must not be taken for whole: what has been written goes out, its end never does."""
        cycle.disconnected = True
        self.transport.close()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        if not self.cycle.response_complete:
            self._held += len(body)
            self.bodies.held_bytes += len(body)
        super().on_body(body)

    def _let_go(self) -> None:
        self.bodies.held_bytes -= self._held
        self._held = 0

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_body = False
        self._reading_since = None
        self._let_go()
        if self._answering == 0:  # it was answered before it had come whole
            self._idle_since = self.loop.time()
        super().on_message_complete()

    # -- writing

    def on_response_complete(self) -> None:
        self._answering -= 1
        if self.cycle.response_complete:  # else another's body is being read
            self._let_go()
        now = self.loop.time()
        if self._reading_since is None:
            self._idle_since = now if self._answering == 0 else None
        else:  # the next request's time begins when it can be served; the rest of one that was refused unread has as long
            self._reading_since = now
        super().on_response_complete()
        if self._in_body and self.expect_100_continue and self._body == 0:
            self.transport.close()  # refused unread: what comes next might be its body, or might not

    def resume_writing(self) -> None:
        self._stalled = None
        super().resume_writing()

    # -- limits

    def _check(self) -> None:
        now, limits = self.loop.time(), self.limits
        wake = now + limits.shortest_s
        if self._ending_since is not None:
            if now >= self._ending_since + _LINGER_S:
                self.transport.abort()
            wake = min(wake, self._ending_since + _LINGER_S)
        elif self._reading_since is not None and self._answering == int(self._in_body):
            if self.flow.read_paused:  # it is we who do not read
                self._reading_since = now
            if now >= self._reading_since + limits.read_s:
                self._refuse(408, f"the request did not come whole within {limits.read_s:g} s")
                wake = now + _LINGER_S
            else:
                wake = min(wake, self._reading_since + limits.read_s)
        elif self._in_body and self._answering == 0 and self._reading_since is not None:
            if now >= self._reading_since + limits.read_s:  # it has its answer, and goes on sending
                self.transport.close()
            else:
                wake = min(wake, self._reading_since + limits.read_s)
        elif self._idle_since is not None:
            if now >= self._idle_since + limits.idle_s:
                self.transport.close()
            else:
                wake = min(wake, self._idle_since + limits.idle_s)
        wake = min(wake, self._check_writing(now))
        if self._timer is not None:  # else the connection is lost
            self._timer = self.loop.call_at(max(wake, now + 0.01), self._check)

    def _check_writing(self, now: float) -> float:
        """When to look again."""
        left = self.transport.get_write_buffer_size()
        over = self._answering == 0 or self.transport.is_closing()
        if not left or not (over or self.flow.write_paused):
            self._stalled = None
            return now + self.limits.write_s
        left += self._unacknowledged()
        if self._stalled is None or left < self._stalled[1]:
            self._stalled = (now, left)
        elif now >= self._stalled[0] + self.limits.write_s:
            _log.info("a client that takes nothing of its answer is cut off")
            self.transport.abort()
        return self._stalled[0] + self.limits.write_s

    def _unacknowledged(self) -> int:
        """Bytes that the kernel holds: of a client that reads slowly, the first sign is here."""
        try:
            told = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        except OSError:
            return 0
        return int(struct.unpack("i", told)[0])

    def _refuse_head(self) -> None:
        self._refuse(431, f"the request's head is larger than {_MAX_HEAD_BYTES} bytes or {_MAX_HEADERS} headers")

    def _refuse(self, status: int, detail: str) -> None:
        """Answers where nothing else is being written, and ends the connection."""
        self._let_go()
        self._ending_since = self.loop.time()
        own = self.cycle if self._in_body else None
        path = str(self.scope["path"]) if own is not None else ""
        busy = self._answering > int(own is not None) or (own is not None and own.response_started)
        if busy or self.transport.is_closing():
            self.transport.close()
            return
        state: dict[str, Any] = self.scope["state"] if own is not None else {}
        request_id = str(state.setdefault("request_id", new_id("req")))
        state["refused"] = status
        client = self.client[0] if self.client else ""
        self.refusals.answered(status, detail, request_id=request_id, client=client, counted=own is not None)
        answer = errors.of_status(status, detail, dialect=errors.dialect_of(path), request_id=request_id)
        headers = [*self.server_state.default_headers, *((k.encode(), v.encode()) for k, v in answer.headers.items())]
        headers += [(b"x-request-id", request_id.encode()), (b"request-id", request_id.encode())]
        headers += [(b"content-length", str(len(answer.body)).encode()), (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + answer.body)
        if own is not None:
            own.disconnected = True
            own.message_event.set()
        self.transport.write_eof()
        self.flow.resume_reading()  # what still comes is thrown away, so that who sends it comes to read
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self.loop.call_later(_LINGER_S, self._check)


def connection_class(limits: Limits, refusals: Refusals, bodies: Bodies) -> type[Connection]:
    """What uvicorn makes of each connection it accepts."""
    return type("Connection", (Connection,), {"limits": limits, "refusals": refusals, "bodies": bodies})
