"""`clinvk top`: looks again and again, and draws."""

import argparse
import asyncio
import contextlib
import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from api.top.sources import Http, Source, Store
from api.top.view import render
from shared.config_sources import load
from shared.errors import ConfigError
from shared.redis import Redis


def top(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="clinvk top",
        description="A live view of queue, workers and runs; q ends it. Looks at Redis where redis.url is set, else at "
        "the API on server.host and server.port; with --url at that API. A key is taken from CLINVK_API_KEY: one with "
        "`role: admin` sees the workers. Exit code with --once: 0, or 1 where the service is unhealthy, away, or lets "
        "nobody in with this key.",
    )
    parser.add_argument("--url", metavar="URL", help="an API replica, such as http://127.0.0.1:8080")
    parser.add_argument("--once", action="store_true", help="one look, without colours on a pipe; for scripts")
    parser.add_argument("--json", action="store_true", help="with --once: for programs")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between looks (1)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ~/.clinvk/config.yaml")
    args = parser.parse_args(argv)
    if not 0.1 <= args.interval <= 3600:
        parser.error("--interval must be from 0.1 to 3600")
    return asyncio.run(_top(args))


async def _top(args: argparse.Namespace) -> int:
    source = _source(args)
    try:
        if args.once or args.json or not sys.stdout.isatty():
            found = await source.look()
            if args.json:
                print(msgspec.json.encode(found).decode())
            else:
                width = shutil.get_terminal_size((80, 24)).columns
                print("\n".join(render(found, width=width, color=sys.stdout.isatty())))
            if found.failed:
                print(f"clinvk top: {found.source}: {found.failed}", file=sys.stderr)
            return int(found.status in ("unhealthy", "unknown"))
        with _screen():
            while True:
                size = shutil.get_terminal_size((80, 24))
                lines = render(await source.look(), width=size.columns, height=size.lines, color=True)
                sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in lines[:-1]))
                sys.stdout.write(f"{lines[-1]}\x1b[K\x1b[J")
                sys.stdout.flush()
                if await asyncio.to_thread(_told_to_end, args.interval):
                    return 0
    finally:
        await source.close()


def _source(args: argparse.Namespace) -> Source:
    """Raises: ConfigError."""
    config = load(args.config, os.environ).config
    if args.url is None and config.redis.url:
        place = urlsplit(config.redis.url)
        return Store(Redis(config.redis.url), f"redis {place.hostname or place.path}")
    host = "127.0.0.1" if config.server.host in ("0.0.0.0", "::") else config.server.host  # noqa: S104  # read, not bound
    host = f"[{host}]" if ":" in host else host
    try:
        return Http(args.url or f"http://{host}:{config.server.port}", _key())
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from error


def _key() -> str | None:
    """Never by argv, which everybody on the host can read."""
    return os.environ.get("CLINVK_API_KEY") or (os.environ.get("CLINVK_API_KEYS") or "").partition(",")[0] or None


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The other screen of the terminal, its keys as they are pressed; all as before afterwards."""
    before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")
    try:
        if before is not None:
            tty.setcbreak(sys.stdin)
        yield
    finally:
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def _told_to_end(wait_s: float) -> bool:
    """Whether q, Escape or the end of input came within the time."""
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(ready) and os.read(sys.stdin.fileno(), 16)[:1] in (b"q", b"Q", b"\x1b", b"")
