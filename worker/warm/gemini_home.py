"""What a resident gemini keeps on disk of its sessions: found while they run, removed when they have ended.

It has a directory for each working directory it was ever given (`tmp/NAME`, `history/NAME`), with the sessions' prompts
and answers. Ours are named by us: a marker in them says whose they are, and the CLI takes them so.
"""

import contextlib
import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import msgspec

from worker.backends import gemini_acp as acp
from worker.stage import write

_log = logging.getLogger(__name__)

_MARKER = ".project_root"
_BASES = ("tmp", "history")


class Home:
    """Of one resident. Files of some kilobytes, read and written in the loop."""

    def __init__(self, own_home: str, scratch: str) -> None:
        self._own = Path(own_home) / ".gemini"
        self._scratch = Path(scratch)
        self._live: Counter[str] = Counter()  # projects of runs that have not ended

    def enter(self, cwd: str) -> None:
        """Call `leave` for it, once."""
        name = acp.project(cwd)
        self._live[name] += 1
        for base in _BASES:
            folder = self._own / base / name
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / _MARKER).write_text(cwd)

    def leave(self, cwd: str, session_id: str | None) -> None:
        """Removes what there is of the session, and what ended ones have written since."""
        name = acp.project(cwd)
        self._live[name] -= 1
        if not self._live[name]:
            del self._live[name]
        elif session_id is not None:
            for path in self._chats(cwd, session_id):
                path.unlink(missing_ok=True)
            for folder in self._own.glob(f"tmp/{name}/*/{session_id}"):
                shutil.rmtree(folder, ignore_errors=True)
        for base in _BASES:
            with contextlib.suppress(OSError):
                for entry in os.scandir(self._own / base):
                    if entry.name.startswith("p-") and entry.name not in self._live:
                        shutil.rmtree(entry.path, ignore_errors=True)
        for path in (self._scratch / "tmp").glob("gemini-client-error-*"):  # with the conversation in it
            path.unlink(missing_ok=True)

    # -- a session's file

    def _chats(self, cwd: str, session_id: str) -> list[Path]:
        return list((self._own / "tmp" / acp.project(cwd) / "chats").glob(f"session-*-{session_id[:8]}.json*"))

    def put(self, cwd: str, session_id: str, data: bytes) -> None:
        """A session to be loaded."""
        write(self._own / "tmp" / acp.project(cwd) / "chats" / acp.chat_file(session_id), data)

    def chat(self, cwd: str, session_id: str) -> tuple[str, bytes] | None:
        """What there is of the session: the name of its file and what stands in it."""
        paths = [path for path in self._chats(cwd, session_id) if path.suffix == ".jsonl"]
        loaded = acp.chat_file(session_id) + "l"  # beside it stands one that it never used
        path = next((path for path in paths if path.name == loaded), paths[0] if paths else None)
        try:
            return None if path is None else (path.name, path.read_bytes())
        except OSError as error:
            _log.warning("what gemini wrote of a session cannot be read: %s", error.strerror)
            return None


def keep(own_home: str, cwd: str, chat: tuple[str, bytes]) -> None:
    """Gives the session to the HOME of a CLI of its own, where `--resume` finds it."""
    own = Path(own_home) / ".gemini"
    name = _known(own, cwd)
    if name is None:
        name = acp.project(cwd)
        for base in _BASES:
            write(own / base / name / _MARKER, cwd.encode("utf-8", "surrogateescape"))
    write(own / "tmp" / name / "chats" / chat[0], chat[1])


def _known(own: Path, cwd: str) -> str | None:
    """The name that the CLI has for the directory there."""
    try:
        found = msgspec.json.decode((own / "projects.json").read_bytes())["projects"][cwd]
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found.replace("-", "").isalnum() else None


def configured(cwd: str, home: str) -> bool:
    """Whether files there would be read into the whole process: settings, variables. Directories that hold `home` (the
    service's own) are alike for all."""
    path = Path(cwd)
    if any(_exists(path / name) for name in (".gemini", ".agents")):
        return True
    for folder in (path, *path.parents):
        if Path(home).is_relative_to(folder):
            return False
        if _exists(folder / ".env") or _exists(folder / ".gemini" / ".env"):
            return True
    return False


def _exists(path: Path) -> bool:
    """Also a link to nowhere yet. Where nothing can be seen, the CLI sees nothing."""
    try:
        path.lstat()
    except OSError:
        return False
    return True
