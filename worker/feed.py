"""Writes to a child's stdin as fast as the child reads, and never waits for it."""

import asyncio
import os
from typing import IO


class Feed:
    """`close_after`: the end of the file follows the data; otherwise more may be written until `end`."""

    def __init__(self, pipe: IO[bytes], data: bytes, *, close_after: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe = pipe
        self._fd = pipe.fileno()
        self._data = memoryview(data)
        self._close_after = close_after
        self._waits = False
        os.set_blocking(self._fd, False)
        self._go_on()

    @property
    def pending(self) -> int:
        """Bytes that the child has not taken yet."""
        return len(self._data)

    def write(self, data: bytes) -> None:
        """Of a child that reads no more it is lost: its end tells."""
        if self._pipe.closed:
            return
        self._data = memoryview(bytes(self._data) + data if self._data else data)
        if not self._waits:
            self._go_on()

    def end(self) -> None:
        """The end of the file, behind all that was written."""
        self._close_after = True
        if not self._waits:
            self._go_on()

    def close(self) -> None:
        if not self._pipe.closed:
            self._data = memoryview(b"")
            self._loop.remove_writer(self._fd)
            self._pipe.close()

    def _go_on(self) -> None:
        if self._pipe.closed:
            return
        try:
            while self._data:
                self._data = self._data[os.write(self._fd, self._data) :]
        except BlockingIOError:
            if not self._waits:
                self._waits = True
                self._loop.add_writer(self._fd, self._go_on)
            return
        except OSError:  # it reads no more: its own affair
            self.close()
            return
        if self._waits:
            self._waits = False
            self._loop.remove_writer(self._fd)
        if self._close_after:
            self._pipe.close()
