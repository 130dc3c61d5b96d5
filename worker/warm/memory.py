"""How much memory processes hold, and how much is left on this host or in this container."""

import os
from collections.abc import Iterable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUP = Path("/sys/fs/cgroup")
_LEAST_BYTES = 256 << 20
_LEAST_PART = 0.05


def rss(pids: Iterable[int]) -> int:
    """What they hold, counting pages that they share more than once: an upper bound, and cheap."""
    total = 0
    for pid in pids:
        words = _read(f"/proc/{pid}/statm").split()
        total += int(words[1]) * _PAGE if len(words) > 1 else 0
    return total


def pss(pids: Iterable[int]) -> int:
    """What they hold, a shared page divided by its holders. The kernel walks their pages for it: ask seldom."""
    total = 0
    for pid in pids:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def short() -> bool:
    """Whether the host, or the container, has so little left that nothing should be kept in reserve."""
    fields = {line.partition(":")[0]: line.split() for line in _read("/proc/meminfo").splitlines()}
    pairs = []
    if "MemAvailable" in fields and "MemTotal" in fields:
        pairs.append((int(fields["MemAvailable"][1]) * 1024, int(fields["MemTotal"][1]) * 1024))
    limit, used = _read(str(_CGROUP / "memory.max")).strip(), _read(str(_CGROUP / "memory.current")).strip()
    if limit.isdigit() and used.isdigit():
        stat = dict(line.split() for line in _read(str(_CGROUP / "memory.stat")).splitlines() if line.count(" ") == 1)
        pairs.append((int(limit) - int(used) + int(stat.get("inactive_file", 0)), int(limit)))
    return any(left < max(_LEAST_BYTES, total * _LEAST_PART) for left, total in pairs if total > 2 * _LEAST_BYTES)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
