"""Reads the keys of all sources again, so that they change without a restart."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence

import msgspec

from api.keys import Key, Keyring
from shared.errors import ConfigError

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class Reading(msgspec.Struct, frozen=True):
    """All keys of all sources, and the files that tell of changes."""

    keys: Sequence[Key]
    files: Sequence[str] = ()


class Rotation:
    """`read` may block. A reading that fails, or finds no key where there were some, leaves the keys as they are: neither
    does it open the service, nor does it lock anybody out."""

    def __init__(
        self, ring: Keyring, read: Callable[[], Reading], *, files: Sequence[str] = (), every_s: float
    ) -> None:
        self._ring = ring
        self._read = read
        self._every_s = every_s
        self._seen = _stamps(files)
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
                if _stamps(self._seen) == self._seen and loop.time() - last < self._every_s:
                    continue
            asked = self._asked.is_set()
            self._asked.clear()
            if await self.read() and asked:
                _log.info("API keys have been read again, as asked; there are %d", len(self._ring.all))
            last = loop.time()

    async def read(self) -> bool:
        """Once. Returns whether the keys are now those of the sources."""
        seen = _stamps(self._seen)  # before they are read: a change meanwhile is seen the next time
        try:
            reading = await asyncio.to_thread(self._read)
            if self._ring.required and not reading.keys:
                raise ConfigError("no source names a key any more; a service without keys needs a restart")
        except ConfigError as error:
            _log.error("THE API KEYS COULD NOT BE READ AGAIN; those in force stay as they are: %s", error.message)
            self._seen = seen
            return False
        except Exception:  # noqa: BLE001  # a fault of ours must not end the looking, or a key that was taken back would stay
            _log.exception("THE API KEYS COULD NOT BE READ AGAIN; those in force stay as they are")
            self._seen = seen
            return False
        self._replace(reading.keys)
        self._seen = {file: seen.get(file) for file in reading.files}  # one that is new here is read once more
        return True

    def _replace(self, keys: Sequence[Key]) -> None:
        before, needed = self._ring.all, self._ring.required
        self._ring.replace(keys)
        now = self._ring.all
        told = {
            "added": now.keys() - before.keys(),
            "gone": before.keys() - now.keys(),
            "with another name, role or limits": {one for one in now.keys() & before.keys() if now[one] != before[one]},
        }
        if any(told.values()):
            words = [f"{what} {', '.join(sorted(ids))}" for what, ids in told.items() if ids]
            _log.warning("API keys have changed: %s", "; ".join(words))
        if self._ring.required and not needed:
            _log.warning("from now on every request needs a key")


_Stamp = tuple[int, int, int]


def _stamps(files: Iterable[str]) -> dict[str, _Stamp | None]:
    """Each changes when its file does, also where a link is pointed elsewhere; None for one that is not there."""
    return {file: _stamp(file) for file in files}


def _stamp(file: str) -> _Stamp | None:
    try:
        found = os.stat(file)  # noqa: PTH116  # a string of the configuration
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
