"""The store's tests run against fakeredis where speed counts and a real server always."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import fakeredis
import pytest
from redis.exceptions import ResponseError

from shared.redis import Command, Redis
from tests.servers import RedisServer
from tests.store.store import Store


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


def _flat(reply: Any) -> Any:
    """fakeredis answers HGETALL as a dict, and members with their scores as pairs."""
    if (
        isinstance(reply, list)
        and reply
        and reply[0]
        and isinstance(reply[0], list)
        and isinstance(reply[0][-1], float)
    ):
        return [part for pair in reply for part in pair]
    return [part for pair in reply.items() for part in pair] if isinstance(reply, dict) else reply


class FakeRedis(Redis):
    """The same commands, answered within this process."""

    def __init__(self, server: fakeredis.FakeServer) -> None:
        self._client = fakeredis.FakeAsyncRedis(server=server)
        self._client.response_callbacks.clear()  # replies as they come over the wire

    async def raw(self, commands: Sequence[Command]) -> list[Any]:
        if any(command[0] == "SCRIPT" and str(command[2]).startswith("#!") for command in commands):
            raise ResponseError("fakeredis takes the flags of a script as Redis 6 does: not at all")
        replies = [await self._client.execute_command(*command) for command in commands]
        return [_flat(reply) for reply in replies]

    async def aclose(self) -> None:
        await self._client.aclose()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.redis)])
def make_redis(request: pytest.FixtureRequest) -> Any:
    """A factory of clients, called inside a test's own loop, on an empty database."""
    if request.param == "fake":
        fake = fakeredis.FakeServer()
        return lambda: FakeRedis(fake)
    server = request.getfixturevalue("server")
    client = server.client()
    client.flushall()
    client.close()

    def make() -> Redis:
        return Redis(server.url)

    return make


@pytest.fixture
def on_store(make_redis: Any) -> Callable[..., None]:
    def go(test: Callable[[Store], Awaitable[None]], **limits: Any) -> None:
        async def main() -> None:
            redis = make_redis()
            store = Store(redis, **limits)
            try:
                await test(store)
            finally:
                await redis.aclose()

        asyncio.run(main())

    return go
