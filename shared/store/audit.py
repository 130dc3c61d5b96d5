"""The audit log: who did what to whose runs, flows, sessions and hosts; read the newest first."""

from functools import partial
from typing import Any

import msgspec

from shared import names
from shared.redis import Scripts, text
from shared.store.reading import each


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """`owner` is the tenant of what it was done to; `key` is the id of the API key, "" where the service needs none."""

    action: str  # run.cancel, run.erase, flow.cancel, flow.erase, session.delete, session.resume, host.drain, ...
    target: str
    owner: str
    tenant: str
    key: str
    address: str
    request_id: str
    result: str


class Kept(msgspec.Struct, frozen=True):
    id: str
    at_s: float  # by Redis' clock
    entry: Entry


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Audit:
    def __init__(self, scripts: Scripts, *, most: int, retention_s: float) -> None:
        self._scripts = scripts
        self._redis = scripts.redis
        self._most = most
        self._retention_ms = int(retention_s * 1000)

    async def add(self, entry: Entry) -> None:
        await self._scripts("audit", _encode(entry), self._most, self._retention_ms)

    async def read(self, *, before: str | None, count: int) -> list[Kept]:
        """Those older than the entry `before`, or the newest."""
        rows = await self._redis("XREVRANGE", names.AUDIT, f"({before}" if before else "+", "-", "COUNT", count)
        found = [each("the audit log", partial(_kept, row)) for row in rows]
        return [kept for kept in found if kept is not None]


def _kept(row: Any) -> Kept:
    return Kept(text(row[0]), int(text(row[0]).partition("-")[0]) / 1000, _decode(row[1][1]))
