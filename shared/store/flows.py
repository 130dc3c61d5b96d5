"""Flow records, and what carrying a flow on does to them."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from shared import names
from shared.flow import FAILED_FAST, Flow, FlowRecord, FlowStatus, needed
from shared.redis import Arg, Command, Scripts, text
from shared.run import Failure, Outcome, RunSpec
from shared.store.lists import Lists
from shared.store.reading import each, reading
from shared.store.runs import Depth, Runs, about, queue_full

_encode = msgspec.json.Encoder().encode
_flow = msgspec.json.Decoder(Flow)
_outcome = msgspec.json.Decoder(Outcome)
_failure = msgspec.json.Decoder(Failure)
_FIELDS: tuple[str, ...] = ("flow", "status", "created", "ended", "detached", "ends", "outcome")


class Flows:
    def __init__(self, scripts: Scripts, runs: Runs) -> None:
        self._scripts = scripts
        self._redis = scripts.redis
        self._lists = Lists(scripts)
        self._runs = runs

    async def add(
        self, flow: Flow, begun: Sequence[tuple[RunSpec, str]], *, follower: str | None, sticky: bool, depth: Depth
    ) -> None:
        """Puts a flow in line with the runs that it begins with, each with its queue. Raises: QueueFull."""
        args: list[Arg] = [flow.id, flow.tenant, _encode(flow), follower or "", flow.window, int(sticky), depth.most]
        fast = flow.fail_fast and flow.kind != "chain"
        args += [len(begun), _encode(FAILED_FAST) if fast else "", flow.kind, len(flow.lanes), depth.of_tenant]
        for spec, queue in begun:
            args += [spec.id, queue, _encode(spec), spec.priority, spec.retry, spec.lane, about(spec)]
        reply = await self._scripts("submit_flow", *args)
        if text(reply[0]) == "full":
            raise queue_full(reply)

    async def extend(self, spec: RunSpec, queue: str) -> None:
        """A chain's next step; nothing where it is there already, or the flow takes no more."""
        assert spec.flow_id is not None
        await self._scripts(
            "extend_flow",
            spec.flow_id,
            spec.tenant,
            spec.id,
            queue,
            _encode(spec),
            spec.priority,
            spec.retry,
            spec.lane,
            about(spec),
        )

    async def close(self, flow_id: str, lanes: Mapping[int, Failure]) -> None:
        """Lanes that get no run."""
        if lanes:
            args: list[Arg] = [flow_id]
            for lane, failure in lanes.items():
                args += [lane, _encode(failure)]
            await self._scripts("close_lanes", *args)

    async def stop(
        self, flow_id: str, failure: Failure, condition: Literal["", "unfollowed"] = "", alone_s: float = 0.0
    ) -> bool:
        """No more of its runs start. Returns whether it is to be stopped; the runs that there are must be cancelled."""
        return text(await self._scripts("stop_flow", flow_id, _encode(failure), condition, int(alone_s * 1000))) != ""

    async def end(self, flow: Flow, status: FlowStatus, outcome: Outcome, event: bytes, hosts: Collection[str]) -> None:
        """Its runs are kept as long as it is; its directory on these hosts becomes a chore of theirs."""
        runs = [spec.id for spec in flow.lanes]
        await self._scripts("end_flow", flow.id, status.value, _encode(outcome), event, len(hosts), *hosts, *runs)

    async def glance(self, flow_id: str) -> bool:
        """Whether there is anything to decide; else it is due no more."""
        return bool(await self._scripts("glance", flow_id))

    async def carried(self, flow_id: str, ends: int) -> bool:
        """It has been looked at with so many ends; False: another run has ended since, look again."""
        return bool(await self._scripts("carried", flow_id, ends))

    async def get(self, flow_id: str, *, outcomes: bool = True) -> FlowRecord | None:
        """Without `outcomes`, only those that its next step needs are loaded."""
        record = await self.head(flow_id)
        if record is None:
            return None
        lanes = record.flow.lanes
        ids = [spec.id for spec in lanes]
        found = await self._runs.get_many(ids) if outcomes else await self._runs.get_bare(lanes)
        record = msgspec.structs.replace(record, runs={lane: run for lane, run in enumerate(found) if run is not None})
        if not outcomes and (more := sorted(needed(record))):
            whole = await self._runs.get_many([ids[lane] for lane in more])
            runs = {lane: run for lane, run in zip(more, whole, strict=True) if run is not None}
            record = msgspec.structs.replace(record, runs={**record.runs, **runs})
        return record

    async def head(self, flow_id: str) -> FlowRecord | None:
        """The record without its runs."""
        return (await self.heads([flow_id]))[0]

    async def heads(self, ids: Sequence[str]) -> list[FlowRecord | None]:
        return [_head(id, row) for id, row in zip(ids, await self._rows(ids), strict=True)]

    async def _rows(self, ids: Sequence[str]) -> list[Sequence[Any]]:
        """What makes a record, of each."""
        commands: list[Command] = []
        for id in ids:
            commands += [
                ("HMGET", names.run(id), *_FIELDS),
                ("HGET", names.group(id), "stop"),
                ("HGETALL", names.closed(id)),
            ]
        rows = await self._redis.all(commands) if commands else []
        return [rows[i : i + 3] for i in range(0, len(rows), 3)]

    async def forget(self, flow: Flow) -> bool:
        """Nothing is left of an ended flow and of its runs. Returns whether that is so now by this call."""
        return bool(await self._scripts("forget_flow", flow.id, *[spec.id for spec in flow.lanes]))

    async def detach(self, flow_id: str) -> None:
        """Nobody needs to follow it from now on."""
        await self._scripts("detach", flow_id)

    async def list_all(
        self, tenants: Sequence[str], *, limit: int, offset: int, status: FlowStatus | None = None
    ) -> tuple[list[FlowRecord], int]:
        """As `Runs.list_all`; the records are without their runs."""
        whose = [names.flows(tenant) for tenant in tenants]
        if status is None:
            found, total = await self._lists.page(whose, limit=limit, offset=offset)
        else:
            found, total = await self._lists.in_state(whose, status.value, limit=limit, offset=offset)
        rows = await self._rows([one.id for one in found])
        records = [each(one.id, partial(_head, one.id, row)) for one, row in zip(found, rows, strict=True)]
        gone = [one for one, row in zip(found, rows, strict=True) if not any(row[0])]
        await self._lists.drop(gone)
        return [record for record in records if record is not None], total - len(gone)

    async def list(
        self, tenant: str, *, limit: int, offset: int, status: FlowStatus | None = None
    ) -> tuple[list[FlowRecord], int]:
        """A tenant's: as `list_all`."""
        return await self.list_all([tenant], limit=limit, offset=offset, status=status)


def _head(id: str, rows: Sequence[Any]) -> FlowRecord | None:
    """Raises: StoreDamaged."""
    with reading(id):
        return _record(*rows)


def _record(row: Sequence[bytes | None], stop: bytes | None, closed: Sequence[bytes]) -> FlowRecord | None:
    flow, status, created, ended, detached, ends, outcome = row
    if flow is None or status is None or created is None:
        return None
    return FlowRecord(
        flow=_flow.decode(flow),
        status=FlowStatus(text(status)),
        created_at=int(created) / 1000,
        ended_at=None if ended is None else int(ended) / 1000,
        detached=detached is not None,
        ends=int(ends or 0),
        stop=None if stop is None else _failure.decode(stop),
        failure=None if outcome is None else _outcome.decode(outcome).failure,
        closed={int(closed[i]): _failure.decode(closed[i + 1]) for i in range(0, len(closed), 2)},
    )
