"""The talk with one warm process: who reads it, and what of it belongs to which run (a *strand*)."""

import abc
import asyncio
from collections.abc import AsyncIterator

from worker.backends.base import Exit

_ROOM_BYTES = 8 << 20  # of one run, above it the process is not read


class Gone(Exception):
    """The process does not speak any more, or not as it should."""


class Strand:
    """What a warm process says of one run, until `end`. Bounded: the wire waits in `room` for whoever reads too slowly."""

    def __init__(self) -> None:
        self.exit: Exit | None = None
        self._lines: list[bytes] = []
        self._bytes = 0
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()
        self._deaf = False

    def add(self, line: bytes) -> None:
        """A line with its newline. What comes after the end is nobody's."""
        if self.exit is None and not self._deaf:
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

    async def room(self) -> None:
        while self._bytes > _ROOM_BYTES and self.exit is None and not self._deaf:
            self._taken.clear()
            await self._taken.wait()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            if self._lines:
                data = b"".join(self._lines)
                self._lines.clear()
                self._bytes = 0
                self._taken.set()
                yield data
            elif self.exit is not None:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def ended(self) -> Exit:
        while self.exit is None:
            self._wake.clear()
            await self._wake.wait()
        return self.exit


class Wire(abc.ABC):
    """Made by a driver for a process that has just been started; `read` is its only reader."""

    @abc.abstractmethod
    async def read(self) -> None:
        """Reads until the process says no more. Raises: Gone for one that talks nonsense."""

    @abc.abstractmethod
    def end(self, exit: Exit) -> None:
        """The process is gone: every strand ends so, every call fails."""
