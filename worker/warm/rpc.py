"""JSON-RPC by lines over a child's stdin and stdout: calls with limits, notifications to the strands they are for."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from worker.backends.base import Exit
from worker.process import Process
from worker.warm.wire import UNREADABLE, Gone, Strand, Wire, lines

_log = logging.getLogger(__name__)

_STRAY_BYTES = 64 << 20  # for no run that is known, since the last line that was for one
_STRANGE_LINES = 1000  # that were no JSON objects, one behind the other
# All the others wait while a crowded run makes room: in the first, something of it is taken, in the second there is room, or
# it is cut off.
_STUCK_S, _CROWDED_S = 0.5, 5.0
_UNREAD_BYTES = 64 << 20  # of ours that the child has not taken
_NO_METHOD = -32601

Answer = Callable[[str, Any], Any]
"""(method, params) of a request from the process -> the result. Raises: LookupError for what it knows nothing of."""


class Refused(Exception):
    """The process answered a call with an error. Its own words, which may be a prompt's, are `message`, and not in `str`:
    that is what logs and reasons are made of."""

    def __init__(self, method: str, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{method} was refused ({code})")
        self.code = code
        self.message = message
        self.data = data


class Reply(NamedTuple):
    result: Any  # None also where it cannot be read
    line: bytes  # as it came, for a parser that wants to see it


class Call(NamedTuple):
    """What has been asked and is not answered yet."""

    number: int
    method: str
    answer: "asyncio.Future[Reply]"


class _Head(msgspec.Struct):
    """What routing needs of a line; the rest is decoded by whom it concerns."""

    id: int | str | None = None
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"null")


class _Answered(msgspec.Struct):
    result: Any = None
    error: Any = None


_head = msgspec.json.Decoder(_Head)
_answered = msgspec.json.Decoder(_Answered)
_value = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


class Rpc(Wire):
    """`strand_name`: the member of `params` that names the conversation (threadId, sessionId). `marked`: whether each
    message says `"jsonrpc": "2.0"`."""

    def __init__(self, process: Process, *, strand_name: str, marked: bool) -> None:
        self._process = process
        self._key = msgspec.json.Decoder(
            msgspec.defstruct("_Key", [("name", str | None, None)], rename={"name": strand_name})
        )
        self._extra: dict[str, Any] = {"jsonrpc": "2.0"} if marked else {}
        self._calls: dict[int, Call] = {}
        self._count = 0
        self._strands: dict[str, tuple[Strand, Answer | None]] = {}
        self._gone: Exit | None = None
        self._strange = self._stray = 0

    # -- what we say

    async def call(self, method: str, params: Any, *, limit_s: float) -> Reply:
        """Raises: Refused; Gone where the process has ended or does not answer within the limit."""
        return await self.answer(self.send(method, params), limit_s=limit_s)

    def send(self, method: str, params: Any) -> Call:
        """For `answer`: what is said after it comes after it. Raises: Gone."""
        if self._gone is not None:
            raise Gone(f"{method}: the process has ended")
        if self._process.stdin.pending > _UNREAD_BYTES:
            raise Gone(f"{method}: the process does not read")
        call = Call(self._next(), method, asyncio.get_running_loop().create_future())
        self._calls[call.number] = call
        call.answer.add_done_callback(lambda done: self._answered_to(call.number, done))
        self._say({"id": call.number, "method": method, "params": params})
        return call

    async def answer(self, call: Call, *, limit_s: float) -> Reply:
        """Raises: as `call`."""
        try:
            async with asyncio.timeout(limit_s):
                return await call.answer
        except TimeoutError:
            raise Gone(f"{call.method}: no answer within {limit_s:g} s") from None

    def _answered_to(self, number: int, answer: "asyncio.Future[Reply]") -> None:
        del self._calls[number]
        if not answer.cancelled():
            answer.exception()  # whoever asked may be gone

    def ask(self, method: str, params: Any) -> None:
        """A call whose answer nobody waits for."""
        self._say({"id": self._next(), "method": method, "params": params})

    def _next(self) -> int:
        self._count += 1
        return self._count

    def notify(self, method: str, params: Any = None) -> None:
        self._say({"method": method} if params is None else {"method": method, "params": params})

    def _say(self, message: dict[str, Any]) -> None:
        self._process.stdin.write(_encode(self._extra | message) + b"\n")

    # -- strands

    def attach(self, name: str, strand: Strand, answer: Answer | None = None) -> None:
        """From now on what is said of this conversation goes there; `answer` replies to what the process asks."""
        self._strands[name] = (strand, answer)
        if self._gone is not None:
            strand.end(self._gone)

    def detach(self, name: str) -> None:
        self._strands.pop(name, None)

    # -- what it says

    async def read(self) -> None:
        async for line in lines(self._process.chunks()):
            await self._take(line)

    async def _take(self, line: bytes) -> None:
        try:
            head = _head.decode(line)
        except UNREADABLE:
            self._strange += bool(line.strip())
            if self._strange > _STRANGE_LINES:
                raise Gone("it talks nonsense") from None
            return
        self._strange = 0
        if head.method is None:
            self._answered(head.id, line)
            return
        name = self._name(head.params)
        if head.id is not None:
            self._asked(head.id, head.method, head.params, name)
            return
        found = self._strands.get(name) if name is not None else None
        if found is not None:
            self._stray = 0
            found[0].add(line)
        self.heard(head.method, head.params)
        if found is not None:
            if found[0].crowded:
                await self._make_room(found[0])
        else:
            self._stray += len(line)
            if self._stray > _STRAY_BYTES:
                raise Gone("it talks of nothing that was asked")

    async def _make_room(self, strand: Strand) -> None:
        try:
            async with asyncio.timeout(_CROWDED_S):
                while strand.crowded:
                    async with asyncio.timeout(_STUCK_S):
                        await strand.taken()
        except TimeoutError:
            strand.cut()

    def heard(self, method: str, params: msgspec.Raw) -> None:
        """A driver's: shown every notification, when its strand has it. It must be quick."""

    def _name(self, params: msgspec.Raw) -> str | None:
        try:
            found: str | None = getattr(self._key.decode(params), "name", None)
        except UNREADABLE:
            return None
        return found

    def _answered(self, number: int | str | None, line: bytes) -> None:
        call = self._calls.get(number) if isinstance(number, int) else None
        if call is None or call.answer.done():
            return
        try:
            said = _answered.decode(line)
        except UNREADABLE:
            said = _Answered()
        if said.error is None:
            call.answer.set_result(Reply(said.result, line))
            return
        error = said.error if isinstance(said.error, dict) else {}
        code = error.get("code")
        call.answer.set_exception(
            Refused(
                call.method,
                code if isinstance(code, int) else 0,
                str(error.get("message") or said.error)[:2000],
                error.get("data"),
            )
        )

    def _asked(self, number: int | str, method: str, params: msgspec.Raw, name: str | None) -> None:
        _, answer = self._strands.get(name or "", (None, None))
        try:
            if answer is None:
                raise LookupError(method)
            self._say({"id": number, "result": answer(method, _value.decode(params))})
        except (LookupError, *UNREADABLE):
            _log.debug("a warm process asks for %s, which nobody answers", method)
            self._say({"id": number, "error": {"code": _NO_METHOD, "message": f"{method} is not answered here"}})

    def end(self, exit: Exit) -> None:
        self._gone = exit
        for call in list(self._calls.values()):
            if not call.answer.done():
                call.answer.set_exception(Gone(f"{call.method}: the process has ended"))
        for strand, _ in self._strands.values():
            strand.end(exit)
