"""The directories of a run: the caller's workdir judged, or fresh ones made and removed."""

import concurrent.futures
import contextlib
import contextvars
import errno
import fcntl
import itertools
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from shared.errors import BackendUnavailable, InvalidRequest, PermissionDenied
from shared.run import MOST_DIRS, PATH_BYTES
from worker.backends.base import Place
from worker.removal import Heap

_log = logging.getLogger(__name__)

# Always blocked with all below, whatever the configuration adds.
_SYSTEM = ("/etc", "/proc", "/sys", "/dev", "/boot", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
BLOCKED = (*_SYSTEM, "/run", "/var/run", "/var/lib", "/var/log", "/var/spool", "/var/backups", "/var/mail")

# Blocked wherever they stand: directories that hold secrets.
SECRET = frozenset(
    {".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".password-store", ".claude", ".codex", ".gemini"}
    | {".clinvk", ".mozilla", ".thunderbird"}
)
SECRET_PAIRS = frozenset(
    {(".config", "gcloud"), (".config", "gh"), (".config", "gopass"), (".config", "op"), (".local", "share")}
)

_PRIVATE = 0o700
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*").fullmatch
_AT_ONCE = 50  # entries removed in the caller's time
_ANY_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Workspaces:
    """Makes places under `home` (CLINVK_HOME). `user_home` is the operator's HOME."""

    def __init__(self, home: Path, user_home: Path, allowed: Iterable[str] = (), blocked: Iterable[str] = ()) -> None:
        home.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
        self.home = home.resolve()
        self._operators_home = str(user_home)
        self._user_home = str(user_home.resolve())
        self._own = [str(self.home), str(Path(__file__).resolve().parent.parent)]
        self._system = _resolved(BLOCKED)
        self._blocked = [*self._system, *_resolved(blocked)]
        self._allowed = _resolved(allowed)
        self._runs, self._sessions, self._trash = (f"{self.home}/{name}" for name in ("runs", "sessions", "trash"))
        for folder in (self._runs, self._sessions, self._trash):
            _make(folder)
        self._count = itertools.count()
        # Large trees only. What it does not come to before a kill, the next `claim` removes; an exit in good order waits for it.
        self._remover = concurrent.futures.ThreadPoolExecutor(1, "remover")
        self._lock = -1

    def make(
        self,
        run_id: str,
        session_id: str | None,
        workdir: str | None,
        add_dirs: Iterable[str] = (),
        *,
        within: Iterable[str] = (),
        own_home: bool = True,
    ) -> Place:
        """`within`: where the caller's key may work, none for wherever this host allows. Without `own_home` a HOME that a session does not have yet is named but not made: ext4 takes 60 us for each
        directory's removal.

        Raises: InvalidRequest where a directory may not be used; BackendUnavailable where the disk is full."""
        for name in (run_id, session_id):
            if name is not None and not _NAME(name):
                raise InvalidRequest(f"{name!r} cannot be the name of a directory")
        add_dirs = tuple(add_dirs)
        if len(add_dirs) > MOST_DIRS:
            raise InvalidRequest(f"add_dirs may have at most {MOST_DIRS} entries", field="add_dirs")
        dirs = tuple(self.judge(path, f"add_dirs[{index}]", within) for index, path in enumerate(add_dirs))
        cwd = None if workdir is None else self.judge(workdir, "workdir", within)
        base = f"{self._runs}/{run_id}"
        kept = base if session_id is None else f"{self._sessions}/{session_id}"
        try:
            try:
                os.mkdir(base, _PRIVATE)  # noqa: PTH102  # pathlib doubles the cost of each of these
            except FileExistsError:  # an attempt of which a crash left something
                self.remove(run_id)
                os.mkdir(base, _PRIVATE)  # noqa: PTH102  # as above
            os.mkdir(f"{base}/tmp", _PRIVATE)  # noqa: PTH102  # as above
            if kept != base:
                _make(kept)
            if own_home:
                _make(f"{kept}/home")
            if cwd is None:
                cwd = f"{kept}/work"
                _make(cwd)
        except OSError as error:
            self.remove(run_id)
            raise BackendUnavailable(
                f"cannot make the run's directories on this host: {error.strerror}", retry_after_s=30
            ) from error
        return Place(cwd=cwd, scratch=base, home=self._operators_home, own_home=f"{kept}/home", add_dirs=dirs)

    # -- the caller's directories

    def judge(self, path: str, field: str, within: Iterable[str] = ()) -> str:
        """The real path of a directory that a run may use. Raises: InvalidRequest, PermissionDenied."""
        if "\0" in path or not path.startswith("/"):
            raise InvalidRequest(f"{field} must be an absolute path on the worker's host, not {path!r}", field=field)
        if len(path.encode(errors="replace")) >= PATH_BYTES:  # what looks at it takes the square of its length
            raise InvalidRequest(f"{field} must be a path of fewer than {PATH_BYTES} bytes", field=field)
        try:
            real = os.path.realpath(path)
        except OSError as error:
            raise InvalidRequest(f"{field} {path!r} cannot be looked up: {error.strerror}", field=field) from error
        # Before any look at the disk, so that nobody learns what there is in places that are not for them.
        if reason := self._reason_against(real):
            raise InvalidRequest(f"{field} {path!r} may not be used: {reason}", field=field)
        own = tuple(within)
        if own and not any(_within(real, os.path.realpath(prefix)) for prefix in own):
            raise PermissionDenied(f"{field} {path!r} lies outside of what its key may use: {', '.join(own)}")
        try:
            fd = os.open(real, _ANY_FOLDER)
        except OSError as error:
            raise InvalidRequest(f"{field} {path!r} {_trouble(error)}", field=field) from error
        try:
            same = os.readlink(f"/proc/self/fd/{fd}") == real
            usable = os.access(f"/proc/self/fd/{fd}", os.R_OK | os.X_OK)
        finally:
            os.close(fd)
        if not same:  # `Process.start` asks the same once more
            raise InvalidRequest(f"{field} {path!r} changed while it was looked at", field=field)
        if not usable:
            raise InvalidRequest(f"{field} {path!r} is closed to the user that the worker runs as", field=field)
        return real

    def _reason_against(self, real: str) -> str | None:
        if real == "/":
            return "it is the root of the file system"
        for own in self._own:
            if _within(real, own) or _within(own, real):
                return "it is, or holds, the service's own directory"
        if _within(self._user_home, real):
            return "it is, or holds, the HOME of the worker's user; name a directory inside it"
        for prefix in self._blocked:
            if _within(real, prefix):
                return f"{prefix} is blocked"
        for prefix in self._system:
            if _within(prefix, real):
                return f"it holds {prefix}, which is blocked"
        parts = real.split("/")
        if SECRET.intersection(parts) or SECRET_PAIRS.intersection(zip(parts, parts[1:], strict=False)):
            return "it is a place of secrets"
        if self._allowed and not any(_within(real, prefix) for prefix in self._allowed):
            return f"it is outside the allowed directories: {', '.join(self._allowed)}"
        return None

    # -- removal

    def remove(self, run_id: str) -> None:
        """What the run does not leave to a session. A large tree leaves its place at once and the disk a little later."""
        base = f"{self._runs}/{run_id}"
        try:  # most leave nothing: half the cost of the way that serves all
            fd = os.open(base, _ANY_FOLDER)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir("work", dir_fd=fd)
                os.rmdir("tmp", dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(base)  # noqa: PTH106  # as above
        except OSError:
            self._discard(base)

    def remove_session(self, session_id: str) -> None:
        """The session's working directory and HOME, if they are on this host."""
        if _NAME(session_id):
            self._discard(f"{self._sessions}/{session_id}")

    def claim(self) -> bool:
        """Joins those that use this home, for as long as this object lives; the only one removes what a crash left.

        Call it once, before the first `make`. Returns whether it was the only one.
        """
        self._lock = os.open(f"{self.home}/workers.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            alone = False
        else:
            alone = True
            self.remove_strays()
        # Shared from here on: while any of them lives, no newcomer is alone.
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return alone

    def remove_strays(self) -> None:
        """Directories of runs that a crash left; only for a process that shares `home` with no other."""
        for name in os.listdir(self._runs):  # noqa: PTH208  # as above
            self._discard(f"{self._runs}/{name}")
        for name in os.listdir(self._trash):  # noqa: PTH208  # as above
            self._remover.submit(Heap(f"{self._trash}/{name}").remove_all)

    def close(self) -> None:
        """Waits until all that was removed is gone, and leaves those that use this home."""
        self._remover.shutdown()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _discard(self, folder: str) -> None:
        aside = f"{self._trash}/{os.getpid()}-{next(self._count)}-{os.path.basename(folder)[:80]}"  # noqa: PTH119  # as above
        try:
            os.rename(folder, aside)  # noqa: PTH104  # as above
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("cannot remove %s: %s", folder, error.strerror)
            return
        heap = Heap(aside)
        if not heap.remove(_AT_ONCE):
            self._remover.submit(contextvars.copy_context().run, heap.remove_all)  # its lines are about this run


def _make(folder: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, _PRIVATE)  # noqa: PTH102  # as above


def _resolved(prefixes: Iterable[str]) -> list[str]:
    return [str(Path(prefix).expanduser().resolve()) for prefix in prefixes]


def _within(path: str, prefix: str) -> bool:
    """Both resolved: compared by whole components."""
    return path == prefix or path.startswith(prefix if prefix == "/" else prefix + "/")


def _trouble(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return "does not exist on the worker's host"
        case errno.ENOTDIR:
            return "is not a directory"
        case errno.EACCES:
            return "is closed to the user that the worker runs as"
        case _:
            return f"cannot be used: {error.strerror}"
