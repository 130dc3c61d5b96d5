"""The way to Redis, and the one place that firms the client library's loose types."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as aio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import InvalidRequest, StoreDamaged, StoreRefused, StoreUnavailable
from shared.outage import Outage
from shared.redis_url import Place, parse
from shared.refusal import refusal

Arg = str | bytes | int | float
Command = Sequence[Arg]

# redis-py 8 speaks RESP3 unless told otherwise; RESP2 costs a third of the CPU and its replies are what we parse.
_PROTOCOL = 2
_AGAIN_S = (0.05, 0.1, 0.2, 0.4, 0.5)  # between attempts; all that is sent may be sent twice
_LOST = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError)
_NO_WAY = (RedisConnectionError, RedisTimeoutError, InvalidResponse, OSError)  # which an `Outage` tells
_QUIET_S = 2.0


class Redis:
    """All commands of a process share one connection, many under way at once; redis-py makes it, anew when it breaks.

    A connection for each command that is under way, as the library's own client has it, costs five times the CPU.
    `url`: as redis_url.py has it; `outage` is told of each attempt to connect. Nothing is connected yet.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0, outage: Outage | None = None) -> None:
        self._outage = outage
        self._timeout_s = timeout_s
        self._place = parse(url)
        self._sentinels = _Sentinels(self._place, timeout_s) if self._place.service else None
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    async def __call__(self, *command: Arg) -> Any:
        """The reply, bytes as they came. Raises: StoreUnavailable."""
        return (await self.all([command]))[0]

    async def all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies of several commands sent at once. Raises: StoreUnavailable."""
        try:
            return await self.raw(commands)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def raw(self, commands: Sequence[Command]) -> list[Any]:
        """As `all`. Raises: the library's own errors, once all attempts have failed."""
        give_up = asyncio.get_running_loop().time() + self._timeout_s
        for wait_s in _AGAIN_S:
            try:
                return await (await self._connected(give_up)).send(commands)
            except _LOST as error:
                if asyncio.get_running_loop().time() + wait_s > give_up or refusal(error) is not None:
                    raise
            await asyncio.sleep(wait_s)
        return await (await self._connected(give_up)).send(commands)

    async def _connected(self, give_up: float) -> "_Link":
        if self._link is not None and not self._link.broken:
            return self._link
        try:
            async with asyncio.timeout_at(give_up), self._connecting:
                if self._link is None or self._link.broken:
                    self._link = _Link(await self._connect(), self._timeout_s)
        except TimeoutError as error:
            self._failed(error)
            raise
        return self._link

    async def _connect(self) -> Any:
        try:
            connection = await self._attempt()
        except (RedisError, OSError) as error:
            self._failed(error)
            raise
        if self._outage is not None:
            self._outage.made()
        return connection

    def _failed(self, error: Exception) -> None:
        if self._outage is not None:
            self._outage.failed(error)

    async def _attempt(self) -> Any:
        async with asyncio.timeout(self._timeout_s):
            host, port = await self._sentinels.master() if self._sentinels else (self._place.hosts or (("", 0),))[0]
        connection = self._made(host, port)
        try:
            async with asyncio.timeout(self._timeout_s):  # the library itself would wait for the handshake for ever
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _made(self, host: str, port: int) -> Any:
        given: dict[str, Any] = self._place.login | {
            "protocol": _PROTOCOL,
            "socket_timeout": None,  # which would be paid for with each command; `_Link` watches
            "socket_connect_timeout": self._timeout_s,
            "retry": Retry(NoBackoff(), 0),
        }
        if self._place.path:
            return aio.UnixDomainSocketConnection(path=self._place.path, **given)
        if self._place.tls is not None:
            return aio.SSLConnection(host=host, port=port, **given, **self._place.tls)
        return aio.Connection(host=host, port=port, **given)

    async def subscribe(self, channel: str) -> AsyncGenerator[bytes | None]:
        """The messages of a channel, for ever. None: it is subscribed from now on, what came before may be missed.

        Raises: the library's own errors, or OSError, when the connection is lost; ask again.
        """
        connection = await self._connect()
        try:
            await connection.send_command("SUBSCRIBE", channel)
            asked = False
            while True:
                reply = await connection.read_response(timeout=_QUIET_S if not asked else self._timeout_s)
                if reply is not None:
                    asked = False
                    if reply[0] == b"message":
                        yield reply[2]
                    elif reply[0] == b"subscribe":
                        yield None
                elif asked:
                    raise RedisTimeoutError("no answer on a subscribed connection")
                else:  # a half-open one would be silent for ever
                    await connection.send_command("PING")
                    asked = True
        finally:
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        if self._link is not None:
            await self._link.close()
        if self._sentinels is not None:
            await self._sentinels.aclose()


