"""The way to Redis on a real server: in order, bounded in time, and well again after whatever happened to it."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop
from redis.exceptions import RedisError

import shared.redis
from shared.errors import StoreDamaged, StoreUnavailable
from shared.redis import Redis
from shared.store import Limits, create_scripts
from tests.servers import RedisServer

pytestmark = pytest.mark.redis

WITHIN_S = 0.5
LATE_S = WITHIN_S + 1.0 + 1.0  # the link looks once a second; a busy machine takes its time
BIG = b"x" * 20_000_000  # more than a socket and its buffers take

Test = Callable[[Redis], Awaitable[None]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer(fsync="no")
    yield server
    server.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def on_redis(request: pytest.FixtureRequest, server: RedisServer) -> Callable[[Test], None]:
    """Runs a test with a client in a loop; whatever the loop is told of tasks that died fails it."""
    complaints: list[dict[str, Any]] = []

    def go(test: Test, **options: Any) -> None:
        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            redis = Redis(server.url, **options)
            try:
                await test(redis)
            finally:
                await redis.aclose()

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        assert complaints == []

    return go


def halt(server: RedisServer) -> None:
    server.process.send_signal(signal.SIGSTOP)


def go_on(server: RedisServer) -> None:
    server.process.send_signal(signal.SIGCONT)


async def under_way(*calls: Awaitable[Any]) -> "list[asyncio.Task[Any]]":
    """The calls as tasks that have sent what they have to send."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def refused_within(limit_s: float, call: Awaitable[Any]) -> None:
    begun = time.monotonic()

    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(call, 8)
    assert time.monotonic() - begun < limit_s


# -- one connection


def test_many_commands_at_once_on_one_connection_are_answered_in_order(on_redis):
    async def test(redis: Redis) -> None:
        async def three(i: int) -> list[Any]:
            return await redis.all([("ECHO", f"a{i}"), ("INCR", "n"), ("ECHO", f"b{i}")])

        found = await asyncio.gather(*[three(i) for i in range(2000)])

        assert found == [[b"a%d" % i, i + 1, b"b%d" % i] for i in range(2000)]
        assert b"connected_clients:1\r" in await redis("INFO", "clients")

    on_redis(test)


def test_an_error_and_a_nil_go_to_those_who_asked_for_them(on_redis):
    async def test(redis: Redis) -> None:
        await redis("SET", "text", "word")

        found = await asyncio.gather(
            redis("ECHO", "before"),
            redis("INCR", "text"),
            redis("GET", "nothing"),
            redis.all([("ECHO", "x"), ("NO-SUCH-COMMAND",), ("ECHO", "y")]),
            redis("ECHO", "after"),
            return_exceptions=True,
        )

        assert found[0::2] == [b"before", None, b"after"]
        assert [type(error) for error in found[1::2]] == [StoreDamaged, StoreUnavailable]

    on_redis(test)


def test_large_and_small_commands_at_once_do_not_mix(on_redis):
    async def test(redis: Redis) -> None:
        sizes = [1, 3_000_000, 10, 2_000_000, 0, 500_000] * 3

        found = await asyncio.gather(*[redis("ECHO", bytes([i]) * size) for i, size in enumerate(sizes)])

        assert found == [bytes([i]) * size for i, size in enumerate(sizes)]

    on_redis(test)


def test_a_waiting_caller_who_is_cancelled_does_not_disturb_the_others(on_redis, server):
    async def test(redis: Redis) -> None:
        await redis("PING")
        halt(server)
        tasks = await under_way(*[redis("ECHO", str(i)) for i in range(10)])

        for i in (0, 4, 9):
            tasks[i].cancel()
        go_on(server)

        found = await asyncio.gather(*tasks, redis("ECHO", "10"), return_exceptions=True)
        assert [isinstance(answer, asyncio.CancelledError) for answer in found] == [i in (0, 4, 9) for i in range(11)]
        assert [answer for answer in found if isinstance(answer, bytes)] == [
            b"%d" % i for i in (1, 2, 3, 5, 6, 7, 8, 10)
        ]

    on_redis(test)


def test_a_caller_cancelled_in_the_middle_of_writing_does_not_disturb_the_others(on_redis, server):
    async def test(redis: Redis) -> None:
        await redis("PING")
        halt(server)
        before, writing, behind = await under_way(redis("ECHO", "1"), redis("ECHO", BIG), redis("ECHO", "2"))

        writing.cancel()
        go_on(server)

        assert await asyncio.gather(before, behind) == [b"1", b"2"]
        with pytest.raises(asyncio.CancelledError):
            await writing

    on_redis(test)


# -- a server that goes and comes


def test_a_server_that_is_back_in_time_has_answered(on_redis, server):
    async def test(redis: Redis) -> None:
        await redis("SET", "kept", "yes")
        halt(server)
        asked = await under_way(redis("GET", "kept"), *[redis("ECHO", str(i)) for i in range(50)])
        await asyncio.to_thread(server.kill)
        later = await under_way(redis("ECHO", "later"))

        await asyncio.to_thread(server.start)

        assert await asyncio.gather(*asked) == [b"yes", *[b"%d" % i for i in range(50)]]
        assert await later[0] == b"later"

    on_redis(test)


def test_a_server_that_stays_away_is_told_within_the_time_out_and_used_again_when_it_is_back(on_redis, server):
    async def test(redis: Redis) -> None:
        await redis("PING")
        await asyncio.to_thread(server.kill)

        await refused_within(LATE_S, redis("PING"))
        await asyncio.to_thread(server.start)

        assert await redis("PING") == b"PONG"

    on_redis(test, timeout_s=WITHIN_S)


