"""What the log says of a Redis that is away or refuses: once, each minute, and when it is back."""

import logging
import ssl

import pytest
from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.errors import StoreRefused, StoreUnavailable
from shared.outage import Outage
from shared.redis import unavailable
from shared.refusal import refusal


def wrapped(cause: Exception) -> RedisConnectionError:
    """As the client library gives what went wrong with a new connection."""
    error = RedisConnectionError(str(cause))
    error.__cause__ = cause
    return error


def test_an_outage_is_told_once_a_minute_and_its_end_with_its_length(caplog):
    caplog.set_level(logging.INFO)
    times = iter((110.0, 110.2, 130.0, 169.9, 171.0, 172.0, 180.0))
    outage = Outage("cache:6379", clock=lambda: next(times))

    outage.made()
    for _ in range(6):
        outage.failed(ConnectionRefusedError(111, "Connection refused"))
    outage.made()
    outage.made()

    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "WARNING", "INFO"]
    assert told[0][1].startswith("Redis at cache:6379 is away ([Errno 111] Connection refused); it is tried again")
    assert ", for 61 s now" in told[1][1]
    assert told[2][1] == "Redis at cache:6379 is back after 70.0 s"


REFUSALS = {
    "a wrong password": (wrapped(AuthenticationError("invalid username-password pair")), "refuses the login"),
    "no permission": (NoPermissionError("User bob has no permissions to run 'eval'"), "User bob has no"),
    "none in a script": (ResponseError("ACL failure in script: User bob ..."), "does not let this user"),
    "no Redis": (InvalidResponse("Protocol error"), "does not speak as Redis does"),
    "no such database": (wrapped(ResponseError("DB index is out of range")), "DB index is out of range"),
    "TLS": (wrapped(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")), "TLS fails"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_redis_that_was_reached_and_refuses_is_told_from_one_that_is_away(caplog, kind):
    error, words = REFUSALS[kind]

    told = unavailable(error)
    Outage("cache:6379").failed(error)

    assert isinstance(told, StoreRefused)
    assert words in told.why
    assert "bob" not in told.message  # which callers see
    assert f"Redis at cache:6379 was reached, but {told.why}" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("Error 111 connecting"),
        TimeoutError(),
        ReadOnlyError("You can't write against a read only replica."),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
    ],
)
def test_what_passes_by_itself_is_no_refusal(error):
    assert refusal(error) is None
    assert not isinstance(unavailable(error), StoreRefused)
    assert isinstance(unavailable(error), StoreUnavailable)
