"""All wiring of the worker process: Celery on the main thread, the runner's loop on another."""

import argparse
import asyncio
import concurrent.futures
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop
from redis.exceptions import RedisError

from shared import log, memory, names
from shared.config import Config
from shared.config_sources import load
from shared.ids import new_id
from shared.redis import Redis
from shared.run import Failure
from shared.store import Limits as StoreLimits
from shared.store import create_scripts
from shared.store.events import Events
from shared.store.hosts import Hosts
from shared.store.runs import Runs
from shared.sweep import Sweeper
from worker import tree
from worker.celery_app import create_worker
from worker.host import Host, offered
from worker.live import Publisher
from worker.runner import Limits, Runner
from worker.stage import Stage
from worker.warden import LIFELINE, watch_lifeline

_log = logging.getLogger(__name__)


class Side:
    """The runner's loop with all that lives in it. One for the process."""

    def __init__(self, config: Config, home: Path, backends: list[str]) -> None:
        self.config = config
        self.host = config.worker.name or socket.gethostname()
        self.instance = new_id("ins")
        self.loop = uvloop.new_event_loop()
        self.ready = threading.Event()
        self._stopping: concurrent.futures.Future[None] | None = None
        url = config.redis.url or ""
        self._redis = Redis(url)
        scripts = create_scripts(
            self._redis,
            StoreLimits(
                lease_s=config.worker.lease_secs,
                retention_s=config.runs.retention_secs,
                max_events=config.runs.max_events,
            ),
        )
        runs = Runs(scripts)
        self._stage = Stage(config, home, os.environ)
        self._publisher = Publisher(Events(scripts))
        self.runner = Runner(
            runs,
            self._publisher,
            self._stage,
            Limits(
                lease_s=config.worker.lease_secs,
                timeout_s=config.unified_flags.command_timeout_secs,
                idle_s=config.worker.idle_timeout_secs,
                max_output_bytes=config.runs.max_output_bytes,
                dry_run=config.unified_flags.dry_run,
            ),
            host=self.host,
            instance=self.instance,
        )
        self._announcer = Host(
            config,
            self._stage,
            Hosts(scripts),
            backends,
            host=self.host,
            instance=self.instance,
            running=lambda: self.runner.running,
        )
        self._sweeper = Sweeper(
            scripts, runs, max_wait_s=config.queue.max_wait_secs, hangup_grace_s=config.server.hangup_grace_secs
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._live, name="runner", daemon=True)
        self._done = asyncio.Event()

    def start(self) -> None:
        self._thread.start()

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._main())
        self.loop.close()

    async def _main(self) -> None:
        self._stage.workspaces.claim()
        self._tasks = [
            asyncio.create_task(self._publisher.run(), name="publisher"),
            asyncio.create_task(self.runner.keep_leases(), name="leases"),
            asyncio.create_task(self._sweeper.run(), name="sweep"),
            asyncio.create_task(self._orders(), name="orders"),
        ]
        await self._done.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._announcer.retire()
        await self._redis.aclose()

    async def _orders(self) -> None:
        decode = msgspec.json.Decoder(Failure).decode
        while True:
            try:
                async for payload in self._redis.subscribe(names.orders(self.instance)):
                    if payload is not None:  # what was missed, the next renewal of the leases tells
                        self.runner.order(payload, decode)
            except (RedisError, OSError) as error:
                _log.warning("orders interrupted: %s", type(error).__name__)
                await asyncio.sleep(0.2)

    # -- called by Celery's threads

    def carry_out(self, run_id: str) -> "concurrent.futures.Future[bool]":
        return asyncio.run_coroutine_threadsafe(self.runner.carry_out(run_id), self.loop)

    def on_ready(self) -> None:
        """Messages are taken from now on; called anew after each lost connection."""
        if not self.ready.is_set():
            self.ready.set()
            self.loop.call_soon_threadsafe(
                lambda: self._tasks.append(self.loop.create_task(self._announcer.run(), name="announce"))
            )

    def on_stop(self) -> None:
        """Celery begins its warm shutdown."""
        if self._stopping is None:
            self._stopping = asyncio.run_coroutine_threadsafe(self._stop(), self.loop)

    async def _stop(self) -> None:
        self._announcer.draining = True
        with contextlib.suppress(Exception):
            await self._announcer.announce()
        await self.runner.drain(self.config.worker.shutdown_grace_secs)

    def close(self) -> None:
        """Waits for what is under way, within its limits, and ends the loop."""
        self.on_stop()
        limit_s = self.config.worker.shutdown_grace_secs + 30
        with contextlib.suppress(concurrent.futures.TimeoutError):
            assert self._stopping is not None
            self._stopping.result(limit_s)
        asyncio.run_coroutine_threadsafe(self.runner.emptied(), self.loop).result(limit_s)
        self.loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)


def _end_at_once(runner: Runner) -> None:
    """The warden is gone: nothing that this process started may outlive it, and no kill is taken for a CLI's own end."""
    runner.forsake()
    tree.end_everything(3.0)
    os._exit(1)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="clinvk worker")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--backends")
    parser.add_argument("--name")
    args = parser.parse_args(argv)
    flags = {"worker.concurrency": args.concurrency, "worker.name": args.name}
    loaded = load(args.config, os.environ, flags)
    config = loaded.config
    log.start(config.log.level, config.log.format)
    tree.become_subreaper()
    lifeline = int(os.environ.pop(LIFELINE, "-1"))
    if lifeline >= 0:
        os.set_inheritable(lifeline, False)
    only = [name.strip() for name in args.backends.split(",")] if args.backends else None
    backends = offered(config, only)
    side = Side(config, loaded.home, backends)
    if lifeline >= 0:
        watch_lifeline(lifeline, lambda: _end_at_once(side.runner))
    queues = [names.queue(name) for name in backends] + [names.queue(name, side.host) for name in backends]
    worker = create_worker(
        config.redis.url or "",
        queues,
        side.carry_out,
        side.on_ready,
        side.on_stop,
        hostname=f"{side.instance}@{side.host}",
        concurrency=config.worker.concurrency,
        loglevel=config.log.level.upper(),
    )
    side.start()
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)  # ignored ones would stay so in the CLIs
    memory.settle()
    worker.start()
    side.close()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
