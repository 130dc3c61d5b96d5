"""The directories of a run: the caller's workdir judged, or fresh ones made and removed."""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from shared.errors import InvalidRequest
from worker.backends.base import Place

# Always blocked, whatever the configuration adds.
BLOCKED: tuple[str, ...] = (
    "/etc",
    "/proc",
    "/sys",
    "/dev",
    "/boot",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
)
BLOCKED += ("/run", "/var/run", "/var/lib", "/var/log", "/var/spool")

# Blocked wherever they stand: directories that hold secrets.
SECRET = frozenset({".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".claude", ".codex", ".gemini", ".clinvk"})
SECRET_PAIRS = frozenset({(".config", "gcloud"), (".config", "gh"), (".local", "share")})


class Workspaces:
    """Makes places under `home` (CLINVK_HOME). `user_home` is the operator's HOME."""

    def __init__(self, home: Path, user_home: Path, allowed: Iterable[str] = (), blocked: Iterable[str] = ()) -> None:
        self.home = home
        self._runs = home / "runs"
        self._sessions = home / "sessions"
        self._user_home = user_home
        self._own = [Path(os.path.realpath(home)), Path(os.path.realpath(Path(__file__).parent.parent))]
        self._allowed = [Path(os.path.realpath(prefix)) for prefix in allowed]
        self._blocked = [Path(os.path.realpath(prefix)) for prefix in (*BLOCKED, *blocked)]
        for folder in (home, self._runs, self._sessions):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def make(self, run_id: str, session_id: str | None, workdir: str | None, add_dirs: Iterable[str] = ()) -> Place:
        """Raises: InvalidRequest where a directory may not be used."""
        dirs = tuple(self.judge(path, f"add_dirs[{index}]") for index, path in enumerate(add_dirs))
        cwd = None if workdir is None else self.judge(workdir, "workdir")
        base = self._runs / run_id
        scratch = base / "scratch"
        scratch.mkdir(parents=True, mode=0o700, exist_ok=True)
        (scratch / "tmp").mkdir(mode=0o700, exist_ok=True)
        kept = base if session_id is None else self._sessions / session_id
        own_home = kept / "home"
        own_home.mkdir(parents=True, mode=0o700, exist_ok=True)
        if cwd is None:
            work = kept / "work"
            work.mkdir(mode=0o700, exist_ok=True)
            cwd = str(work)
        return Place(cwd=cwd, scratch=str(scratch), home=str(self._user_home), own_home=str(own_home), add_dirs=dirs)

    def judge(self, path: str, field: str) -> str:
        """The real path of a directory that a run may use. Raises: InvalidRequest."""
        if "\0" in path or not path.startswith("/"):
            raise InvalidRequest(f"{field} must be an absolute path, not {path!r}", field=field)
        real = Path(os.path.realpath(path))
        if not real.is_dir():
            raise InvalidRequest(f"{field} {path!r} is not a directory on this worker's host", field=field)
        if reason := self._reason_against(real):
            raise InvalidRequest(f"{field} {path!r} may not be used: {reason}", field=field)
        # Between this look and the start somebody may put a symlink in its place: what was opened must be it.
        fd = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            same = os.readlink(f"/proc/self/fd/{fd}") == str(real)
        finally:
            os.close(fd)
        if not same:
            raise InvalidRequest(f"{field} {path!r} changed while it was looked at", field=field)
        return str(real)

    def _reason_against(self, real: Path) -> str | None:
        if real == Path("/"):
            return "it is the root of the file system"
        for own in self._own:
            if real.is_relative_to(own) or own.is_relative_to(real):
                return "it is, or holds, the service's own directory"
        for prefix in self._blocked:
            if real.is_relative_to(prefix):
                return f"{prefix} is blocked"
        parts = real.parts
        if SECRET.intersection(parts) or SECRET_PAIRS.intersection(zip(parts, parts[1:], strict=False)):
            return "it holds secrets"
        if real == self._user_home.resolve():
            return "it is the HOME of the worker's user"
        if self._allowed and not any(real.is_relative_to(prefix) for prefix in self._allowed):
            allowed = ", ".join(map(str, self._allowed))
            return f"it is outside the allowed directories ({allowed})"
        return None

    def remove(self, run_id: str) -> None:
        """What the run does not leave to a session."""
        _remove(self._runs / run_id)

    def remove_strays(self) -> None:
        """Directories of runs that a crash left; only for a process that shares `home` with no other."""
        for folder in self._runs.iterdir():
            _remove(folder)


def _remove(folder: Path) -> None:
    """Follows no symlink; what is read-only is made writable first."""

    def again(function: Callable[[str], object], path: str, _: object) -> None:
        with contextlib.suppress(OSError):
            parent = os.path.dirname(path)  # noqa: PTH120  # strings from rmtree
            os.chmod(parent, stat.S_IRWXU)  # noqa: PTH101  # as above
            if not os.path.islink(path):  # noqa: PTH114  # as above
                os.chmod(path, stat.S_IRWXU)  # noqa: PTH101  # as above
            function(path)

    shutil.rmtree(folder, onerror=again)
    if folder.exists():  # directories that could not be listed are open now
        shutil.rmtree(folder, ignore_errors=True)
