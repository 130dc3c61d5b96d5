"""The only place where a run is put in line, and where one is cancelled."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Literal

import msgspec

from shared import names, trace
from shared.errors import BackendNotFound, ClinvkError, InvalidRequest, StoreDamaged, StoreUnavailable, TryLater
from shared.flow import Flow, FlowRecord, FlowStatus, Next, closing, decide
from shared.host import Instance
from shared.placing import Place, Placing
from shared.routing import LANES, named
from shared.run import Failure, Run, RunSpec, Status
from shared.store.flows import Flows
from shared.store.hosts import Hosts
from shared.store.runs import Added, Depth, Runs, Same, last_event
from shared.store.sessions import opening

CANCELLED = Failure("cancelled", "cancelled by its caller", "cancelled")


class Dispatch:
    """`depth` is how many runs may wait; `wait`: runs may wait for a worker that is not there."""

    def __init__(self, runs: Runs, hosts: Hosts, flows: Flows, *, depth: Depth, wait: bool = False) -> None:
        self._runs = runs
        self._flows = flows
        self._placing = Placing(hosts, wait=wait)
        self._depth = depth

    async def fleet(self, *, fresh: bool = False) -> list[Instance]:
        """The live instances, at most a second old."""
        return await self._placing.fleet(fresh=fresh)

    async def submit(
        self, spec: RunSpec, *, follower: str | None, same: Same | None = None, tags: Sequence[str] = ()
    ) -> Added:
        """Puts the run in line, or joins the run of the same request; its caller already listens.

        Raises: BackendNotFound, BackendUnavailable, BackendLimited, UnsupportedParameter, NotEnforceable,
        InvalidRequest, QueueFull, StoreUnavailable."""
        spec = _traced(spec)
        begun = None if spec.session_id is None else opening(spec, tags)
        return await self._put(spec, self._placing.place(spec), follower, same, begun)

    async def resume(
        self, spec: RunSpec, host: str | None, *, follower: str | None, same: Same | None, must_be_free: bool
    ) -> Added:
        """A further turn of a session, on the host that has it; where its first turn has none yet, on the one that it
        will have, whatever queue it is given here.

        Raises: as `submit`, SessionHostUnavailable, Conflict, NotFound."""
        spec = _traced(spec)
        place = self._placing.place(spec) if host is None else self._placing.stay(spec, host)
        return await self._put(spec, place, follower, same, None, must_be_free=must_be_free)

    async def _put(
        self,
        spec: RunSpec,
        place: Awaitable[Place],
        follower: str | None,
        same: Same | None,
        opening: Mapping[str, str] | None,
        *,
        must_be_free: bool = False,
    ) -> Added:
        try:
            placed = await place
        except ClinvkError:  # the same request's run may have ended long ago, and needs no worker
            joined = None if same is None else await self._runs.join(spec, same, follower=follower)
            if joined is None:
                raise
            return joined
        added = await self._runs.add(
            spec,
            placed.queue,
            follower=follower,
            depth=self._depth,
            same=same,
            opening=opening,
            must_be_free=must_be_free,
        )
        return msgspec.structs.replace(added, able=placed.able)

    async def rescue(self, run_id: str) -> None:
        """A run that has not started, and whose one host takes it no more, goes to another that can; where its
        directory is on that host, or there is no other, it is told."""
        run = await self._runs.get(run_id)
        if run is None or run.status not in (Status.WAITING, Status.QUEUED):
            return
        error: ClinvkError | None = None
        queue = ""
        try:
            queue = (await self._anew(run.spec)).queue
        except ClinvkError as refusal:
            error = refusal
        how = await self._runs.move(run.id, run.queue, queue)
        if how == "pinned":
            try:
                await self._placing.stay(run.spec, run.queue.partition("@")[2])
                return  # it is back
            except ClinvkError as refusal:
                error = refusal
        elif how != "stays" or error is None or (self._placing.waits and isinstance(error, TryLater)):
            return
        await self._runs.cancel(run.spec, _failure(error), "unstarted")
        if run.spec.flow_id is not None:
            await self.carry_on(run.spec.flow_id)

    async def _anew(self, spec: RunSpec) -> Place:
        if spec.flow_id is None or spec.workspace is None:
            return await self._placing.place(spec)
        record = await self._flows.head(spec.flow_id)
        lanes = () if record is None else record.flow.lanes
        return await self._placing.place_together([spec, *lanes[spec.lane + 1 :]])

    # -- flows

    async def submit_flow(self, flow: Flow, *, follower: str | None, sticky: bool = False) -> None:
        """Puts a flow in line. A lane whose backend cannot run now is refused, but for a comparison: there it fails.

        Raises: as `admit`, the field with its lane; QueueFull, StoreUnavailable."""
        flow = msgspec.structs.replace(flow, lanes=tuple(map(_traced, flow.lanes)))
        begun: list[tuple[RunSpec, str]] = []
        closed: dict[int, Failure] = {}
        for lane, spec in enumerate(flow.lanes):
            try:
                place = await self._placing.place(spec)
            except (BackendNotFound, TryLater) as error:
                if flow.kind != "compare":
                    raise named(error, LANES[flow.kind], lane) from error
                closed[lane] = _failure(error)
            except InvalidRequest as error:
                raise named(error, LANES[flow.kind], lane) from error
            else:
                begun.append((spec, place.queue))
        if flow.kind == "chain":
            begun = begun[:1]
        if sticky:
            place = await self._placing.place_together(flow.lanes)
            begun = [(flow.lanes[0], place.queue)]
        at_once = min(len(begun), flow.window)
        if at_once > self._depth.of_tenant:
            raise InvalidRequest(
                f"{at_once} runs of this flow would wait at once; no more than {self._depth.of_tenant} of one caller may "
                "at any time, so that it could never begin: ask for fewer at once",
                field="max_parallel" if flow.kind == "parallel" else LANES[flow.kind],
            )
        await self._flows.add(flow, begun, follower=follower, sticky=sticky, depth=self._depth)
        await self._flows.close(flow.id, closed)
        if not begun or flow.kind == "compare":
            await self.carry_on(flow.id)

    async def carry_on(self, flow_id: str) -> None:
        """Does what comes next in a flow, if anything; by whoever ended a run of it, and by the sweep. May be doubled."""
        before: tuple[int, Next] | None = None
        while await self._flows.glance(flow_id):
            record = await self._flows.get(flow_id, outcomes=False)
            if record is None or record.status is not FlowStatus.RUNNING:
                return
            todo = decide(record)
            if (record.ends, todo) == before:
                raise StoreDamaged(f"flow {flow_id} does not take what is decided of it", retry_after_s=60)
            before = record.ends, todo
            await self._flows.close(flow_id, todo.close)
            if todo.stop is not None and record.stop is None:
                await self._flows.stop(flow_id, todo.stop)
            for run in todo.cancel:
                await self._runs.cancel(run.spec, todo.stop or CANCELLED)
            if todo.start is not None:
                await self._start_step(record, todo.start)
            if todo.end is not None:
                await self._end_flow(record, todo.end)
                return
            settled = not todo.close and not todo.cancel
            if settled and await self._flows.carried(flow_id, record.ends):
                return

    async def _start_step(self, record: FlowRecord, spec: RunSpec) -> None:
        host = next((run.host for run in record.runs.values() if run.host is not None), None)
        try:
            if spec.workspace is None:
                place = await self._placing.place(spec)
            elif host is None:
                place = await self._placing.place_together([spec, *record.flow.lanes[spec.lane + 1 :]])
            else:  # should that host be gone, the sweep tells it
                place = Place(names.queue(spec.backend, host))
        except TryLater:  # it was there when the chain began; it waits for a worker, and not for ever
            place = self._placing.nowhere(spec)
        except ClinvkError as error:
            assert spec.flow_id is not None
            await self._flows.close(spec.flow_id, {spec.lane: _failure(error)})
            return
        await self._flows.extend(spec, place.queue)

    async def _end_flow(self, record: FlowRecord, status: FlowStatus) -> None:
        outcome = closing(record, status)
        hosts = {run.host for run in record.runs.values() if run.host is not None and run.spec.workspace is not None}
        event = last_event(record.flow.stand_in, outcome)
        await self._flows.end(record.flow, status, outcome, event, hosts)

    async def cancel_flow(
        self, flow_id: str, failure: Failure, condition: Literal["", "unfollowed"] = "", *, alone_s: float = 0.0
    ) -> bool:
        """Ends all of a flow: what waits at once, what runs by its worker. With `unfollowed` only where nobody has
        followed it for `alone_s`. Returns whether it does."""
        if not await self._flows.stop(flow_id, failure, condition, alone_s):
            return False
        await self.carry_on(flow_id)
        return True

    async def about(self, id: str) -> dict[str, str]:
        """What the log's lines about a run or a flow carry; where the store cannot be asked, its id alone."""
        try:
            if id.startswith("flow_"):
                record = await self._flows.head(id)
                found = None if record is None else record.flow.about
            else:
                run = await self._runs.get(id)
                found = None if run is None else run.spec.about
        except StoreUnavailable:
            found = None
        return found or {"run_id": id}

    async def can_read(self, flow_id: str) -> bool:
        """Whether its record and those of its runs are there to be read."""
        try:
            return await self._flows.get(flow_id) is not None
        except StoreDamaged:
            return False

    async def cancel(self, run: Run, failure: Failure = CANCELLED) -> str:
        return await self._runs.cancel(run.spec, failure)


def _traced(spec: RunSpec) -> RunSpec:
    """With the place in a trace that its request has."""
    place = trace.current.get()
    if place is None:
        return spec
    return msgspec.structs.replace(spec, traceparent=place.parent, tracestate=place.state or None)


def _failure(error: ClinvkError) -> Failure:
    wait_s = error.retry_after_s if isinstance(error, TryLater) else None
    return Failure(error.code, error.message, error.code, wait_s)
