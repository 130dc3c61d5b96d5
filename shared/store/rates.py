"""How often who may ask: token buckets that all API replicas share."""

import msgspec

from shared.redis import Scripts


class Taken(msgspec.Struct, frozen=True):
    """`wait_s` until one more may pass, for who was refused beside those refused before it; `full_s` until all may again."""

    allowed: bool
    left: int
    wait_s: float
    full_s: float


class Rates:
    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def take(self, who: str, *, per_s: float, burst: int) -> Taken:
        """Raises: StoreUnavailable."""
        allowed, left, wait_ms, full_ms = await self._scripts("take", who, str(per_s), burst)
        return Taken(bool(allowed), int(left), int(wait_ms) / 1000, int(full_ms) / 1000)
