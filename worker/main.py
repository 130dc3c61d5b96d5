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
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from redis.exceptions import RedisError

from shared import hidden, log, memory, names, spans
from shared.config import Config
from shared.config_sources import load
from shared.dispatch import Dispatch
from shared.errors import ConfigError, StoreUnavailable
from shared.ids import new_id
from shared.outage import Outage
from shared.reach import reach
from shared.redis import Redis
from shared.redis_url import parse
from shared.run import Failure
from shared.spans import Spans
from shared.store import Limits as StoreLimits
from shared.store import create_scripts
from shared.store.events import Events
from shared.store.flows import Flows
from shared.store.hosts import Hosts
from shared.store.runs import Depth, Runs
from shared.store.sessions import Sessions
from shared.sweep import Sweeper
from shared.tally import Tally
from shared.vitals import Watch
from worker import tree
from worker.celery_app import create_worker
from worker.chores import Chores
from worker.forever import forever
from worker.gate import Gate, backend_of
from worker.host import Host, offered
from worker.live import Publisher
from worker.marks import Marks
from worker.runner import Limits, Runner
from worker.stage import Stage
from worker.warden import HEARTBEAT, LIFELINE, watch_lifeline
from worker.warm.calm import Calm
from worker.warm.drivers import create_drivers
from worker.warm.pool import Pool

_log = logging.getLogger("worker.main")  # which is started as __main__

_BEAT_S = 0.5
_AGAIN_S = 1.0  # before Celery is started again in a process that carries out runs


