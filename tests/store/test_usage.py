"""What a run has used is written down with its end, once, whatever that end was; and the windows of keys."""

import time
from typing import Any

from shared import names
from shared.dispatch import CANCELLED
from shared.run import Failure, Outcome, RunSpec, Status, Usage
from shared.store import usage as store_usage
from tests.store.store import Store


async def used(store: Store, tenants: list[str] | None = None) -> dict[tuple[str, ...], dict[str, int]]:
    today = int(time.time() // 86400)
    rows = await store_usage.Usage(store.scripts).read([today - 1, today, today + 1], tenants)
    return {(one.tenant, one.key, one.backend, one.model): one.measures for one in rows}


async def carried_out(store: Store, spec: RunSpec, outcome: Outcome, **more: Any) -> str:
    claim = await store.claim(spec)
    return await store.runs.end(claim, outcome, **{"retryable": False, "first": 1, "events": [], **more})


def test_each_end_of_a_run_is_charged_once_with_what_was_reported(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        one = await store.add(tenant="a", key="key-1", model="opus")
        two = await store.add(tenant="a", key="key-1", model="opus")
        three = await store.add(tenant="b")
        good = Outcome(exit_code=0, usage=Usage(10, 5, 3, 1), cost_usd=0.0125, model="opus-4", output='x "model":"no"')
        bad = Outcome(exit_code=1, usage=Usage(2, 1), failure=Failure("backend_error", '"model":"fake"', "crashed"))
        claim = await store.claim(one)
        for _ in range(2):  # an answer that was lost is asked for again
            await store.runs.end(claim, good, retryable=False, first=1, events=[])
        await carried_out(store, two, bad)
        assert await store.runs.cancel(three, CANCELLED) == "ended"
        assert await store.runs.cancel(three, CANCELLED) == "cancelled"

        found = await used(store)

        assert set(found) == {
            ("a", "key-1", "echo", "opus-4"),
            ("a", "key-1", "echo", "opus"),
            ("b", "", "echo", "default"),
        }
        first = found["a", "key-1", "echo", "opus-4"]
        assert first.pop("took_ms") >= 0
        assert first == {
            "succeeded": 1,
            "input_tokens": 10,
            "output_tokens": 5,
            "cached_tokens": 3,
            "reasoning_tokens": 1,
            "cost_microusd": 12500,
        }
        assert found["a", "key-1", "echo", "opus"]["failed"] == 1
        assert found["a", "key-1", "echo", "opus"]["input_tokens"] == 2
        assert found["b", "", "echo", "default"] == {"cancelled": 1, "took_ms": 0}
        assert set(await used(store, ["b"])) == {("b", "", "echo", "default")}

    on_store(test)


def test_a_run_whose_worker_died_is_charged_when_it_is_swept_and_not_while_it_is_tried_again(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add(retry=1)
        for _ in range(2):
            await store.claim(spec)
            await store.redis("DEL", "clinvk:hold")
            await store.redis("ZADD", "clinvk:running", 1, spec.id)
            await store.runs.expire(spec, Failure("worker_lost", "gone", "worker_lost"))

        assert await store.status(spec) is Status.FAILED
        assert (await used(store))["t", "", "echo", "default"]["failed"] == 1

    on_store(test)


def test_callers_cannot_make_up_models_without_end(on_store):
    async def test(store: Store) -> None:
        today = (await store.redis("TIME"))[0]
        name = names.usage(int(today) // 86400, "t")
        await store.redis("HSET", name, *[part for n in range(1999) for part in (f"took_ms||echo|m{n}", 1)])
        for model in ("last\n|x" + "y" * 300, "one more", "and another", "m7"):
            await store.runs.cancel(await store.add(model=model), CANCELLED)

        found = await used(store)

        assert found["t", "", "echo", "(other)"]["cancelled"] == 2
        assert found["t", "", "echo", "m7"] == {"took_ms": 1, "cancelled": 1}
        assert found["t", "", "echo", "last_|x" + "y" * 93]["cancelled"] == 1
        assert len(found) == 1999 + 2

    on_store(test)


def test_a_key_with_a_window_has_so_many_runs_at_once_and_others_of_its_tenant_go_on(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=50)
        mine = [await store.add(key="key-1", key_window=2) for _ in range(4)]
        others = [await store.add(key="key-2") for _ in range(2)]

        assert [await store.status(spec) for spec in mine] == [Status.QUEUED] * 2 + [Status.WAITING] * 2
        assert [await store.status(spec) for spec in others] == [Status.QUEUED] * 2
        runs, total = await store.runs.list("t", limit=10, offset=0)
        assert (len(runs), total) == (6, 6)
        await carried_out(store, mine[0], Outcome(exit_code=0))
        assert await store.status(mine[2]) is Status.QUEUED
        assert await store.status(mine[3]) is Status.WAITING
        assert await store.runs.forget(mine[0].id)
        assert (await store.runs.list("t", limit=10, offset=0))[1] == 5

    on_store(test)


def test_a_window_leaks_no_slot_when_its_runs_are_lost_cancelled_or_tried_again(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=50)
        for how in ("lost", "cancelled", "again"):
            specs = [await store.add(key="key-1", key_window=3, retry=int(how == "again")) for _ in range(5)]
            for spec in specs * 3:
                if how == "cancelled":
                    await store.runs.cancel(spec, CANCELLED)
                elif await store.claim(spec) is not None:
                    await store.redis("DEL", "clinvk:hold")
                    await store.redis("ZADD", "clinvk:running", 1, spec.id)
                    await store.runs.expire(spec, Failure("worker_lost", "gone", "worker_lost"))

            assert all([(await store.status(spec)).final for spec in specs]), how
            assert await store.redis("SCARD", "clinvk:held:tenant:key-1") == 0

    on_store(test)


def test_a_window_can_be_made_wider_and_taken_away(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=50)
        specs = [await store.add(tenant="key-1", key="key-1", key_window=1) for _ in range(3)]
        await store.add(tenant="key-1", key="key-1", key_window=3)
        assert [await store.status(spec) for spec in specs] == [Status.QUEUED] * 3

        free = [await store.add(tenant="key-1", key="key-1") for _ in range(5)]

        assert [await store.status(spec) for spec in free] == [Status.QUEUED] * 5

    on_store(test)
