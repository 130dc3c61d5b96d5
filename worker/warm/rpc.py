"""JSON-RPC by lines over a child's stdin and stdout: calls with limits, notifications to the strands they are for."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from worker.backends.base import Exit
from worker.process import Process
from worker.warm.wire import Gone, Strand, Wire

_log = logging.getLogger(__name__)

_LINE_BYTES = 64 << 20
_STRAY_BYTES = 64 << 20  # for no run that is known, since the last line that was for one
_STRANGE_LINES = 1000  # that were no JSON objects
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
    result: Any
    line: bytes  # as it came, for a parser that wants to see it


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
        self._calls: dict[int, tuple[str, asyncio.Future[Reply]]] = {}
        self._count = 0
        self._strands: dict[str, tuple[Strand, Answer | None]] = {}
        self._gone: Exit | None = None
        self._strange = self._stray = 0

    # -- what we say

    async def call(self, method: str, params: Any, *, limit_s: float) -> Reply:
        """Raises: Refused; Gone where the process has ended or does not answer within the limit."""
        if self._gone is not None:
            raise Gone(f"{method}: the process has ended")
        if self._process.stdin.pending > _UNREAD_BYTES:
            raise Gone(f"{method}: the process does not read")
        self._count += 1
        number = self._count
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls[number] = (method, future)
        try:
            self._say({"id": number, "method": method, "params": params})
            async with asyncio.timeout(limit_s):
                return await future
        except TimeoutError:
            raise Gone(f"{method}: no answer within {limit_s:g} s") from None
        finally:
            self._calls.pop(number, None)

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
        rest: list[bytes] = []
        size = 0
        async for chunk in self._process.chunks():
            head, *more = chunk.split(b"\n")
            rest.append(head)
            size += len(head)
            if more:
                await self._take(b"".join(rest))
                for line in more[:-1]:
                    await self._take(line)
                rest, size = [more[-1]], len(more[-1])
            if size > _LINE_BYTES:
                raise Gone("a line that does not end")

    async def _take(self, line: bytes) -> None:
        try:
            head = _head.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._strange += bool(line.strip())
            if self._strange > _STRANGE_LINES:
                raise Gone("it talks nonsense") from None
            return
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
            found[0].add(line + b"\n")
        self.heard(head.method, head.params)
        if found is not None:
            await found[0].room()
        else:
            self._stray += len(line)
            if self._stray > _STRAY_BYTES:
                raise Gone("it talks of nothing that was asked")

    def heard(self, method: str, params: msgspec.Raw) -> None:
        """A driver's: shown every notification, when its strand has it. It must be quick."""

    def _name(self, params: msgspec.Raw) -> str | None:
        try:
            found: str | None = getattr(self._key.decode(params), "name", None)
        except msgspec.DecodeError:
            return None
        return found

    def _answered(self, number: int | str | None, line: bytes) -> None:
        method, future = self._calls.get(number, ("", None)) if isinstance(number, int) else ("", None)
        if future is None or future.done():
            return
        try:
            said = _answered.decode(line)
        except (msgspec.DecodeError, RecursionError):
            future.set_exception(Gone(f"{method}: an answer that is none"))
            return
        if said.error is None:
            future.set_result(Reply(said.result, line + b"\n"))
            return
        error = said.error if isinstance(said.error, dict) else {}
        code = error.get("code")
        future.set_exception(
            Refused(
                method,
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
        except LookupError:
            _log.debug("a warm process asks for %s, which nobody answers", method)
            self._say({"id": number, "error": {"code": _NO_METHOD, "message": f"{method} is not answered here"}})

    def end(self, exit: Exit) -> None:
        self._gone = exit
        for method, future in self._calls.values():
            if not future.done():
                future.set_exception(Gone(f"{method}: the process has ended"))
        for strand, _ in self._strands.values():
            strand.end(exit)
