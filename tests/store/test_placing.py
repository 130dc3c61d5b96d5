"""What must go to one host: chosen by room, moved when the host goes, told when nothing else is left."""

import asyncio
from typing import Any

import msgspec
import pytest

from shared import names
from shared.errors import BackendLimited, BackendUnavailable, NotEnforceable, SessionHostUnavailable
from shared.flow import FlowStatus
from shared.host import BackendState, Capabilities, Instance, Readiness
from shared.ids import new_id
from shared.run import Outcome, Run, RunSpec, Status
from shared.store.events import Batch
from shared.store.sessions import Chore
from shared.sweep import WORKER_LOST
from tests.store.store import Store
from tests.store.test_flows import flow

ZONE = {"zone": "a"}


async def host(store: Store, name: str, *backends: str, **more: Any) -> None:
    """Announces a host anew. `slots` 0 stands for a drained one."""
    slots, labels = more.pop("slots", 4), more.pop("labels", {})
    capabilities = more.pop("capabilities", Capabilities(modes={"": ()}))
    states = tuple(
        BackendState(
            name=backend,
            readiness=more.get("readiness", Readiness.READY),
            reason=more.get("reason"),
            until=more.get("until"),
            slots=slots,
            capabilities=capabilities,
        )
        for backend in backends
    )
    instance = Instance(
        id=f"ins_{name}", host=name, pid=1, version="0", started_at=0, slots=max(slots, 1), labels=labels,
        running=more.get("running", 0), draining=slots == 0, backends=states,
    )  # fmt: skip
    queues = [queue for backend in backends for queue in (backend, f"{backend}@{name}")]
    ready = more.get("readiness", Readiness.READY) is Readiness.READY
    await store.hosts.announce(instance, dict.fromkeys(queues, slots if ready else 0), life_s=60)
    await store.dispatch.fleet(fresh=True)


async def dies(store: Store, name: str) -> None:
    await store.hosts.retire(f"ins_{name}")


async def swept(store: Store, *queues: str) -> None:
    """Sweeps, with these queues known to have stood without anybody for long."""
    for queue in queues:
        await store.redis("HSET", names.STRANDED, queue, 1)
    await store.redis("DEL", names.SWEPT, names.HOLD)
    # As if somebody had swept a second ago.
    await store.redis("SET", names.SWEPT, int((await store.redis("TIME"))[0]) * 1000 - 1000)
    assert await store.sweeper.sweep() is False
    await store.dispatch.fleet(fresh=True)


async def ask(store: Store, **more: Any) -> RunSpec:
    spec = RunSpec(**{"id": new_id("run"), "tenant": "t", "backend": "echo", "prompt": "p", **more})
    await store.dispatch.submit(spec, follower=None)
    return spec


async def run_of(store: Store, spec: RunSpec) -> Run:
    run = await store.runs.get(spec.id)
    assert run is not None
    return run


async def told(store: Store, spec: RunSpec) -> str:
    run = await run_of(store, spec)
    assert run.outcome is not None, run.status
    assert run.outcome.failure is not None
    return run.outcome.failure.code


async def carried_out(store: Store, spec: RunSpec, at: str) -> None:
    claim = await store.runs.claim(spec.id, new_id("att"), host=at, instance=f"ins_{at}")
    assert claim is not None, await store.status(spec)
    await store.runs.end(claim, Outcome(exit_code=0, output="o"), retryable=False, first=1, events=[])


def chain(*backends: str, **more: Any) -> Any:
    made = flow("chain", *(f"step {n}" for n in range(len(backends))), **more)
    lanes = tuple(
        RunSpec(
            id=spec.id, tenant="t", backend=backend, prompt=spec.prompt, flow_id=made.id, lane=spec.lane,
            ephemeral=True, workspace=made.id,
        )
        for spec, backend in zip(made.lanes, backends, strict=True)
    )  # fmt: skip
    return type(made)(id=made.id, tenant="t", kind="chain", lanes=lanes, names=made.names, fail_fast=made.fail_fast)


# -- labels


