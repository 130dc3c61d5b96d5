"""`clinvk serve`: the API, and with no `redis.url` everything else on this machine too."""

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from api.app import App, create_app, limits_of
from api.connection import Bodies, Limits, connection_class
from api.embedded import Family
from api.hangup import Hangups
from api.keys import Key, Keyring
from api.layers import is_local
from api.listening import PortTaken, bind, listen
from api.rotation import Reading, Rotation
from shared import log, memory, spans
from shared.config import Config
from shared.config_sources import Loaded, load
from shared.errors import StoreUnavailable
from shared.host import Instance, Readiness
from shared.key_sources import read_keys
from shared.reach import reach
from shared.redis_url import parse

_log = logging.getLogger("clinvk.serve")

_CLOSE_WITHIN_S = 10
_BODIES_AT_ONCE = 16  # of the largest size, while they come


class _NotStarted(Exception):
    pass


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which would end the process before its children."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises: _NotStarted where the application does not start, as logged."""
        try:
            await super().startup(sockets)
        except SystemExit as ended:  # which in a task would tear down the loop under the children
            raise _NotStarted from ended


def serve(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="clinvk serve",
        description="Serves the HTTP API. Without redis.url a private Redis-compatible server and a worker run below "
        "it, so that one command is all; with it, this is one API replica and workers are started by `clinvk worker`.",
    )
    parser.add_argument("--host", metavar="H", help="address to listen on (server.host, 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="P", help="port to listen on (server.port, 8080)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ~/.clinvk/config.yaml")
    args = parser.parse_args(argv)
    hangups = Hangups()
    loaded = load(args.config, os.environ, {"server.host": args.host, "server.port": args.port})
    form = log.start(loaded.config.log.level, loaded.config.log.format, process="api")
    log.hook()
    for warning in loaded.warnings:
        _log.warning("%s", warning)
    keys = _keys(loaded, args.config)
    warn_if_open(loaded.config.server.host, required=keys[0].required)
    server = loaded.config.server
    family = None
    try:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(one) for one in bind(server.host, server.port)]
            if not loaded.config.redis.url:
                family = _family(loaded, args.config)
                family.start_server()  # before any thread: it dies with the thread that started it
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_serve(loaded, keys, family, sockets, hangups, form))
    except PortTaken as error:
        log.last_words(str(error))
        return 1


def warn_if_open(host: str, *, required: bool) -> None:
    """In the log, which is stderr, whatever little is logged."""
    if required or is_local(host):
        return
    warning = (
        f"listening on {host} without API keys: whoever reaches this port can run agents on your machines. "
        "Set CLINVK_API_KEYS or server.api_keys"
    )
    _log.log(logging.WARNING if _log.isEnabledFor(logging.WARNING) else logging.ERROR, warning)