def test_a_server_that_is_silent_is_told_within_the_time_out_to_all_who_wait(on_redis, server):
    async def test(redis: Redis) -> None:
        await redis("PING")
        halt(server)

        await asyncio.gather(*[refused_within(LATE_S, redis("PING")) for _ in range(5)])
        go_on(server)

        assert await redis("PING") == b"PONG"

    on_redis(test, timeout_s=WITHIN_S)


def test_a_new_connection_to_a_silent_server_is_bounded_too_for_all_who_wait_for_it(on_redis, server):
    async def test(redis: Redis) -> None:
        halt(server)

        await asyncio.gather(*[refused_within(LATE_S, redis("PING")) for _ in range(5)])
        go_on(server)

        assert await redis("PING") == b"PONG"

    on_redis(test, timeout_s=WITHIN_S)


def test_a_command_too_large_for_the_socket_of_a_silent_server_is_bounded_too(on_redis, server):
    async def test(redis: Redis) -> None:
        await redis("PING")
        halt(server)

        await asyncio.gather(refused_within(LATE_S, redis("ECHO", BIG)), refused_within(LATE_S, redis("PING")))
        go_on(server)

        assert await redis("PING") == b"PONG"

    on_redis(test, timeout_s=WITHIN_S)


def test_a_server_that_became_a_replica_refuses_and_is_used_again_when_it_is_master(on_redis, server):
    async def test(redis: Redis) -> None:
        await redis("REPLICAOF", "127.0.0.1", "1")

        await asyncio.gather(*[refused_within(LATE_S, redis("SET", "a", str(i))) for i in range(20)])
        assert await redis("REPLICAOF", "NO", "ONE") == b"OK"

        assert await redis("SET", "a", "b") == b"OK"

    on_redis(test, timeout_s=WITHIN_S)


def test_a_connection_that_the_kernel_gives_up_is_lost_and_no_answer_is_made_up(on_redis, server):
    async def test(redis: Redis) -> None:
        await redis("SET", "kept", "yes")
        halt(server)
        (asked,) = await under_way(redis("GET", "kept"))

        redis._link._connection._reader.set_exception(TimeoutError(110, "Connection timed out"))
        go_on(server)

        assert await asked == b"yes"

    on_redis(test)


# -- subscriptions


async def publish(redis: Redis, *words: str) -> None:
    for word in words:
        await redis("PUBLISH", "news", word)


async def first_of(messages: Any) -> Any:
    return await asyncio.wait_for(anext(messages), 10)


def test_a_subscription_says_first_that_it_listens_then_what_comes(on_redis):
    async def test(redis: Redis) -> None:
        await publish(redis, "missed")
        messages = redis.subscribe("news")

        assert await first_of(messages) is None
        await publish(redis, *map(str, range(100)))
        assert [await first_of(messages) for _ in range(100)] == [b"%d" % i for i in range(100)]
        await messages.aclose()

    on_redis(test)


def test_a_subscription_ends_with_an_error_at_a_lost_connection_and_can_be_made_again(on_redis, server):
    async def test(redis: Redis) -> None:
        messages = redis.subscribe("news")
        assert await first_of(messages) is None

        await asyncio.to_thread(server.kill)
        with pytest.raises((RedisError, OSError)):
            await first_of(messages)
        with pytest.raises((RedisError, OSError)):
            await first_of(redis.subscribe("news"))
        await asyncio.to_thread(server.start)

        messages = redis.subscribe("news")
        assert await first_of(messages) is None
        await publish(redis, "again")
        assert await first_of(messages) == b"again"
        await messages.aclose()

    on_redis(test)


def test_a_quiet_subscription_lasts_and_a_silent_one_ends(on_redis, server, monkeypatch):
    monkeypatch.setattr(shared.redis, "_QUIET_S", 0.02)

    async def test(redis: Redis) -> None:
        messages = redis.subscribe("news")
        assert await first_of(messages) is None
        waiting = asyncio.ensure_future(first_of(messages))
        client = server.client()
        while client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"] < 5:  # it asks, and is answered
            await asyncio.sleep(0.01)
        client.close()
        await publish(redis, "after all")
        assert await waiting == b"after all"

        halt(server)
        begun = time.monotonic()
        with pytest.raises((RedisError, OSError)):
            await first_of(messages)
        assert time.monotonic() - begun < LATE_S
        with pytest.raises((RedisError, OSError)):  # nor does a new one wait for ever
            await first_of(redis.subscribe("news"))
        assert time.monotonic() - begun < 2 * LATE_S

        go_on(server)
        messages = redis.subscribe("news")
        assert await first_of(messages) is None
        await messages.aclose()

    on_redis(test, timeout_s=WITHIN_S)


# -- scripts


def test_scripts_are_loaded_again_when_the_server_has_forgotten_them(on_redis, server):
    async def test(redis: Redis) -> None:
        scripts = create_scripts(redis, Limits())
        assert await scripts("follow", "run_1", "api_1") == []

        await redis("SCRIPT", "FLUSH")
        assert await asyncio.gather(*[scripts("follow", "run_1", "api_1") for _ in range(10)]) == [[]] * 10
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

        assert await scripts("follow", "run_1", "api_1") == []

    on_redis(test)


def test_a_script_that_fails_is_told_as_the_store_being_unavailable(on_redis):
    async def test(redis: Redis) -> None:
        scripts = create_scripts(redis, Limits())
        await redis("SET", "clinvk:run:run_1", "no hash")

        with pytest.raises(StoreUnavailable):
            await scripts("follow", "run_1", "api_1")

    on_redis(test)
