"""The soak: everything under load at once, with faults, for as long as one likes: `python -m bench.soak MINUTES`.

Two API replicas, two workers, one Redis; the second replica and the second worker are killed again and again, and
Redis is. Its samples go to `.soak/samples.csv`, what it came to to `.soak/summary.json`. Exit code 1: something was
lost, ended twice, answered wrongly or leaked. Memory is judged from ten minutes on (`--counts` leaves it out).
"""

import argparse
import asyncio
import contextlib
import csv
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import redis

from bench.soak_load import Callers
from bench.soak_watch import OF_RUNS, Names, Watch, left_over, redis_grown
from tests.system.sdks.clients import HERE
from tests.system.service import Proc, Service, kill_pid, living, prompt, until

OUT = Path(__file__).parents[1] / ".soak"
ABSENT = json.dumps(["/nonexistent/cli"])
CONFIG = {
    "CLINVK_BACKENDS__CLAUDE__COMMAND": json.dumps([sys.executable, "-I", "-S", str(HERE / "fake_claude.py")]),
    "CLINVK_BACKENDS__CODEX__COMMAND": ABSENT,
    "CLINVK_BACKENDS__GEMINI__COMMAND": ABSENT,
    "CLINVK_SERVER__HANGUP_GRACE_SECS": "2",
    "CLINVK_SERVER__METRICS_ENABLED": "true",
    "CLINVK_WORKER__CONCURRENCY": "16",
    "CLINVK_WORKER__SHUTDOWN_GRACE_SECS": "5",
    "CLINVK_RUNS__RETENTION_SECS": "30",
    "CLINVK_LOG__LEVEL": "warning",
}
BAND = 0.10  # of growth in a process that lives through it all, from a quarter of the time to the end
BAND_KIB = 6 * 1024  # or so much, whatever its size
SPARE_FILES = 6  # a lazily opened file or a connection that is about to close


