"""Ends what nobody else will end: lost runs, overdue ones, runs that nobody follows, followers that died."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from shared import names
from shared.dispatch import Dispatch
from shared.errors import ClinvkError, StoreDamaged, StoreUnavailable
from shared.redis import Scripts, texts
from shared.run import Failure, Run, RunSpec
from shared.store.runs import Runs
from shared.store.sessions import Sessions

_log = logging.getLogger(__name__)

EVERY_S = 0.5
_PAUSE_S = 3.0  # nobody swept for so long: Redis or all sweepers were away
_STRANDED_S = 2.0  # a worker that starts anew takes less
_LIMIT = 200
_DONE = ("ended", "ordered", "again")

WORKER_LOST = Failure(
    "worker_lost",
    "the worker that carried out this run died or lost its way to Redis; the run may have had effects, so it was not "
    "started again (`retry` allows it)",
    "worker_lost",
)
DAMAGED = Failure("internal_error", "the store's record of it cannot be read", "damaged")
HUNG_UP = Failure("cancelled", "nobody followed this run any more", "hung_up")


class Sweeper:
    """Any number of processes may sweep; the store lets one at a time. `count` is told what each mending was: `mended|…`."""

    def __init__(
        self,
        scripts: Scripts,
        runs: Runs,
        dispatch: Dispatch,
        sessions: Sessions,
        *,
        max_wait_s: float,
        hangup_grace_s: float,
        session_s: float = 30 * 86400.0,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._scripts = scripts
        self._runs = runs
        self._dispatch = dispatch
        self._sessions = sessions
        self._session_s = session_s
        self._count = count
        self._max_wait_s = max_wait_s
        # The API that saw the hang-up ends the run after the grace; this is for the one that died.
        self._grace_s = hangup_grace_s + 1.0

    async def run(self) -> None:
        """Sweeps until cancelled; Redis away is waited for."""
        while True:
            try:
                while await self.sweep():
                    pass
            except ClinvkError as error:
                level = error.level if isinstance(error, StoreUnavailable) else logging.WARNING
                _log.log(level, "cannot sweep: %s", error.message)
            await asyncio.sleep(EVERY_S)

    async def sweep(self) -> bool:
        """Once. Returns whether there may be more to do at once."""
        found = await self._scripts(
            "sweep",
            int(EVERY_S * 1000),
            int(_PAUSE_S * 1000),
            int(self._max_wait_s * 1000),
            int(self._grace_s * 1000),
            _LIMIT,
            int(_STRANDED_S * 1000),
        )
        if not found:
            return False
        lost, overdue, alone, dead, impatient, due, old, stranded = (texts(part) for part in found)
        for api in dead:
            count = await self._scripts("leave_api", api)
            self._count("mended|api")
            _log.warning("API process %s is gone; it followed %s runs", api, count)
        await self._each(lost, self._expire)
        await self._each(overdue, self._overdue)
        await self._each(impatient, self._impatient)
        await self._each(alone, self._alone)
        if stranded:
            await self._dispatch.fleet(fresh=True)
        for run_id in stranded:
            try:
                await self._dispatch.rescue(run_id)
            except ClinvkError as error:
                extra = await self._dispatch.about(run_id)
                _log.warning("run %s has no host and cannot be moved: %s", run_id, error.message, extra=extra)
        await self._each(due, self._due)
        for session_id in old:
            try:
                await self._sessions.forget(session_id, idle_since_s=time.time() - self._session_s)
                self._count("mended|session")
            except StoreDamaged as error:
                _log.error("session %s cannot be forgotten: %s; it is given up", session_id, error.message)
                await self._scripts.redis("ZREM", names.SESSIONS, session_id)
        return _LIMIT in (len(lost), len(overdue), len(stranded))

    async def _each(self, ids: Sequence[str], act: Callable[[str], Awaitable[None]]) -> None:
        """One whose record cannot be read must not keep the others from their end."""
        for id in ids:
            try:
                await act(id)
            except StoreDamaged as error:
                extra = await self._dispatch.about(id)
                _log.error("%s is given up: %s", id, error.message, extra=extra)
                await self._runs.bury(id, DAMAGED)
                self._count("mended|damaged")

    async def _run(self, run_id: str) -> Run:
        run = await self._runs.get(run_id)
        if run is None:
            raise StoreDamaged("its record is gone", retry_after_s=60)
        return run

    async def _expire(self, run_id: str) -> None:
        run = await self._run(run_id)
        how = await self._runs.expire(run.spec, run.cancelling or WORKER_LOST)
        self._mended("lease", how)
        _log.warning("run %s lost its worker on %s: %s", run_id, run.host, how, extra=run.spec.about)

    async def _overdue(self, run_id: str) -> None:
        waited = Failure("timeout", f"no worker had room for it within {self._max_wait_s:g} s", "waited_too_long")
        await self._cancel("overdue", run_id, lambda _: waited, "unstarted")

    async def _impatient(self, run_id: str) -> None:
        await self._cancel("impatient", run_id, lambda spec: _too_late(spec.start_within_s or 0.0), "unstarted")

    async def _alone(self, run_id: str) -> None:
        if not run_id.startswith("flow_"):
            await self._cancel("unfollowed", run_id, lambda _: HUNG_UP, "unfollowed")
        elif await self._dispatch.cancel_flow(run_id, HUNG_UP, "unfollowed"):
            _log.info("flow %s ends: %s", run_id, HUNG_UP.message, extra=await self._dispatch.about(run_id))

    async def _cancel(
        self, what: str, run_id: str, why: Callable[[RunSpec], Failure], condition: Literal["unfollowed", "unstarted"]
    ) -> None:
        run = await self._run(run_id)
        failure = why(run.spec)
        how = await self._runs.cancel(run.spec, failure, condition)
        self._mended(what, how)
        if how in _DONE:
            _log.info("run %s ends (%s): %s", run_id, how, failure.message, extra=run.spec.about)

    async def _due(self, flow_id: str) -> None:
        """Whoever ended its run died before it carried the flow on."""
        try:
            await self._dispatch.carry_on(flow_id)
            self._count("mended|flow")
        except ClinvkError as error:  # one flow's trouble is not the others'
            if isinstance(error, StoreDamaged) and not await self._dispatch.can_read(flow_id):
                raise
            extra = await self._dispatch.about(flow_id)
            _log.warning("flow %s cannot be carried on: %s", flow_id, error.message, extra=extra)

    def _mended(self, what: str, how: str) -> None:
        if how in _DONE:
            self._count(f"mended|{what}")


def _too_late(patience_s: float) -> Failure:
    message = f"no worker could begin within {patience_s:g} s, and its caller would not have waited longer"
    return Failure("backend_unavailable", message, "impatient_caller", retry_after_s=5.0)