def test_labels_separate_nobody_a_run_without_any_may_come_to_a_labelled_host_which_backends_alone_prevent(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE)
        await host(store, "b", "claude")

        of_anybody = await ask(store, tenant="another")
        asked_for = await ask(store, tenant="another", labels=ZONE)

        queue = (await run_of(store, of_anybody)).queue
        assert queue.partition("@")[0] == "echo"
        assert queue in ("echo", "echo@a"), "where the labelled host takes it, and the other does not"
        assert (await run_of(store, asked_for)).queue == "echo@a"
        await carried_out(store, of_anybody, "a")

    on_store(test)


def test_labelled_runs_are_spread_by_the_room_that_hosts_have(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE, slots=4)
        await host(store, "b", "echo", labels=ZONE, slots=2)
        await host(store, "c", "echo")

        runs = [await ask(store, labels=ZONE) for _ in range(12)]

        queues = [(await run_of(store, spec)).queue for spec in runs]
        assert (queues.count("echo@a"), queues.count("echo@b")) == (8, 4)

    on_store(test)


def test_what_a_host_carries_already_counts_and_what_waits_for_it_too(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE, running=3)
        await host(store, "b", "echo", labels=ZONE)
        for _ in range(3):
            await store.add(backend="echo@b")  # as another process has sent them
        await store.dispatch.fleet(fresh=True)
        even = [await ask(store, labels=ZONE) for _ in range(4)]
        queues = [(await run_of(store, spec)).queue for spec in even]
        assert sorted(queues) == ["echo@a"] * 2 + ["echo@b"] * 2

    on_store(test)


@pytest.mark.parametrize("how", ["dies", "drained", "logged out"])
def test_a_labelled_run_goes_to_another_host_when_its_own_takes_it_no_more(on_store, how):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE, slots=1)
        runs = [await ask(store, labels=ZONE, priority="batch") for _ in range(4)]
        assert (await run_of(store, runs[0])).status is Status.QUEUED
        assert (await run_of(store, runs[3])).status is Status.WAITING
        await host(store, "b", "echo", labels=ZONE, slots=2)
        await host(store, "c", "echo")
        if how == "dies":
            await dies(store, "a")
        elif how == "drained":
            await host(store, "a", "echo", labels=ZONE, slots=0)
        else:
            await host(store, "a", "echo", labels=ZONE, readiness=Readiness.NOT_LOGGED_IN, reason="no login")

        await swept(store)  # one that starts anew would be back soon
        assert (await run_of(store, runs[0])).queue == "echo@a"
        await swept(store, "echo@a")

        assert {(await run_of(store, spec)).queue for spec in runs} == {"echo@b"}
        assert await store.redis("LLEN", "echo@a") == 0
        assert await store.hosts.bound() == {"echo@b": 4}
        assert sorted(await store.hints("echo@b")) == sorted(spec.id for spec in runs[:3])
        for spec in runs:
            await carried_out(store, spec, "b")
        assert await store.hosts.bound() == {}

    on_store(test)


def test_a_hint_that_the_first_host_still_has_starts_nothing_there(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE)
        spec = await ask(store, labels=ZONE)
        await host(store, "b", "echo", labels=ZONE)
        await dies(store, "a")
        await swept(store, "echo@a")

        assert await store.runs.claim(spec.id, "att_a", host="a", instance="ins_a") is None

        await carried_out(store, spec, "b")

    on_store(test)


def test_where_no_other_host_has_the_labels_it_is_told_at_once_and_why(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE)
        await host(store, "c", "echo")
        spec = await ask(store, labels=ZONE)
        await dies(store, "a")

        await swept(store, "echo@a")

        assert await told(store, spec) == "backend_unavailable"
        assert (await run_of(store, spec)).status is Status.FAILED

    on_store(test)


def test_where_runs_may_wait_for_a_worker_a_labelled_one_does(on_store):
    async def test(store: Store) -> None:
        await host(store, "c", "echo")
        spec = await ask(store, labels=ZONE)
        assert (await run_of(store, spec)).status is Status.WAITING
        await swept(store, "echo@")
        assert (await run_of(store, spec)).status is Status.WAITING

        await host(store, "a", "echo", labels=ZONE)
        await swept(store, "echo@")

        assert await store.hints("echo@a") == [spec.id]

    on_store(test, wait=True)


