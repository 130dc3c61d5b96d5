"""Opens the course of a run: by a warm process where one can serve it, else by a process of its own."""

import asyncio
import contextlib
import glob
import logging
from collections.abc import Awaitable, Callable

import msgspec

from shared.errors import ClinvkError
from worker.backends.base import Parser
from worker.course import Course
from worker.live import Live
from worker.process import Flood, Process
from worker.stage import Prepared
from worker.warm.pool import Pool

_log = logging.getLogger(__name__)

_UNDONE_S = 0.4  # until what is opened for a run that must end is left to itself; then that ends by its own limits
_REPAIR_S = 10.0

Opened = tuple[Course, Parser]
Watch = Callable[["asyncio.Task[Opened | None]"], Awaitable[None]]


class Opener:
    """Owns what is still being opened for runs that have ended meanwhile."""

    def __init__(self, warm: Pool | None, *, instance: str) -> None:
        self._warm = warm
        self._instance = instance
        self._undoing: set[asyncio.Task[None]] = set()

    async def open(self, live: Live, prepared: Prepared, watch: Watch) -> Opened | None:
        """None: the run must end before it began. `watch` returns when the task is done or the run must end."""
        if self._warm is not None and (opened := await self._open_warm(self._warm, live, prepared, watch)):
            return opened
        if live.stopped.is_set():
            return None
        await self._repair(live, prepared)
        process = await Process.start(
            prepared.launch,
            run_id=live.spec.id,
            instance=self._instance,
            scratch=prepared.scratch,
            flood=Flood(live.max_raw_bytes, live.overflow),
        )
        return process, prepared.backend.parser(live.spec)

    async def _open_warm(self, pool: Pool, live: Live, prepared: Prepared, watch: Watch) -> Opened | None:
        opening = asyncio.create_task(pool.open(prepared), name=f"open-{live.spec.id}")
        wanted = False
        try:
            await watch(opening)
            wanted = not live.stopped.is_set()
            return opening.result() if wanted else None
        finally:
            if not wanted:  # not broken off: a process that does not answer is to be found out, whoever has left
                undoing = asyncio.create_task(_undo(opening), name=f"undo-{live.spec.id}")
                self._undoing.add(undoing)
                undoing.add_done_callback(self._undoing.discard)
                await asyncio.wait({undoing}, timeout=_UNDONE_S)

    async def _repair(self, live: Live, prepared: Prepared) -> None:
        """What a turn that was killed in the middle of its end has left of the session. Should that fail, the run tells."""
        repair = prepared.launch.repair
        if repair is None or not glob.glob(repair.pattern):  # noqa: PTH207  # a whole path with its pattern
            return
        _log.info("run %s: what the session's last turn left is put right", live.spec.id)
        launch = msgspec.structs.replace(
            prepared.launch, argv=repair.argv, stdin=b"", stdout="pipe", files={}, copies={}
        )
        started = await Process.start(launch, run_id=live.spec.id, instance=self._instance, scratch=prepared.scratch)
        async with started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REPAIR_S):
                    await started.wait()


async def _undo(opening: "asyncio.Task[Opened | None]") -> None:
    """What is being opened for a run that must end is closed when it is open."""
    with contextlib.suppress(ClinvkError):
        opened = await opening
        if opened is not None:
            await opened[0].__aexit__(None, None, None)
