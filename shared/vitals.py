"""What this process and its host use, by its own look at itself."""

import asyncio
import contextlib
import os
import resource
import socket
import time
from importlib.metadata import version
from pathlib import Path

from shared.host import Vitals

_EVERY_S = 0.25
_FORGET_S = 15.0


class Watch:
    """`run` measures how late the loop is that it runs in; `look` may be called from anywhere in that loop.

    `folder` lies on the disk whose free space is told: where runs work, or the data is kept.
    """

    def __init__(self, role: str, folder: Path, host: str | None = None) -> None:
        self._role = role
        self._folder = folder
        self._host = host or socket.gethostname()
        self._started_at = time.time()
        self._late: list[tuple[float, float]] = []  # when (monotonic), by how much
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    async def run(self) -> None:
        """Measures until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            now = loop.time()
            self._late = [(at, late) for at, late in self._late if now - at < _FORGET_S]
            self._late.append((now, max(now - due, 0.0)))

    def look(self, *, requests: int = 0, streams: int = 0, followers: int = 0) -> Vitals:
        """A dozen system calls; never raises, also where no descriptor is left. The loop's lag is the longest of the
        last seconds."""
        memory = _meminfo()
        free, rss, fds, load = -1, 0, 0, 0.0
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._folder)
            free = disk.f_bavail * disk.f_frsize
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            fds = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a Path for each would be made
            rss = int(Path("/proc/self/statm").read_text().split()[1]) * self._page_bytes
            load = os.getloadavg()[0]
        except OSError:
            fds = fds or limit  # as good as none left
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        return Vitals(
            role=self._role,
            host=self._host,
            pid=os.getpid(),
            version=version("clinvk"),
            started_at=self._started_at,
            rss_bytes=rss,
            cpu_s=cpu.ru_utime + cpu.ru_stime,
            open_fds=fds,
            max_fds=limit,
            loop_lag_s=max((late for _, late in self._late), default=0.0),
            load1=load,
            cpus=os.cpu_count() or 1,
            memory_bytes=memory.get("MemTotal", 0),
            memory_available_bytes=memory.get("MemAvailable", 0),
            disk_free_bytes=free,
            requests=requests,
            streams=streams,
            followers=followers,
        )


def _meminfo() -> dict[str, int]:
    found = {}
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", "rb") as file:  # noqa: PTH123  # twice as fast
        for line in file:
            name, _, rest = line.partition(b":")
            if name in (b"MemTotal", b"MemAvailable"):
                found[name.decode()] = int(rest.split()[0]) * 1024
    return found
