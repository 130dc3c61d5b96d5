"""The life of a run in the store: every step once, whatever is doubled, late or lost."""

import asyncio
import json
from typing import Any

import pytest

from shared import event, names
from shared.errors import LogExpired, QueueFull
from shared.event import Message
from shared.run import Failure, Outcome, Status, Usage
from shared.store.events import Batch
from shared.store.followers import Followers
from shared.store.runs import Depth
from shared.sweep import Sweeper
from tests.store.store import Store

CANCELLED = Failure("cancelled", "by its caller", "cancelled")


def lines(first: int, *texts: str) -> list[bytes]:
    return [
        event.encode(Message(text), backend="echo", session_id="", sequence=first + i, at_s=0)
        for i, text in enumerate(texts)
    ]


def test_a_run_waits_until_a_worker_offers_its_backend_and_is_then_hinted_once(on_store):
    async def test(store: Store) -> None:
        spec = await store.add()
        assert await store.status(spec) is Status.WAITING

        await store.worker()
        await store.worker()

        assert await store.status(spec) is Status.QUEUED
        assert await store.hints() == [spec.id]

    on_store(test)


def test_a_submit_whose_answer_was_lost_may_be_sent_again(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        await store.runs.add(spec, "echo", follower=None, depth=Depth(10))

        assert await store.hints() == [spec.id]
        assert (await store.runs.counts()) == {"waiting": 0, "queued": 1, "running": 0}

    on_store(test)


def test_two_claims_of_one_run_give_it_to_one(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()

        first, second = await store.claim(spec, "att_1"), await store.claim(spec, "att_2")

        assert first is not None
        assert first.attempt == 1
        assert second is None
        assert await store.claim(spec, "att_1") is not None  # its first answer may have been lost

    on_store(test)


def test_events_sent_twice_are_stored_once_and_in_order(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        await store.claim(spec)

        assert await store.events.append([Batch(spec.id, "att_1", 1, lines(1, "a", "b"))]) == []
        assert await store.events.append([Batch(spec.id, "att_1", 2, lines(2, "b", "c"))]) == []

        got = [json.loads(line) for line in await store.events.read(spec.id, after=0)]
        assert [(e["sequence"], e["content"]["text"]) for e in got] == [(1, "a"), (2, "b"), (3, "c")]
        assert await store.events.read(spec.id, after=3) == []

    on_store(test)


def test_an_attempt_that_is_not_the_runs_own_changes_nothing(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        claim = await store.claim(spec)
        stale = type(claim)(spec, "att_old", 0, 1)

        assert await store.events.append([Batch(spec.id, "att_old", 1, lines(1, "a"))]) == [spec.id]
        assert await store.runs.end(stale, Outcome(), retryable=False, first=1, events=[]) == "lost"
        assert await store.status(spec) is Status.RUNNING

    on_store(test)


def test_an_end_carries_the_last_events_and_may_be_sent_again(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        claim = await store.claim(spec)
        outcome = Outcome(exit_code=0, output="hi")

        for _ in range(2):
            assert await store.runs.end(claim, outcome, retryable=False, first=1, events=lines(1, "hi")) == "ended"

        run = await store.runs.get(spec.id)
        assert run.status is Status.SUCCEEDED
        assert run.outcome == outcome
        got = [json.loads(line) for line in await store.events.read(spec.id, after=0)]
        assert [(e["type"], e["sequence"]) for e in got] == [("message", 1), ("done", 2)]
        assert (await store.runs.counts()) == {"waiting": 0, "queued": 0, "running": 0}

    on_store(test)


def test_the_window_of_a_backend_lets_the_next_run_in_only_when_one_leaves(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=1)  # and a little more: two
        specs = [await store.add() for _ in range(4)]
        assert await store.hints() == [s.id for s in specs[:2]]

        claim = await store.claim(specs[0])
        await store.runs.end(claim, Outcome(), retryable=False, first=1, events=[])

        assert await store.hints() == [s.id for s in specs[:3]]
        assert [await store.status(s) for s in specs] == ["succeeded", "queued", "queued", "waiting"]

    on_store(test)


def test_tenants_take_turns_and_interactive_runs_go_before_batch_ones(on_store):
    async def test(store: Store) -> None:
        many = [await store.add(tenant="a", priority="batch") for _ in range(5)]
        soon = await store.add(tenant="a")
        other = [await store.add(tenant="b") for _ in range(2)]

        await store.worker(slots=8)

        order = await store.hints()
        assert order == [soon.id, other[0].id, many[0].id, other[1].id, *[s.id for s in many[1:]]]

    on_store(test)


def test_a_tenants_own_window_holds_it_back_and_nobody_else(on_store):
    async def test(store: Store) -> None:
        await store.redis("HSET", names.LIMITS, "a", 1)
        await store.worker()
        first, second = await store.add(tenant="a"), await store.add(tenant="a")
        other = await store.add(tenant="b")
        assert await store.hints() == [first.id, other.id]

        await store.runs.cancel(first, CANCELLED)

        assert await store.status(second) is Status.QUEUED

    on_store(test)


def test_a_full_queue_refuses_and_keeps_nothing(on_store):
    async def test(store: Store) -> None:
        await store.add(max_depth=1)

        with pytest.raises(QueueFull):
            await store.add(id="run_refused", max_depth=1)

        assert await store.runs.get("run_refused") is None

    on_store(test)


def test_a_cancel_ends_what_waits_or_is_queued_and_orders_what_runs(on_store):
    async def test(store: Store) -> None:
        waiting = await store.add(backend="other")
        await store.worker()
        queued, running = await store.add(), await store.add()
        await store.claim(running)

        assert await store.runs.cancel(waiting, CANCELLED) == "ended"
        assert await store.runs.cancel(queued, CANCELLED) == "ended"
        assert await store.runs.cancel(running, CANCELLED) == "ordered"

        assert await store.status(waiting) is Status.CANCELLED
        assert await store.claim(queued) is None
        assert await store.runs.renew([(running.id, "att_1")]) == {running.id: CANCELLED}
        assert await store.runs.cancel(queued, CANCELLED) == "cancelled"

    on_store(test)


def test_a_run_that_nobody_follows_is_cancelled_and_one_that_somebody_follows_is_kept(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add(follower="api_1")
        detached = await store.add()
        assert await store.runs.cancel(spec, CANCELLED, "unfollowed") == "kept"

        assert await store.api.remove(spec.id) is True
        assert await store.api.remove(detached.id) is False

        assert await store.runs.cancel(spec, CANCELLED, "unfollowed") == "ended"
        assert await store.runs.cancel(detached, CANCELLED, "unfollowed") == "kept"

    on_store(test)


def test_the_sweep_ends_a_run_whose_lease_has_run_out_but_waits_a_lease_after_an_absence(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        claim = await store.claim(spec)
        await store.redis("ZADD", names.RUNNING, 1, spec.id)

        await store.sweeper.sweep()
        assert await store.status(spec) is Status.RUNNING  # nobody swept before: no judgement for a lease

        await until(store, lambda: store.status(spec), Status.FAILED)
        run = await store.runs.get(spec.id)
        assert run.outcome.failure.code == "worker_lost"
        assert await store.runs.end(claim, Outcome(), retryable=False, first=1, events=[]) == "ended"
        assert (await store.runs.get(spec.id)).status is Status.FAILED  # ended once

    on_store(test)


def test_a_lost_run_whose_caller_allowed_it_is_started_again_and_its_events_go_on(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add(retry=1)
        await store.claim(spec)
        await store.events.append([Batch(spec.id, "att_1", 1, lines(1, "a"))])
        await store.redis("ZADD", names.RUNNING, 1, spec.id)

        await until(store, lambda: store.status(spec), Status.QUEUED)

        claim = await store.claim(spec, "att_2")
        assert (claim.attempt, claim.sequence) == (2, 1)
        assert await store.events.append([Batch(spec.id, "att_1", 2, lines(2, "late"))]) == [spec.id]

    on_store(test)


def test_a_hint_that_was_lost_is_given_again(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        await store.redis("DEL", "echo")
        await store.redis("ZADD", names.QUEUED, 1, spec.id)

        await store.sweeper.sweep()

        assert await store.hints() == [spec.id]

    on_store(test)


def test_the_runs_of_a_dead_api_process_are_ended_when_nobody_else_follows(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec, shared_one = await store.add(follower="api_1"), await store.add(follower="api_1")
        other = Followers(store.scripts, "api_2", lease_s=60)
        await other.renew()
        await other.add(shared_one.id)
        await store.redis("ZADD", names.APIS, 1, "api_1")

        sweeper = store.sweeps(-1)
        await until(store, lambda: store.status(spec), Status.CANCELLED, sweeper)

        assert await store.status(shared_one) is Status.QUEUED

    on_store(test)


def test_a_follower_whose_place_was_trimmed_is_told_so(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        await store.claim(spec)
        await store.events.append([Batch(spec.id, "att_1", 1, lines(1, *"abcdef"))])
        await store.redis("XTRIM", names.events(spec.id), "MAXLEN", 2)

        with pytest.raises(LogExpired):
            await store.events.read(spec.id, after=1)

        assert len(await store.events.read(spec.id, after=4)) == 2

    on_store(test)


def test_the_log_of_a_run_is_bounded(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        await store.claim(spec)
        for start in range(1, 2001, 100):
            await store.events.append([Batch(spec.id, "att_1", start, lines(start, *["x"] * 100))])

        assert await store.redis("XLEN", names.events(spec.id)) < 400

    on_store(test, max_events=200)


def test_an_ended_run_leaves_nothing_that_does_not_expire(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add(follower="api_1")
        claim = await store.claim(spec)
        await store.runs.end(claim, Outcome(), retryable=False, first=1, events=[])
        await store.api.remove(spec.id)

        for name in await store.redis("KEYS", "*"):
            if spec.id.encode() in name or b"held" in name or b"line" in name:
                assert await store.redis("PTTL", name) > 0, name

    on_store(test)


async def until(store: Store, ask: Any, wanted: Any, sweeper: Sweeper | None = None) -> None:
    """Sweeps until it is so, or five seconds have passed; the sweep's own clock sets the pace."""
    async with asyncio.timeout(5):
        while await ask() != wanted:
            await (sweeper or store.sweeper).sweep()


def test_a_run_that_was_cancelled_is_not_started_again_for_its_retry(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add(retry=1)
        claim = await store.claim(spec)
        assert await store.runs.cancel(spec, CANCELLED) == "ordered"

        how = await store.runs.end(claim, Outcome(failure=CANCELLED), retryable=True, first=1, events=[])

        assert how == "ended"
        assert await store.status(spec) is Status.CANCELLED

    on_store(test)


def test_a_run_that_lies_in_a_queue_too_long_ends(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        assert await store.status(spec) is Status.QUEUED
        await store.redis("HSET", names.run(spec.id), "created", 1)  # long ago
        await store.redis("ZADD", names.QUEUED, 1, spec.id)

        await until(store, lambda: store.status(spec), Status.FAILED)

    on_store(test)


def test_a_queue_that_nobody_offers_any_more_is_forgotten(on_store):
    async def test(store: Store) -> None:
        await store.worker(queue="echo@pod-1")
        await store.hosts.retire("ins_1")

        await store.sweeper.sweep()

        assert await store.redis("SMEMBERS", names.QUEUES) == []
        assert await store.redis("KEYS", "clinvk:room:*") == []

    on_store(test)


def test_every_end_is_counted_once(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        good, bad, early = [await store.add() for _ in range(3)]
        for spec, failure in ((good, None), (bad, Failure("backend_login", "m", "login"))):
            claim = await store.claim(spec)
            for _ in range(2):
                outcome = Outcome(exit_code=0, failure=failure, usage=Usage(10, 4, 0, 1))
                await store.runs.end(claim, outcome, retryable=False, first=1, events=[])
        await store.runs.cancel(early, CANCELLED)

        totals = await store.runs.totals()

        ends = {name: count for name, count in totals.items() if name.startswith("ended|")}
        assert ends == {
            "ended|echo|succeeded||": 1,
            "ended|echo|failed|backend_login|login": 1,
            "ended|echo|cancelled|cancelled|cancelled": 1,
        }
        assert (totals["tokens|echo|input"], totals["tokens|echo|reasoning"]) == (20, 2)
        assert sum(count for name, count in totals.items() if name.startswith("took|")) == 2

    on_store(test)