def test_no_host_is_taken_for_gone_after_redis_was_away(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE)
        spec = await ask(store, labels=ZONE)
        await dies(store, "a")  # as an announcement that ran out meanwhile
        await store.redis("HSET", names.STRANDED, "echo@a", 1)

        await store.sweeper.sweep()  # the first one for long

        assert (await run_of(store, spec)).status is Status.QUEUED

    on_store(test)


def test_a_run_that_has_started_is_not_moved(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE)
        await host(store, "b", "echo", labels=ZONE)
        spec = await ask(store, labels=ZONE)
        queue = (await run_of(store, spec)).queue
        await store.runs.claim(spec.id, "att", host=queue[-1], instance="i")

        assert await store.runs.move(spec.id, queue, "echo@z") == "kept"

        assert (await run_of(store, spec)).status is Status.RUNNING

    on_store(test)


# -- sessions


async def begin(store: Store, **more: Any) -> RunSpec:
    return await ask(store, session_id=new_id("ses"), **more)


async def go_on(store: Store, first: RunSpec, at: str | None, **more: Any) -> RunSpec:
    spec = RunSpec(id=new_id("run"), tenant="t", backend="echo", prompt="m", session_id=first.session_id, **more)
    await store.dispatch.resume(spec, at, follower=None, same=None, must_be_free=False)
    return spec


def test_a_second_turn_asked_for_before_the_first_has_a_host_ends_on_the_sessions_host(on_store):
    async def test(store: Store) -> None:
        for name in "ab":
            await host(store, name, "echo", labels=ZONE, slots=20)
        pairs = []
        for _ in range(6):
            first = await begin(store, labels=ZONE)
            pairs.append((first, await go_on(store, first, None, labels=ZONE)))
        where = [((await run_of(store, a)).queue, (await run_of(store, b)).queue) for a, b in pairs]
        assert any(first != second for first, second in where)  # each was placed by itself

        for first, _ in pairs:
            await carried_out(store, first, (await run_of(store, first)).queue[-1])

        for first, second in pairs:
            run = await run_of(store, second)
            assert (run.status, run.queue) == (Status.QUEUED, f"echo@{(await run_of(store, first)).host}")

    on_store(test)


def test_a_turn_queued_on_a_host_that_dies_is_told_at_once_and_the_next_one_too(on_store):
    async def test(store: Store) -> None:
        for name in "ab":
            await host(store, name, "echo")
        first = await begin(store)
        await carried_out(store, first, "a")
        second, third = [await go_on(store, first, "a") for _ in range(2)]
        assert (await run_of(store, second)).status is Status.QUEUED
        await dies(store, "a")

        await swept(store, "echo@a")
        await swept(store)

        assert [await told(store, spec) for spec in (second, third)] == ["session_host_unavailable"] * 2
        assert first.session_id is not None
        session = await store.sessions.get("t", first.session_id)
        assert session is not None
        assert (session.status, session.turn_count) == ("error", 1)

    on_store(test)


def test_resuming_on_a_limited_host_tells_when_the_limit_ends(on_store):
    async def test(store: Store) -> None:
        now = int((await store.redis("TIME"))[0])
        await host(store, "a", "echo", readiness=Readiness.LIMITED, reason="the vendor's limit", until=now + 3000)
        await host(store, "b", "echo")
        with pytest.raises(BackendLimited) as limited:
            await store.dispatch.resume(
                RunSpec(id="run_2", tenant="t", backend="echo", prompt="p", session_id="ses_x"),
                "a", follower=None, same=None, must_be_free=False,
            )  # fmt: skip
        assert 2900 < limited.value.retry_after_s <= 3000

        with pytest.raises(SessionHostUnavailable, match="'c', which is gone"):
            await go_on(store, RunSpec(id="r", tenant="t", backend="echo", prompt="p", session_id="ses_x"), "c")

    on_store(test)


