"""How a replica fares: who ends takes nothing more, and many questions are one look."""

import asyncio

import pytest

from api.pulse import Heart
from api.relay import Relay
from shared import names
from shared.redis import Redis
from tests.store.store import Store

pytestmark = pytest.mark.redis


@pytest.fixture
def on_server(server):
    """As `on_store`, on a real server alone: live events come by pub/sub."""

    def go(test):
        async def main():
            client = server.client()
            client.flushall()
            client.close()
            redis = Redis(server.url)
            try:
                await test(Store(redis))
            finally:
                await redis.aclose()

        asyncio.run(main())

    return go


def test_a_replica_that_ends_is_unready_at_once_though_the_last_look_is_fresh(on_server):
    async def test(store):
        closing = asyncio.Event()
        async with Relay(store.redis, store.events, store.api, "api_1") as relay:
            heart = Heart(store.runs, store.sessions, store.dispatch, relay, closing)
            await store.worker()

            before = await heart.feel()
            closing.set()
            after = await heart.feel()
            await heart.close()

        assert (before.unready, before.degraded) == ((), ())
        assert after.unready == ("this replica is shutting down",)
        assert len(after.fleet) == 1

    on_server(test)


def test_a_hundred_who_ask_at_once_share_one_look(on_server):
    async def test(store):
        async with Relay(store.redis, store.events, store.api, "api_1") as relay:
            heart = Heart(store.runs, store.sessions, store.dispatch, relay, asyncio.Event())

            found = await asyncio.gather(*[heart.feel() for _ in range(100)])
            await heart.close()

        assert all(one is found[0] for one in found)
        assert found[0].degraded == ("no worker is connected",)

    on_server(test)


async def looks(heart, until):
    """One pulse for each look, up to the first that is as wanted."""
    found = [await heart.feel()]
    async with asyncio.timeout(10):
        while not until(found):
            await asyncio.sleep(0.02)
            if (one := await heart.feel()) is not found[-1]:
                found.append(one)
    return found


@pytest.mark.parametrize("well_before", [False, True])
def test_what_it_cannot_understand_of_the_store_makes_a_replica_unready_and_is_logged_once(
    on_server, caplog, well_before
):
    fault = ("this replica cannot tell how it fares: StoreDamaged",)

    async def test(store):
        async with Relay(store.redis, store.events, store.api, "api_1") as relay:
            await store.worker()
            heart = Heart(store.runs, store.sessions, store.dispatch, relay, asyncio.Event())
            if well_before:
                assert (await heart.feel()).unready == ()

            await store.redis("SET", names.SESSIONS, "no sorted set")
            found = await looks(heart, lambda found: [one.unready for one in found[-2:]] == [fault, fault])
            said = [row for row in caplog.records if row.name == "api.pulse"]
            await store.redis("DEL", names.SESSIONS)
            mended = await looks(heart, lambda found: found[-1].unready == ())
            await heart.close()

        assert well_before or {one.unready for one in found} == {fault}
        assert [row.exc_info is not None for row in said] == [True]
        assert len(mended[-1].fleet) == 1

    on_server(test)
