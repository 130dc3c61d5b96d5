"""A crowd on one API process: open streams and idle connections, while single requests are timed beside them.

python -m bench.crowd [SECONDS]
"""

import asyncio
import resource
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.system.service import Service, submit, until

STREAMS, IDLE, RUNS = 2000, 10_000, 20


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def hanging(service: Service, count: int) -> list[str]:
    """Runs that say one word and then nothing, for as long as they are let."""
    base = service.apis[0][1]
    ids = [submit(base, "word", "--hang") for _ in range(count)]
    for run_id in ids:
        until(lambda run_id=run_id: httpx.get(f"{base}/api/v1/runs/{run_id}").json().get("sequence", 0) >= 2, 60)
    return ids


async def _singles(port: int, run_id: str, seconds: float) -> list[float]:
    """Milliseconds of single requests on one connection, one after another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET /api/v1/runs/{run_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        took.append((time.perf_counter() - begun) * 1000)
        await asyncio.sleep(0.01)
    writer.close()
    return took


async def _open(port: int, request: bytes, until_seen: bytes) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if request:
        writer.write(request)
        async with asyncio.timeout(60):
            await reader.readuntil(until_seen)
    return reader, writer


async def _many(count: int, make: Any) -> list[Any]:
    """A hundred at a time: a listening socket holds only so many that wait."""
    found: list[Any] = []
    while len(found) < count:
        found += await asyncio.gather(*[make(len(found) + number) for number in range(min(100, count - len(found)))])
    return found


async def crowd(base: str, pid: int, run_ids: list[str], *, streams: int, idle: int, seconds: float) -> dict[str, Any]:
    """What it took. All streams have had their first events, and a heartbeat each by the end, or this raises."""
    port = urlsplit(base).port or 0
    told: dict[str, Any] = {"files": files(pid)}
    alone = await _singles(port, run_ids[0], seconds / 2)
    before = resident(pid)
    quiet = await _many(idle, lambda _: _open(port, b"", b""))
    between = resident(pid)

    def follow(number: int) -> bytes:
        return f"GET /api/v1/runs/{run_ids[number % len(run_ids)]}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    followed = await _many(streams, lambda number: _open(port, follow(number), b'"sequence":2'))
    told["open"] = files(pid) - told["files"]
    amid = await _singles(port, run_ids[0], seconds)
    for reader, _ in followed:
        async with asyncio.timeout(30):
            await reader.readuntil(b"\n\n")  # a heartbeat, or the rest of its last event
            assert not reader.at_eof()
    after = resident(pid)
    for _, writer in [*quiet, *followed]:
        writer.close()
    end = time.perf_counter() + 30
    while files(pid) > told["files"] + 2 and time.perf_counter() < end:
        await asyncio.sleep(0.05)
    told |= {
        "left": files(pid) - told["files"],
        "alone_p50_ms": quantile(alone, 0.5),
        "alone_p99_ms": quantile(alone, 0.99),
        "amid_p50_ms": quantile(amid, 0.5),
        "amid_p99_ms": quantile(amid, 0.99),
        "kib_idle": (between - before) / 1024 / max(idle, 1),
        "kib_stream": (after - between) / 1024 / max(streams, 1),
        "mib_before": before / 2**20,
        "mib_full": after / 2**20,
        "mib_after": resident(pid) / 2**20,
    }
    return told


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    service = Service("everysec")
    try:
        base = service.api()
        service.worker("--concurrency", str(RUNS))
        ids = hanging(service, RUNS)
        told = asyncio.run(crowd(base, service.apis[0][0].pid, ids, streams=STREAMS, idle=IDLE, seconds=seconds))
    finally:
        service.close()
    for name, value in told.items():
        print(f"{name:14} {value:.2f}" if isinstance(value, float) else f"{name:14} {value}")
    return 0 if told["amid_p99_ms"] <= 2 * told["alone_p99_ms"] else 1


if __name__ == "__main__":
    sys.exit(main())
