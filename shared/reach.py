"""Whether Redis takes this process at all: found out at its start, not by the first caller."""

import contextlib

from redis.exceptions import RedisError

from shared import names
from shared.errors import ConfigError, StoreRefused
from shared.redis import Redis, unavailable
from shared.redis_url import parse
from shared.store import Limits, create_scripts
from shared.store.hosts import Hosts


async def reach(url: str) -> None:
    """Does a little of all that is done with it. Raises: ConfigError where it refuses, StoreUnavailable where it is away."""
    redis = Redis(url)
    try:
        await redis("PING")
        await Hosts(create_scripts(redis, Limits())).list()
        try:
            async with contextlib.aclosing(redis.subscribe(names.live("start"))) as channel:
                await anext(channel)
        except (RedisError, OSError) as error:
            raise unavailable(error) from error
    except StoreRefused as error:
        raise ConfigError(f"Redis at {parse(url).shown} was reached, but {error.why} (redis.url)") from error
    finally:
        await redis.aclose()
