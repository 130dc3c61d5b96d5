"""How this replica fares: one look at the store, shared by all who ask within half a second."""

import asyncio
import logging
import time
from collections.abc import Sequence

import msgspec

from api.relay import Relay
from shared.dispatch import Dispatch
from shared.errors import StoreDamaged, StoreUnavailable
from shared.host import Instance
from shared.store.runs import Runs
from shared.store.sessions import Sessions

_log = logging.getLogger(__name__)

_FRESH_S = 0.5
_PATIENCE_S = 1.5  # whoever probes gives up after some seconds
_SILENT_S = 10.0  # the relay writes to the store every other second


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """What one look found. `unready`: why requests should go to another replica; `degraded`: what else is amiss."""

    unready: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    fleet: Sequence[Instance] = ()
    counts: dict[str, int] = {}
    sessions: int = 0


class Heart:
    """Owns the look that is under way."""

    def __init__(
        self, runs: Runs, sessions: Sessions, dispatch: Dispatch, relay: Relay, closing: asyncio.Event
    ) -> None:
        self._runs = runs
        self._sessions = sessions
        self._dispatch = dispatch
        self._relay = relay
        self._closing = closing
        self._last = Pulse(unready=("the store has not been asked yet",))
        self._at = -1e9  # monotonic
        self._looking: asyncio.Task[None] | None = None

    async def feel(self) -> Pulse:
        """A handful of commands at most twice a second, however many ask; an answer within two seconds."""
        if time.monotonic() - self._at > _FRESH_S:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(), name="pulse")
            await asyncio.wait({self._looking}, timeout=_PATIENCE_S)
            if not self._looking.done():
                return Pulse(unready=("the store does not answer", *self._ending()))
        if ending := self._ending():
            return msgspec.structs.replace(self._last, unready=(*self._last.unready, *ending))
        return self._last

    def _ending(self) -> tuple[str, ...]:
        return ("this replica is shutting down",) if self._closing.is_set() else ()

    async def _look(self) -> None:
        try:
            fleet = await self._dispatch.fleet()
            counts, sessions = await self._runs.counts(), await self._sessions.count()
        except StoreDamaged as error:
            self._puzzled(error)
        except StoreUnavailable as error:
            self._last = Pulse(unready=(error.message,))
        except Exception as error:  # noqa: BLE001  # what cannot be looked at is not well, whatever the reason
            self._puzzled(error)
        else:
            silent_s = self._relay.silent_s
            unready = () if silent_s < _SILENT_S else (f"the store has taken no write for {silent_s:.0f} s",)
            self._last = Pulse(
                unready=unready, degraded=self._amiss(fleet), fleet=fleet, counts=counts, sessions=sessions
            )
        self._at = time.monotonic()

    def _puzzled(self, error: Exception) -> None:
        fault = f"this replica cannot tell how it fares: {type(error).__name__}"
        if self._last.unready != (fault,):  # probes ask for ever; the first of a row says why
            _log.error("looking at the store met what it does not expect; this replica is unready", exc_info=error)
        self._last = Pulse(unready=(fault,))

    def _amiss(self, fleet: Sequence[Instance]) -> tuple[str, ...]:
        found = []
        if not fleet:
            found.append("no worker is connected")
        elif not any(s.readiness.value == "ready" and not i.draining for i in fleet for s in i.backends):
            found.append("no worker can run any backend now")
        if not self._relay.listening:
            found.append("live events are interrupted; followers read them from the store")
        return tuple(found)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
