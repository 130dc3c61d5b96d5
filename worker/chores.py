"""Removes from this host what a deleted session or an ended flow has left on it."""

import asyncio
import contextlib
import glob
import logging
import os
import re
import sqlite3
from collections.abc import Mapping

from shared.errors import StoreUnavailable
from shared.store.sessions import Chore, Sessions
from worker import rows
from worker.backends import BACKENDS
from worker.workspace import Workspaces

_log = logging.getLogger(__name__)

_EVERY_S = 2.0
_ID = re.compile(r"[A-Za-z0-9_-]{8,100}").fullmatch  # it becomes part of a pattern


class Chores:
    """Owns no task: `run` goes on until cancelled. Any worker process of a host may do its chores, two the same one;
    one whose worker died in the middle is done by the next."""

    def __init__(self, sessions: Sessions, workspaces: Workspaces, environ: Mapping[str, str], host: str) -> None:
        self._sessions = sessions
        self._workspaces = workspaces
        self._environ = environ
        self._host = host

    async def run(self) -> None:
        while True:
            try:
                while (found := await self._sessions.chore(self._host)) is not None:
                    try:
                        await asyncio.to_thread(self.do, found[1])
                    except Exception:  # noqa: BLE001  # one that cannot be done must not keep the others
                        _log.exception("a chore is given up: %s", found[1])
                    await self._sessions.done(self._host, found[0])
            except StoreUnavailable as error:
                _log.log(error.level, "chores wait: %s", error.message)
            await asyncio.sleep(_EVERY_S)

    def do(self, chore: Chore) -> None:
        """What is not there any more is no trouble."""
        for name in (chore.workspace, chore.session):
            if name:
                self._workspaces.remove_session(name)
        backend = BACKENDS.get(chore.backend)
        if backend is None or not _ID(chore.cli_id):
            return
        for pattern in backend.kept(chore.cli_id, self._environ):
            for path in glob.glob(pattern):  # noqa: PTH207  # a whole path with its pattern
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108  # glob gives strings
                with contextlib.suppress(OSError):  # the last one of its directory
                    os.rmdir(os.path.dirname(path))  # noqa: PTH106, PTH120  # as above
        databases = backend.databases(self._environ)
        for path in glob.glob(databases) if databases else ():  # noqa: PTH207  # as above
            try:
                rows.remove(path, chore.cli_id)
            except sqlite3.Error as error:  # one that is broken, or not the CLI's own
                _log.warning("what %s holds of a session cannot be removed: %s", path, error)
