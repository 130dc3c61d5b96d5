"""What the soak looks at: memory, processes, open files, connections and Redis names, of all processes of a service."""

import collections
import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis

from shared import names
from tests.system.service import Service, children, living

# Names that are there as long as the service is, by the table of shared/names.py; all others must end of themselves.
_ROWS = (line.split("|") for line in (names.__doc__ or "").splitlines() if line.startswith("| clinvk:"))
_WITHOUT_END = ("always", "while offered", "until undrained", "as long as anything of them")
ALWAYS = frozenset(
    {row[1].split(":")[1].strip() for row in _ROWS if row[-2].strip() in _WITHOUT_END} | {"_kombu", "queue", "sessions"}
)
OF_RUNS = ("run", "events", "followers", "line", "turns", "held", "group", "closed", "session", "sessionids")
# Every kind that there may be; and of those that end of themselves after hours, how many a run or flow may leave.
KINDS = frozenset(re.findall(r"clinvk:(\w+)", names.__doc__ or "")) - {"live", "orders"} | {"_kombu", "queue"}
OF_REQUESTS = {"same": 2}
HANDFUL = 100  # all others are of tenants, queues, hosts, processes, days or callers, of which a soak has few
REDIS_SPARE_KIB, REDIS_KIB_EACH = 16 << 10, 2


def left_over(kinds: Mapping[str, int], begun: int) -> list[str]:
    """What there is too much of, once no run is under way or kept. `begun`: how many runs and flows there were."""
    found = [
        f"{count} {kind}, which shared/names.py does not know" for kind, count in kinds.items() if kind not in KINDS
    ]
    for kind in sorted(KINDS & kinds.keys()):
        most = 0 if kind in OF_RUNS else HANDFUL + OF_REQUESTS.get(kind, 0) * begun
        if kinds[kind] > most:
            found.append(f"{kinds[kind]} {kind}, at most {most} may be left")
    return found


def redis_grown(first_kib: int, last_kib: int, begun: int) -> list[str]:
    """Redis' own memory: what is kept of a request for its repetition is small, all else must have gone."""
    most = first_kib + REDIS_SPARE_KIB + REDIS_KIB_EACH * begun
    return [f"redis: {first_kib} KiB at first, {last_kib} at last, at most {most}"] if last_kib > most else []


class Names:
    """The names in Redis by kind: how many there are, and which have no end."""

    def __init__(self, client: "redis.Redis[bytes]") -> None:
        self.kinds: collections.Counter[str] = collections.Counter()
        self.endless: list[str] = []
        there = [name.decode() for name in client.scan_iter(count=1000)]
        pipe = client.pipeline(transaction=False)
        for name in there:
            pipe.pttl(name)
        for name, ttl in zip(there, pipe.execute(), strict=True):
            kind = kind_of(name)
            self.kinds[kind] += 1
            if ttl == -1 and kind not in ALWAYS:
                self.endless.append(name)


def kind_of(name: str) -> str:
    if not name.startswith("clinvk:"):
        return "_kombu" if name.startswith("_kombu") else "queue"
    return name.split(":")[1]


def size_of(pid: int) -> dict[str, int]:
    """What the kernel says of one process; nothing where it is gone."""
    found = {}
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        found["rss_kib"] = int(status.split("VmRSS:")[1].split()[0])
        found["threads"] = int(status.split("Threads:")[1].split()[0])
        found["files"] = len(os.listdir(f"/proc/{pid}/fd"))
    return found


class Watch:
    """Takes samples of a service: one flat row each."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.rows: list[dict[str, Any]] = []

    def pids(self) -> dict[str, int]:
        service = self._service
        found = {f"api{i}": proc.pid for i, (proc, _) in enumerate(service.apis) if proc.alive}
        for i, proc in enumerate(service.workers):
            if proc.alive:
                found[f"warden{i}"] = proc.pid
                for below in children(proc.pid)[:1]:
                    found[f"worker{i}"] = below
        if service.redis.process is not None:
            found["redis"] = service.redis.process.pid
        return found

    def take(self, at_s: float, under_way: int) -> dict[str, Any]:
        row: dict[str, Any] = {"at_s": round(at_s, 1), "under_way": under_way}
        row["processes"] = len(living(self._service.marker))
        with contextlib.suppress(OSError):  # a run's directory may go while it is looked at
            row["paths"] = sum(1 for _ in self._service.folder.glob("h*/**/*"))
        for who, pid in self.pids().items():
            row |= {f"{who} {what}": value for what, value in size_of(pid).items()}
        with contextlib.suppress(redis.RedisError, OSError):  # it may be the one that is killed just now
            client = self._service.redis.client()
            info = client.info()
            row["redis clients"] = info["connected_clients"] - 1
            row["redis used_kib"] = info["used_memory"] // 1024
            kinds = Names(client).kinds
            row["names"] = sum(kinds.values())
            row |= {f"names {kind}": count for kind, count in sorted(kinds.items())}
            client.close()
        self.rows.append(row)
        return row
