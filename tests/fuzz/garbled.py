"""What lies in Redis under our names may be anything: whoever reads it ends well or in our own words, and the sweep goes on."""

import contextlib
from collections.abc import Awaitable
from typing import Any

from hypothesis import strategies as st

from shared import names
from shared.dispatch import CANCELLED
from shared.errors import ClinvkError
from shared.flow import Flow
from shared.host import Vitals
from shared.ids import new_id
from shared.redis import Redis, text, texts
from shared.run import Outcome, RunSpec, Status
from shared.store.audit import Audit, Entry
from shared.store.events import Batch
from shared.store.runs import Depth, Same
from shared.store.sessions import opening
from shared.store.usage import Usage
from tests.fuzz.stores import WORDS, on_empty
from tests.store.store import Store

# Those that all runs share: were one of them another's, nothing could work, but in our own words.
_SHARED = (
    *[names.WAITING, names.QUEUED, names.RUNNING, names.UNFOLLOWED, names.IMPATIENT, names.DUE, names.GROUPED],
    *[names.BOUND, names.STRANDED, names.INSTANCES, names.APIS, names.SESSIONS, names.TENANTS, names.QUEUES],
    *[names.LIMITS, names.TOTALS, names.PACE, names.LEFT, names.TURN, names.SWEPT, names.HOLD, names.DRAINED],
)
_OTHER = (b"\xff\xfe", b'{"id":', b'{"v":9,"id":7}', b"[]", b"null", b"NaN", b"1.5", b"-1", b"\x82\xa2id", b"x" * 9000)
_VALUES = st.sampled_from([*_OTHER, *[word.encode() for word in WORDS[:40]]])
KINDS = ("another type", "cut off", "gone", "a field lost", "a field spoilt", "a field more", "every field spoilt")
Damage = tuple[str, int, int, bytes]
DAMAGES = st.tuples(
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 99), st.integers(0, 30), _VALUES), min_size=1, max_size=5
    ),
)


