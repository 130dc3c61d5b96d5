"""A run on a warm process: from its beginning to its end, with whatever it started there."""

import abc
import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Self

from worker import tree
from worker.backends.base import Exit
from worker.course import Course, to_its_end
from worker.process import this_warden
from worker.warm import leavings
from worker.warm.resident import Resident, State
from worker.warm.rpc import Refused
from worker.warm.wire import Gone, Strand

_log = logging.getLogger(__name__)

_FAST_S = 0.4  # with what follows below the second in which a run whose lease is lost must be dead
_INTERRUPT_S = 3.0
_CLAIMS_S = (0.0, 0.01, 0.05, 0.25, 1.0)  # after word of a tool
_GONE_WITHIN_S = 3.0
_SWEEP_S = 3.0
_PASSING_S = 0.3


class Guest(Course):
    """A driver says how it starts, how it is interrupted and how it takes its leave. `folders`: the run's own, in which
    nothing of another run has its working directory.

    Whenever it is to end, `end` asks the CLI once and waits for what the CLI says of the run. The driver calls `strand.end(Exit(code=0))` when the CLI has said that the run is done, code 1 where it has failed,
    and `claim_soon` when it says that it starts something.
    """

    def __init__(self, resident: Resident, run_id: str, folders: tuple[str, ...], strand: Strand | None = None) -> None:
        self.resident = resident
        self.run_id = run_id
        self.strand = strand or Strand()
        self.strand.on_cut = self.interrupt
        self._mark = tree.new_mark(run_id, this_warden())
        self._folders = folders
        self._begun = self._closed = False
        self._timers: list[asyncio.TimerHandle] = []
        resident.take()
        resident.guests[run_id] = self._mark.tag

    # -- the driver's

    @abc.abstractmethod
    async def start(self) -> None:
        """`begin`, on a process that goes on. Before it waits for anything, the CLI has been told. Raises: Gone, Refused."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Tells the CLI, once, to end what it has been told to start, though it may not have said that it has; the
        strand's end shows that it did."""

    async def leave(self) -> None:  # most have nothing to say
        """After the run's end, on a process that goes on: what must be done before the next turn. Raises: Gone; Refused,
        and the process takes no more runs."""

    @abc.abstractmethod
    def detach(self) -> None:
        """Whatever the CLI still says of it, nobody hears it."""

    # -- the runner's

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Also for one that was opened and never entered."""
        if not self._closed:
            self._closed = True
            await to_its_end(self._finish(), f"end-{self.run_id}")

    async def begin(self) -> None:
        if self.strand.exit is not None:  # it was to end before it began
            return
        self._begun = True
        try:
            await self.start()
        except Refused as error:
            self.strand.end(Exit(code=1, stderr=error.message))
        except Gone as error:
            self._give_up(str(error))

    def chunks(self) -> AsyncIterator[bytes]:
        return self.strand.chunks()

    @property
    def is_cut(self) -> bool:  # type: ignore[override]  # which it is, is its strand's affair
        return self.strand.is_cut

    async def wait(self) -> Exit:
        return await self.strand.read()

    async def end(self, *, grace_s: float, fast: bool = False) -> None:
        if not self._begun:
            self.strand.end(Exit(code=-9))
        elif self.strand.exit is None:
            self.claim()
            self.interrupt()
            if fast:
                self._kill(self._look())
            try:
                async with asyncio.timeout(_FAST_S if fast else min(max(grace_s, _FAST_S), _INTERRUPT_S)):
                    await self.strand.ended()
            except TimeoutError:
                self._give_up("an interrupt was not answered")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GONE_WITHIN_S):
                        await self.resident.gone()
                self.strand.end(Exit(code=-9))

    def claim_soon(self) -> None:
        """For a driver that hears of a tool: its process may only be about to start."""
        loop = asyncio.get_running_loop()
        for timer in self._timers:
            timer.cancel()
        self._timers = [loop.call_later(after_s, self.claim) for after_s in _CLAIMS_S]

    def claim(self) -> None:
        """What the CLI has started for this run is known for it from now on, whatever it does."""
        process = self.resident.process
        if process is not None:
            leavings.claim(process.pid, self._whereabouts())

    def _give_up(self, why: str) -> None:
        self.resident.condemn("hung", why)

    async def _finish(self) -> None:
        for timer in self._timers:
            timer.cancel()
        try:
            if self._begun and self.strand.exit is None:
                await self.end(grace_s=_INTERRUPT_S)
            await self._sweep()
            if self.resident.state is not State.DEAD:
                try:
                    await self.leave()
                except Refused as error:
                    self.resident.drain("refused", str(error))
                except Gone as error:
                    self._give_up(str(error))
        finally:
            self.detach()
            self.strand.deafen()
            self.resident.guests.pop(self.run_id, None)
            self.resident.release()

    def _look(self) -> leavings.Found:
        process = self.resident.process
        host = None if process is None else process.pid
        return leavings.look(host, self._whereabouts())

    def _whereabouts(self) -> leavings.Whereabouts:
        others = {run_id: tag for run_id, tag in self.resident.guests.items() if run_id != self.run_id}
        return leavings.Whereabouts(self.resident.mark.tag, self.resident.own, self._mark, self._folders, others)

    def _kill(self, found: leavings.Found) -> None:
        process = self.resident.process
        tree.kill(found.mine, beside=0 if process is None else process.pid)

    async def _sweep(self) -> None:
        """Ends what the run left running; what cannot be told from another run's ends with the process."""
        if not self._begun:
            return
        begun = time.monotonic()
        pause_s = 0.0
        found = self._look()
        lasting = found.unknown
        while True:
            waited_s = time.monotonic() - begun
            # What a CLI runs for itself comes and goes; one between fork and exec may be a neighbour's.
            if not found.mine and found.believable and (not lasting or waited_s > _PASSING_S):
                break
            self._kill(found)
            if waited_s > _SWEEP_S:
                _log.error("run %s: still there after SIGKILL: %s", self.run_id, [seen.pid for seen in found.mine])
                break
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s + 0.0005, 0.01)
            found = self._look()
            now = {(seen.pid, seen.start) for seen in found.unknown}
            lasting = [seen for seen in lasting if (seen.pid, seen.start) in now]
        if lasting:
            what = [tree.command(seen.pid) for seen in lasting]
            self.resident.drain("leftovers", f"run {self.run_id} left {what[:5]}")
