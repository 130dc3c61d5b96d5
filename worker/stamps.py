"""Tells whether a file is still the one that it was, without reading it."""

import os
from collections.abc import Sequence

Stamp = tuple[int, int, int]
"""Inode, time of the last change in nanoseconds, size; zeros where there is no such file."""


def of_file(path: str) -> Stamp:
    try:
        at = os.stat(path)  # noqa: PTH116  # for each run; pathlib doubles its cost
    except OSError:
        return (0, 0, 0)
    return (at.st_ino, at.st_mtime_ns, at.st_size)


def of_command(command: Sequence[str]) -> tuple[Stamp, ...]:
    """Of all files that it names: the first word may be an interpreter or `env`, behind which the CLI stands."""
    return tuple(of_file(word) for word in command if word.startswith("/"))
