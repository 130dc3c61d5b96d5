"""Whose turn it is: tenants in turn, interactive before batch."""

from typing import Any

import pytest

from shared.ids import new_id
from shared.run import Outcome, RunSpec
from shared.store.runs import Depth
from tests.store.store import Store


async def line_up(store: Store, tenant: str, count: int, priority: str) -> None:
    for number in range(count):
        spec = RunSpec(
            id=f"run_{tenant}{number:04}-{priority}-{new_id('x')}",
            tenant=tenant,
            backend="echo",
            prompt="p",
            priority=priority,  # type: ignore[arg-type]  # one of the two
        )
        await store.runs.add(spec, "echo", follower=None, depth=Depth(100_000))


async def served(store: Store, count: int) -> list[str]:
    """The order in which a worker of few slots claims them."""
    order: list[str] = []
    while len(order) < count:
        for message in (await store.hints())[:1]:
            await store.redis("RPOP", "echo")
            claim: Any = await store.runs.claim(message, "att", host="h", instance="i")
            assert claim is not None
            order.append(message)
            await store.runs.end(claim, Outcome(exit_code=0), retryable=False, first=1, events=[])
    return order


@pytest.mark.parametrize("make_redis", [pytest.param("real", marks=pytest.mark.redis)], indirect=True)
def test_a_caller_with_a_thousand_runs_does_not_starve_another(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=1)
        await line_up(store, "a", 1000, "interactive")
        await line_up(store, "b", 10, "interactive")

        order = await served(store, 25)

        assert sum(id.startswith("run_b") for id in order[:24]) == 10

    on_store(test)


def test_the_tens_of_another_caller_are_among_the_next_twenty_the_interactive_ones_first(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=1)
        await line_up(store, "a", 60, "interactive")
        await line_up(store, "b", 5, "batch")
        await line_up(store, "b", 5, "interactive")

        order = await served(store, 22)

        others = [id for id in order[2:] if id.startswith("run_b")]  # the first two had room at once
        assert [id.split("-")[1] for id in others] == ["interactive"] * 5 + ["batch"] * 5

    on_store(test)


def test_interactive_goes_before_batch_within_a_tenant_and_each_in_its_order(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=1)
        await line_up(store, "a", 20, "batch")
        await line_up(store, "a", 5, "interactive")

        order = await served(store, 25)

        waiting = order[2:]  # the first two had room at once
        assert [id for id in waiting if "interactive" in id] == waiting[:5]
        numbers = [int(id[5:9]) for id in waiting[5:]]
        assert numbers == sorted(numbers)

    on_store(test)
