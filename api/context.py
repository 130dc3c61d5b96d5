"""What the routes work with: wired once in app.py, found again from a request."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Literal, cast

from litestar import Request

from api.pulse import Heart
from api.relay import Follower, Relay
from api.seen import Seen
from shared.config import Config
from shared.dispatch import Dispatch
from shared.errors import ClinvkError
from shared.host import Instance, Readiness
from shared.run import Failure, RunSpec
from shared.store.audit import Audit
from shared.store.flows import Flows
from shared.store.hosts import Hosts
from shared.store.rates import Rates
from shared.store.runs import Runs
from shared.store.sessions import Sessions
from shared.store.usage import Usage
from shared.sweep import HUNG_UP

_log = logging.getLogger(__name__)

_UNDO_WITHIN_S = 60.0  # a command that hung in a connection may still come through

UNCERTAIN = Failure("cancelled", "its caller was told that the store was away", "uncertain")


class Context:
    """Owns the timers of hang-ups; all else it is given."""

    def __init__(
        self,
        config: Config,
        runs: Runs,
        hosts: Hosts,
        flows: Flows,
        sessions: Sessions,
        rates: Rates,
        usage: Usage,
        audit: Audit,
        relay: Relay,
        dispatch: Dispatch,
        seen: Seen,
    ) -> None:
        self.config = config
        self.runs = runs
        self.hosts = hosts
        self.flows = flows
        self.sessions = sessions
        self.rates = rates
        self.usage = usage
        self.audit = audit
        self.relay = relay
        self.dispatch = dispatch
        self.seen = seen
        self.closing = asyncio.Event()  # set when this process shuts down: streams end
        self.heart = Heart(runs, sessions, dispatch, relay, self.closing)
        self.started_at = time.time()
        self._timers: set[asyncio.Task[None]] = set()

    @staticmethod
    def now() -> float:
        return time.time()

    async def release(self, follower: Follower) -> None:
        """A client is gone or served. A run that nobody follows any more is ended after the grace."""
        if await follower.close() and not self.closing.is_set():
            task = asyncio.create_task(self._hung_up(follower.run_id), name=f"hung-up-{follower.run_id}")
            self._timers.add(task)
            task.add_done_callback(self._timers.discard)

    async def _hung_up(self, run_id: str) -> None:
        grace_s = self.config.server.hangup_grace_secs
        await asyncio.sleep(grace_s)
        # Who came back meanwhile and left again has a grace of its own, and a timer. Clocks differ by a little.
        alone_s = grace_s * 0.95
        try:
            if run_id.startswith("flow_"):
                if await self.dispatch.cancel_flow(run_id, HUNG_UP, "unfollowed", alone_s=alone_s):
                    extra = await self.dispatch.about(run_id)
                    _log.info("flow %s ends: %s", run_id, HUNG_UP.message, extra=extra)
            elif (run := await self.runs.get(run_id)) is not None:
                how = await self.runs.cancel(run.spec, HUNG_UP, "unfollowed", alone_s=alone_s)
                if how in ("ended", "ordered"):
                    _log.info("run %s ends (%s): %s", run_id, how, HUNG_UP.message, extra=run.spec.about)
        except ClinvkError as error:
            extra = await self.dispatch.about(run_id)
            _log.warning("run %s is left to the sweep: %s", run_id, error.message, extra=extra)

    def undo(self, spec: RunSpec, *, detached: bool) -> None:
        """Its caller was told that the store is away, and may ask again; whether the run was put in line is not
        known. It is ended as soon as the store can be asked, unless somebody has joined it by then."""
        task = asyncio.create_task(self._undo(spec, "" if detached else "unfollowed"), name=f"undo-{spec.id}")
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _undo(self, spec: RunSpec, condition: Literal["", "unfollowed"]) -> None:
        give_up = time.monotonic() + _UNDO_WITHIN_S
        while time.monotonic() < give_up:
            try:
                await self.relay.let_go(spec.id)
                if await self.runs.cancel(spec, UNCERTAIN, condition):  # "": no such run, or not yet
                    return
            except ClinvkError:
                pass
            await asyncio.sleep(1.0)

    async def close(self) -> None:
        for task in list(self._timers):
            task.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)
        await self.heart.close()

    def backends_of(self, fleet: Sequence[Instance]) -> list[dict[str, Any]]:
        """Each backend that some live worker knows, with the hosts that can run it."""
        found: dict[str, dict[str, Any]] = {}
        for instance in fleet:
            for state in instance.backends:
                entry = found.setdefault(state.name, {"name": state.name, "available": False, "hosts": []})
                ready = state.readiness is Readiness.READY and not instance.draining
                entry["available"] = entry["available"] or ready
                entry["hosts"].append(
                    {
                        "host": instance.host,
                        "draining": instance.draining,
                        "state": state.readiness.value,
                        "version": state.version,
                        "reason": state.reason,
                        "slots": state.slots,
                        "running": state.running,
                    }
                )
        return sorted(found.values(), key=lambda entry: str(entry["name"]))


def context_of(request: Request[Any, Any, Any]) -> Context:
    return cast("Context", request.app.state.context)
