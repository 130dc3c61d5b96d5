"""Keeps other processes of the same user from reading this one: its environment, its memory, its open files (Linux).

A CLI and what its model starts run as the worker's user. Without this they read CLINVK_REDIS_URL from /proc/PID/environ.
"""

import contextlib
import ctypes

_PR_SET_DUMPABLE = 4


def hide() -> None:
    """From now on only root may look into this process; forks inherit it, and each exec ends it, so that a CLI is as any
    other process. /proc/PID/stat, limits, task and children stay open to all, and this process may read its own files.
    It writes no core dumps either. Elsewhere than on Linux nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):  # no such call on this system
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