class Side:
    """The runner's loop with all that lives in it. One for the process. `heartbeat`: where the warden listens."""

    def __init__(
        self, config: Config, home: Path, backends: list[str], heartbeat: int, tracing: Spans | None = None
    ) -> None:
        self.config = config
        self.host = config.worker.name or socket.gethostname()
        self.instance = new_id("ins")
        self.loop = uvloop.new_event_loop()
        self.ready = threading.Event()
        self._heartbeat = heartbeat
        self._stopping: concurrent.futures.Future[None] | None = None
        url = config.redis.url or ""
        self._redis = Redis(url, outage=Outage(parse(url).shown))
        scripts = create_scripts(
            self._redis,
            StoreLimits(
                lease_s=config.worker.lease_secs,
                retention_s=config.runs.retention_secs,
                max_events=config.runs.max_events,
                max_flow_events=config.runs.max_flow_events,
                session_s=config.session.retention_days * 86400,
                usage_s=config.usage.retention_days * 86400,
            ),
        )
        runs, hosts, self._sessions = Runs(scripts), Hosts(scripts), Sessions(scripts)
        dispatch = Dispatch(
            runs,
            hosts,
            Flows(scripts, runs),
            depth=Depth(config.queue.max_depth),
            wait=config.queue.wait_for_worker,
        )
        at_once = {name: count for name in backends if (count := config.backend(name).max_concurrency)}
        self.gate = Gate(at_once, config.worker.concurrency)
        self._stage = Stage(config, home, os.environ)
        marks = Marks(time.time, config.worker.pass_over_secs)
        self._publisher = Publisher(Events(scripts))
        drivers = {name: driver for name, driver in create_drivers().items() if name in backends}
        self._warm = Pool(
            config,
            drivers,
            self._stage.workspaces,
            lambda name: self._announcer.version(name),  # noqa: PLW0108  # which is made below
            instance=self.instance,
            calm=Calm(lambda: sum(self.runner.running.values())),
        )
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
                at_once=at_once,
            ),
            host=self.host,
            instance=self.instance,
            carry_on=dispatch.carry_on,
            marks=marks,
            warm=self._warm,
            spans=tracing,
        )
        self._tally = Tally(self._redis)
        self._watch = Watch("worker", home, self.host)
        self._announcer = Host(
            config,
            self._stage,
            hosts,
            backends,
            host=self.host,
            instance=self.instance,
            running=lambda: self.runner.running,
            open_to=self.gate.open,
            marks=marks,
            warm=self._warm.states,
            vitals=self._watch.look,
        )
        self._sweeper = Sweeper(
            scripts,
            runs,
            dispatch,
            self._sessions,
            max_wait_s=config.queue.max_wait_secs,
            hangup_grace_s=config.server.hangup_grace_secs,
            session_s=config.session.retention_days * 86400,
            count=self._tally.add,
        )
        self._chores = Chores(self._sessions, self._stage.workspaces, os.environ, self.host)
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
        self._keep("publisher", self._publisher.run)
        self._keep("leases", self.runner.keep_leases)
        self._keep("warm", self._warm.run)
        self._keep("sweep", self._sweeper.run)
        self._keep("orders", self._orders)
        self._keep("chores", self._chores.run)
        self._keep("tally", self._tally.run)
        self._keep("watch", self._watch.run)
        if self._heartbeat >= 0:
            self._keep("heartbeat", self._beat)
        await self._done.wait()
        if self._heartbeat >= 0:  # no more of it: an end in good order takes its time
            os.close(self._heartbeat)
            self._heartbeat = -1
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._warm.close()
        await self._announcer.retire()
        await self._redis.aclose()

    def _keep(self, name: str, what: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(self.loop.create_task(forever(name, what), name=name))

    async def _beat(self) -> None:
        """Says to the warden that this loop turns."""
        while self._heartbeat >= 0:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it stands still, or is gone
                os.write(self._heartbeat, b".")
            await asyncio.sleep(_BEAT_S)

    async def _orders(self) -> None:
        decode = msgspec.json.Decoder(Failure).decode
        silent = False  # one line for each outage
        while True:
            try:
                async for payload in self._redis.subscribe(names.orders(self.instance)):
                    silent = False
                    if payload is not None:  # what was missed, the next renewal of the leases tells
                        self.runner.order(payload, decode)
            except (RedisError, OSError) as error:
                _log.log(logging.DEBUG if silent else logging.WARNING, "orders interrupted: %s", type(error).__name__)
                silent = True
                await asyncio.sleep(0.2)

    # -- called by Celery's threads

    def carry_out(self, run_id: str, queue: str) -> "concurrent.futures.Future[bool]":
        return asyncio.run_coroutine_threadsafe(self.runner.carry_out(run_id, backend_of(queue)), self.loop)

    def on_ready(self) -> None:
        """Messages are taken from now on; called anew after each lost connection."""
        if not self.ready.is_set():
            self.ready.set()
            self.loop.call_soon_threadsafe(self._keep, "announce", self._announcer.run)

    def on_stop(self) -> None:
        """Celery begins its warm shutdown."""
        if self._stopping is None:
            self._stopping = asyncio.run_coroutine_threadsafe(self._stop(), self.loop)

    @property
    def is_stopping(self) -> bool:
        return self._stopping is not None

    async def _stop(self) -> None:
        self._announcer.stop()
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
    hidden.hide()
    lifeline, heartbeat = (int(os.environ.pop(name, "-1")) for name in (LIFELINE, HEARTBEAT))
    for fd in (lifeline, heartbeat):
        if fd >= 0:
            os.set_inheritable(fd, False)
    if heartbeat >= 0:
        os.set_blocking(heartbeat, False)
    parser = argparse.ArgumentParser(prog="clinvk worker")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--backends")
    parser.add_argument("--name")
    args = parser.parse_args(argv)
    flags = {"worker.concurrency": args.concurrency, "worker.name": args.name}
    loaded = load(args.config, os.environ, flags)
    config = loaded.config
    form = log.start(config.log.level, config.log.format, process="worker")
    log.hook()
    tree.become_subreaper()
    only = [name.strip() for name in args.backends.split(",")] if args.backends else None
    backends = offered(config, only)
    if not backends:
        raise ConfigError("no backend is left that this worker may offer (backends.NAME.enabled, --backends)")
    if os.geteuid() == 0:
        _log.warning(
            "this worker runs as root, and so does each CLI with all that it starts: give it a user of its own"
        )
    with contextlib.suppress(StoreUnavailable):  # it is waited for, and `Side` says so
        asyncio.run(reach(config.redis.url or ""))
    tracing = spans.create("clinvk-worker", os.environ)
    side = Side(config, loaded.home, backends, heartbeat, tracing)
    if lifeline >= 0:
        watch_lifeline(lifeline, lambda: _end_at_once(side.runner))
    side.start()
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)  # ignored ones would stay so in the CLIs
    while True:
        worker = _celery(side, backends, form)
        memory.settle()
        worker.start()
        if side.is_stopping or not side.runner.running:
            break
        # Its runs are worth more than a fresh process.
        _log.error("Celery ended (exit code %s) and is started again beside the runs that go on", worker.exitcode)
        time.sleep(_AGAIN_S)
    side.close()
    if tracing is not None:
        tracing.close()
    return int(worker.exitcode or 0)


def _celery(side: Side, backends: Sequence[str], form: log.Form) -> Any:
    config = side.config
    return create_worker(
        config.redis.url or "",
        [names.queue(name) for name in backends] + [names.queue(name, side.host) for name in backends],
        side.carry_out,
        side.gate,
        side.on_ready,
        side.on_stop,
        lambda: side.is_stopping,
        hostname=f"{side.instance}@{side.host}",
        concurrency=config.worker.concurrency,
        loglevel=config.log.level.upper(),
        form=form,
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigError as error:
        log.last_words(error.message)
        sys.exit(os.EX_CONFIG)
