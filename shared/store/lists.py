"""A page of the newest of several lists at any depth: found by counting, never by reading what lies before it."""

from collections.abc import Sequence

import msgspec

from shared.redis import Scripts, text

_LOOKED_AT = 10_000  # the newest, of which those in one state are picked
_AT_ONCE = 1_000


class Listed(msgspec.Struct, frozen=True):
    """Where an id stands: in which list (a name), and by which score (ms)."""

    name: str
    id: str
    at_ms: int


class Lists:
    """Sorted sets of ids by a time. What comes or goes between two round trips moves a page, as it does between two pages."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._redis = scripts.redis

    async def page(self, lists: Sequence[str], *, limit: int, offset: int) -> tuple[list[Listed], int]:
        """The newest first, and how many there are in all."""
        if len(lists) == 1:
            rows = ("ZRANGE", lists[0], offset, offset + limit - 1, "REV", "WITHSCORES")
            found, count = await self._redis.all([rows, ("ZCARD", lists[0])])
            return _listed(lists[0], found), int(count)
        total = await self._count(lists, None)
        if offset >= total or not lists:
            return [], total
        ends = await self._redis.all([("ZRANGE", name, edge, edge, "WITHSCORES") for name in lists for edge in (0, -1)])
        times = [int(float(end[1])) for end in ends if end]
        if not times:
            return [], total
        low, high = min(times), max(times)
        first = await self._cut(lists, offset, low, high)
        last = await self._cut(lists, offset + limit - 1, low, first) if offset + limit < total else low
        found = await self._redis.all([("ZRANGE", name, first, last, "BYSCORE", "REV", "WITHSCORES") for name in lists])
        entries = [entry for name, row in zip(lists, found, strict=True) for entry in _listed(name, row)]
        entries.sort(key=lambda entry: (entry.at_ms, entry.id), reverse=True)
        skip = offset - await self._count(lists, first)
        return entries[max(skip, 0) :][:limit], total

    async def in_state(self, lists: Sequence[str], status: str, *, limit: int, offset: int) -> tuple[list[Listed], int]:
        """Of the newest ten thousand those in one state, and how many of those there are."""
        newest, _ = await self.page(lists, limit=_LOOKED_AT, offset=0)
        picked: list[Listed] = []
        for start in range(0, len(newest), _AT_ONCE):
            part = newest[start : start + _AT_ONCE]
            places = await self._scripts("in_state", status, *[one.id for one in part])
            picked += [part[int(place) - 1] for place in places]
        return picked[offset : offset + limit], len(picked)

    async def drop(self, gone: Sequence[Listed]) -> None:
        """Records that have expired leave their lists."""
        if gone:
            await self._redis.all([("ZREM", one.name, one.id) for one in gone])

    async def _count(self, lists: Sequence[str], after_ms: int | None) -> int:
        """How many there are, or how many that are newer than this."""
        return int(await self._scripts("newer", "-inf" if after_ms is None else f"({after_ms}", *lists))

    async def _cut(self, lists: Sequence[str], rank: int, low: int, high: int) -> int:
        """The time of the entry that so many are before: the earliest that no more than `rank` are newer than."""
        while low < high:
            middle = (low + high) // 2
            if await self._count(lists, middle) <= rank:
                high = middle
            else:
                low = middle + 1
        return low


def _listed(name: str, row: Sequence[bytes]) -> list[Listed]:
    return [Listed(name, text(row[i]), int(float(row[i + 1]))) for i in range(0, len(row), 2)]