def _raise_file_limit() -> None:
    """Each connection is a file, and many systems let a process have 1,024 unless it asks for more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keys(loaded: Loaded, path: Path | None) -> tuple[Keyring, Rotation]:
    """The keys, and what reads them again, from the sources that the configuration then names. Raises: ConfigError."""

    def reading(loaded: Loaded) -> Reading:
        keys = [Key.of(entry) for entry in read_keys(loaded.config, os.environ)]
        files = [str(loaded.file or loaded.home / "config.yaml"), loaded.config.server.api_keys_file]
        return Reading(keys, [file for file in files if file])

    first = reading(loaded)
    ring = Keyring(first.keys)
    every_s = loaded.config.server.api_keys_refresh_secs
    return ring, Rotation(ring, lambda: reading(load(path, os.environ)), files=first.files, every_s=every_s)


def _family(loaded: Loaded, file: Path | None) -> Family:
    environ = dict(os.environ)
    if loaded.config.backend("echo").enabled is None:
        environ["CLINVK_BACKENDS__ECHO__ENABLED"] = "true"
    words = ["--config", str(file)] if file is not None else []
    return Family(loaded.home, words, environ, loaded.config.worker.shutdown_grace_secs)


async def _serve(
    loaded: Loaded,
    keys: tuple[Keyring, Rotation],
    family: Family | None,
    sockets: list[socket.socket],
    hangups: Hangups,
    form: log.Form,
) -> int:
    config = loaded.config
    if family is not None:
        config = _with_url(config, family.url)
    loop = asyncio.get_running_loop()
    death: asyncio.Future[str] = loop.create_future()
    told = asyncio.Event()
    hurried = asyncio.Event()

    def on_signal() -> None:
        (hurried if told.is_set() else told).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    hangups.attend(loop, keys[1].ask, told.set)
    instance: Instance | None = None
    tracing: spans.Spans | None = None
    try:
        if family is not None:
            await family.wait_server()
            family.start_worker()
            family.watch(death)
            instance = await family.wait_worker(limits_of(config))
        await _reach_store(config.redis.url or "")
        _raise_file_limit()  # once the children have been started, to whom it is not given
        tracing = spans.create("clinvk-api", os.environ)
        listen(sockets, config.server.host, config.server.port)  # uvloop would not say that it cannot
        app = create_app(config, keys[0], loaded.home, keys[1], tracing)
        server = _Server(
            uvicorn.Config(
                app.asgi,
                http=connection_class(
                    Limits(
                        read_s=config.server.read_timeout_secs,
                        write_s=config.server.write_timeout_secs,
                        idle_s=config.server.idle_timeout_secs,
                    ),
                    app.refusals,
                    Bodies(_BODIES_AT_ONCE * config.server.max_request_body_bytes),
                ),
                ws="none",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # whom to believe is `server.trusted_proxies`
                timeout_keep_alive=int(config.server.idle_timeout_secs),
                timeout_graceful_shutdown=_CLOSE_WITHIN_S,
            )
        )
        return await _watched(server, sockets, app, config, family, instance, death, told, hurried, form)
    finally:
        if family is not None:
            await family.end_worker(now=True)
            await family.end_server()
        if tracing is not None:
            tracing.close()


async def _reach_store(url: str) -> None:
    """Raises: ConfigError where Redis refuses, StoreUnavailable where it is away and another start may find it."""
    try:
        await reach(url)
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"cannot reach Redis at {parse(url).shown} (redis.url): {error.message}",
            retry_after_s=error.retry_after_s or 1,
        ) from error


async def _watched(
    server: uvicorn.Server,
    sockets: list[socket.socket],
    app: App,
    config: Config,
    family: Family | None,
    instance: Instance | None,
    death: "asyncio.Future[str]",
    told: asyncio.Event,
    hurried: asyncio.Event,
    form: log.Form,
) -> int:
    serving = asyncio.create_task(server.serve(sockets), name="serve")
    signalled = asyncio.create_task(told.wait(), name="signal")
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    if server.started:
        memory.settle()
        _say_ready(server, config, family, instance, form)
    watched: set[asyncio.Future[Any]] = {serving, signalled, death}
    await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if death.done():
        _log.error("%s; ending everything", death.result())
        code = 1
    elif told.is_set() and family is not None and not hurried.is_set():
        ending = asyncio.create_task(family.end_worker(), name="end-worker")
        again = asyncio.create_task(hurried.wait(), name="hurry")
        endings: set[asyncio.Future[Any]] = {ending, again}
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        family.cut_lifeline()
        await ending
        again.cancel()
    if server.started:
        app.close_streams()
    server.should_exit = True
    signalled.cancel()
    try:
        await serving
    except _NotStarted:
        code = 1
    return code if server.started else 1


def _with_url(config: Config, url: str) -> Config:
    import msgspec

    return msgspec.structs.replace(config, redis=msgspec.structs.replace(config.redis, url=url))


def _say_ready(
    server: uvicorn.Server, config: Config, family: Family | None, instance: Instance | None, form: log.Form
) -> None:
    """On a terminal for its reader; where logs are JSON, as one line of them."""
    port = server.servers[0].sockets[0].getsockname()[1] if server.servers else config.server.port
    host = "127.0.0.1" if config.server.host in ("0.0.0.0", "::") else config.server.host  # noqa: S104  # read, not bound
    base = f"http://{host}:{port}"
    lines = [f"clinvk is ready on {base}"]
    backend = "echo"
    if family is not None and instance is not None:
        lines.append(
            "  store    a private Redis-compatible server"
            + ("" if family.persistent else ", in memory: another `clinvk serve` holds the data directory")
        )
        for state in instance.backends:
            if state.readiness is Readiness.READY:
                lines.append(f"  {state.name:8} {state.version or 'version unknown'}  {state.path}")
                backend = state.name if backend == "echo" else backend
            else:
                lines.append(f"  {state.name:8} {state.reason}")
    lines.append("try:")
    lines.append(
        f"  curl {base}/api/v1/prompt -H 'Content-Type: application/json' "
        f'-d \'{{"backend": "{backend}", "prompt": "hello"}}\''
    )
    lines.append(f"  {base}/docs")
    if form == "text" or sys.stdout.isatty():
        print("\n".join(lines), flush=True)
    else:
        _log.info("%s", lines[0], extra={"details": "; ".join(" ".join(line.split()) for line in lines[1:])})
