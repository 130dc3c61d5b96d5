"""The events of runs: appended by workers, read by followers from any position."""

from collections.abc import Sequence
from typing import Any

import msgspec

from shared import names
from shared.errors import LogExpired
from shared.redis import Arg, Scripts, text
from shared.store.reading import reading


class Batch(msgspec.Struct):
    """Consecutive encoded events of one run, the first of them with sequence `first`."""

    run_id: str
    token: str
    first: int
    lines: list[bytes]


class Events:
    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._redis = scripts.redis

    async def append(self, batches: Sequence[Batch]) -> list[str]:
        """Stores and publishes in one round trip; may be repeated. Returns the runs that are no longer the caller's."""
        args: list[Arg] = []
        for batch in batches:
            args += [batch.run_id, batch.token, batch.first, len(batch.lines), *batch.lines]
        return [text(run_id) for run_id in await self._scripts("append", *args)]

    async def read(self, run_id: str, *, after: int, count: int = 500) -> list[bytes]:
        """Encoded events that follow position `after`, oldest first; empty where there are none yet.

        Raises: LogExpired where some of them have been trimmed.
        """
        rows: Any = await self._redis("XRANGE", names.events(run_id), f"0-{after + 1}", "+", "COUNT", count)
        with reading(f"the events of {run_id}"):
            return self._follow_on(run_id, rows, after)

    @staticmethod
    def _follow_on(run_id: str, rows: Any, after: int) -> list[bytes]:
        if rows and int(text(rows[0][0]).partition("-")[2]) != after + 1:
            raise LogExpired(f"the events of {run_id} up to {text(rows[0][0]).partition('-')[2]} are no longer kept")
        return [row[1][1] for row in rows]

    async def ends(self, run_ids: Sequence[str]) -> list[int | None]:
        """The sequence of each run's last event; None for a run that is gone."""
        rows = await self._redis.all([("HGET", names.run(run_id), "seq") for run_id in run_ids])
        with reading("the ends of runs"):
            return [None if row is None else int(row) for row in rows]
