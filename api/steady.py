"""Rate limits that hold while the store is away: each API process then counts for itself."""

import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from shared.errors import StoreUnavailable
from shared.store.rates import Rates, Taken

_MANY = 10_000  # callers counted at once; the one unheard for longest is forgotten
_AGAIN_S = 1.0  # for so long the store is not asked again: who waits for it would wait twice
_LONGEST_S, _LATE_S, _ROUNDED_S = 10.0, 0.5, 1.0  # of promises; take.lua says why


class _Bucket(msgspec.Struct, frozen=True):
    tokens: float
    at: float
    promised: float = float("-inf")
    series: float = float("-inf")


class SteadyRates(Rates):
    """Exact over all replicas as long as the store answers."""

    def __init__(self, rates: Rates, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._not_before = 0.0

    async def take(self, who: str, *, per_s: float, burst: int) -> Taken:
        now = self._clock()
        if now >= self._not_before:
            try:
                return await self._rates.take(who, per_s=per_s, burst=burst)
            except StoreUnavailable:
                now = self._clock()
                self._not_before = now + _AGAIN_S
        return self._take(who, per_s, burst, now)

    def _take(self, who: str, per_s: float, burst: int, now: float) -> Taken:
        was = self._buckets.pop(who, None) or _Bucket(float(burst), now)
        promised, series = was.promised, was.series
        room = burst + per_s * _LATE_S if now < promised + _ROUNDED_S + _LATE_S else burst
        tokens = min(room, was.tokens + (now - was.at) * per_s)
        kept = 0.0
        if now < promised and now < series + _ROUNDED_S:
            kept = min((promised - now) * per_s, room - 1)
        allowed = tokens >= kept + 0.999999
        if allowed:
            tokens = max(tokens - 1, 0.0)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / per_s
        if not allowed:
            series = now if promised <= now else series
            beside = promised + max(1 / per_s, 1 / burst)
            promised = max(now + wait_s, min(beside, now + max(_LONGEST_S, burst / per_s)))
            wait_s = promised - now
        self._buckets[who] = _Bucket(tokens, now, promised, series)
        if len(self._buckets) > _MANY:
            self._buckets.popitem(last=False)
        return Taken(allowed, min(max(int(tokens - kept), 0), burst), wait_s, max(burst - tokens, 0.0) / per_s)
