"""Run records: their life from submit to end."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from shared import event, names
from shared.errors import Conflict, InvalidRequest, NotFound, QueueFull
from shared.host import Capabilities
from shared.redis import Scripts, text, texts
from shared.run import Failure, Outcome, Run, RunSpec, Status, Usage
from shared.store.lists import Lists
from shared.store.reading import each, reading
from shared.store.run_record import FIELDS, to_order, to_run

_encode = msgspec.json.Encoder().encode
_spec = msgspec.json.Decoder(RunSpec)
_usage = msgspec.json.Decoder(Usage)


class Claim(msgspec.Struct, frozen=True):
    """A run that is now ours to carry out. `token` must accompany all that is said of it."""

    spec: RunSpec
    token: str
    sequence: int  # of the last event so far
    attempt: int
    waited_s: float = 0.0  # since it was asked for


class Same(msgspec.Struct, frozen=True, kw_only=True):
    """What makes two requests one run. `name` is made of the tenant, the endpoint and the caller's key ("key") or
    the body's hash ("body"); `fingerprint` is the body's hash; `retry` counts the caller's own tries, 0 for the first."""

    name: str
    kind: Literal["key", "body"]
    fingerprint: str
    retry: int = 0


class Depth(msgspec.Struct, frozen=True):
    """How many runs may wait: of all tenants, of one (None: as many)."""

    most: int
    tenant: int | None = None

    @property
    def of_tenant(self) -> int:
        return self.most if self.tenant is None else min(self.tenant, self.most)


def queue_full(reply: Sequence[Any]) -> QueueFull:
    """What the store's scripts say where there is no room."""
    _, depth, most, whose, wait_ms = reply
    waiting = f"{depth} of your runs are" if text(whose) else f"{depth} runs are"
    name = "max_depth_per_tenant" if text(whose) else "max_depth"
    wait_s = float(wait_ms) / 1000 if wait_ms else _UNKNOWN_S
    return QueueFull(
        f"{waiting} waiting already, of at most {int(most)} (queue.{name})",
        retry_after_s=min(max(wait_s, _SOONEST_S), _LATEST_S),
        details={"depth": int(depth), "limit": int(most)},
    )


class Line(msgspec.Struct, frozen=True):
    """What waits for a queue, and for how long the first of it has. `wanted`: runs, queued ones too, that would start
    if there were another slot anywhere, so neither those that their tenant's window holds back nor those that must go
    to one host."""

    depth: int = 0
    oldest_s: float = 0.0
    wanted: int = 0
    wanted_s: float = 0.0


class Added(msgspec.Struct, frozen=True):
    """`run_id` is another than the one submitted where an earlier request's run was joined."""

    status: Status
    run_id: str
    able: Capabilities | None = None  # of what will carry it out, where that is known


# When a caller who found no place may come again: as the pace says, within bounds.
_UNKNOWN_S, _SOONEST_S, _LATEST_S = 5.0, 1.0, 300.0

ANOTHER_BODY = "this Idempotency-Key came with another body before; a new request needs a new key"

# A new try may do better than the run that failed so.
_AGAIN: tuple[str, ...] = (
    "backend_limited",
    "rate_limit_exceeded",
    "queue_full",
    "worker_shutdown",
    "backend_unavailable",
)
_AGAIN += ("session_host_unavailable", "store_unavailable")


def about(spec: RunSpec) -> str:
    """What the scripts must know of a run's caller, as `create` in lua/lib takes it."""
    return f"{spec.key or ''}\n{spec.key_window or ''}\n{spec.model or ''}"


def last_event(spec: RunSpec, outcome: Outcome) -> bytes:
    """The event that ends a run, its sequence left to the store."""
    content: event.Content
    if outcome.failure is None:
        content = event.Done(outcome.usage, outcome.duration_ms / 1000, outcome.turns)
    else:
        failure = outcome.failure
        details: dict[str, Any] = {"cause": failure.cause, "exit_code": outcome.exit_code}
        if failure.retry_after_s is not None:
            details["retry_after_s"] = failure.retry_after_s
        content = event.Error(failure.code, failure.message, details)
    return event.encode(content, backend=spec.backend, session_id=spec.session_id or "", sequence=0, at_s=time.time())


