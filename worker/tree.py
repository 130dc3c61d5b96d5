"""Finds and ends the processes of a run, also those that left its session, its parent or its environment (Linux).

Where they are: this process is a child subreaper, so what a run leaves behind becomes a child of its main thread, and
whatever else lives of the run lives below such an orphan. An empty list of orphans (one read of some microseconds)
therefore proves that nothing is left of any run whose child has been reaped.

Whose they are: each CLI is started with a soft limit of RLIMIT_RTTIME that no other has, its *tag*. The limit itself
means nothing (146,000 years of real-time CPU), but fork and exec keep it whatever becomes of environment, session,
parent and open files, and /proc shows it to everybody. Where a tag cannot be set, the marker CLINVK_RUN in the
environment says it, and what was seen below the CLI while that lived.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

RUN = "CLINVK_RUN"
INSTANCE = "CLINVK_INSTANCE"
WARDEN = "CLINVK_WARDEN"

_PR_SET_CHILD_SUBREAPER = 36
_TAGGED = 1 << 62  # a tag: this bit, 22 bits warden's pid, 16 bits of its start time, 24 bits count of runs
_FORSAKEN_WITHIN_S = 2.0

own: set[int] = set()  # children that this process started on purpose and will reap itself
spawning = threading.Lock()  # held while a child is started; the process that ends itself never gives it back
_count = itertools.count(1)


class Seen(NamedTuple):
    """A process as it was seen; `start` (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    ppid: int
    group: int
    session: int
    start: int
    state: str


class Mark(NamedTuple):
    """How the processes of one run are known."""

    run_id: str
    tag: int


def become_subreaper(*, on: bool = True) -> None:
    """From now on the orphans of this process' descendants become its children."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


# -- looking


def _read(path: str, size: int = 4096) -> bytes:
    """A file of /proc, in a quarter of the time that `open` takes; empty where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = os.read(fd, size)
        if len(data) < size // 2:  # the kernel hands out at most a page at once
            return data
        while more := os.read(fd, size):
            data += more
        return data
    except OSError:
        return b""
    finally:
        os.close(fd)


def look(pid: int) -> Seen | None:
    """The process, or None where there is none. A thread leader that has ended is "Z" though the rest may live."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    rest = text[text.rindex(b")") + 2 :].split(None, 20)
    return Seen(pid, int(rest[1]), int(rest[2]), int(rest[3]), int(rest[19]), rest[0].decode())


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208  # pathlib costs the warden 1 MB


@functools.cache
def _lists_children() -> bool:
    return os.path.exists(f"/proc/self/task/{threading.get_native_id()}/children")  # noqa: PTH110  # as above


def children(pid: int) -> list[int]:
    """The children of all threads of a process, the dead ones that nobody has reaped among them."""
    if not _lists_children():  # a kernel without CONFIG_PROC_CHILDREN
        return [child for child in pids() if (seen := look(child)) is not None and seen.ppid == pid]
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  # as above
    except OSError:
        return []
    return [int(child) for tid in threads for child in _read(f"/proc/{pid}/task/{tid}/children").split()]


def orphans() -> list[int]:
    """The pids reparented to this process.

    Linux gives orphans to the first living thread of a subreaper and lists children by the thread that has them; a
    child that a CLI made with CLONE_PARENT is listed where the CLI is. Nothing leaves these lists unless this thread
    reaps it, and what comes is added at the end, so that a read misses nothing.
    """
    main, here = os.getpid(), threading.get_native_id()
    if not _lists_children():
        return [pid for pid in children(main) if pid not in own]
    listed = _read(f"/proc/self/task/{main}/children").split()
    if here != main:
        listed += _read(f"/proc/self/task/{here}/children").split()
    return [pid for pid in map(int, listed) if pid not in own]


def below(roots: Iterable[int]) -> list[Seen]:
    """The descendants of the roots, without them. What moves meanwhile may be missed: end what was found, look again."""
    found: dict[int, Seen] = {}
    todo = list(roots)
    while todo:
        for pid in children(todo.pop()):
            if pid not in found and (seen := look(pid)) is not None:
                found[pid] = seen
                todo.append(pid)
    return list(found.values())


# -- whose


def warden_mark(pid: int) -> str:
    """What tells a warden from any other process that ever had its pid."""
    seen = look(pid)
    return f"{pid}:{seen.start if seen else 0}"


@functools.cache
def can_tag() -> bool:
    return resource.getrlimit(resource.RLIMIT_RTTIME)[1] == resource.RLIM_INFINITY


@functools.cache
def _identity(mark: str) -> int:
    pid, _, start = mark.partition(":")
    return int(pid) << 40 | (int(start) & 0xFFFF) << 24


def new_mark(run_id: str, warden: str) -> Mark:
    """`warden` is what `warden_mark` said of the process that outlives the run's worker."""
    return Mark(run_id, _TAGGED | _identity(warden) | (next(_count) & 0xFFFFFF))


@contextlib.contextmanager
def tagged(tag: int) -> Iterator[None]:
    """What is started within carries the tag. One at a time in a process: hold `spawning`."""
    if not can_tag():  # the marker alone has to do
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_RTTIME)
    resource.setrlimit(resource.RLIMIT_RTTIME, (tag, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_RTTIME, before)


def retag(seen: Seen, tag: int) -> None:
    """From now on it, and whatever it starts, carries this tag instead of its starter's."""
    if can_tag():
        now = look(seen.pid)
        if now is not None and now.start == seen.start:
            with contextlib.suppress(OSError):
                resource.prlimit(seen.pid, resource.RLIMIT_RTTIME, (tag, resource.RLIM_INFINITY))


def tag_of(pid: int) -> int:
    """0 where there is none."""
    text = _read(f"/proc/{pid}/limits")
    at = text.find(b"Max realtime timeout")
    words = text[at + 20 : at + 60].split(None, 1) if at >= 0 else []
    tag = int(words[0]) if words and words[0].isdigit() else 0
    return tag if tag >> 62 == 1 else 0


def environ(pid: int) -> dict[bytes, bytes]:
    """The environment that it was started with; empty where it cannot be read."""
    pairs = _read(f"/proc/{pid}/environ", 65536).split(b"\0")
    return dict(pair.partition(b"=")[::2] for pair in pairs if pair)


def command(pid: int) -> str:
    """The program alone: its arguments may hold what is nobody's business."""
    return _read(f"/proc/{pid}/comm").decode(errors="replace").strip()


def is_of(pid: int, mark: Mark) -> bool | None:
    """The environment is asked only where there is no tag: a run within a run has its own. None: it cannot be told
    now, as of a process that is in the middle of an exec or of its end."""
    if tag := tag_of(pid):
        return tag == mark.tag
    if marks := environ(pid):
        return marks.get(RUN.encode()) == mark.run_id.encode()
    return False if can_tag() else None


# -- ending


def send(seen: Seen, sig: int) -> bool:
    """Signals the process, if it is still the one that was seen. Returns whether it was there."""
    try:
        fd = os.pidfd_open(seen.pid)
    except OSError:
        return False
    try:
        now = look(seen.pid)  # if it is the same now, the descriptor is the same process for good
        if now is None or now.start != seen.start:
            return False
        signal.pidfd_send_signal(fd, sig)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def kill(found: Collection[Seen], *, beside: int = 0) -> None:
    """SIGKILL for each and for its process group, which takes at once those that fork faster than one can look, but not
    for the group that is `beside` them: that of a process that goes on.

    All are stopped first, so that none sees another's end and starts it anew.
    """
    mine = os.getsid(0)
    if len(found) > 1:
        for seen in found:
            send(seen, signal.SIGSTOP)
    for seen in found:
        # A group never reaches beyond its session, and a run's session is never ours.
        if send(seen, signal.SIGKILL) and seen.session != mine and seen.group > 1 and seen.group != beside:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(seen.group, signal.SIGKILL)


def reap(pid: int) -> bool:
    """Whether it was dead, or no child of this process at all."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def leftovers(mark: Mark, known: Collection[Seen]) -> tuple[list[Seen], bool]:
    """What lives of a run whose child has been reaped, and whether that can be believed: if a dead orphan was
    reaped, its children may have come in behind the look. Where there is no orphan at all: five microseconds."""
    listed = orphans()
    if not listed:
        return [], True
    before = {(seen.pid, seen.start) for seen in known}
    roots: list[Seen] = []
    believable = True
    for pid in listed:
        seen = look(pid)
        if seen is None:
            believable = False
        elif seen.state in "ZX" and (tag_of(pid) or not can_tag()) and reap(pid):
            believable = False
        elif (pid, seen.start) in before or (of := is_of(pid, mark)):
            if seen.state in "ZX" and reap(pid):
                believable = False
            else:
                roots.append(seen)
        elif of is None:
            believable = False
    return roots + below(seen.pid for seen in roots), believable


def strays() -> list[Seen]:
    """All orphans of this process with all below them: whatever they are, they belong to no run that lives, if none
    does. Reaps the dead, so that nobody else may have children on this thread."""
    roots = [seen for pid in orphans() if not reap(pid) and (seen := look(pid)) is not None]
    return roots + below(seen.pid for seen in roots)


def kill_below(pid: int, limit_s: float) -> bool:
    """SIGKILLs all descendants of a process until a look finds none; whether that was so within the limit.

    Of this process itself the dead are reaped, its own children too.
    """
    deadline = time.monotonic() + limit_s
    while True:
        alive: list[Seen] = []
        reaped = False
        for child in children(pid):
            seen = look(child)
            if pid == os.getpid() and reap(child):
                reaped = True
            elif seen is not None and (pid == os.getpid() or seen.state not in "ZX"):
                alive.append(seen)
        if not alive and not reaped:
            return True
        if alive:
            kill(alive + below(seen.pid for seen in alive))
            time.sleep(0.001)
        if time.monotonic() > deadline:
            return False


def end_everything(limit_s: float) -> bool:
    """`kill_below` for a process that is about to end itself: from now on it starts nothing more."""
    spawning.acquire(timeout=limit_s)
    return kill_below(os.getpid(), limit_s)


def end_forsaken() -> list[int]:
    """Ends processes of runs whose warden is gone, as after a kill of a whole host's service. Returns their pids.

    Only in this pid namespace: the pid of a warden means nothing in another.
    """
    deadline = time.monotonic() + _FORSAKEN_WITHIN_S
    ended: dict[int, None] = {}
    while True:
        found = [seen for pid in pids() if _is_forsaken(pid) and (seen := look(pid)) is not None]
        found = [seen for seen in found if seen.state not in "ZX"]
        if not found or time.monotonic() > deadline:
            return list(ended)
        kill(found)
        ended.update(dict.fromkeys(seen.pid for seen in found))
        time.sleep(0.002)


def _is_forsaken(pid: int) -> bool:
    if tag := tag_of(pid):
        seen = look(tag >> 40 & 0x3FFFFF)
        lives = seen is not None and (seen.start & 0xFFFF) == (tag >> 24 & 0xFFFF)
    else:
        marks = environ(pid)
        if RUN.encode() not in marks or WARDEN.encode() not in marks:
            return False
        warden = marks[WARDEN.encode()].decode(errors="replace")
        number = warden.partition(":")[0]
        lives = not number.isdigit() or warden_mark(int(number)) == warden
    return not lives and pid != os.getpid() and _namespace(pid) == _namespace(os.getpid())


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None
