"""Finds and ends the processes of a run, also those that left its session, its parent or its environment (Linux).

A run's child leads a session of its own and carries `CLINVK_RUN` in its environment. What it leaves behind is
reparented to the nearest child subreaper: the worker process, or, when that has died, its warden. So the orphans
below this process are all that can be left of runs that have ended.
"""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

RUN = "CLINVK_RUN"
WARDEN = "CLINVK_WARDEN"

_PR_SET_CHILD_SUBREAPER = 36


class Seen(NamedTuple):
    """A process as it was seen; `start` (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    ppid: int
    session: int
    start: int
    state: str


def become_subreaper() -> None:
    """From now on the orphans of this process' descendants become its children."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def look(pid: int) -> Seen | None:
    """The process, or None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # twice as fast as Path, and asked often
            text = file.read()
    except OSError:
        return None
    rest = text[text.rindex(b")") + 2 :].split()
    return Seen(pid, int(rest[1]), int(rest[3]), int(rest[19]), rest[0].decode())


def scan() -> dict[int, Seen]:
    """All processes."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  # as above
        if name.isdigit() and (seen := look(int(name))) is not None:
            found[seen.pid] = seen
    return found


def below(roots: set[int], table: dict[int, Seen]) -> list[Seen]:
    """All descendants of the roots, without them."""
    children: dict[int, list[Seen]] = {}
    for seen in table.values():
        children.setdefault(seen.ppid, []).append(seen)
    found: list[Seen] = []
    todo = list(roots)
    while todo:
        for seen in children.get(todo.pop(), ()):
            if seen.pid not in roots:
                found.append(seen)
                todo.append(seen.pid)
    return found


def orphans() -> list[int]:
    """The pids reparented to this process, which must not itself start children on its main thread.

    Linux gives orphans to the first living thread of a subreaper, and lists children by the thread that has them.
    """
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_bytes().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        me = os.getpid()
        return [seen.pid for seen in scan().values() if seen.ppid == me]


def environ(pid: int) -> dict[bytes, bytes]:
    """The environment that it was started with; empty where it cannot be read."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(pair.partition(b"=")[::2] for pair in pairs if pair)


def is_marked(pid: int, run_id: str) -> bool:
    return environ(pid).get(RUN.encode()) == run_id.encode()


def send(seen: Seen, sig: int) -> bool:
    """Signals the process, if it is still the one that was seen. Returns whether it was there."""
    now = look(seen.pid)
    if now is None or now.start != seen.start or now.state == "Z":
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(seen.pid, sig)
        return True
    return False


def reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def leftovers(run_id: str, known: set[Seen]) -> list[Seen]:
    """What lives of a run whose child has been reaped: orphans marked with it, what was seen of it before, and
    all below them. Costs one small read where there is no orphan at all. Reaps dead orphans."""
    roots = {seen.pid for seen in known if (now := look(seen.pid)) is not None and now.start == seen.start}
    for pid in orphans():
        seen = look(pid)
        if seen is None:
            continue
        if seen.state == "Z":
            reap(pid)
        elif pid in roots or is_marked(pid, run_id):
            roots.add(pid)
    if not roots:
        return []
    table = scan()
    found = [table[pid] for pid in roots if pid in table] + below(roots, table)
    return [seen for seen in found if seen.state != "Z"]


def strays() -> list[Seen]:
    """Orphans of this process with all below them: whatever their environment, they belong to no run that lives,
    if none does."""
    roots = set(orphans())
    if not roots:
        return []
    for pid in roots:
        if (seen := look(pid)) is not None and seen.state == "Z":
            reap(pid)
    table = scan()
    found = [table[pid] for pid in roots if pid in table] + below(roots, table)
    return [seen for seen in found if seen.state != "Z"]


def kill_below(pid: int, limit_s: float) -> bool:
    """SIGKILLs all descendants of a process until a look finds none; whether that was so within the limit.

    Stopping them first keeps them from forking away while they are counted.
    """
    deadline = time.monotonic() + limit_s
    while True:
        found = [seen for seen in below({pid}, scan()) if seen.state != "Z"]
        if not found:
            return True
        for seen in found:
            send(seen, signal.SIGSTOP)
        for seen in found:
            send(seen, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)


def warden_mark(pid: int) -> str:
    """What tells a warden from any other process that ever had its pid."""
    seen = look(pid)
    return f"{pid}:{seen.start if seen else 0}"


def end_forsaken() -> list[int]:
    """Ends processes of runs whose warden is gone, as after a kill of a whole worker host's service. Returns them."""
    ended = []
    for seen in scan().values():
        mark = environ(seen.pid).get(WARDEN.encode())
        if mark is None or RUN.encode() not in environ(seen.pid):
            continue
        pid, _, start = mark.decode(errors="replace").partition(":")
        warden = look(int(pid)) if pid.isdigit() else None
        if (warden is None or str(warden.start) != start) and send(seen, signal.SIGKILL):
            ended.append(seen.pid)
    return ended
