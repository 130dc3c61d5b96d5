"""Rate limits that hold while the store is away: each API process then counts for itself."""

import asyncio
from collections import OrderedDict

from shared.errors import StoreUnavailable
from shared.store.rates import Rates, Taken

_MANY = 10_000  # callers counted at once; the one unheard for longest is forgotten
_AGAIN_S = 1.0  # for so long the store is not asked again: who waits for it would wait twice


class SteadyRates(Rates):
    """Exact over all replicas as long as the store answers."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when
        self._not_before = 0.0

    async def take(self, who: str, *, per_s: float, burst: int) -> Taken:
        now = asyncio.get_running_loop().time()
        if now >= self._not_before:
            try:
                return await self._rates.take(who, per_s=per_s, burst=burst)
            except StoreUnavailable:
                now = asyncio.get_running_loop().time()
                self._not_before = now + _AGAIN_S
        return self._take(who, per_s, burst, now)

    def _take(self, who: str, per_s: float, burst: int, now: float) -> Taken:
        left, at = self._buckets.pop(who, (float(burst), now))
        left = min(burst, left + (now - at) * per_s)
        allowed = left >= 1
        left -= allowed
        self._buckets[who] = (left, now)
        if len(self._buckets) > _MANY:
            self._buckets.popitem(last=False)
        return Taken(allowed, int(left), 0.0 if left >= 1 else (1 - left) / per_s, (burst - left) / per_s)
