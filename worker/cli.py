"""`clinvk worker`: checks the configuration and becomes the warden over a worker process. `clinvk doctor`."""

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from shared import log
from shared.config import Config
from shared.config_sources import load
from shared.errors import ConfigError, StoreRefused, StoreUnavailable
from worker import warden
from worker.warden import LIFELINE

_log = logging.getLogger(__name__)


def worker(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="clinvk worker",
        description="Carries out runs with the CLIs of this host. Needs redis.url (or CLINVK_REDIS_URL).",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ~/.clinvk/config.yaml")
    parser.add_argument("--concurrency", type=int, metavar="N", help="runs at once (worker.concurrency)")
    parser.add_argument("--backends", metavar="A,B", help="offer only these; default: all that are installed")
    parser.add_argument("--name", metavar="HOST", help="the host's name; default: the hostname")
    parser.add_argument(
        "--healthy", action="store_true", help="only tell by the exit code whether this host is announced"
    )
    args = parser.parse_args(argv)
    flags = {"worker.concurrency": args.concurrency, "worker.name": args.name}
    loaded = load(args.config, os.environ, flags)
    form = log.start(loaded.config.log.level, loaded.config.log.format, process="warden")
    for warning in loaded.warnings:
        _log.warning("%s", warning)
    if not loaded.config.redis.url:
        raise ConfigError("a worker needs redis.url (CLINVK_REDIS_URL); `clinvk serve` alone runs everything here")
    if args.healthy:
        sys.exit(asyncio.run(_healthy(loaded.config)))
    known = ("claude", "codex", "gemini", "echo")
    for name in (args.backends or "").split(","):
        if name.strip() and name.strip() not in known:
            raise ConfigError(f"--backends: unknown backend {name.strip()!r}; known are {', '.join(known)}")
    _hold(loaded.home)
    environ = dict(os.environ)
    lifeline = environ.pop(LIFELINE, None)
    warden.become(
        [sys.executable, "-m", "worker.main", *argv],
        environ,
        lifeline=None if lifeline is None else int(lifeline),
        lease_s=loaded.config.worker.lease_secs,
        form=form,
    )


def doctor(argv: Sequence[str]) -> int:
    """0: nothing fails; 1: something does; 78: the configuration is wrong."""
    parser = argparse.ArgumentParser(
        prog="clinvk doctor",
        description="Says what is missing or will go wrong on this machine: configuration, CLIs and their logins, files, "
        "limits, Redis, the live workers. Calls no vendor and changes nothing. Exit code 1 where something fails.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ~/.clinvk/config.yaml")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    from worker import doctor as judge
    from worker.examine import examine

    checks, code = examine(args.config, os.environ)
    if args.json:
        found = {"ok": code == 0, "checks": checks}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        print(judge.text(checks))
    return code


def _hold(home: Path) -> None:
    """Raises: ConfigError. Found later, the worker process would end and be started again without end."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot keep data under CLINVK_HOME ({home}): {error.strerror}") from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot keep data under CLINVK_HOME ({home}): this user may not write there")


async def _healthy(config: Config) -> int:
    """0: a live instance of this host is announced in Redis; 1 and a line that says what is not so."""
    from shared.redis import Redis
    from shared.store import Limits, create_scripts
    from shared.store.hosts import Hosts

    host = config.worker.name or socket.gethostname()
    redis = Redis(config.redis.url or "")
    try:
        instances = await Hosts(create_scripts(redis, Limits())).list()
    except StoreUnavailable as error:
        print(error.why if isinstance(error, StoreRefused) else error.message, file=sys.stderr)
        return 1
    finally:
        await redis.aclose()
    if any(instance.host == host for instance in instances):
        return 0
    print(f"no live worker of {host} is announced", file=sys.stderr)
    return 1
