"""Token buckets by Redis' own clock."""

import asyncio
import math
import random
from typing import Any

import pytest

from api.steady import SteadyRates
from shared import names
from shared.errors import StoreUnavailable
from shared.store.rates import Rates, Taken
from tests.cases import after
from tests.store.store import Store


def test_so_many_pass_at_once_and_then_as_many_as_the_clock_allows(on_store):
    async def test(store: Store) -> None:
        rates = Rates(store.scripts)

        taken = await asyncio.gather(*(rates.take("who", per_s=0.01, burst=20) for _ in range(60)))

        assert sum(one.allowed for one in taken) == 20
        refused = next(one for one in taken if not one.allowed)
        assert 99 < refused.wait_s <= 100
        await store.redis("HSET", names.rate("who"), "tokens", "0.999", "series", "0", "at", await past(store, 0.2))
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
        assert 0 < await store.redis("PTTL", names.rate("a")) <= 2500

    on_store(test)


class Stored:
    """The store's buckets by a clock of the test's own, which lies in Redis where its script looks for the real one."""

    def __init__(self, store: Store) -> None:
        self._redis = store.redis
        self._now_us = 10**15
        source = store.scripts._sources["take"]
        asked = "redis.call('TIME')"
        assert asked in source
        store.scripts._sources["take"] = source.replace(asked, "redis.call('HMGET', 'clock', 's', 'us')")
        self._rates = Rates(store.scripts)

    async def take(self, per_s: float, burst: int) -> Taken:
        seconds, micros = divmod(self._now_us, 10**6)
        await self._redis("HSET", "clock", "s", seconds, "us", micros)
        return await self._rates.take("who", per_s=per_s, burst=burst)

    async def on(self, s: float) -> None:
        self._now_us += math.ceil(s * 1e6)


class Away(Rates):
    def __init__(self) -> None:
        """Nothing to ask."""

    async def take(self, who: str, *, per_s: float, burst: int) -> Taken:
        raise StoreUnavailable("away", retry_after_s=1)


class Own:
    """The buckets of one API process whose store is away, by a clock of the test's own."""

    def __init__(self) -> None:
        self._now_s = 1e6
        self._rates = SteadyRates(Away(), clock=lambda: self._now_s)

    async def take(self, per_s: float, burst: int) -> Taken:
        return await self._rates.take("who", per_s=per_s, burst=burst)

    async def on(self, s: float) -> None:
        self._now_s += s


async def all_obey(
    bucket: Stored | Own, per_s: float, burst: int, many: int, within_s: float, chance: random.Random
) -> list[int]:
    """Asks `many` times, and once more for each refusal when its whole seconds are over, or up to 0.4 s later. Returns the
    delays, in the order in which they were told."""
    told, due, now = [], [], 0.0
    for _ in range(many):
        taken = await bucket.take(per_s, burst)
        if not taken.allowed:
            told.append(max(1, math.ceil(taken.wait_s)))
            due.append(now + told[-1] + chance.uniform(0, 0.4))
        pause = chance.uniform(0, within_s / many)
        await bucket.on(pause)
        now += pause
    for at in sorted(due):
        await bucket.on(at - now)
        now = at
        assert (await bucket.take(per_s, burst)).allowed, (at, told)
    return told


CASES = [
    (10, 20, 60),
    (10, 10, 60),
    (10, 5, 30),
    (1, 1, 8),
    (1, 20, 30),
    (0.5, 3, 8),
    (3, 2, 12),
    (50, 20, 150),
    (7.3, 9, 60),
]


@pytest.mark.parametrize(
    "within_s", after(1, [0.9, 0.1])
)  # in the longer time new tokens come, which are promised already
@pytest.mark.parametrize(("per_s", "burst", "many"), CASES)
def test_all_who_obey_what_they_are_told_pass(on_store, per_s, burst, many, within_s):
    async def test(store: Store) -> None:
        for bucket in (Stored(store), Own()):
            told = await all_obey(bucket, per_s, burst, many, within_s, random.Random(many))

            assert max(told) <= math.ceil(len(told) / min(per_s, burst)) + 1  # and no longer than the tokens need

    on_store(test)


@pytest.mark.parametrize(("per_s", "burst", "longest_s"), after(1, [(10, 20, 10), (1, 30, 30)]))
def test_who_hammers_pushes_the_delay_of_others_only_so_far(on_store, per_s, burst, longest_s):
    async def test(store: Store) -> None:
        for bucket in (Stored(store), Own()):
            waits = [(await bucket.take(per_s, burst)).wait_s for _ in range(burst + 120)]

            assert waits[-1] <= longest_s
            assert waits[-1] > longest_s / 2
            await bucket.on(waits[-1])
            again = [await bucket.take(per_s, burst) for _ in range(burst + 40)]
            assert burst <= sum(one.allowed for one in again) <= burst + per_s  # half a second's more
            assert all(0 <= one.left <= burst and 0 <= one.full_s <= burst / per_s for one in again)

    on_store(test)


def test_a_promise_that_is_past_is_nobodys(on_store):
    async def test(store: Store) -> None:
        for bucket in (Stored(store), Own()):
            for _ in range(60):
                await bucket.take(10, 20)
            await bucket.on(20)

            allowed = 0
            while (taken := await bucket.take(10, 20)).allowed:
                allowed += 1
            assert allowed >= 20
            assert taken.wait_s <= 0.1

    on_store(test)
