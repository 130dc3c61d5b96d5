"""Lets a process that nobody waits for yet start behind those that somebody waits for."""

import contextlib
import os

from worker import tree

_NICE = 10
_PASSES = 5  # what is started between two looks has inherited it


def lower(pid: int) -> None:
    """Of a process that has just been started: its threads to come inherit it, and so does what it starts."""
    with contextlib.suppress(OSError):
        if os.geteuid() == 0:
            os.setpriority(os.PRIO_PROCESS, pid, _NICE)
        else:  # who is not root cannot take a nice value back
            os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))


def restore(pid: int) -> None:
    """Of it and all below it: a launcher has the CLI as its child."""
    done: set[int] = set()
    for _ in range(_PASSES):
        found = {pid, *(seen.pid for seen in tree.below([pid]))} - done
        if not found:
            return
        for one in found:
            _restore(one)
        done |= found


def _restore(pid: int) -> None:
    """Of all its threads; Linux keeps both by the thread."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # as everywhere in worker/tree.py
            with contextlib.suppress(OSError):
                if os.geteuid() == 0:
                    os.setpriority(os.PRIO_PROCESS, int(thread), 0)
                else:
                    os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
