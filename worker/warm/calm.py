"""Whether this host has a core to spare for what nobody waits for yet."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

EVERY_S = 0.02  # while an answer is awaited, it is asked so often
_FEW = 3  # calm looks in a row, where few runs are under way
_MANY = 25  # where many are: those that wait for their model leave the cores idle, those that start do not
_PATIENCE_S = 2.0  # with few runs of ours, others' load does not hold us back for longer
_ROW_S = 0.3  # looks that are further apart are not in a row


def busy() -> bool:
    """Whether as many threads run or want to as there are cores, this one not counted."""
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running - 1 >= (os.cpu_count() or 1)


class Calm:
    """`running`: how many runs this worker has under way. Each call is one look; after it has said yes, it begins anew."""

    def __init__(self, running: Callable[[], int], busy: Callable[[], bool] = busy) -> None:
        self._running = running
        self._busy = busy
        self._few = max(1, (os.cpu_count() or 1) // 2)
        self._row = 0
        self._last = self._since = float("-inf")

    def __call__(self) -> bool:
        now = asyncio.get_running_loop().time()
        few = self._running() <= self._few
        if now - self._last > _ROW_S:
            self._row = 0
            self._since = now
        elif not few:
            self._since = now
        self._last = now
        self._row = 0 if self._busy() else self._row + 1
        found = self._row >= (_FEW if few else _MANY) or (few and now - self._since > _PATIENCE_S)
        if found:  # whoever asked starts something: what comes after that is to be looked at anew
            self._last = float("-inf")
        return found
