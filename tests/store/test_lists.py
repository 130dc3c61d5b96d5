"""Lists of several tenants as one: the same as if all were read and sorted, at any depth."""

import random

import pytest

from shared import names
from shared.store.lists import Lists
from tests.cases import after
from tests.store.store import Store


async def filled(store: Store, *, tenants: int, entries: int, times: int) -> tuple[list[str], list[str]]:
    """Their names, and all ids in the order that is wanted."""
    chance = random.Random(tenants * 1000 + entries)  # no secret
    lists = [names.runs(f"t{number}") for number in range(tenants)]
    every = []
    for number in range(entries):
        id, name, at_ms = f"run_{number:05}", chance.choice(lists), 1_700_000_000_000 + chance.randrange(times)
        await store.redis("ZADD", name, at_ms, id)
        await store.redis("HSET", names.run(id), "status", "failed" if number % 7 == 0 else "succeeded")
        every.append((at_ms, id))
    return lists, [id for _, id in sorted(every, reverse=True)]


@pytest.mark.parametrize(
    ("tenants", "entries", "times"),
    after(3, [(1, 40, 10**9), (3, 60, 1), (7, 300, 20), (7, 300, 10**9), (50, 20, 10**6)]),
)
def test_every_page_is_what_reading_all_would_give(on_store, tenants, entries, times):
    async def test(store: Store) -> None:
        lists, wanted = await filled(store, tenants=tenants, entries=entries, times=times)

        for limit, offset in ((10, 0), (7, 13), (1, entries - 1), (1000, 0), (10, entries // 2), (5, entries - 2)):
            page, total = await Lists(store.scripts).page(lists, limit=limit, offset=offset)

            assert [one.id for one in page] == wanted[offset : offset + limit]
            assert total == entries

    on_store(test)


def test_beyond_the_end_and_of_nothing_there_is_nothing(on_store):
    async def test(store: Store) -> None:
        lists, _ = await filled(store, tenants=3, entries=9, times=100)

        assert await Lists(store.scripts).page(lists, limit=5, offset=9) == ([], 9)
        assert await Lists(store.scripts).page([], limit=5, offset=0) == ([], 0)
        assert await Lists(store.scripts).page([names.runs("nobody")], limit=5, offset=0) == ([], 0)

    on_store(test)


def test_those_in_one_state_are_listed_and_counted(on_store):
    async def test(store: Store) -> None:
        lists, wanted = await filled(store, tenants=4, entries=70, times=10**6)
        failed = [id for id in wanted if int(id[-5:]) % 7 == 0]

        page, total = await Lists(store.scripts).in_state(lists, "failed", limit=3, offset=2)

        assert [one.id for one in page] == failed[2:5]
        assert total == len(failed) == 10

    on_store(test)


def test_tenants_of_whom_nothing_can_be_left_are_forgotten_and_others_are_not(on_store):
    week_ms = 7 * 86_400_000

    async def test(store: Store) -> None:
        seconds, _ = await store.redis("TIME")
        now = int(seconds) * 1000
        ages = {"gone": week_ms + 3_700_000, "just kept": week_ms + 3_500_000, "here": 0}
        for tenant, age in ages.items():
            await store.redis("ZADD", names.TENANTS, now - age, tenant)

        await store.sweeper.sweep()

        assert list(await store.runs.tenants()) == ["here", "just kept"]

    on_store(test, session_s=3600)
