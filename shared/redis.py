"""Connections to Redis, and the one place that firms the client's loose types."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as aio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError, RedisError

from shared.errors import StoreUnavailable

Client = aio.Redis
Arg = str | bytes | int | float

# redis-py 8 speaks RESP3 unless told otherwise; RESP2 costs a third of the CPU and its replies are what we parse.
_PROTOCOL = 2


def connect(url: str, *, max_connections: int = 64, timeout_s: float = 5.0) -> Client:
    """A client with a pool that waits for a free connection; nothing is connected yet.

    `url`: redis://, rediss://, unix:// or redis+socket:// (Celery's word for unix://).
    """
    pool = aio.BlockingConnectionPool.from_url(
        url.replace("redis+socket://", "unix://", 1),
        protocol=_PROTOCOL,
        max_connections=max_connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # Every script may be sent twice, so that a lost answer is no harm.
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 4),
        retry_on_error=[ConnectionError],
    )
    return aio.Redis.from_pool(pool)


class Scripts:
    """The store's Lua scripts by name: `await scripts("claim", id, token)`.

    Raises: StoreUnavailable for whatever Redis or the way to it does wrong.
    """

    def __init__(self, redis: Client, folder: Path, constants: Mapping[str, str]) -> None:
        self.redis = redis
        self._sources: dict[str, str] = {}
        self._shas: dict[str, str] = {}
        lib = (folder / "lib.lua").read_text()
        for name, value in constants.items():
            lib = lib.replace(f"@{name}@", value)
        for path in folder.glob("*.lua"):
            if path.name != "lib.lua":
                self._sources[path.stem] = lib + path.read_text()

    async def __call__(self, name: str, *args: Arg) -> Any:
        try:
            sha = self._shas.get(name)
            if sha is not None:
                try:
                    return await self.redis.evalsha(sha, 0, *args)
                except NoScriptError:  # Redis was restarted
                    pass
            self._shas[name] = await self.redis.script_load(self._sources[name])
            return await self.redis.evalsha(self._shas[name], 0, *args)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error


def unavailable(error: Exception) -> StoreUnavailable:
    """What a caller is told when Redis is away or refuses; the client's own words stay in the log."""
    return StoreUnavailable(f"the store is not available ({type(error).__name__})", retry_after_s=2)


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def texts(values: Sequence[Any]) -> list[str]:
    return [text(value) for value in values]