async def lost(store: Store, spec: RunSpec, at: str) -> None:
    """It is claimed, its CLI tells its own id, and the worker dies; its caller allows another try."""
    claim = await store.runs.claim(spec.id, new_id("att"), host=at, instance=f"ins_{at}")
    assert claim is not None
    init = b'{"type":"init","content":{"backend_session_id":"cli_1"}}'
    await store.events.append([Batch(spec.id, claim.token, 1, [init])])
    await store.redis("ZADD", names.RUNNING, 1, spec.id)
    assert await store.runs.expire(spec, WORKER_LOST) == "again"


@pytest.mark.parametrize("labels", [{}, ZONE])
def test_a_first_turn_that_is_tried_again_begins_anew_on_any_host_and_leaves_nothing_on_the_first(on_store, labels):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE)
        first = await begin(store, retry=1, labels=labels)
        await lost(store, first, "a")
        await host(store, "b", "echo", labels=ZONE)
        await dies(store, "a")
        await swept(store, "echo@a")

        claim = await store.runs.claim(first.id, "att_b", host="b", instance="ins_b")

        assert claim is not None
        assert claim.spec.resume is None  # what the CLI knew on the other host, it does not know here
        outcome = Outcome(exit_code=0, backend_session_id="cli_2")
        await store.runs.end(claim, outcome, retryable=False, first=claim.sequence + 1, events=[])
        assert first.session_id is not None
        assert await store.sessions.forget(first.session_id) == "deleted"
        for name, cli_id in (("a", "cli_1"), ("b", "cli_2")):
            chore = await store.sessions.chore(name)
            assert chore is not None
            assert chore[1] == Chore(backend="echo", session=first.session_id, cli_id=cli_id)

    on_store(test)


def test_a_chain_whose_first_step_is_tried_again_may_begin_on_another_host_too(on_store):
    async def test(store: Store) -> None:
        await host(store, "c", "claude", "codex")
        made = chain("claude", "codex")
        lanes = tuple(msgspec.structs.replace(spec, retry=1) for spec in made.lanes)
        made = msgspec.structs.replace(made, lanes=lanes)
        await store.dispatch.submit_flow(made, follower=None, sticky=True)
        await lost(store, lanes[0], "c")
        await host(store, "d", "claude", "codex")
        await dies(store, "c")
        await swept(store, "claude@c")
        for spec in lanes:
            await carried_out(store, spec, "d")
            await store.dispatch.carry_on(made.id)

        record = await store.flows.get(made.id)
        assert record is not None
        assert record.status is FlowStatus.SUCCEEDED
        for name in "cd":
            chore = await store.sessions.chore(name)
            assert chore is not None
            assert chore[1] == Chore(workspace=made.id)

    on_store(test)


# -- chains that share a directory


def test_a_chain_whose_backends_share_no_host_is_refused_and_the_step_named(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "claude")
        await host(store, "b", "codex", "gemini")

        with pytest.raises(BackendUnavailable, match=r"steps\[1\].*codex.* can run on b.* only on a") as refused:
            await store.dispatch.submit_flow(chain("claude", "codex"), follower=None, sticky=True)
        assert refused.value.retry_after_s > 0
        with pytest.raises(BackendUnavailable, match=r"steps\[2\]: backend 'echo' cannot run now"):
            await store.dispatch.submit_flow(chain("codex", "gemini", "echo"), follower=None, sticky=True)

        assert (await store.flows.list("t", limit=10, offset=0))[1] == 0
        assert await store.runs.list("t", limit=10, offset=0) == ([], 0)

    on_store(test)


def test_a_host_that_cannot_hold_a_later_step_is_none_for_the_chain(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "claude", "codex", capabilities=Capabilities(modes={}))
        with pytest.raises(NotEnforceable, match=r"steps\[0\]"):
            await store.dispatch.submit_flow(chain("claude", "codex"), follower=None, sticky=True)

    on_store(test)


