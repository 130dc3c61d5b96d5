"""What runs have used, by day, tenant, key, model and backend; written by the step that ends a run (`charge` in lua/lib)."""

from collections.abc import Collection, Sequence

import msgspec

from shared import names
from shared.redis import Scripts, text, texts
from shared.store.reading import reading

MEASURES: tuple[str, ...] = ("succeeded", "failed", "cancelled", "took_ms", "input_tokens", "output_tokens")
MEASURES += ("cached_tokens", "reasoning_tokens", "cost_microusd")


class Used(msgspec.Struct, frozen=True):
    """One kind of use on one day. `measures` lacks what was never reported, such as the cost."""

    day: int  # since 1970, UTC
    tenant: str
    key: str
    backend: str
    model: str
    measures: dict[str, int]


class Usage:
    def __init__(self, scripts: Scripts) -> None:
        self._redis = scripts.redis

    async def read(self, days: Sequence[int], tenants: Collection[str] | None) -> list[Used]:
        """Of these tenants, or of all; the days in their order. Two round trips."""
        if tenants is None:
            found = await self._redis.all([("SMEMBERS", names.usage_tenants(day)) for day in days]) if days else []
            wanted = [(day, tenant) for day, row in zip(days, found, strict=True) for tenant in sorted(texts(row))]
        else:
            wanted = [(day, tenant) for day in days for tenant in sorted(tenants)]
        rows = await self._redis.all([("HGETALL", names.usage(*pair)) for pair in wanted]) if wanted else []
        used: list[Used] = []
        for (day, tenant), flat in zip(wanted, rows, strict=True):
            kinds: dict[tuple[str, str, str], dict[str, int]] = {}
            with reading(f"what {tenant!r} used"):
                for at in range(0, len(flat), 2):
                    measure, key, backend, model = flat[at].decode(errors="replace").split("|", 3)
                    kinds.setdefault((key, backend, model), {})[measure] = int(text(flat[at + 1]))
            used += [Used(day, tenant, *kind, measures) for kind, measures in sorted(kinds.items())]
        return used
