"""Carries out one run: claim, workspace, CLI, events, end; and whatever may end it early."""

import asyncio
import contextlib
import logging
import math
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from shared import log
from shared.errors import (
    ClinvkError,
    InvalidRequest,
    NotEnforceable,
    PermissionDenied,
    StoreUnavailable,
    TryLater,
    UnsupportedParameter,
)
from shared.event import Progress
from shared.ids import new_id
from shared.run import Failure, Outcome, RunSpec
from shared.spans import Spans
from shared.store.runs import Runs
from shared.sweep import WORKER_LOST
from worker import tree
from worker.backends.base import Exit, Launch, Parser
from worker.course import Course
from worker.forever import forever
from worker.live import Live, Publisher, cut
from worker.marks import Marks
from worker.opening import Opener
from worker.run_spans import RunSpans
from worker.stage import Prepared, Stage
from worker.warm.pool import Pool

_log = logging.getLogger(__name__)

_END_WITHIN_S = 300.0  # how long the end of a run is offered to a Redis that is away
_KILL_S = 1.0  # before a lease runs out, its child must be dead; SIGKILL takes milliseconds

_CUT = Failure(
    "output_too_large",
    "the run put out more than could be stored in time: 32 MiB of it waited, as where Redis is away or slow",
    "output_too_large",
)
SHUTDOWN = Failure(
    "worker_shutdown", "the worker was shut down and this run did not end within its grace", "worker_shutdown"
)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes that bound every run on this host."""

    lease_s: float
    timeout_s: float  # of a run that asked for none
    idle_s: float
    max_output_bytes: int
    end_grace_s: float = 5.0
    dry_run: bool = False  # the host shows command lines instead of running them
    at_once: Mapping[str, int] = {}  # runs of a backend; of others as many as come


class Runner:
    """Lives in one asyncio loop. `carry_out` never raises for what a run or Redis may do."""

    def __init__(
        self,
        runs: Runs,
        publisher: Publisher,
        stage: Stage,
        limits: Limits,
        *,
        host: str,
        instance: str,
        carry_on: Callable[[str], Awaitable[None]] | None = None,
        marks: Marks | None = None,
        warm: Pool | None = None,
        spans: Spans | None = None,
    ) -> None:
        self._runs = runs
        self._publisher = publisher
        self._stage = stage
        self._limits = limits
        self._host = host
        self._instance = instance
        self._carry_on = carry_on
        self._marks = marks
        self._opener = Opener(warm, instance=instance)
        self._spans = spans
        self._held: dict[str, Live] = {}
        self._slots = {name: asyncio.Semaphore(count) for name, count in limits.at_once.items()}
        self._draining = False
        self._forsaken = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def running(self) -> dict[str, int]:
        """How many runs of each backend are under way."""
        counts: dict[str, int] = {}
        for live in self._held.values():
            counts[live.spec.backend] = counts.get(live.spec.backend, 0) + 1
        return counts

    async def carry_out(self, run_id: str, backend: str) -> bool:
        """Returns whether the hint has been dealt with; False: it must go back to the queue."""
        if run_id in self._held:
            return True
        log.begin(run_id=run_id)
        async with self._slots.get(backend, contextlib.nullcontext()):
            return await self._carry_out(run_id)

    async def _carry_out(self, run_id: str) -> bool:
        if self._draining:
            return False
        if run_id in self._held:
            return True
        claimed_at = asyncio.get_running_loop().time()
        try:
            claim = await self._runs.claim(run_id, new_id("att"), host=self._host, instance=self._instance)
        except StoreUnavailable as error:
            _log.warning("cannot claim %s: %s", run_id, error.message)
            return True  # the sweep gives another hint
        if claim is None:
            return True
        log.begin(**claim.spec.about)
        spans = RunSpans(self._spans, claim, self._host)
        live = Live(claim, claimed_at, self._limits.max_output_bytes, spans)
        self._held[run_id] = live
        self._empty.clear()
        try:
            outcome = await self._drive(live)
            await self._end(live, outcome)
            spans.end(outcome)
        finally:
            del self._held[run_id]
            if not self._held:
                self._empty.set()
        return True

    async def _drive(self, live: Live) -> Outcome:
        begun = asyncio.get_running_loop().time()
        begun_at = 0.0 if self._marks is None else self._marks.now()
        try:
            outcome = await self._staged(live)
        except (InvalidRequest, UnsupportedParameter, NotEnforceable, PermissionDenied) as error:
            outcome = Outcome(failure=Failure(error.code, error.message, "refused"))
        except TryLater as error:  # another host, or this one a little later, may do better
            outcome = Outcome(failure=Failure(error.code, error.message, error.code, error.retry_after_s))
        except ClinvkError as error:
            outcome = Outcome(failure=Failure("backend_error", error.message, error.code))
        except Exception as error:  # noqa: BLE001  # the edge of a process: one run's fault is not the worker's
            _log.exception("run %s failed inside the worker", live.spec.id)
            outcome = Outcome(
                failure=Failure("internal_error", f"the worker failed: {type(error).__name__}", "internal_error")
            )
        if live.failure is not None:
            # Whoever was ended by us has an exit code of our making.
            outcome = msgspec.structs.replace(outcome, failure=live.failure, exit_code=None)
        failure = outcome.failure
        if self._marks is not None and not live.spec.dry_run:
            self._marks.see(live.spec.backend, failure, begun_at)
        if failure is not None and failure.code == "backend_login":
            where = f"{failure.message} (the worker host is {self._host})"
            outcome = msgspec.structs.replace(outcome, failure=msgspec.structs.replace(failure, message=where))
        took = asyncio.get_running_loop().time() - begun
        return msgspec.structs.replace(outcome, duration_ms=int(took * 1000))

    async def _staged(self, live: Live) -> Outcome:
        with live.spans.cli(live.spec) as spec:
            return await self._on_stage(live, spec)

    async def _on_stage(self, live: Live, spec: RunSpec) -> Outcome:
        prepared = self._stage.prepare(spec)
        try:
            if live.spec.dry_run or self._limits.dry_run:
                return Outcome(exit_code=0, output=_shown(prepared.launch), not_enforced=prepared.launch.not_enforced)
            outcome = await self._run_cli(live, prepared)
            return msgspec.structs.replace(outcome, not_enforced=prepared.launch.not_enforced)
        finally:
            prepared.clean()

    async def _run_cli(self, live: Live, prepared: Prepared) -> Outcome:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limit_s(live)
        opened = await self._opener.open(live, prepared, lambda opening: self._watch(live, opening, deadline))
        if opened is None:
            return Outcome(failure=live.failure)
        course, parser = opened
        live.alive_at = loop.time()
        async with course:
            pump = asyncio.create_task(self._pump(live, course, parser), name=f"pump-{live.spec.id}")
            try:
                await self._watch(live, pump, deadline, idle_s=self._limits.idle_s)
                if not pump.done():
                    await course.end(grace_s=self._limits.end_grace_s, fast=live.fast)
                exit = await pump
            finally:
                pump.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([pump])
        if course.is_cut:
            live.stop(_CUT)
        contents, outcome = parser.finish(exit)
        for content in contents:
            live.add(content)
        live.seal()
        if len(outcome.output) > live.max_bytes:
            live.overflow()
        output = cut(outcome.output, live.max_bytes) if live.full else outcome.output
        return msgspec.structs.replace(outcome, exit_code=exit.code, output=output)

    async def _pump(self, live: Live, course: Course, parser: Parser) -> Exit:
        loop = asyncio.get_running_loop()
        await course.begin()
        async for chunk in course.chunks():
            live.read(chunk)
            if live.full:  # read on only so that it can end
                continue
            contents = parser.feed(chunk)
            if parser.hopeless is not None:
                live.stop(parser.hopeless)
            if not contents:
                continue
            for content in contents:
                live.add(content)
                if not isinstance(content, Progress):  # a CLI that only says that it retries does not live
                    live.alive_at = loop.time()
            self._publisher.touch(live)
            await self._publisher.room(live)
        return await course.wait()

    def _limit_s(self, live: Live) -> float:
        return live.spec.timeout_s or self._limits.timeout_s

    async def _watch(self, live: Live, what: "asyncio.Task[Any]", deadline: float, *, idle_s: float = math.inf) -> None:
        """Returns when that is done or the run must end."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.create_task(live.stopped.wait(), name=f"stop-{live.spec.id}")
        try:
            while not what.done() and not live.stopped.is_set():
                now = loop.time()
                if now >= deadline:
                    within = f"the run did not end within {self._limit_s(live):g} s"
                    live.stop(Failure("timeout", within, "timed_out"))
                    return
                idle_at = live.alive_at + idle_s
                if now >= idle_at:
                    live.stop(Failure("timeout", f"the CLI said nothing for {idle_s:g} s", "idle"))
                    return
                await asyncio.wait(
                    {what, stopped}, timeout=min(deadline, idle_at) - now, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            stopped.cancel()

    async def _end(self, live: Live, outcome: Outcome) -> None:
        await self._publisher.settle(live)
        if self._forsaken:
            return
        if live.lost:
            _log.warning("run %s was taken from this worker", live.spec.id)
            return
        retryable = outcome.failure is not None and outcome.failure.code == "worker_shutdown"
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _END_WITHIN_S
        wait_s = 0.1
        while True:
            try:
                how = await self._runs.end(
                    live.claim, outcome, retryable=retryable, first=live.sent + 1, events=live.pending
                )
            except StoreUnavailable as error:
                if loop.time() > give_up:
                    _log.error("the end of run %s could not be stored: %s", live.spec.id, error.message)
                    return
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, 2.0)
            else:
                _log.info(
                    "run %s on %s: %s (%s), %d ms",
                    live.spec.id,
                    live.spec.backend,
                    outcome.status,
                    how,
                    outcome.duration_ms,
                )
                await self._go_on(live.spec.flow_id)
                return

    async def _go_on(self, flow_id: str | None) -> None:
        """Whoever ends a run carries its flow on; should that fail, the sweep does."""
        if flow_id is not None and self._carry_on is not None:
            try:
                await self._carry_on(flow_id)
            except ClinvkError as error:
                _log.warning("flow %s is left to the sweep: %s", flow_id, error.message)

    # -- what ends runs from outside

    async def keep_leases(self) -> None:
        """Renews all leases; a run whose lease cannot be renewed ends before anyone may sweep it."""
        every_s = self._limits.lease_s / 4
        fence = asyncio.create_task(forever("fence", self._fence), name="fence")
        try:
            while True:
                renewed = await self._renew()
                if not self._held:
                    for seen in tree.strays():  # whatever their environment, they belong to no run that lives
                        tree.send(seen, signal.SIGKILL)
                await asyncio.sleep(every_s if renewed else 0.2)
        finally:
            fence.cancel()

    async def _renew(self) -> bool:
        """Returns whether the store could be asked."""
        held = list(self._held.values())
        if not held:
            return True
        sent_at = asyncio.get_running_loop().time()
        try:
            ends = await self._runs.renew([(live.spec.id, live.claim.token) for live in held])
        except StoreUnavailable as error:
            _log.log(error.level, "cannot renew leases: %s", error.message)
            return False
        for live in held:
            if live.spec.id not in ends:
                live.renewed_at = sent_at
            elif (failure := ends[live.spec.id]) is not None:
                live.renewed_at = sent_at
                live.stop(failure)
            elif not live.closing:
                live.lose(WORKER_LOST)
        return True

    async def _fence(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            oldest = asyncio.get_running_loop().time() - (self._limits.lease_s - _KILL_S)
            for live in list(self._held.values()):
                if live.renewed_at < oldest and not live.closing:
                    live.stop(WORKER_LOST, fast=True)

    def order(self, payload: bytes, decode: Callable[[bytes], Failure]) -> None:
        """An order from the store: `cancel <run> <failure as JSON>`."""
        verb, _, rest = payload.partition(b" ")
        run_id, _, failure = rest.partition(b" ")
        live = self._held.get(run_id.decode())
        if verb == b"cancel" and live is not None:
            live.stop(decode(failure))

    async def emptied(self) -> None:
        """Returns when no run is under way."""
        await self._empty.wait()

    def forsake(self) -> None:
        """Says nothing more of any run: this process is about to kill them and itself. Safe from any thread."""
        self._forsaken = True

    async def drain(self, grace_s: float) -> None:
        """Takes no more runs; those under way may end within the grace, then they are ended."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        for live in list(self._held.values()):
            live.stop(SHUTDOWN)


def _shown(launch: Launch) -> str:
    """The command line, for people; the prompt is never part of it."""
    return shlex.join(launch.argv)
