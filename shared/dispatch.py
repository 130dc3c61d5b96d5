"""The only place where a run is put in line, and where one is cancelled."""

import asyncio
import fnmatch
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from shared import names, trace
from shared.errors import (
    BackendLimited,
    BackendNotFound,
    BackendUnavailable,
    ClinvkError,
    InvalidRequest,
    NotEnforceable,
    SessionHostUnavailable,
    TryLater,
    UnsupportedParameter,
)
from shared.flow import Flow, FlowRecord, FlowStatus, closing, decide
from shared.host import BackendState, Capabilities, Instance, Readiness
from shared.run import Attachment, Failure, Run, RunSpec
from shared.store.flows import Flows
from shared.store.hosts import Hosts, offers
from shared.store.runs import Added, Runs, Same, last_event
from shared.store.sessions import Chore, Sessions, opening

KNOWN_BACKENDS = ("claude", "codex", "gemini", "echo")

_FRESH_S = 1.0

CANCELLED = Failure("cancelled", "cancelled by its caller", "cancelled")


class Dispatch:
    """`max_depth` is how many runs may wait; `wait`: runs may wait for a worker that is not there; `fleet` is asked for at most once a second."""

    def __init__(
        self, runs: Runs, hosts: Hosts, flows: Flows, sessions: Sessions, *, max_depth: int, wait: bool = False
    ) -> None:
        self._runs = runs
        self._flows = flows
        self._sessions = sessions
        self._hosts = hosts
        self._max_depth = max_depth
        self._wait = wait
        self._fleet: list[Instance] = []
        self._fleet_at = -1e9
        self._refresh = asyncio.Lock()

    async def fleet(self, *, fresh: bool = False) -> list[Instance]:
        """The live instances, at most a second old."""
        if fresh or time.monotonic() - self._fleet_at > _FRESH_S:
            async with self._refresh:
                if fresh or time.monotonic() - self._fleet_at > _FRESH_S:
                    self._fleet = await self._hosts.list()
                    self._fleet_at = time.monotonic()
        return self._fleet

    async def admit(self, spec: RunSpec) -> tuple[str, Capabilities]:
        """The queue for a run that can work now, and what carries it out there is able to.

        Raises: BackendNotFound, BackendUnavailable, UnsupportedParameter, NotEnforceable, InvalidRequest.
        """
        fleet = await self.fleet()
        able = _matching(fleet, spec)
        if not able:
            fleet = await self.fleet(fresh=True)
            able = _matching(fleet, spec)
        if not able and self._wait and spec.backend in KNOWN_BACKENDS and not spec.labels:
            return names.queue(spec.backend), Capabilities()  # it waits for a worker, as long as its caller would
        if not able:
            raise _nobody(fleet, spec)
        fit = _fitting(able, spec)
        if spec.labels or len(fit) < len(able):  # not every host that listens to the common queue would do
            instance, state = min(fit, key=lambda pair: pair[0].running / max(pair[0].slots, 1))
            return names.queue(spec.backend, instance.host), state.capabilities
        return names.queue(spec.backend), fit[0][1].capabilities

    async def submit(
        self, spec: RunSpec, *, follower: str | None, same: Same | None = None, tags: Sequence[str] = ()
    ) -> Added:
        """Puts the run in line, or joins the run of the same request; its caller already listens.

        Raises: as `admit`, and QueueFull, StoreUnavailable."""
        spec = _traced(spec)
        queue, _ = await self.admit(spec)
        begun = None if spec.session_id is None else opening(spec, tags)
        return await self._runs.add(spec, queue, follower=follower, max_depth=self._max_depth, same=same, opening=begun)

    async def resume(
        self, spec: RunSpec, host: str | None, *, follower: str | None, same: Same | None, must_be_free: bool
    ) -> Added:
        """A further turn of a session, on the host that has it.

        Raises: as `submit`, SessionHostUnavailable, Conflict, NotFound."""
        spec = _traced(spec)
        queue = names.queue(spec.backend)
        if host is None:
            queue, _ = await self.admit(spec)
        else:
            fleet = await self.fleet(fresh=True)
            here = [(i, s) for i, s in offers(fleet, spec.backend) if i.host == host]
            if not here:
                raise SessionHostUnavailable(
                    f"the session {spec.session_id} lives on the host {host!r}, where {spec.backend} cannot run now",
                    retry_after_s=10,
                )
            check(spec, here[0][1].capabilities)
            queue = names.queue(spec.backend, host)
        return await self._runs.add(
            spec, queue, follower=follower, max_depth=self._max_depth, same=same, must_be_free=must_be_free
        )

    # -- flows

    async def submit_flow(self, flow: Flow, *, follower: str | None, sticky: bool = False) -> None:
        """Puts a flow in line. A lane whose backend cannot run now is refused, but for a comparison: there it fails.

        Raises: as `admit`, the field with its lane; QueueFull, StoreUnavailable."""
        flow = msgspec.structs.replace(flow, lanes=tuple(map(_traced, flow.lanes)))
        begun: list[tuple[RunSpec, str]] = []
        closed: dict[int, Failure] = {}
        for lane, spec in enumerate(flow.lanes):
            try:
                queue, _ = await self.admit(spec)
            except (BackendNotFound, TryLater) as error:
                if flow.kind != "compare":
                    raise named(error, _LANES[flow.kind], lane) from error
                closed[lane] = Failure(error.code, error.message, error.code)
            except InvalidRequest as error:
                raise named(error, _LANES[flow.kind], lane) from error
            else:
                begun.append((spec, queue))
        if flow.kind == "chain":
            begun = begun[:1]
        await self._flows.add(flow, begun, follower=follower, sticky=sticky, max_depth=self._max_depth)
        await self._flows.close(flow.id, closed)
        if not begun or flow.kind == "compare":
            await self.carry_on(flow.id)

    async def carry_on(self, flow_id: str) -> None:
        """Does what comes next in a flow, if anything; by whoever ended a run of it, and by the sweep. May be doubled."""
        while await self._flows.glance(flow_id):
            record = await self._flows.get(flow_id)
            if record is None or record.status is not FlowStatus.RUNNING:
                return
            todo = decide(record)
            await self._flows.close(flow_id, todo.close)
            if todo.stop is not None and record.stop is None:
                await self._flows.stop(flow_id, todo.stop)
            for run in todo.cancel:
                await self._runs.cancel(run.spec, todo.stop or CANCELLED)
            if todo.start is not None:
                await self._start_step(todo.start)
            if todo.end is not None:
                await self._end_flow(record, todo.end)
                return
            settled = not todo.close and not todo.cancel
            if settled and await self._flows.carried(flow_id, record.ends):
                return

    async def _start_step(self, spec: RunSpec) -> None:
        try:
            queue, _ = await self.admit(spec)
        except TryLater:
            queue = names.queue(
                spec.backend
            )  # it was there when the chain began; it waits for a worker, and not for ever
        except ClinvkError as error:
            assert spec.flow_id is not None
            await self._flows.close(spec.flow_id, {spec.lane: Failure(error.code, error.message, error.code)})
            return
        await self._flows.extend(spec, queue)

    async def _end_flow(self, record: FlowRecord, status: FlowStatus) -> None:
        outcome = closing(record, status)
        spec = RunSpec(id=record.flow.id, tenant=record.flow.tenant, backend="flow", prompt="")
        ended = await self._flows.end(record.flow, status, outcome, last_event(spec, outcome))
        hosts = {run.host for run in record.runs.values() if run.host is not None and run.spec.workspace is not None}
        if ended:
            for host in hosts:
                await self._sessions.add_chore(host, Chore(workspace=record.flow.id))

    async def cancel_flow(
        self, flow_id: str, failure: Failure, condition: Literal["", "unfollowed"] = "", *, alone_s: float = 0.0
    ) -> None:
        """Ends all of a flow: what waits at once, what runs by its worker. With `unfollowed` only where nobody has
        followed it for `alone_s`."""
        if await self._flows.stop(flow_id, failure, condition, alone_s):
            await self.carry_on(flow_id)

    async def cancel(self, run: Run, failure: Failure = CANCELLED) -> str:
        return await self._runs.cancel(run.spec, failure)


