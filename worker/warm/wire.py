"""The talk with one warm process: who reads it, and what of it belongs to which run (a *strand*)."""

import abc
import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from worker.backends.base import Exit

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what a line that is no sound JSON may raise

_ROOM_BYTES = 32 << 20  # of one run that nobody has taken: the longest answer comes in pieces, and then once more whole
_PIECE_BYTES = 256 << 10  # handed on at once, in whole lines
_LINE_BYTES = 64 << 20
_CUT = Exit(code=1, stderr="it said more than could be passed on")


class Gone(Exception):
    """The process does not speak any more, or not as it should."""


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Each with its newline; the last one may have none. Raises: Gone for one that does not end."""
    rest: list[bytes] = []
    size = 0
    async for chunk in chunks:
        head, *more = chunk.split(b"\n")
        rest.append(head)
        size += len(head)
        if more:
            yield b"".join(rest) + b"\n"
            for line in more[:-1]:
                yield line + b"\n"
            rest, size = [more[-1]], len(more[-1])
        if size > _LINE_BYTES:
            raise Gone("a line that does not end")
    if size:
        yield b"".join(rest)


def _nothing() -> None:
    pass


class Strand:
    """What a warm process says of one run, until `end`. Bounded: where `room` is awaited, the wire waits for whoever reads
    too slowly; a wire that others wait on uses `cut`."""

    def __init__(self) -> None:
        self.on_cut: Callable[[], None] = _nothing
        self.exit: Exit | None = None  # what the CLI has come to; None: it is still at it
        self.is_cut = False
        self._lines: list[bytes] = []
        self._bytes = 0
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()
        self._deaf = False

    def add(self, line: bytes) -> None:
        """A line with its newline. What comes after the end is nobody's."""
        if self.exit is None and not self._deaf and not self.is_cut:
            self._lines.append(line)
            self._bytes += len(line)
            self._wake.set()

    def end(self, exit: Exit) -> None:
        """The first end stands."""
        if self.exit is None:
            self.exit = exit
        self._wake.set()
        self._taken.set()

    def deafen(self) -> None:
        """Nobody reads it any more."""
        self._deaf = True
        self._lines.clear()
        self._bytes = 0
        self._taken.set()

    def cut(self) -> None:
        """No more of it is kept, whatever the CLI still says: the reader comes to an end, the run at the CLI does not."""
        self.is_cut = True
        self.on_cut()
        self._wake.set()
        self._taken.set()

    @property
    def crowded(self) -> bool:
        return self._bytes > _ROOM_BYTES and self.exit is None and not self._deaf and not self.is_cut

    async def room(self) -> None:
        while self.crowded:
            await self.taken()

    async def taken(self) -> None:
        """Returns when something has been taken, or nothing more will be."""
        self._taken.clear()
        await self._taken.wait()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            if self._lines:
                data = self._take()
                self._taken.set()
                yield data
                if self._lines:  # much has come at once: whoever makes events of it is not alone in the loop
                    await asyncio.sleep(0)
            elif self.exit is not None or self.is_cut:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take(self) -> bytes:
        count = size = 0
        while count < len(self._lines) and size < _PIECE_BYTES:
            size += len(self._lines[count])
            count += 1
        data = b"".join(self._lines[:count])
        del self._lines[:count]
        self._bytes -= size
        return data

    async def ended(self) -> Exit:
        """When the CLI is done with it."""
        while self.exit is None:
            self._wake.clear()
            await self._wake.wait()
        return self.exit

    async def read(self) -> Exit:
        """When there is no more to read."""
        while self.exit is None and not self.is_cut:
            self._wake.clear()
            await self._wake.wait()
        return _CUT if self.is_cut or self.exit is None else self.exit


class Wire(abc.ABC):
    """Made by a driver for a process that has just been started; `read` is its only reader."""

    @abc.abstractmethod
    async def read(self) -> None:
        """Reads until the process says no more. Raises: Gone for one that talks nonsense."""

    @abc.abstractmethod
    def end(self, exit: Exit) -> None:
        """The process is gone: every strand ends so, every call fails."""