class Scene:
    """Runs in each of their states, a session and flows; and `sound` ones, whose records nobody touches."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.store = Store(redis, wait=True, lease_s=30)
        self.audit = Audit(self.store.scripts, most=20, retention_s=60)
        self.specs: list[RunSpec] = []
        self.flows: list[Flow] = []
        self.session = new_id("ses")

    async def set(self) -> None:
        store = self.store
        await store.worker(6)
        await store.hosts.tell("api_1", Vitals(role="api", host="h", pid=1, version="0", started_at=0), life_s=60)
        await store.api.renew()
        self.sound = [await store.add(tenant="sound") for _ in range(2)]
        await store.claim(self.sound[0])
        for number in range(8):
            session = self.session if number == 0 else None
            spec = RunSpec(
                id=new_id("run"), tenant="t", backend="echo", prompt="p", session_id=session, key="k", key_window=9,
                retry=number % 2, start_within_s=9.0,
            )  # fmt: skip
            same = Same(name=f"s{number}", kind=("key", "body")[number % 2], fingerprint="f", retry=number % 2)  # type: ignore[arg-type]  # one of the two
            begun = None if session is None else opening(spec, ["tag"])
            await store.runs.add(spec, "echo", follower="api_1", depth=Depth(99), same=same, opening=begun)
            self.specs.append(spec)
        for number, spec in enumerate(self.specs[:4]):
            claim = await store.claim(spec, "att")
            await store.events.append([Batch(spec.id, "att", 1, [b'{"type":"message","sequence":1,"content":{}}'])])
            if number < 2 and claim is not None:
                await store.runs.end(claim, Outcome(exit_code=0, output="o"), retryable=False, first=2, events=[])
        for kind in ("parallel", "chain"):
            id = new_id("flow")
            lanes = tuple(
                RunSpec(id=new_id("run"), tenant="t", backend="echo", prompt="p", flow_id=id, lane=lane)
                for lane in range(2)
            )
            flow = Flow(id=id, tenant="t", kind=kind, lanes=lanes, window=1)  # type: ignore[arg-type]  # one of the kinds
            await store.dispatch.submit_flow(flow, follower="api_1")
            self.flows.append(flow)
            self.specs += lanes
        entry = Entry(action="a", target="t", owner="o", tenant="t", key="", address="", request_id="", result="")
        await self.audit.add(entry)
        await self.redis("LPUSH", names.chores("h"), b'{"session":"x"}')

    async def names(self, *, shared: bool) -> list[str]:
        spared = [spec.id for spec in self.sound]
        found = [name for name in sorted(texts(await self.redis("KEYS", "clinvk:*"))) if name[-28:] not in spared]
        own = (
            "run",
            "events",
            "followers",
            "group",
            "closed",
            "instance",
            "vitals",
            "same",
            "chores",
            "session",
            "api",
        )
        return [name for name in found if (name in _SHARED or name.split(":")[1] not in own) == shared]

    async def damage(self, kind: str, name: str, at: int, value: bytes) -> None:
        kept = text(await self.redis("TYPE", name))
        life = int(await self.redis("PTTL", name))
        if kind == "gone":
            await self.redis("DEL", name)
        elif kept == "hash" and kind != "another type":
            flat = await self.redis("HGETALL", name)
            fields = flat[::2]
            field = fields[at % len(fields)]
            if kind == "a field lost":
                await self.redis("HDEL", name, field)
            elif kind == "a field more":
                await self.redis("HSET", name, b"of_later" + value[:9], value)
            elif kind == "cut off":
                whole = flat[1::2][at % len(fields)]
                await self.redis("HSET", name, field, whole[: len(whole) // 2])
            else:
                for one in fields if kind == "every field spoilt" else [field]:
                    await self.redis("HSET", name, one, value)
        elif kept == "string" and kind != "another type":
            await self.redis("SET", name, (await self.redis("GET", name))[:-2] if kind == "cut off" else value)
        elif kept == "list" and kind != "another type":
            await self.redis("RPUSH", name, value)
        elif kept == "stream" and kind != "another type":
            await self.redis("XADD", name, f"7-{at + 1}", "other", value)
        else:
            await self.redis("DEL", name)
            await self.redis(*(("SADD", name, value) if at % 2 and kept != "set" else ("SET", name, value)))
        if life > 0:
            await self.redis("PEXPIRE", name, life)

    async def ask(self) -> None:
        """All that anybody asks of it, each with what is spoilt."""
        store = self.store
        for spec in self.specs:
            for ask in (
                store.runs.get(spec.id), store.runs.position(spec.id), store.api.add(spec.id), store.api.remove(spec.id),
                store.events.read(spec.id, after=0), store.events.ends([spec.id]), store.claim(spec, "att"),
                store.events.append([Batch(spec.id, "att", 2, [b"{}"])]), store.runs.renew([(spec.id, "att")]),
                store.runs.move(spec.id, "echo", "echo@g"), store.dispatch.rescue(spec.id), store.flows.detach(spec.id),
                store.runs.get_bare([spec]), store.runs.cancel(spec, CANCELLED, "unfollowed"),
            ):  # fmt: skip
                await _own_words(ask)
        for flow in self.flows:
            for ask in (
                store.flows.get(flow.id), store.flows.get(flow.id, outcomes=False), store.api.add(flow.id),
                store.events.read(flow.id, after=0), store.dispatch.carry_on(flow.id),
            ):  # fmt: skip
                await _own_words(ask)
        day = int((await self.redis("TIME"))[0]) // 86400
        for ask in (
            store.runs.list("t", limit=99, offset=0), store.flows.list("t", limit=99, offset=0), store.runs.tenants(),
            store.sessions.list("t", backend=None, status=None, limit=99, offset=0), store.sessions.count(),
            store.sessions.get("t", self.session), store.sessions.starting_with("t", "ses_"), store.runs.totals(),
            store.hosts.list(), store.hosts.apis(), store.hosts.bound(), store.hosts.all_drained(), store.runs.counts(),
            store.runs.lines(["echo"]), store.runs.oldest_s(9e9), self.audit.read(before=None, count=9),
            Usage(store.scripts).read([day], None), store.sessions.chore("h"), store.api.renew(), store.worker(9),
        ):  # fmt: skip
            await _own_words(ask)

    async def sweep(self) -> None:
        for _ in range(3):
            seconds = int((await self.redis("TIME"))[0])
            await self.redis("SET", names.SWEPT, seconds * 1000 - 1000)
            await self.redis("DEL", names.HOLD)
            for zset in (names.RUNNING, names.WAITING, names.IMPATIENT, names.UNFOLLOWED, names.DUE, names.SESSIONS):
                for id in texts(await self.redis("ZRANGE", zset, 0, -1)):
                    if id != self.sound[1].id:
                        await self.redis("ZADD", zset, "XX", 1, id)
            await self.store.sweeper.sweep()

    async def forget(self) -> None:
        for spec in self.specs:
            await _own_words(self.store.runs.cancel(spec, CANCELLED))
            await _own_words(self.store.runs.forget(spec.id))
        for flow in self.flows:
            await _own_words(self.store.dispatch.cancel_flow(flow.id, CANCELLED))
            await _own_words(self.store.flows.forget(flow))
        await _own_words(self.store.sessions.forget(self.session))
        await _own_words(self.store.api.end())
        await _own_words(self.store.hosts.retire("ins_1"))


async def _own_words(asked: Awaitable[Any]) -> None:
    with contextlib.suppress(ClinvkError):
        await asked


def garbled(given: tuple[bool, list[Damage]]) -> None:
    shared, damages = given

    async def test(redis: Redis) -> None:
        scene = Scene(redis)
        await scene.set()
        for kind, which, at, value in damages:
            if found := await scene.names(shared=shared):
                await scene.damage(kind, found[which % len(found)], at, value)
        await scene.ask()
        if shared:
            await _own_words(scene.sweep())
        else:  # whatever has become of the others
            await scene.sweep()
            await scene.sweep()
            lost, queued = await scene.store.runs.get_many([spec.id for spec in scene.sound])
            assert lost is not None
            assert lost.status is Status.FAILED
            assert lost.outcome is not None
            assert queued is not None
            assert queued.status is Status.QUEUED
            left = set(texts(await redis("ZRANGE", names.RUNNING, 0, -1))) - {scene.sound[1].id}
            assert not left, left
        await scene.forget()

    on_empty(test)
