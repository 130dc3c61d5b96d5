"""Flows in the store: a true window, every run once, the end with the last run."""

import asyncio
import random
from typing import Any

import msgspec
import pytest

from shared import names
from shared.flow import Flow, FlowStatus
from shared.ids import new_id
from shared.run import Failure, Outcome, RunSpec, Status
from shared.store.events import Batch
from shared.store.sessions import Chore
from shared.sweep import HUNG_UP
from tests.cases import after
from tests.store.store import Store

BROKEN = Failure("backend_error", "m", "crashed")
CANCELLED = Failure("cancelled", "by its caller", "cancelled")


def flow(kind: str, *prompts: str, **more: Any) -> Flow:
    id = new_id("flow")
    lanes = tuple(
        RunSpec(
            id=f"run_{id[5:]}-{lane}", tenant="t", backend="echo", prompt=prompt, flow_id=id, lane=lane, ephemeral=True
        )
        for lane, prompt in enumerate(prompts)
    )
    return Flow(id=id, tenant="t", kind=kind, lanes=lanes, **{"names": ("",) * len(lanes), **more})


async def end(store: Store, spec: RunSpec, failure: Failure | None = None, output: str = "o") -> None:
    claim = await store.claim(spec)
    assert claim is not None, await store.status(spec)
    await store.runs.end(
        claim, Outcome(exit_code=0, output=output, failure=failure), retryable=False, first=1, events=[]
    )


async def states(store: Store, made: Flow) -> list[Status | None]:
    return [None if run is None else run.status for run in await store.runs.get_many([s.id for s in made.lanes])]


@pytest.mark.parametrize("seed", after(1, range(5)))
def test_whatever_happens_the_window_holds_and_every_run_ends_once(on_store, seed):
    async def test(store: Store) -> None:
        dice = random.Random(seed)
        window = dice.randint(1, 4)
        await store.worker(slots=50)
        made = flow("parallel", *"abcdefghij", window=window, fail_fast=dice.random() < 0.3)
        await store.dispatch.submit_flow(made, follower=None)
        claims: dict[str, Any] = {}
        over: set[str] = set()
        for _ in range(400):
            record = await store.flows.get(made.id)
            assert record is not None
            inside = [run for run in record.runs.values() if run.status in (Status.QUEUED, Status.RUNNING)]
            assert len(inside) <= window
            if record.status is not FlowStatus.RUNNING:
                break
            spec = dice.choice(made.lanes)
            match dice.choice(["claim", "claim", "end", "end", "fail", "cancel", "twice", "hint", "carry"]):
                case "claim":
                    if (claim := await store.runs.claim(spec.id, new_id("att"), host="h", instance="i")) is not None:
                        assert spec.id not in claims
                        claims[spec.id] = claim
                case "end" | "fail" | "twice" as how if spec.id in claims:
                    outcome = Outcome(exit_code=0, failure=BROKEN if how == "fail" else None)
                    for _ in range(2 if how == "twice" else 1):
                        await store.runs.end(claims[spec.id], outcome, retryable=False, first=1, events=[])
                    if dice.random() < 0.7:  # else whoever ended it died: the next one carries on
                        await store.dispatch.carry_on(made.id)
                case "cancel" if dice.random() < 0.2:
                    await store.runs.cancel(spec, CANCELLED)
                case "carry":
                    await store.dispatch.carry_on(made.id)
                case _:
                    pass
            for id, claim in claims.items():  # a worker does as it is told
                if id in over:
                    continue
                run = await store.runs.get(id)
                assert run is not None
                if run.status.final:
                    over.add(id)
                elif run.status is Status.RUNNING and run.cancelling is not None:
                    await store.runs.end(claim, Outcome(failure=run.cancelling), retryable=False, first=1, events=[])
        record = await store.flows.get(made.id)
        assert record is not None
        assert record.status is not FlowStatus.RUNNING
        assert all(run.status.final for run in record.runs.values())
        assert record.ends == len(record.runs) == len(made.lanes)
        lines = await store.events.read(made.id, after=0)
        last = [line for line in lines if line.startswith((b'{"type":"done"', b'{"type":"error"'))]
        assert last == [lines[-1]]
        ends = [line for line in lines if b'"event":{"type":"done"' in line or b'"event":{"type":"error"' in line]
        assert len(ends) == len(made.lanes)

    on_store(test)