class Runs:
    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._redis = scripts.redis
        self._lists = Lists(scripts)

    async def add(
        self,
        spec: RunSpec,
        queue: str,
        *,
        follower: str | None,
        depth: Depth,
        same: Same | None = None,
        opening: Mapping[str, str] | None = None,
        must_be_free: bool = False,
    ) -> Added:
        """Puts a run in line, or joins the run of the same request. `follower` is the API process that already
        listens; None: nobody needs to. `opening` are the fields of a session that begins with it; without them the
        session is there already, and with `must_be_free` no other turn of it may be under way.

        Raises: Conflict, NotFound for the session; QueueFull, StoreUnavailable (then the run may be there or not), InvalidRequest for an idempotency key
        that came with another body before.
        """
        reply = await self._submit(spec, queue, follower, depth, same, opening, must_be_free=must_be_free)
        if text(reply[0]) == "busy":
            raise Conflict(f"a turn of the session {spec.session_id} is under way; ask again when it has ended")
        if text(reply[0]) == "gone":
            raise NotFound("session", spec.session_id or "")
        if text(reply[0]) == "full":
            raise queue_full(reply)
        return self._added(reply)

    async def join(self, spec: RunSpec, same: Same, *, follower: str | None) -> Added | None:
        """Joins the run of the same request, where there is one; starts none. Raises: as `add`, for the key."""
        reply = await self._submit(spec, "", follower, Depth(0), same, None, must_be_free=False)
        return None if text(reply[0]) == "none" else self._added(reply)

    @staticmethod
    def _added(reply: Sequence[Any]) -> Added:
        if text(reply[0]) == "differs":
            raise InvalidRequest(ANOTHER_BODY, field="Idempotency-Key")
        with reading(text(reply[1])):
            return Added(Status(text(reply[0])), text(reply[1]))

    async def _submit(
        self,
        spec: RunSpec,
        queue: str,
        follower: str | None,
        depth: Depth,
        same: Same | None,
        opening: Mapping[str, str] | None,
        *,
        must_be_free: bool,
    ) -> Sequence[Any]:
        reply: Sequence[Any] = await self._scripts(
            "submit",
            spec.id,
            spec.tenant,
            queue,
            _encode(spec),
            follower or "",
            spec.priority,
            spec.retry,
            depth.most,
            int((spec.start_within_s or 0) * 1000),
            *(("", "", "", 0) if same is None else (same.name, same.kind, same.fingerprint, same.retry)),
            f",{','.join(_AGAIN)},",
            spec.session_id or "",
            "" if opening is None else _encode(opening),
            int(must_be_free),
            depth.of_tenant,
            about(spec),
        )
        return reply

    async def move(self, run_id: str, queue: str, to: str) -> Literal["moved", "stays", "pinned", "kept"]:
        """An unstarted run from the line of one queue to another's, its place kept. "stays": `to` is ""; "pinned":
        what it goes on with is on that queue's host; "kept": it is not in that line any more, or in the right one."""
        reply = text(await self._scripts("move", run_id, queue, to))
        return next((how for how in ("moved", "stays", "pinned") if how == reply), "kept")

    async def forget(self, run_id: str) -> bool:
        """Nothing is left of an ended run. Returns whether that is so now by this call."""
        return bool(await self._scripts("forget", run_id))

    async def claim(self, run_id: str, token: str, *, host: str, instance: str) -> Claim | None:
        """queued -> running; None where the run is not there to be had: doubled hint, ended, claimed by another."""
        reply = await self._scripts("claim", run_id, token, host, instance)
        if text(reply[0]) != "claimed":
            return None
        with reading(run_id):
            spec = _spec.decode(reply[1])
            if reply[4]:  # the session has been on since this turn was asked for
                used = _usage.decode(reply[5]) if reply[5] else None
                spec = msgspec.structs.replace(spec, resume=text(reply[4]), prior_usage=used)
            waited_s = float(reply[6]) / 1000 if len(reply) > 6 else 0.0  # a claim asked for again
            return Claim(spec, token, int(reply[2]), int(reply[3]), waited_s)

    async def renew(self, held: Sequence[tuple[str, str]]) -> dict[str, Failure | None]:
        """Prolongs the leases of (run, token) pairs. Returns those that may not go on: None for a lease that is
        lost, else why it is to be cancelled."""
        reply = await self._scripts("renew", *[part for pair in held for part in pair])
        return {text(i): None if o == b"lost" or o == "lost" else to_order(text(i), o) for i, o in reply}

    async def end(
        self, claim: Claim, outcome: Outcome, *, retryable: bool, first: int, events: Sequence[bytes]
    ) -> Literal["ended", "again", "lost"]:
        """running -> final, with the events not sent yet. "again": its caller allowed another attempt."""
        reply = text(
            await self._scripts(
                "end",
                claim.spec.id,
                claim.token,
                outcome.status.value,
                _encode(outcome),
                last_event(claim.spec, outcome),
                int(retryable),
                first,
                len(events),
                *events,
            )
        )
        return "again" if reply == "again" else "ended" if reply == "ended" else "lost"

    async def cancel(
        self,
        spec: RunSpec,
        failure: Failure,
        condition: Literal["", "unfollowed", "unstarted"] = "",
        *,
        alone_s: float = 0.0,
    ) -> str:
        """Ends a run that has not started, or orders its worker to. Returns ended, ordered, kept (the condition
        did not hold), a final status, or "" for no such run."""
        outcome = Outcome(failure=failure)
        reply = await self._scripts(
            "cancel",
            spec.id,
            _encode(failure),
            _encode(outcome),
            last_event(spec, outcome),
            condition,
            int(alone_s * 1000),
        )
        return text(reply)

    async def expire(self, spec: RunSpec, failure: Failure) -> str:
        """Ends a running run whose lease has run out. Returns ended, again or kept."""
        outcome = Outcome(failure=failure)
        return text(
            await self._scripts("expire", spec.id, outcome.status.value, _encode(outcome), last_event(spec, outcome))
        )

    async def bury(self, run_id: str, failure: Failure) -> None:
        """Ends a run whose record cannot be read, as far as that can be done: it holds no place any more."""
        outcome = Outcome(failure=failure)
        stand_in = RunSpec(id=run_id, tenant="", backend="", prompt="")
        await self._scripts("bury", run_id, _encode(outcome), last_event(stand_in, outcome))

    async def get(self, run_id: str) -> Run | None:
        return (await self.get_many([run_id]))[0]

    async def get_many(self, run_ids: Sequence[str]) -> list[Run | None]:
        fields = (*FIELDS, "spec", "outcome")
        rows = await self._redis.all([("HMGET", names.run(i), *fields) for i in run_ids])
        return [to_run(i, row) for i, row in zip(run_ids, rows, strict=True)]

    async def get_bare(self, specs: Sequence[RunSpec]) -> list[Run | None]:
        """The same without outcomes, and with the specs as they are given."""
        rows = await self._redis.all([("HMGET", names.run(spec.id), *FIELDS) for spec in specs])
        return [to_run(spec.id, row, spec) for row, spec in zip(rows, specs, strict=True)]

    async def list_all(
        self, tenants: Sequence[str], *, limit: int, offset: int, status: Status | None = None
    ) -> tuple[list[Run], int]:
        """Theirs, the newest first, and how many there are; of one state, among the newest ten thousand. Records that have
        expired are left out and forgotten."""
        whose = [names.runs(tenant) for tenant in tenants]
        if status is None:
            found, total = await self._lists.page(whose, limit=limit, offset=offset)
        else:
            found, total = await self._lists.in_state(whose, status.value, limit=limit, offset=offset)
        fields = (*FIELDS, "spec", "outcome")
        rows = await self._redis.all([("HMGET", names.run(one.id), *fields) for one in found])
        runs = [each(one.id, partial(to_run, one.id, row)) for one, row in zip(found, rows, strict=True)]
        gone = [one for one, row in zip(found, rows, strict=True) if not any(row)]
        await self._lists.drop(gone)
        return [run for run in runs if run is not None], total - len(gone)

    async def list(
        self, tenant: str, *, limit: int, offset: int, status: Status | None = None
    ) -> tuple[list[Run], int]:
        """A tenant's: as `list_all`."""
        return await self.list_all([tenant], limit=limit, offset=offset, status=status)

    async def tenants(self) -> Sequence[str]:
        """All of whom something may be kept, the one with the last run first."""
        return texts(await self._redis("ZREVRANGE", names.TENANTS, 0, -1))

    async def totals(self) -> dict[str, int]:
        """What has been counted of all runs since the store began, by the names that lua/lib/2_totals.lua gives."""
        flat = await self._redis("HGETALL", names.TOTALS)
        with reading("the totals"):
            return {text(flat[i]): int(flat[i + 1]) for i in range(0, len(flat), 2)}

    async def ping(self) -> None:
        """Raises: StoreUnavailable."""
        await self._redis("PING")

    async def memory(self) -> tuple[int, int]:
        """The bytes that Redis uses, and may use (0: all)."""
        found = await self._redis("INFO", "memory")
        told = dict(line.split(":", 1) for line in text(found).splitlines() if ":" in line)
        return int(told.get("used_memory", 0)), int(told.get("maxmemory", 0))

    async def lines(self, queues: Sequence[str]) -> tuple[dict[str, Line], float]:
        """For each of the queues, and of all that some instance offers, what waits for it. And how long ago the last
        sweep was; -1: never."""
        rows, swept_ms = await self._scripts("depth", *queues)
        found = {
            text(queue): Line(int(depth), float(oldest) / 1000, int(wanted), float(longest) / 1000)
            for queue, depth, oldest, wanted, longest in rows
        }
        return found, -1.0 if float(swept_ms) < 0 else float(swept_ms) / 1000

    async def oldest_s(self, now_s: float) -> float:
        """For how long the first of the waiting runs has waited; 0 where none does."""
        found = await self._redis("ZRANGE", names.WAITING, 0, 0, "WITHSCORES")
        return max(now_s - float(found[1]) / 1000, 0.0) if found else 0.0

    async def position(self, run_id: str) -> int | None:
        """A waiting run's place by its time of coming, 1 for the first; turns and priority may let it go earlier."""
        rank = await self._redis("ZRANK", names.WAITING, run_id)
        return None if rank is None else int(rank) + 1

    async def counts(self) -> dict[str, int]:
        """How many runs wait, are queued, are running."""
        waiting, grouped, queued, running = await self._redis.all(
            [("ZCARD", name) for name in (names.WAITING, names.GROUPED, names.QUEUED, names.RUNNING)]
        )
        return {"waiting": waiting + grouped, "queued": queued, "running": running}
