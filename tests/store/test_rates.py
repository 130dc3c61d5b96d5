"""Token buckets by Redis' own clock."""

import asyncio
from typing import Any

from shared import names
from shared.store.rates import Rates
from tests.store.store import Store


def test_so_many_pass_at_once_and_then_as_many_as_the_clock_allows(on_store):
    async def test(store: Store) -> None:
        rates = Rates(store.scripts)

        taken = await asyncio.gather(*(rates.take("who", per_s=0.01, burst=20) for _ in range(60)))

        assert sum(one.allowed for one in taken) == 20
        refused = next(one for one in taken if not one.allowed)
        assert 99 < refused.wait_s <= 100
        await store.redis("HSET", names.rate("who"), "tokens", "0.999", "at", await past(store, 0.2))
        assert (await rates.take("who", per_s=0.01, burst=20)).allowed

    on_store(test)


async def past(store: Store, s: float) -> Any:
    seconds, micros = await store.redis("TIME")
    return f"{(int(seconds) + int(micros) / 1e6 - s) * 1000:.3f}"


def test_callers_do_not_share_and_nothing_is_left_when_a_bucket_is_full(on_store):
    async def test(store: Store) -> None:
        rates = Rates(store.scripts)
        assert (await rates.take("a", per_s=1, burst=1)).allowed
        assert not (await rates.take("a", per_s=1, burst=1)).allowed

        other = await rates.take("b", per_s=1, burst=1)

        assert (other.allowed, other.left) == (True, 0)
        assert 0 < await store.redis("PTTL", names.rate("a")) <= 2000

    on_store(test)
