"""Any history of the store, with hostile words: every run ends once, no tenant sees another's, and in the end nothing is left."""

import asyncio
import atexit
import contextlib
import functools
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from hypothesis import strategies as st

from shared import event, names
from shared.dispatch import CANCELLED
from shared.errors import Conflict, InvalidRequest, LogExpired, NotFound, QueueFull
from shared.event import Init, Message
from shared.flow import Flow
from shared.ids import new_id
from shared.redis import Redis, texts
from shared.run import Failure, Outcome, RunSpec, Status, Usage
from shared.store.audit import Audit, Entry
from shared.store.events import Batch
from shared.store.followers import Followers
from shared.store.runs import Claim, Depth, Same
from shared.store.sessions import opening
from shared.store.usage import Usage as Used
from tests.servers import RedisServer
from tests.store.store import Store

_CANARY = "the-words-of-a-caller"
# What would break a reader that takes words for structure. A tenant's name holds no `|`, `*` and control character
# (shared/config.py); all else comes from callers and from CLIs.
WORDS = (
    "", ":", "{}", "}{", "|", "||active", "a|b", "*", "%", "%s%1%0", "@RUN@", "@QUEUE@", "\0", "\r\n", "\n\n\n", "a\n9\nb",
    "\x7f\x80\xff", "\ufeff\u2028\u202e", "é" * 50, "😀", "]==]", "--", "'", '"', "\\", '\\"', '{"a":1}',
    '"sequence":0,', '{"type":"init","backend_session_id":"x"}', '"failure":{"code":"x"}', '"cost_usd":9', "clinvk:run:",
    "nan", "inf", "-1", "1e309", "9" * 400, "run_", "flow_", "ses_", "x" * 70_000, "[" * 3000, "echo", "echo@h",
)  # fmt: skip
TENANTS = ("t", "t:", "T", "a:b", "{t}", "é 😀", "t active", "x" * 100)
TEXT = st.sampled_from(WORDS) | st.text(max_size=20)
_FEW = st.integers(0, 9)
_NO = Failure("backend_error", "it broke", "crashed")
# What a right call may be told; a broken store would be `StoreUnavailable`, which is a find.
REFUSED = (Conflict, InvalidRequest, NotFound, QueueFull)
FAILURES = (None, None, CANCELLED, _NO, Failure("worker_shutdown", "m\n", "worker_shutdown", 1.5))


@functools.cache
def server() -> RedisServer:
    """One for all cases: each begins with an empty database."""
    made = RedisServer(fsync="no")
    atexit.register(made.close)
    with made.client() as client:
        client.config_set("rdbcompression", "no")  # for who looks for words in what DUMP gives
    return made


