"""How much memory processes hold, and how much is left on this host or in this container."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_LEAST_BYTES = 256 << 20
_LEAST_PART = 0.05


class _Names(NamedTuple):
    """Of a control group's files, by the version of its hierarchy. `spare`: what the kernel would give back first."""

    limits: tuple[str, ...]
    used: str
    spare: str


_FIRST = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_SECOND = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")


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


def short(proc: str = "/proc", groups: str = "/sys/fs/cgroup") -> bool:
    """Whether the host, the container or the unit has so little left that nothing should be kept in reserve."""
    fields = _pairs(f"{proc}/meminfo")
    pairs = list(_limits(proc, groups))
    if "MemAvailable:" in fields and "MemTotal:" in fields:
        pairs.append((fields["MemAvailable:"] * 1024, fields["MemTotal:"] * 1024))
    return any(left < max(_LEAST_BYTES, total * _LEAST_PART) for left, total in pairs if total > 2 * _LEAST_BYTES)


def _limits(proc: str, groups: str) -> Iterator[tuple[int, int]]:
    """What is left and what there is, for each group above this process that has a limit."""
    for line in _read(f"{proc}/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kinds and "memory" not in kinds.split(","):
            continue
        root, names = (f"{groups}/memory", _FIRST) if kinds else (groups, _SECOND)
        parts = [part for part in path.split("/") if part]
        # In a container the path may be the host's, whose upper part is not to be seen: what is not there has no limit.
        for length in range(len(parts), -1, -1) if ".." not in parts else [0]:
            folder = "/".join((root, *parts[:length]))
            limits = [int(word) for name in names.limits if (word := _read(f"{folder}/{name}").strip()).isdigit()]
            used = _read(f"{folder}/{names.used}").strip()
            if limits and used.isdigit():
                limit = min(limits)
                yield limit - int(used) + _pairs(f"{folder}/memory.stat").get(names.spare, 0), limit


def _pairs(path: str) -> dict[str, int]:
    """A file of lines with a word and a number."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