def _traced(spec: RunSpec) -> RunSpec:
    """With the place in a trace that its request has."""
    place = trace.current.get()
    if place is None:
        return spec
    return msgspec.structs.replace(spec, traceparent=place.parent, tracestate=place.state or None)


_LANES = {"parallel": "tasks", "chain": "steps", "compare": "backends"}


def named(error: TryLater | InvalidRequest, lanes: str, lane: int) -> ClinvkError:
    """The same refusal, with the lane that it is about."""
    where = f"{lanes}[{lane}]"
    if isinstance(error, InvalidRequest):
        field = f"{where}.{error.field}" if error.field else where
        return type(error)(f"{where}: {error.message}", field=field, issue=error.message)
    return type(error)(f"{where}: {error.message}", retry_after_s=error.retry_after_s)


def _matching(fleet: Sequence[Instance], spec: RunSpec) -> list[tuple[Instance, BackendState]]:
    return [
        (instance, state)
        for instance, state in offers(fleet, spec.backend)
        if all(instance.labels.get(key) == value for key, value in spec.labels.items())
    ]


def _fitting(able: Sequence[tuple[Instance, BackendState]], spec: RunSpec) -> list[tuple[Instance, BackendState]]:
    """Those that can do and hold all that is asked. Raises: what `check` says of the last one where there is none."""
    fit = []
    refusal: InvalidRequest | None = None
    for instance, state in able:
        try:
            check(spec, state.capabilities)
        except InvalidRequest as error:
            refusal = error
        else:
            fit.append((instance, state))
    if not fit and refusal is not None:
        raise refusal
    return fit


