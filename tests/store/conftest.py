"""The store's tests run against fakeredis where speed counts and a real server always."""

from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest

from shared.redis import Client, connect
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.redis)])
def make_redis(request: pytest.FixtureRequest) -> Any:
    """A factory of clients, called inside a test's own loop, on an empty database."""
    if request.param == "fake":
        fake = fakeredis.FakeServer()
        return lambda: fakeredis.FakeAsyncRedis(server=fake)
    server = request.getfixturevalue("server")
    client = server.client()
    client.flushall()
    client.close()

    def make() -> Client:
        return connect(server.url)

    return make
