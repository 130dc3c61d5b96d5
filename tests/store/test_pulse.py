"""How a replica fares: who ends takes nothing more, and many questions are one look."""

import asyncio

import pytest

from api.pulse import Heart
from api.relay import Relay
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