def _nobody(fleet: Sequence[Instance], spec: RunSpec) -> Exception:
    states = [s for i in fleet for s in i.backends if s.name == spec.backend]
    if spec.backend not in KNOWN_BACKENDS and not states:
        offered = sorted({s.name for i in fleet for s in i.backends if s.readiness is Readiness.READY})
        return BackendNotFound(
            f"there is no backend {spec.backend!r}; known are {', '.join(KNOWN_BACKENDS)}"
            + (f", offered now: {', '.join(offered)}" if offered else ""),
            field="backend",
        )
    limited = [s for s in states if s.readiness is Readiness.LIMITED]
    if limited and not spec.labels:
        wait_s = max(min(s.until or 0.0 for s in limited) - time.time(), 1.0)
        return BackendLimited(f"{spec.backend}: {limited[0].reason}", retry_after_s=wait_s)
    reasons = sorted({s.reason for s in states if s.reason})
    why = "; ".join(reasons) or ("no live worker offers it" if fleet else "no worker is connected")
    if spec.labels:
        why += f" (asked for labels {spec.labels})"
    return BackendUnavailable(f"backend {spec.backend!r} cannot run now: {why}", retry_after_s=5)


def check(spec: RunSpec, able: Capabilities) -> None:
    """Refuses what the CLI cannot do or hold. Raises: NotEnforceable, UnsupportedParameter, InvalidRequest."""
    sandbox, approval = spec.sandbox_mode or "", spec.approval_mode or ""
    if sandbox not in able.modes:
        raise NotEnforceable(f"{spec.backend} cannot hold sandbox_mode {sandbox!r}", field="sandbox_mode")
    if approval and approval not in able.modes[sandbox]:
        raise NotEnforceable(
            f"{spec.backend} cannot hold approval_mode {approval!r}"
            + (f" with sandbox_mode {sandbox!r}" if sandbox else "")
            + f"; it can hold {', '.join(able.modes[sandbox]) or 'none'}",
            field="approval_mode",
        )
    if spec.system_prompt is not None and spec.system_prompt_mode not in able.system_prompt:
        raise UnsupportedParameter(
            f"{spec.backend} cannot {spec.system_prompt_mode} its system prompt", field="system_prompt"
        )
    for index, flag in enumerate(spec.extra):
        name, equals, _ = flag.partition("=")
        if name + equals not in able.extra:
            allowed = ", ".join(able.extra) or "none"
            raise UnsupportedParameter(
                f"{flag!r} is not a flag that callers may pass to {spec.backend}; allowed: {allowed}",
                field=f"extra[{index}]",
            )
    if spec.schema is not None and "schema" not in able.options:
        raise UnsupportedParameter(f"{spec.backend} cannot hold its answer to a JSON schema", field="schema")
    for one in attachments(spec):
        if not any(fnmatch.fnmatchcase(one.media_type, pattern) for pattern in able.attachments):
            takes = ", ".join(able.attachments) or "text alone"
            raise UnsupportedParameter(
                f"{one.field}: {spec.backend} cannot take {one.media_type}; it takes {takes}", field=one.field
            )
    if not spec.prompt.strip() and not spec.attachments:
        raise InvalidRequest("a prompt must not be blank", field="prompt")


def attachments(spec: RunSpec) -> Iterator[Attachment]:
    """All that the run brings besides text, in the order of the conversation."""
    for turn in spec.history:
        yield from turn.attachments
    yield from spec.attachments