class History:
    """What was done to the store, and what must be so for it."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.store = Store(redis, wait=True, lease_s=30, max_events=50, depth=Depth(40, 30))
        self.audit = Audit(self.store.scripts, most=20, retention_s=60)
        self.used = Used(self.store.scripts)
        self.apis = [Followers(self.store.scripts, api) for api in ("api_1", "api_2")]
        self.runs: dict[str, RunSpec] = {}
        self.flows: dict[str, Flow] = {}
        self.sessions: dict[str, str] = {}  # id -> tenant
        self.claims: dict[str, Claim] = {}
        self.ended: dict[str, tuple[Status, Outcome | None]] = {}
        self.erased: set[str] = set()
        self.numbers = itertools.count()

    def run(self, at: int) -> RunSpec | None:
        return list(self.runs.values())[-1 - at % len(self.runs)] if self.runs else None

    def flow(self, at: int) -> Flow | None:
        return list(self.flows.values())[at % len(self.flows)] if self.flows else None

    def session(self, at: int) -> str | None:
        return list(self.sessions)[at % len(self.sessions)] if self.sessions else None

    def spec(self, at: int, text: str, **more: Any) -> RunSpec:
        fields: dict[str, Any] = {
            "id": new_id("run"),
            "tenant": TENANTS[at % len(TENANTS)],
            "backend": ("echo", "claude")[at % 2],
            "prompt": _CANARY + text,
            "system_prompt": text,
            "metadata": {text: [text]},
            "reply": {text: text},
            "model": text.replace("\n", "") or None,
            "request_id": text,
            "retry": int(at % 4 == 3),
            "priority": "batch" if at % 4 == 3 else "interactive",
        }
        if at % 5 == 4:
            fields |= {"key": f"key:{at}", "key_window": 1 + at % 2}
        return RunSpec(**fields | more)

    # -- what may be done

    async def announce(self, at: int, text: str) -> None:
        await self.store.worker(1 + at % 4, ("echo", "claude", "echo@h", "claude@h")[at % 4], id=f"ins_{at % 2}")

    async def retire(self, at: int, text: str) -> None:
        await self.store.hosts.retire(f"ins_{at % 2}")

    async def submit(self, at: int, text: str) -> None:
        same = None
        if at % 3 == 0:
            kind = "key" if at % 2 else "body"
            same = Same(name=f"{TENANTS[at % len(TENANTS)]}|{text}", kind=kind, fingerprint=text[:9], retry=at % 3)  # type: ignore[arg-type]  # one of the two
        spec = self.spec(at, text, start_within_s=60.0 if at % 7 == 6 else None)
        begun = None
        if at % 2:
            spec = msgspec.structs.replace(spec, session_id=new_id("ses"))
            begun = opening(spec, [text])
        queue = spec.backend + ("@h" if at % 3 == 2 else "")
        follower = f"api_{1 + at % 2}" if at % 4 else None
        added = await self.store.runs.add(spec, queue, follower=follower, depth=Depth(40, 30), same=same, opening=begun)
        if added.run_id == spec.id:
            self.runs[spec.id] = spec
            if spec.session_id is not None:
                self.sessions[spec.session_id] = spec.tenant
        else:
            assert self.runs[added.run_id].tenant == spec.tenant
        # The answer was lost: asked for again it changes nothing.
        again = await self.store.runs.add(spec, queue, follower=follower, depth=Depth(40, 30), same=same, opening=begun)
        assert again.run_id == added.run_id or same is not None
        if again.run_id == spec.id:
            self.runs[spec.id] = spec

    async def resume(self, at: int, text: str) -> None:
        if (session := self.session(at)) is not None:
            spec = self.spec(at, text, tenant=self.sessions[session], session_id=session, backend="echo")
            try:
                await self.store.runs.add(spec, "echo", follower=None, depth=Depth(40, 30), must_be_free=bool(at % 2))
            except NotFound:
                assert session in self.erased
                return
            self.runs[spec.id] = spec

    async def start_flow(self, at: int, text: str) -> None:
        id, tenant = new_id("flow"), TENANTS[at % len(TENANTS)]
        lanes = tuple(
            self.spec(
                at,
                text,
                tenant=tenant,
                flow_id=id,
                lane=lane,
                key=None,
                key_window=None,
                model=None,
                system_prompt=None,
            )
            for lane in range(1 + at % 4)
        )
        kind = ("parallel", "compare", "chain")[at % 3]
        flow = Flow(
            id=id, tenant=tenant, kind=kind, lanes=lanes, names=tuple(text for _ in lanes) if kind == "chain" else (),  # type: ignore[arg-type]  # one of them
            window=1 + at % 2, fail_fast=at % 5 < 2, reply={text: text},
        )  # fmt: skip
        await self.store.dispatch.submit_flow(
            flow, follower="api_1" if at % 2 else None, sticky=kind == "chain" and at % 4 > 1
        )
        self.flows[id] = flow
        self.runs |= {spec.id: spec for spec in lanes}

    def claimed(self, at: int) -> Claim | None:
        return list(self.claims.values())[-1 - at // 2 % len(self.claims)] if self.claims else None

    async def claim(self, at: int, text: str) -> None:
        if (spec := self.run(at)) is not None:
            token = f"att_{next(self.numbers)}"
            claim = await self.store.runs.claim(spec.id, token, host="h", instance="ins_0")
            if claim is not None:
                assert spec.id not in self.ended
                self.claims[spec.id] = claim

    async def claim_all(self, at: int, text: str) -> None:
        for number in range(len(self.runs)):
            await self.claim(number, text)

    async def append(self, at: int, text: str) -> None:
        claim = self.claimed(at)
        if claim is None:
            return
        spec = claim.spec
        run = await self.store.runs.get(spec.id)
        first = max(1, (0 if run is None else run.sequence) + 1 - at % 2)  # the last one may be sent again
        lines = [
            event.encode(content, backend="echo", session_id=text, sequence=first + number, at_s=0)
            for number, content in enumerate([Message(_CANARY + text), Init(text or "cli", text)][: 1 + at % 2])
        ]
        await self.store.events.append([Batch(spec.id, claim.token, first, lines)])
        assert await self.store.events.append([Batch(spec.id, text, first, lines)]) == [spec.id]

    async def end(self, at: int, text: str) -> None:
        claim = self.claimed(at)
        if claim is None:
            return
        spec = claim.spec
        before = await self.store.runs.get(spec.id)
        outcome = Outcome(
            exit_code=at, output=_CANARY + text, failure=FAILURES[at % len(FAILURES)], usage=Usage(at, 1, 0, 0),
            backend_session_id=text or None, model=text, cost_usd=at * 1e-7, not_enforced=(text,),
        )  # fmt: skip
        first = 1 if before is None else before.sequence + 1
        how = await self.store.runs.end(claim, outcome, retryable=at % 3 == 0, first=first, events=[])
        if how == "ended" and spec.id not in self.ended and spec.id not in self.erased:
            found = await self.store.runs.get(spec.id)
            assert found is not None
            assert found.status.final
        if spec.flow_id is not None and at % 2:  # else the one who ended it has died, and the sweep carries on
            await self.store.dispatch.carry_on(spec.flow_id)

    async def cancel(self, at: int, text: str) -> None:
        if (spec := self.run(at)) is not None:
            condition = ("", "unfollowed", "unstarted")[at % 3]
            await self.store.runs.cancel(spec, CANCELLED, condition)  # type: ignore[arg-type]  # one of the three

    async def cancel_flow(self, at: int, text: str) -> None:
        if (flow := self.flow(at)) is not None:
            await self.store.dispatch.cancel_flow(flow.id, CANCELLED, "unfollowed" if at % 2 else "")

    async def follow(self, at: int, text: str) -> None:
        if (spec := self.run(at)) is not None:
            await self.apis[at % 2].add((spec.flow_id or spec.id) if at % 3 else spec.id)
            await self.apis[at % 2].renew()

    async def unfollow(self, at: int, text: str) -> None:
        if (spec := self.run(at)) is not None:
            await self.apis[at % 2].remove(spec.flow_id or spec.id)

    async def leave(self, at: int, text: str) -> None:
        await self.apis[at % 2].end()

    async def detach(self, at: int, text: str) -> None:
        if (spec := self.run(at)) is not None:
            await self.store.flows.detach(spec.flow_id or spec.id)

    async def move(self, at: int, text: str) -> None:
        if (spec := self.run(at)) is not None:
            run = await self.store.runs.get(spec.id)
            if run is not None:
                await self.store.runs.move(spec.id, run.queue, ("", "echo@g", run.queue, "echo")[at % 4])
            await self.store.dispatch.rescue(spec.id)

    async def sweep(self, at: int, text: str) -> None:
        """The last one was a second ago; with luck some leases have run out, or nobody swept for long."""
        await self.redis("SET", "clinvk:swept", 0 if at % 5 == 4 else await self.now_ms() - 1000)
        spec = self.run(at)
        if spec is not None and at % 2:
            await self.redis("ZADD", names.RUNNING, "XX", 1, spec.id)
        await self.store.sweeper.sweep()

    async def renew(self, at: int, text: str) -> None:
        if self.claims:
            await self.store.runs.renew([(id, claim.token) for id, claim in self.claims.items()])

    async def forget(self, at: int, text: str) -> None:
        spec = self.run(at)
        if spec is not None and spec.flow_id is None and await self.store.runs.forget(spec.id):
            assert await self.store.runs.get(spec.id) is None
            self.erased.add(spec.id)

    async def forget_flow(self, at: int, text: str) -> None:
        flow = self.flow(at)
        if flow is not None and await self.store.flows.forget(flow):
            assert await self.store.flows.get(flow.id) is None
            self.erased |= {flow.id, *(spec.id for spec in flow.lanes)}

    async def forget_session(self, at: int, text: str) -> None:
        session = self.session(at)
        if session is not None and await self.store.sessions.forget(session) == "deleted":
            assert await self.store.sessions.get(None, session) is None
            self.erased.add(session)

    async def look(self, at: int, text: str) -> None:
        """Whatever words come in a path or a query."""
        for word in (text, "ses_" + text, *list(self.runs)[-1:], *list(self.flows)[-1:]):
            await self.store.runs.get(word)
            await self.store.flows.get(word)
            await self.store.runs.position(word)
            for tenant in TENANTS[:3]:
                await self.store.sessions.get(tenant, word)
                for id in await self.store.sessions.starting_with(tenant, word):
                    assert self.sessions[id] == tenant
            assert not await self.store.runs.forget(text)
            assert await self.store.sessions.forget(text) == ""
            with contextlib.suppress(LogExpired):
                await self.store.events.read(word, after=at)
        await self.store.sessions.list(text, backend=text, status=text, limit=10, offset=at)
        await self.store.hosts.drain(text, on=bool(at % 2))
        await self.store.hosts.drain(text, on=False)
        await self.store.scripts("take", text, 10, 5)
        await self.store.runs.lines([text])
        entry = Entry(
            action=text, target=text, owner=text, tenant=text, key="", address=text, request_id=text, result=text
        )
        await self.audit.add(entry)
        assert (await self.audit.read(before=None, count=1))[0].entry == entry

    # -- what must be so

    async def now_ms(self) -> int:
        seconds, micros = await self.redis("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def check(self) -> None:
        """Ended is ended: the same words for ever."""
        found = await self.store.runs.get_many(list(self.runs))
        for spec, run in zip(list(self.runs.values()), found, strict=True):
            if run is None:
                assert spec.id in self.erased or spec.flow_id is not None, "a run is gone that nobody has erased"
                continue
            assert spec.id not in self.erased
            assert (run.spec.tenant, run.spec.prompt) == (spec.tenant, spec.prompt) or spec.flow_id is not None
            told = (run.status, run.outcome)
            if spec.id in self.ended:
                assert self.ended[spec.id] == told, "a run has ended twice"
            elif run.status.final:
                self.ended[spec.id] = told
                await self.check_log(spec, run.sequence)
            else:
                assert run.outcome is None

    async def check_log(self, spec: RunSpec, last: int) -> None:
        """Its events are numbered without a gap, and the last one alone ends it."""
        after = max(0, last - 50)
        try:
            lines = await self.store.events.read(spec.id, after=after)
        except LogExpired:
            return
        told = [json.loads(line) for line in lines]
        assert [one["sequence"] for one in told] == list(range(after + 1, last + 1))
        assert [one["type"] in ("done", "error") for one in told] == [False] * (len(told) - 1) + [True]

    async def check_tenants(self) -> None:
        for tenant in TENANTS:
            found, _ = await self.store.runs.list(tenant, limit=1000, offset=0)
            assert all(run.spec.tenant == tenant for run in found)
            flows, _ = await self.store.flows.list(tenant, limit=1000, offset=0)
            assert all(record.flow.tenant == tenant for record in flows)
            for status in (None, "active", "completed", "error", "cancelled"):
                for backend in (None, "echo", "claude"):
                    listed, total = await self.store.sessions.list(
                        tenant, backend=backend, status=status, limit=1000, offset=0
                    )
                    assert total == len(listed)
                    for one in listed:
                        assert (self.sessions[one.id], one.tenant) == (tenant, tenant)
                        assert status in (None, one.status)
                        assert backend in (None, one.backend)
        days = [await self.now_ms() // 86_400_000]
        for one in await self.used.read(days, None):
            assert one.tenant in TENANTS
            assert one.measures.keys() <= {*_MEASURES}

    async def settle(self) -> None:
        """Everything is cancelled, every worker obeys or dies, and all is carried on."""
        await self.announce(0, "")
        for flow in self.flows.values():
            await self.store.dispatch.cancel_flow(flow.id, CANCELLED)
        for _ in range(4):
            for spec in self.runs.values():
                await self.store.runs.cancel(spec, CANCELLED)
            await self.redis("DEL", "clinvk:hold")
            await self.redis("SET", "clinvk:swept", await self.now_ms() - 1000)
            for id in texts(await self.redis("ZRANGE", names.RUNNING, 0, -1)):
                await self.redis("ZADD", names.RUNNING, "XX", 1, id)
            for id in texts(await self.redis("ZRANGE", names.DUE, 0, -1)):
                await self.redis("ZADD", names.DUE, "XX", 1, id)
            await self.store.sweeper.sweep()
        for api in self.apis:
            await api.end()

    async def check_end(self) -> None:
        """Counts are back at nothing; once all is erased, no name is left without an end, and no word of a caller."""
        await self.check()
        assert len(self.ended) + len(self.erased & self.runs.keys()) >= sum(
            run is not None for run in await self.store.runs.get_many(list(self.runs))
        )
        counts = await self.store.runs.counts()
        assert not any(counts.values()), counts
        held = [name for name in await self.names() if _kind(name) in _WHILE_NOT_EMPTY]
        assert not held, held
        for name in (names.UNFOLLOWED, names.IMPATIENT, names.DUE, names.BOUND):
            assert not await self.redis("EXISTS", name), name
        for flow in self.flows.values():
            assert flow.id in self.erased or await self.store.flows.forget(flow)
        for id, spec in self.runs.items():
            gone = spec.flow_id is not None or id in self.erased or await self.store.runs.forget(id)
            assert gone, id
        for session in self.sessions:
            assert session in self.erased or await self.store.sessions.forget(session) == "deleted"
        left = await self.names()
        for name in left:
            lives = int(await self.redis("PTTL", name))
            assert lives > 0 or _kind(name) in _ALWAYS, f"{name!r} is left for ever"
            assert _CANARY not in str(await self.redis("DUMP", name)), name

    async def names(self) -> list[str]:
        return sorted(texts(await self.redis("KEYS", "*")))


def _kind(name: str) -> str:
    """The word after the prefix; "" for a Celery queue."""
    return name.split(":")[1] if name.startswith(names.PREFIX) else ""


_MEASURES = ("succeeded", "failed", "cancelled", "took_ms", "input_tokens", "output_tokens", "cached_tokens")
_MEASURES += ("reasoning_tokens", "cost_microusd")
_WHILE_NOT_EMPTY = ("held", "line", "lines", "turns", "followers", "grouped")
# As shared/names.py says; the fleet's own are the host's that is still there.
_ALWAYS = (
    *["turn", "limits", "tenants", "instances", "swept", "left", "pace", "totals", "apis", "queues", "slots", "room"],
    *["stranded", "drained", "instance", ""],
)
Step = Callable[[History, int, str], Awaitable[None]]
STEPS: tuple[Step, ...] = (
    *[
        History.announce,
        History.announce,
        History.retire,
        History.submit,
        History.submit,
        History.submit,
        History.resume,
    ],
    *[
        History.start_flow,
        History.start_flow,
        History.claim,
        History.claim,
        History.claim_all,
        History.claim_all,
        History.append,
    ],
    *[History.append, History.end, History.end, History.end, History.cancel, History.cancel_flow, History.follow],
    *[History.unfollow, History.leave, History.detach, History.move, History.sweep, History.sweep, History.renew],
    *[History.forget, History.forget_flow, History.forget_session, History.look],
)
HISTORIES = st.lists(st.tuples(st.sampled_from(STEPS), _FEW, TEXT), min_size=25, max_size=70)


def on_empty(test: Callable[[Redis], Awaitable[None]]) -> None:
    async def main() -> None:
        redis = Redis(server().url)
        try:
            await redis("FLUSHALL")
            await test(redis)
        finally:
            await redis.aclose()

    asyncio.run(main())


def history(steps: list[tuple[Step, int, str]]) -> None:
    async def test(redis: Redis) -> None:
        made = History(redis)
        for at in range(4):
            await made.announce(4 + at, "")
        for step, at, text in steps:
            with contextlib.suppress(REFUSED):
                await step(made, at, text)
            await made.check()
        await made.check_tenants()
        await made.settle()
        await made.check_end()

    on_empty(test)
