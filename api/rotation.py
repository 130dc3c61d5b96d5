"""Reads the keys of files and gopass again, so that they change without a restart."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable

from api.keys import Key, Keyring
from shared.errors import ConfigError

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class Rotation:
    """`read` gives all keys of all sources; it may block. `file` is also looked at for changes. A reading that fails
    leaves the keys as they are: neither does it open the service, nor does it lock anybody out."""

    def __init__(self, ring: Keyring, read: Callable[[], Iterable[Key]], *, file: str | None, every_s: float) -> None:
        self._ring = ring
        self._read = read
        self._file = file
        self._every_s = every_s
        self._seen = _stamp(file)
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Reads at once; for a signal."""
        self._asked.set()

    async def run(self) -> None:
        """Goes on until cancelled."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            try:
                async with asyncio.timeout(min(_LOOK_EVERY_S, self._every_s)):
                    await self._asked.wait()
            except TimeoutError:
                seen = _stamp(self._file)
                if seen == self._seen and loop.time() - last < self._every_s:
                    continue
            self._asked.clear()
            await self.read()
            last = loop.time()

    async def read(self) -> bool:
        """Once. Returns whether the keys are now those of the sources."""
        seen = _stamp(self._file)  # before it is read: a change meanwhile is seen the next time
        try:
            keys = list(await asyncio.to_thread(self._read))
        except ConfigError as error:
            _log.error("THE API KEYS COULD NOT BE READ AGAIN; those in force stay as they are: %s", error.message)
            self._seen = seen
            return False
        except Exception:  # noqa: BLE001  # a fault of ours must not end the looking, or a key that was taken back would stay
            _log.exception("THE API KEYS COULD NOT BE READ AGAIN; those in force stay as they are")
            self._seen = seen
            return False
        before = self._ring.ids
        self._ring.replace(keys)
        self._seen = seen
        if before != self._ring.ids:
            added, gone = sorted(self._ring.ids - before), sorted(before - self._ring.ids)
            _log.warning(
                "API keys have changed: added %s; gone %s", ", ".join(added) or "none", ", ".join(gone) or "none"
            )
        return True


def _stamp(file: str | None) -> tuple[int, int, int] | None:
    """Changes when the file does, also where a link is pointed elsewhere; None for one that is not there."""
    if file is None:
        return None
    try:
        found = os.stat(file)  # noqa: PTH116  # a string of the configuration
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