class _Sentinels:
    """Those who know which server is the master; the first that answers is asked first from then on."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        tls = {"ssl": True, **place.tls} if place.tls is not None else {}
        each_s = timeout_s / (len(place.hosts) + 1)  # one that hangs leaves the others their turn
        given = {**place.sentinel_login, **tls, "protocol": _PROTOCOL, "socket_timeout": each_s}
        given |= {"socket_connect_timeout": each_s, "retry": Retry(NoBackoff(), 0)}
        self._known = aio.Sentinel(list(place.hosts), sentinel_kwargs=given)  # type: ignore[no-untyped-call]  # redis-py
        self._service = place.service

    async def master(self) -> tuple[str, int]:
        """Raises: the library's own errors."""
        host, port = await self._known.discover_master(self._service)
        return str(host), int(port)

    async def aclose(self) -> None:
        await self._known.aclose()


class _Link:
    """One connection: commands go out as they come, replies come back in the same order."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self.broken = False
        self._connection = connection
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001  # see `_break`
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._asked: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._reader = self._loop.create_task(self._read(), name="redis")
        self._timer = self._loop.call_later(1.0, self._watch)

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        if self.broken or not self._connection.is_connected:  # which would connect anew by itself
            raise RedisConnectionError("the connection was lost")
        packed: list[bytes] = []
        futures: list[asyncio.Future[Any]] = []
        now = self._loop.time()
        try:
            for command in commands:
                packed += self._connection.pack_command(*command)
        except UnicodeEncodeError:
            raise InvalidRequest("a text holds half of a surrogate pair, which is no character") from None
        for _ in commands:
            future = self._loop.create_future()
            futures.append(future)
            self._asked.append((future, now))
        try:
            # Written before this first waits, so that the order of the futures is that of the commands.
            await self._connection.send_packed_command(packed, check_health=False)
        except BaseException as error:
            # Cancelled while the socket was full: what is written is written, its replies find nobody.
            if not isinstance(error, asyncio.CancelledError) or not self._connection.is_connected:
                self._break(error if isinstance(error, Exception) else RedisConnectionError("interrupted"))
            for future in futures:
                _forget(future)
            if isinstance(error, RuntimeError):  # asyncio's, for a transport that has been closed meanwhile
                raise RedisConnectionError(str(error)) from error
            raise
        try:
            return [await future for future in futures]
        finally:
            for future in futures:
                _forget(future)

    async def _read(self) -> None:
        try:
            await self._replies()
        finally:
            await self._connection.disconnect(nowait=True)

    async def _replies(self) -> None:
        connection, asked = self._connection, self._asked
        while True:
            reply: Any
            try:
                reply = await connection.read_response()  # with math.inf, ETIMEDOUT would be read as nil
            except ResponseError as error:
                reply = error
            except (RedisError, OSError) as error:
                self._break(error)
                return
            future = asked.popleft()[0]
            if future.done():  # its caller was cancelled
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
                if isinstance(reply, ReadOnlyError):  # it is a replica now
                    self._break(reply)
                    return
            else:
                future.set_result(reply)

    def _watch(self) -> None:
        self._timer = self._loop.call_later(1.0, self._watch)
        if self._asked and self._loop.time() - self._asked[0][1] > self._timeout_s:
            self._break(RedisTimeoutError(f"no reply within {self._timeout_s:g} s"))

    def _break(self, error: Exception) -> None:
        self.broken = True
        self._timer.cancel()
        while self._asked:
            future = self._asked.popleft()[0]
            if not future.done():
                future.set_exception(RedisConnectionError(f"the connection was lost: {type(error).__name__}"))
        self._reader.cancel()
        self._transport.abort()  # `close` would first write what is left, and keep for ever who waits for that

    async def close(self) -> None:
        self._break(RedisConnectionError("closed"))
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._connection.disconnect(nowait=True)


def _forget(future: "asyncio.Future[Any]") -> None:
    if future.done():
        if not future.cancelled():
            future.exception()  # it has been seen
    else:
        future.cancel()


# What begins something, or grows without an end in sight. All else goes on where Redis is full: what is small (a lease
# that is not renewed would cost a run) or makes room.
_NEED_ROOM = frozenset({"submit", "submit_flow", "extend_flow", "claim", "append"})
_ALLOWED_WHEN_FULL = "#!lua flags=allow-oom\n"


class Scripts:
    """The store's Lua scripts by name: `await scripts("claim", id, token)`.

    Raises: StoreUnavailable for whatever Redis or the way to it does wrong.
    """

    def __init__(self, redis: Redis, folder: Path, constants: Mapping[str, str]) -> None:
        self.redis = redis
        self._sources: dict[str, str] = {}
        self._shas: dict[str, bytes] = {}
        lib = "\n".join(path.read_text() for path in sorted((folder / "lib").glob("*.lua")))
        for name, value in constants.items():
            lib = lib.replace(f"@{name}@", value)
        for path in folder.glob("*.lua"):
            flags = "" if path.stem in _NEED_ROOM else _ALLOWED_WHEN_FULL
            self._sources[path.stem] = flags + lib + path.read_text()

    async def __call__(self, name: str, *args: Arg) -> Any:
        try:
            sha = self._shas.get(name)
            if sha is not None:
                try:
                    return (await self.redis.raw([("EVALSHA", sha, 0, *args)]))[0]
                except NoScriptError:  # Redis was restarted
                    pass
            sha = self._shas[name] = await self._load(self._sources[name])
            return (await self.redis.raw([("EVALSHA", sha, 0, *args)]))[0]
        except (RedisError, OSError) as error:
            raise unavailable(error) from error

    async def _load(self, source: str) -> Any:
        try:
            return (await self.redis.raw([("SCRIPT", "LOAD", source)]))[0]
        except ResponseError:
            if not source.startswith(_ALLOWED_WHEN_FULL):
                raise
            # Redis before 7 knows no flags.
            return (await self.redis.raw([("SCRIPT", "LOAD", source.removeprefix(_ALLOWED_WHEN_FULL))]))[0]


# A command or a script met a value that no script of ours has written.
_DAMAGED = re.compile(
    r"WRONGTYPE|(ERR )?(user_script:\d+: |Error running script)|.*not an? (valid )?(integer|float)|.*ID specified in XADD"
).match


def unavailable(error: Exception) -> StoreUnavailable:
    """What a caller is told when Redis is away or refuses; the client's own words stay in the log."""
    if isinstance(error, OutOfMemoryError):
        return StoreUnavailable("the store is full", retry_after_s=10)
    if isinstance(error, ResponseError) and _DAMAGED(str(error)):
        return StoreDamaged("what the store holds of this is not what it should be", retry_after_s=60)
    logged = isinstance(error, _NO_WAY)
    if (why := refusal(error)) is not None:
        return StoreRefused("the store refuses this service", why=why, logged=logged)
    return StoreUnavailable(f"the store is not available ({type(error).__name__})", retry_after_s=2, logged=logged)


def text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def texts(values: Sequence[Any]) -> list[str]:
    return [text(value) for value in values]