class Faults:
    """What is done to the service, in turn; each returns when it is whole again."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.done: list[tuple[float, str]] = []
        self._next = itertools.cycle(
            [self.worker_killed, self.redis_killed, self.api_killed, self.host_dies, self.worker_told, self.api_told]
        )

    def one(self, at_s: float) -> None:
        fault = next(self._next)
        fault()
        self.done.append((round(at_s, 1), fault.__name__))

    def worker_killed(self) -> None:
        pid = self._service.celery_of(self._service.workers[1])
        kill_pid(pid)
        until(lambda: pid not in (found := Watch(self._service).pids()).values() and "worker1" in found, 30)

    def redis_killed(self) -> None:
        self._service.redis.kill()
        self._service.redis.start()

    def api_killed(self) -> None:
        self._service.apis[1][0].kill()
        self._replica()

    def api_told(self) -> None:
        self._service.apis[1][0].send(signal.SIGTERM)
        self._service.apis[1][0].wait(30)
        self._replica()

    def host_dies(self) -> None:
        worker = self._service.workers[1]
        pid = self._service.celery_of(worker)
        worker.kill()
        kill_pid(pid)
        self._worker()

    def worker_told(self) -> None:
        self._service.workers[1].send(signal.SIGTERM)
        self._service.workers[1].wait(60)
        self._worker()

    def _replica(self) -> None:
        """Another in its place, on the same port."""
        service = self._service
        base = service.apis[1][1]
        proc = Proc(["serve", "--port", base.rpartition(":")[2]], service.env(), service.folder / "api1.log")
        service.apis[1] = (proc, base)
        until(lambda: _healthy(base) or not proc.alive, 30)
        assert proc.alive, proc.log.read_text()[-2000:]

    def _worker(self) -> None:
        service = self._service
        service.workers[1] = Proc(
            ["worker", "--name", "host1"], service.env(home="host1"), service.folder / "worker1.log"
        )


def _healthy(base: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(base + "/health").status_code == 200
    return False


async def soak(service: Service, seconds: float, rate: float, every_s: float) -> tuple[Callers, Watch, Faults]:
    """Loads it, harms it, looks at it. Afterwards all is quiet again and what ends of itself has ended."""
    bases = [base for _, base in service.apis]
    callers, watch, faults = Callers(bases, rate), Watch(service), Faults(service)
    await asyncio.to_thread(watch.take, 0.0, 0)
    begun = time.monotonic()

    async def sample() -> None:
        while True:
            await asyncio.sleep(5)
            await asyncio.to_thread(watch.take, time.monotonic() - begun, callers.under_way)

    async def harm() -> None:
        while time.monotonic() - begun < seconds - every_s:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(faults.one, time.monotonic() - begun)

    sampling = asyncio.create_task(sample())
    async with asyncio.TaskGroup() as group:
        group.create_task(harm())
        group.create_task(callers.run(seconds))
    await asyncio.to_thread(_quiet, service)
    sampling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sampling  # raises what has ended it early
    await asyncio.to_thread(watch.take, time.monotonic() - begun, 0)
    return callers, watch, faults


def _quiet(service: Service) -> None:
    """Returns when no run is under way and all records of runs are gone, or after a limit; `judge` says what is left."""
    client = service.redis.client()
    with contextlib.suppress(AssertionError):
        until(lambda: not any(client.zcard(f"clinvk:{name}") for name in ("waiting", "queued", "running")), 60)
        until(lambda: not any(Names(client).kinds[kind] for kind in OF_RUNS), 90)
    client.close()


def judge(service: Service, callers: Callers, watch: Watch, *, memory: bool) -> dict[str, list[str]]:
    """What is wrong, by what it is a breach of; empty lists where all is well."""
    first, last = watch.rows[0], watch.rows[-1]
    client = service.redis.client()
    counted = _counted(client)
    begun = {name.decode() for name in client.zrange("clinvk:runs:default", 0, -1)}
    flows = {name.decode() for name in client.zrange("clinvk:flows:default", 0, -1)}
    names = Names(client)
    left = {name: client.zcard(f"clinvk:{name}") for name in ("waiting", "queued", "running", "grouped", "due")}
    client.close()
    lost = callers.seen - begun - flows
    found: dict[str, list[str]] = {"answers": callers.wrong[:20]}
    found["lost"] = [f"{len(lost)} runs that a caller was told of are not known: {sorted(lost)[:3]}"] if lost else []
    found["once"] = [] if counted == len(begun) else [f"{len(begun)} runs were begun, {counted} ends were counted"]
    found["left"] = [f"{count} in {name}" for name, count in left.items() if count]
    found["names"] = left_over(names.kinds, len(begun) + len(flows))
    found["names"] += [f"without an end: {name}" for name in names.endless[:10]]
    found["processes"] = []
    if last["processes"] != first["processes"]:
        found["processes"] = [f"{first['processes']} at first, {last['processes']} at last: {_commands(service)}"]
    found["files"] = [
        f"{name}: {first[name]} at first, {last.get(name)} at last"
        for name in first
        if (name.endswith(" files") or name == "redis clients") and last.get(name, 10**6) > first[name] + SPARE_FILES
    ]
    if last["paths"] > first["paths"] + SPARE_FILES:
        found["files"].append(f"{first['paths']} paths under the homes at first, {last['paths']} at last")
    found["redis"] = redis_grown(first["redis used_kib"], last["redis used_kib"], len(begun) + len(flows))
    found["memory"] = [grown for who in ("api0", "worker0", "warden0") if memory and (grown := _grown(watch, who))]
    return found


def _counted(client: "redis.Redis[bytes]") -> int:
    totals = client.hgetall("clinvk:totals")
    return sum(int(count) for name, count in totals.items() if name.startswith(b"ended|"))


def _commands(service: Service) -> list[str]:
    return [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in living(service.marker)]


def grown_kib(watch: Watch, who: str) -> tuple[int, int]:
    """Resident memory: the highest of the second quarter of the time, the highest of the last."""
    rows = [row[f"{who} rss_kib"] for row in watch.rows if f"{who} rss_kib" in row]
    quarter = max(len(rows) // 4, 1)
    return max(rows[quarter : 2 * quarter] or rows), max(rows[-quarter:])


def _grown(watch: Watch, who: str) -> str:
    before, after = grown_kib(watch, who)
    if after - before <= max(before * BAND, BAND_KIB):
        return ""
    return f"{who} grew from {before} to {after} KiB"


def write(watch: Watch, summary: dict[str, Any]) -> None:
    OUT.mkdir(exist_ok=True)
    columns = sorted({name for row in watch.rows for name in row}, key=lambda name: (name != "at_s", name))
    with (OUT / "samples.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(watch.rows)
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--rate", type=float, default=12.0, help="requests a second")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two faults")
    parser.add_argument("--counts", action="store_true", help="do not judge memory")
    args = parser.parse_args()
    service = Service("everysec", **CONFIG)
    (service.folder / "home-tmp").mkdir()
    service.config["TMPDIR"] = str(service.folder / "home-tmp")  # so that what is left there is seen
    try:
        service.api(), service.api()
        service.worker(), service.worker()
        for base in (service.apis[0][1], service.apis[1][1]):
            assert prompt(base, "warm up", ephemeral=True)["output"] == "warm up"
        callers, watch, faults = asyncio.run(soak(service, args.minutes * 60, args.rate, args.every))
        wrong = judge(service, callers, watch, memory=args.minutes >= 10 and not args.counts)
        summary = {
            "minutes": args.minutes,
            "runs": len(callers.seen),
            "faults": faults.done,
            "tally": dict(sorted(callers.tally.items())),
            "memory_kib": {who: grown_kib(watch, who) for who in ("api0", "worker0", "warden0", "redis")},
            "first": watch.rows[0],
            "last": watch.rows[-1],
            "wrong": {name: what for name, what in wrong.items() if what},
        }
        write(watch, summary)
        print(json.dumps(summary, indent=1))
        if summary["wrong"]:
            print(service.logs(), file=sys.stderr)
        return 1 if summary["wrong"] else 0
    finally:
        service.close()


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.exit(main())
