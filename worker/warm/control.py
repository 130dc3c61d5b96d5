"""The talk with one claude by its control protocol: what is asked of it before its run, then the run's lines."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping

import msgspec

from worker.backends.base import Exit
from worker.backends.claude_spare import answered
from worker.process import Process
from worker.warm.rpc import Refused
from worker.warm.wire import UNREADABLE, Gone, Strand, Wire, lines

_log = logging.getLogger(__name__)

_EXIT_S = 2.0  # between the end of its output and its exit


class _Head(msgspec.Struct):
    type: str = ""


_head = msgspec.json.Decoder(_Head)
_object = msgspec.json.Decoder(dict)


class Control(Wire):
    """Serves one run: its `result` ends the child's stdin, as that of a process of its own ends before it begins."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._strand: Strand | None = None
        self._gone = False

    async def ask(self, lines: Mapping[str, bytes], *, limit_s: float) -> None:
        """All of them, in order, until each is answered. Raises: Refused; Gone."""
        self.expect(lines)
        self.say(b"".join(lines.values()))
        await self.answers(limit_s=limit_s)

    def expect(self, ids: Mapping[str, object]) -> None:
        """Answers to come."""
        loop = asyncio.get_running_loop()
        self._asked = {id: loop.create_future() for id in ids}
        if self._gone:
            self._fail()

    async def answers(self, *, limit_s: float) -> None:
        """Raises: Refused; Gone."""
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*self._asked.values())
        except TimeoutError:
            raise Gone(f"no answer within {limit_s:g} s") from None
        finally:
            for future in self._asked.values():
                future.cancel()

    def say(self, data: bytes) -> None:
        self._process.stdin.write(data)

    def hang_up(self) -> None:
        self._process.stdin.end()

    def attach(self, strand: Strand) -> None:
        self._strand = strand

    async def read(self) -> None:
        async for line in lines(self._process.chunks()):
            await self._take(line)
        with contextlib.suppress(TimeoutError):  # its own exit code is the run's
            async with asyncio.timeout(_EXIT_S):
                await self._process.wait()

    async def _take(self, line: bytes) -> None:
        try:
            kind = _head.decode(line).type
        except UNREADABLE:
            kind = ""  # the parser of the run's lines deals with it
        if kind == "control_response":
            self._answered(line)
        elif self._strand is not None:
            if kind == "result":
                self.hang_up()
            self._strand.add(line)
            await self._strand.room()

    def _answered(self, line: bytes) -> None:
        try:
            found = answered(_object.decode(line))
        except UNREADABLE:
            return
        if found is None or (future := self._asked.get(found[0])) is None or future.done():
            return
        id, why = found
        if why is None:
            future.set_result(None)
        else:
            future.set_exception(Refused(id, 0, why[:2000]))

    def _fail(self) -> None:
        for future in self._asked.values():
            if not future.done():
                future.set_exception(Gone("the process has ended"))

    def end(self, exit: Exit) -> None:
        self._gone = True
        self._fail()
        if self._strand is not None:
            self._strand.end(exit)
