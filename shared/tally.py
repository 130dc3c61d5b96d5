"""What a process counts by itself; added to the store's totals each second, so that every replica can show all of it.

A count outlives the process that made it, but for the last second before a kill. One whose way to Redis broke at the wrong
moment may be added twice: these are figures to watch, not to bill by.
"""

import asyncio
import logging
from collections import Counter

from shared import names
from shared.errors import StoreUnavailable
from shared.redis import Redis

_log = logging.getLogger(__name__)

_EVERY_S = 1.0

# Upper bounds in seconds: of what the store itself observes (lua/lib/2_totals.lua has the same), and of what may be far shorter.
COARSE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
FINE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Tally:
    """Names are words joined by `|`, of which there must be few; `api/families.py` reads them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._counts: Counter[str] = Counter()

    def add(self, name: str, by: int = 1) -> None:
        self._counts[name] += by

    def observe(self, what: str, label: str, seconds: float) -> None:
        """One more of a histogram with the bounds `FINE`."""
        le = next((f"{bound:g}" for bound in FINE if seconds <= bound), "+Inf")
        self._counts[f"{what}|{label}|{le}"] += 1
        self._counts[f"{what}_us|{label}"] += int(seconds * 1e6)

    async def flush(self) -> None:
        """Raises: StoreUnavailable; what was counted is kept for the next time."""
        counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            await self._redis.all([("HINCRBY", names.TOTALS, name, by) for name, by in counts.items()])
        except BaseException:
            self._counts.update(counts)
            raise

    async def run(self) -> None:
        """Flushes until cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(_EVERY_S)
                try:
                    await self.flush()
                except StoreUnavailable as error:
                    _log.debug("counts wait: %s", error.message)
        finally:
            try:
                async with asyncio.timeout(_EVERY_S):
                    await self.flush()
            except (StoreUnavailable, TimeoutError) as error:
                _log.warning("the counts of the last second are lost: %s", error)