def test_a_chain_begins_on_a_host_that_has_all_its_backends(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "claude")
        await host(store, "c", "claude", "codex")
        for _ in range(5):
            made = chain("claude", "codex")
            await store.dispatch.submit_flow(made, follower=None, sticky=True)
            assert (await run_of(store, made.lanes[0])).queue == "claude@c"
        await carried_out(store, made.lanes[0], "c")

        await store.dispatch.carry_on(made.id)

        assert (await run_of(store, made.lanes[1])).queue == "codex@c"

    on_store(test)


def test_a_chain_that_has_not_begun_goes_to_another_host_that_has_all(on_store):
    async def test(store: Store) -> None:
        await host(store, "c", "claude", "codex")
        made = chain("claude", "codex")
        await store.dispatch.submit_flow(made, follower=None, sticky=True)
        await host(store, "a", "claude")
        await host(store, "d", "claude", "codex")
        await dies(store, "c")

        await swept(store, "claude@c")

        assert (await run_of(store, made.lanes[0])).queue == "claude@d"

    on_store(test)


def test_a_chain_whose_host_dies_in_the_middle_is_told_at_once(on_store):
    async def test(store: Store) -> None:
        for name in "cd":
            await host(store, name, "claude", "codex")
        made = chain("claude", "codex", "claude", fail_fast=True)
        await store.dispatch.submit_flow(made, follower=None, sticky=True)
        begun_at = (await run_of(store, made.lanes[0])).queue[-1]
        await carried_out(store, made.lanes[0], begun_at)
        await dies(store, begun_at)
        await store.dispatch.carry_on(made.id)
        assert (await run_of(store, made.lanes[1])).status is Status.WAITING

        await swept(store, f"codex@{begun_at}")

        assert await told(store, made.lanes[1]) == "session_host_unavailable"
        record = await store.flows.get(made.id)
        assert record is not None
        assert record.status is FlowStatus.FAILED
        assert record.closed[2].cause == "stopped_on_failure"
        assert record.runs[0].status is Status.SUCCEEDED

    on_store(test)


def test_a_step_with_labels_whose_hosts_are_gone_is_not_given_to_others(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE)
        made = flow("chain", "one", "two")
        lanes = tuple(
            RunSpec(id=s.id, tenant="t", backend="echo", prompt=s.prompt, flow_id=made.id, lane=s.lane, labels=ZONE)
            for s in made.lanes
        )
        made = type(made)(id=made.id, tenant="t", kind="chain", lanes=lanes, names=made.names)
        await store.dispatch.submit_flow(made, follower=None)
        await host(store, "b", "echo")
        await carried_out(store, lanes[0], "a")
        await dies(store, "a")
        await store.dispatch.fleet(fresh=True)
        await store.dispatch.carry_on(made.id)
        assert await store.hints("echo") == []

        await swept(store, "echo@")

        assert await told(store, lanes[1]) == "backend_unavailable"

    on_store(test)


def test_many_at_once_are_moved_without_one_being_doubled(on_store):
    async def test(store: Store) -> None:
        await host(store, "a", "echo", labels=ZONE, slots=8)
        made = flow("parallel", *(f"p{n}" for n in range(16)), window=12)
        lanes = tuple(
            RunSpec(id=s.id, tenant="t", backend="echo", prompt=s.prompt, flow_id=made.id, lane=s.lane, labels=ZONE)
            for s in made.lanes
        )
        made = type(made)(id=made.id, tenant="t", kind="parallel", lanes=lanes, names=made.names, window=12)
        await store.dispatch.submit_flow(made, follower=None)
        await host(store, "b", "echo", labels=ZONE, slots=8)
        await dies(store, "a")
        while (record := await store.flows.get(made.id)) is not None and record.status is FlowStatus.RUNNING:
            await swept(store, "echo@a")
            queued = [spec for spec in lanes if (await run_of(store, spec)).status is Status.QUEUED]
            assert queued
            await asyncio.gather(*(carried_out(store, spec, "b") for spec in queued))
            await store.dispatch.carry_on(made.id)

        assert record is not None
        assert record.status is FlowStatus.SUCCEEDED
        assert {run.attempt for run in record.runs.values()} == {1}
        assert await store.hosts.bound() == {}

    on_store(test)
