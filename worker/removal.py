"""Removes directory trees of any depth, whatever their modes, without ever following a link."""

import contextlib
import errno
import itertools
import logging
import os
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_PRIVATE = 0o700
_PORTION = 10
_PAUSE_S = 0.0005
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Heap:
    """A tree on its way out. Directories are moved beside the root before their turn, so that no depth matters. What
    cannot be removed, such as a mount point, stays and is logged."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._todo = [root]
        self._count = itertools.count()

    def remove(self, at_most: int) -> bool:
        """Takes about so many entries; whether all is gone that can be. If not, it may be called again."""
        while self._todo and at_most > 0:
            at_most -= self._empty(self._todo.pop(), at_most)
        return not self._todo

    def remove_all(self) -> None:
        """For a thread: in portions, since one that calls the kernel so often starves the others of the GIL."""
        while not self.remove(_PORTION):
            time.sleep(_PAUSE_S)

    def _empty(self, folder: str, at_most: int) -> int:
        """Returns how many entries that took. The folder goes back to the list where there is more in it."""
        try:
            fd = _open(folder)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):  # a file or a link in the place of the root
                os.unlink(folder)  # noqa: PTH108  # strings are half the cost, and there may be many
            elif error.errno != errno.ENOENT:
                _log.warning("cannot remove %s: %s", folder, error.strerror)
            return 1
        inner: list[str] = []
        gone = 0
        try:
            with os.scandir(fd) as entries:
                for entry in itertools.islice(entries, at_most):
                    if entry.is_dir(follow_symlinks=False):
                        aside = f"{self._root}.{next(self._count)}"
                        if _insist(fd, entry.name, _Move(fd, aside)):
                            inner.append(aside)
                            gone += 1
                    else:
                        gone += _insist(fd, entry.name, _Unlink(fd))
        finally:
            os.close(fd)
        try:
            os.rmdir(folder)  # noqa: PTH106  # as above
        except OSError:
            if gone:  # beyond the limit, or passed over by a look that the removal disturbed
                self._todo.append(folder)
        self._todo += inner
        return gone + 1


class _Move:
    def __init__(self, folder: int, to: str) -> None:
        self._folder, self._to = folder, to

    def __call__(self, name: str) -> None:
        os.rename(name, self._to, src_dir_fd=self._folder)


class _Unlink:
    def __init__(self, folder: int) -> None:
        self._folder = folder

    def __call__(self, name: str) -> None:
        os.unlink(name, dir_fd=self._folder)


def _open(folder: str) -> int:
    try:
        return os.open(folder, _FOLDER)
    except PermissionError:
        _open_up(folder)
        return os.open(folder, _FOLDER)


def _insist(folder: int, name: str, action: Callable[[str], None]) -> bool:
    """Does it, if need be after making writable what is not."""
    try:
        try:
            action(name)
        except PermissionError:
            os.fchmod(folder, _PRIVATE)
            with contextlib.suppress(OSError):
                _open_up(name, folder)
            action(name)
    except OSError as error:  # such as a mount point
        _log.warning("cannot remove %r: %s", name, error.strerror)
        return False
    return True


def _open_up(path: str, folder: int | None = None) -> None:
    fd = os.open(path, _ANY_FOLDER, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{fd}", _PRIVATE)  # noqa: PTH101  # as above
    finally:
        os.close(fd)