def test_a_chain_starts_each_step_once_whoever_carries_it_on(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("chain", "one", "{{previous}} two")
        await store.dispatch.submit_flow(made, follower=None)
        assert await states(store, made) == [Status.QUEUED, None]
        await end(store, made.lanes[0], output="ONE")

        await asyncio.gather(*(store.dispatch.carry_on(made.id) for _ in range(5)))

        run = await store.runs.get(made.lanes[1].id)
        assert run is not None
        assert run.spec.prompt == "ONE two"
        assert (await store.hints()).count(made.lanes[1].id) == 1

    on_store(test)


def test_a_flow_whose_carrier_died_is_carried_on_by_the_sweep(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("chain", "one", "two")
        await store.dispatch.submit_flow(made, follower=None)
        await end(store, made.lanes[0])  # and nobody says so

        await swept(store, lambda: states(store, made), [Status.SUCCEEDED, Status.QUEUED])

    on_store(test)


async def swept(store: Store, ask: Any, wanted: Any) -> None:
    async with asyncio.timeout(6):
        while (found := await ask()) != wanted:
            await store.sweeper.sweep()
            await asyncio.sleep(0.02)
    assert found == wanted


def test_a_flow_that_nobody_follows_any_more_is_ended_and_a_detached_one_is_not(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        await store.api.renew()
        followed, detached = flow("parallel", "a", "b"), flow("parallel", "a")
        await store.dispatch.submit_flow(followed, follower="api_1")
        await store.dispatch.submit_flow(detached, follower=None)

        await store.dispatch.cancel_flow(followed.id, HUNG_UP, "unfollowed")
        record = await store.flows.get(followed.id)
        assert record is not None
        assert record.status is FlowStatus.RUNNING
        assert await store.api.remove(followed.id)
        for one in (followed, detached):
            await store.dispatch.cancel_flow(one.id, HUNG_UP, "unfollowed")

        assert await states(store, followed) == [Status.CANCELLED] * 2
        assert await states(store, detached) == [Status.QUEUED]
        record = await store.flows.get(followed.id)
        assert record is not None
        assert record.status is FlowStatus.CANCELLED

    on_store(test)


def test_a_worker_that_dies_in_a_step_ends_the_chain_with_a_true_cause(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("chain", "one", "two", "three", fail_fast=True)
        await store.dispatch.submit_flow(made, follower=None)
        await end(store, made.lanes[0])
        await store.dispatch.carry_on(made.id)
        assert await store.claim(made.lanes[1]) is not None  # and it is never heard of again

        await swept(store, lambda: states(store, made), [Status.SUCCEEDED, Status.FAILED, None])
        await store.dispatch.carry_on(made.id)

        record = await store.flows.get(made.id)
        assert record is not None
        assert record.status is FlowStatus.FAILED
        assert record.runs[0].attempt == 1
        assert record.runs[1].outcome is not None
        assert record.runs[1].outcome.failure is not None
        assert record.runs[1].outcome.failure.code == "worker_lost"
        assert record.closed[2].cause == "stopped_on_failure"

    on_store(test)


def test_a_chain_that_shares_a_directory_stays_on_its_host(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        await store.worker(queue="echo@h", id="ins_2")
        made = flow("chain", "one", "two")
        await store.dispatch.submit_flow(made, follower=None, sticky=True)
        await end(store, made.lanes[0])  # on the host h

        await store.dispatch.carry_on(made.id)

        assert await store.hints("echo@h") == [made.lanes[1].id]

    on_store(test)


def test_a_submit_whose_answer_was_lost_is_one_flow(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("parallel", "a", "b")
        for _ in range(2):
            await store.dispatch.submit_flow(made, follower=None)

        assert sorted(await store.hints()) == sorted(spec.id for spec in made.lanes)[: len(await store.hints())]
        assert (await store.flows.list("t", limit=10, offset=0))[1] == 1

    on_store(test)


def test_the_runs_of_a_flow_are_kept_as_long_as_it_lives_and_then_as_long_as_it_is_kept(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("chain", "one", "two")
        await store.dispatch.submit_flow(made, follower=None)
        await end(store, made.lanes[0])
        first = names.run(made.lanes[0].id)
        assert await store.redis("PTTL", first) == -1
        await store.dispatch.carry_on(made.id)
        await end(store, made.lanes[1])

        await store.dispatch.carry_on(made.id)

        assert 0 < await store.redis("PTTL", first) <= 60_000
        assert 0 < await store.redis("PTTL", names.run(made.id)) <= 60_000

    on_store(test)


def test_what_waits_for_its_own_flow_is_not_overdue_and_takes_no_place_from_others(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("parallel", *"abcdef", window=1)
        await store.dispatch.submit_flow(made, follower=None)

        assert await store.redis("ZCARD", names.WAITING) == 0
        assert (await store.runs.counts())["waiting"] == 5
        other = await store.add(max_depth=1)

        assert await store.status(other) is Status.QUEUED

    on_store(test)


def test_what_is_filled_in_has_a_limit(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("chain", "one", "{{previous}}" * 20, "three")
        await store.dispatch.submit_flow(made, follower=None)
        await end(store, made.lanes[0], output="x" * (1 << 20))

        await store.dispatch.carry_on(made.id)

        record = await store.flows.get(made.id)
        assert record is not None
        assert record.closed[1].code == "request_too_large"
        assert record.runs[2].status is Status.QUEUED

    on_store(test)


def test_carrying_on_loads_no_more_answers_than_the_next_step_names(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("chain", "one", "two", "{{steps.a}}", "four", names=("a", "", "", ""))
        await store.dispatch.submit_flow(made, follower=None)
        for lane in (0, 1):
            await end(store, made.lanes[lane], output=f"answer {lane}")
            await store.dispatch.carry_on(made.id)
        await end(store, made.lanes[2])

        bare, whole = await store.flows.get(made.id, outcomes=False), await store.flows.get(made.id)

        assert bare is not None
        assert whole is not None
        assert [bare.runs[lane].outcome for lane in (0, 1, 2)] == [None] * 3
        assert [run.status for run in bare.runs.values()] == [run.status for run in whole.runs.values()]
        assert whole.runs[2].spec.prompt == "answer 0"

    on_store(test)


def test_a_cancel_that_comes_after_the_last_success_changes_nothing(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("parallel", "a", "b")
        await store.dispatch.submit_flow(made, follower=None)
        for spec in made.lanes:
            await end(store, spec)  # and nobody has carried it on yet

        await store.dispatch.cancel_flow(made.id, CANCELLED)

        record = await store.flows.get(made.id)
        assert record is not None
        assert record.status is FlowStatus.SUCCEEDED

    on_store(test)


async def kept(store: Store, made: Flow) -> int:
    """How many events of the flow's own log are left after each of its lanes has said 200."""
    for spec in made.lanes:
        claim = await store.claim(spec, f"att_{spec.lane}")
        lines = [f'{{"type":"message","n":{n}}}'.encode() for n in range(200)]
        for first in range(0, 200, 50):
            await store.events.append([Batch(spec.id, claim.token, first + 1, lines[first : first + 50])])
        await store.runs.end(claim, Outcome(exit_code=0), retryable=False, first=201, events=[])
        await store.dispatch.carry_on(made.id)
    return int(await store.redis("XLEN", names.events(made.id)))


@pytest.mark.parametrize(("most", "left"), after(1, [(400, (400, 600)), (10_000, (8 * 201 + 1, 8 * 201 + 1))]))
def test_a_flows_log_has_room_for_what_its_lanes_keep_within_a_bound(on_store, most, left):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("parallel", *"abcdefgh", window=8)
        await store.dispatch.submit_flow(made, follower=None)

        assert left[0] <= await kept(store, made) <= left[1]

    on_store(test, max_events=201, max_flow_events=most)


def test_the_directory_of_a_chain_is_a_chore_of_its_hosts_in_the_step_that_ends_it(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        made = flow("chain", "one", "two")
        lanes = tuple(msgspec.structs.replace(spec, workspace=made.id) for spec in made.lanes)
        made = msgspec.structs.replace(made, lanes=lanes)
        await store.dispatch.submit_flow(made, follower=None, sticky=True)
        await end(store, lanes[0])
        await store.runs.cancel(lanes[0], CANCELLED)
        await store.dispatch.cancel_flow(made.id, CANCELLED)

        found = await store.sessions.chore("h")

        assert found is not None
        assert found[1] == Chore(workspace=made.id)
        assert await store.redis("PTTL", names.chores("h")) > 0

    on_store(test)
